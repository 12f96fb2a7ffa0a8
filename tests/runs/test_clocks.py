"""Clocks that differ, and process numbers of another container: neither decides who is alive."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cnnjob import files
from cnnjob.errors import BusyError
from cnnjob.runs import clock
from cnnjob.runs.claims import claim
from cnnjob.runs.process import HEARTBEAT_LIMIT_SECONDS
from cnnjob.runs.run import Run
from cnnjob.runs.summary import read_summary
from tests.helpers.cli import cnnjob
from tests.helpers.run_folders import change_json, pending_run, running_run

ROOT = Path(__file__).parents[2]
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now)
{
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (clock == CLOCK_REALTIME)
        now->tv_sec += atol(getenv("AHEAD"));
    return failed;
}
"""
"""A clock that differs from the kernel's, by which files are dated, as one machine's does from a file server's."""
FACTS = """
import json, sys
from pathlib import Path
from cnnjob.runs.claims import claim
from cnnjob.errors import BusyError
from cnnjob.runs.run import Run
from cnnjob.slurm import cleanup as find_leftovers
from cnnjob.runs.summary import read_summary
from typer.testing import CliRunner
from cnnjob.cli.main import app
told = {run.name: [read_summary(run).state, "; ".join(read_summary(run).notes)] for run in Run.all(Path("runs"))}
told["stderr"] = CliRunner().invoke(app, ["status"]).stderr
told["clean"] = [one.path.name for one in find_leftovers.find_leftovers(Path("runs"), Path("data"))]
for run in Run.all(Path("runs")):
    try:
        told[run.name].append(str(claim(run).number))
    except (BusyError, PermissionError) as error:
        told[run.name].append(type(error).__name__)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clock above, to be loaded before the C library."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    place = tmp_path_factory.mktemp("clock")
    (place / "clock.c").write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"], check=True, cwd=place)
    return place / "clock.so"


def held_elsewhere(seed: int, silent_seconds: float) -> Run:
    """A run that a process of another host holds, which was heard of so long ago."""
    run = running_run(Path("runs"), epochs=0, seed=seed)
    change_json(run.attempt_files()[-1], host="elsewhere")
    for path in (run.attempt_files()[-1], run.heartbeat_file):
        os.utime(path, (time.time() - silent_seconds,) * 2)
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """A run that lives on another host and one that is lost there, and a temporary file of a minute."""
    monkeypatch.chdir(tmp_path)
    found = [held_elsewhere(0, 20), held_elsewhere(1, HEARTBEAT_LIMIT_SECONDS + 60)]
    (found[0].path / ".x.elsewhere-1-0badcafe.tmp").touch()
    return found


def told_by_another_clock(library: Path, ahead_seconds: int, *command: str) -> dict[str, Any]:
    variables = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "AHEAD": str(ahead_seconds),
        "PATH": "",
        "PYTHONPATH": str(ROOT),
    }
    words = [*command, sys.executable, "-c", FACTS]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(("ahead", "said"), [(90_000, "1,500 min ahead of"), (-3600, "60 min behind")])
def test_a_clock_that_differs_from_the_file_systems_changes_no_state(
    library: Path, runs: list[Run], ahead: int, said: str
) -> None:
    told = told_by_another_clock(library, ahead)
    assert [told[run.name] for run in runs] == [["running", "", "BusyError"], ["lost", "", "2"]]
    assert told["stderr"] == (
        f"cnnjob: warning: runs: the clock of this machine is {said} the file system's clock, by which ages "
        "are measured. Ask the administrators to correct this machine's clock\n"
    )
    assert told["clean"] == []


def test_where_nothing_can_be_written_this_machines_clock_is_used_and_said(library: Path, runs: list[Run]) -> None:
    """Root may write anywhere, unless it gives up the capability to do so."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and not setpriv:
        pytest.skip("root needs setpriv to see a folder that it cannot write")
    as_user = [setpriv, "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if setpriv else []
    folders = [Path("runs"), *(place for run in runs for place in (run.path, run.attempts_folder))]
    for folder in folders:
        folder.chmod(0o555)
    told = told_by_another_clock(library, 3600, *as_user)
    for folder in folders:
        folder.chmod(0o755)
    note = "the last heartbeat's age is measured by this machine's clock, since the file system's cannot be read here"
    assert [told[run.name] for run in runs] == [["lost", note, "PermissionError"]] * 2


def test_the_clock_is_read_once_for_many_runs(runs: list[Run]) -> None:
    clock._read.cache_clear()
    for number in range(50):
        shutil.copytree(runs[0].path, f"runs/{number}")
    before = set(Path("runs").rglob("*"))
    for run in Run.all(Path("runs")):
        read_summary(run)
    assert clock._read.cache_info().misses <= 2  # two at the end of a period
    assert set(Path("runs").rglob("*")) == before


def test_the_clock_of_a_folder_on_another_disk_is_not_the_folders(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    assert not clock.is_readable(tmp_path, other)
    assert clock.is_readable(tmp_path, other, tmp_path)
    assert clock.describe_skew(tmp_path / "not there") == ""


HOLD = """
import sys
from pathlib import Path
from cnnjob.runs.claims import claim
from cnnjob.runs.run import Run
held = claim(Run(Path(sys.argv[1])))
print(held.record["pid"], flush=True)
sys.stdin.readline()
held.beat()
held.check()
print("alive", flush=True)
"""


def test_a_process_in_another_container_of_this_machine_holds_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a number of its own there, which is another process here."""
    container = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*container, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no name space for processes can be made here")
    monkeypatch.chdir(tmp_path)
    run = pending_run(Path("runs"))
    words = [*container, sys.executable, "-c", HOLD, str(run.path)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert run.state() == "running"
        with pytest.raises(BusyError):
            claim(run)
        said = cnnjob("cancel", str(run.path))
        assert (said.exit_code, f"there:\n  kill -TERM {pid}\n" in said.stdout) == (5, True)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "alive\n"
    assert run.state() == "running"  # nobody here can know


HIDDEN = """
import os, sys
from pathlib import Path
from cnnjob import files
from cnnjob.runs.run import Run
os.chdir(sys.argv[1])
os.setgroups([])
os.setegid(65534)  # the group 0 sees all
os.seteuid(65534)
print(Run(Path()).state(), files.writer_is_gone(Path(sys.argv[2])))
"""


def test_a_process_that_is_hidden_is_not_taken_for_dead(tmp_path: Path) -> None:
    """``hidepid=2`` shows each user no processes but their own."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("root mounts a /proc that hides processes")
    run = Run(tmp_path / "run")
    run.path.mkdir()
    claim(run)
    subprocess.run(["chmod", "-R", "a+rX", run.path], check=True)
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh"]
    words = [*mounted, sys.executable, "-c", HIDDEN, str(run.path), files.temporary_name(Path("a")).name]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=variables, check=False)
    assert done.stdout == "running False\n", done.stderr
