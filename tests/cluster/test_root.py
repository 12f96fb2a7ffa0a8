"""``slurm/root``: its messages, and that nothing of a command there is left, however it ends."""

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cluster import lab
from tests.cluster.lab import living

SCRIPT = lab.ROOT / "slurm" / "root"
PROGRAMS = ("/usr/bin/env", "/bin/sh", "/bin/sleep", "/bin/cat", "/bin/ls")

pytestmark = pytest.mark.slurm


def root(*words: object) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with a handful of programs and their libraries, in place of a Debian."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("new namespaces of mounts are forbidden, by this machine or because it is a chroot")
    said = subprocess.run(["ldd", *PROGRAMS], capture_output=True, text=True, check=True).stdout
    for path in {*PROGRAMS, *re.findall(r"(/\S+) \(0x", said)}:
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path[1:])
    (tmp_path / ".made").touch()
    return tmp_path


def test_a_command_has_the_checkout_and_what_says_how_registries_are_reached(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example")
    monkeypatch.setenv("SLURM_CONF", "/not/carried")
    done = root("run", folder, "sh", "-c", "ls slurm /dev/null; env; cat /proc/self/status; exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    said = done.stdout.split()
    assert {"cluster", "root", "/dev/null", "PIP_INDEX_URL=https://packages.example"} <= set(said)
    assert "SLURM_CONF=/not/carried" not in said
    assert re.search(r"^SigIgn:\t0+$", done.stdout, re.MULTILINE)  # Ctrl-C is not ignored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left(folder: Path, number: int) -> None:
    command = ["env", "--default-signal=INT", str(SCRIPT), "run", str(folder), "sh", "-c", "sleep 98768 & sleep 98768"]
    with subprocess.Popen(command, start_new_session=True) as process:
        lab.until(lambda: living("sleep 98768").count("sleep 98768 ") == 2, what="the command")
        assert "another command runs in" in root("run", folder, "env").stderr
        process.send_signal(number)
        assert process.wait(20) in {130, -signal.SIGKILL}
    lab.until(lambda: not living("sleep 98768"), what="the end of its processes")
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert not list((folder / "proc").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bogus", "x"), "no command 'bogus' (slurm/root help)"),
        (("make",), "make takes a folder"),
        (("make", "FOLDER"), "make FOLDER RELEASE"),
        (("run", "FOLDER", "true"), "is no root; make it with: slurm/root make "),
    ],
)
def test_a_wrong_word_is_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = root(*(str(tmp_path / "new") if word == "FOLDER" else word for word in words))
    assert (done.returncode, done.stderr.count("\n"), message in done.stderr) == (2, 1, True), done.stderr
    assert not (tmp_path / "new").exists()
