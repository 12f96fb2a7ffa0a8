"""``cnnjob prepare`` and ``cnnjob show`` as typed: what they refuse, and what they say of what is not there yet."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cnnjob.cli import app


def cnnjob(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("out", "code", "message"),
    [
        ("", 2, "cnnjob: --out '': no name of a file"),
        ("new/", 2, "cnnjob: --out new/: no name of a file"),
        (".", 2, "cnnjob: .: not a file, found a folder"),
        ("paper.pdf", 2, "cnnjob: paper.pdf: already there, found no dataset of this program; give another --out"),
        ("paper.pdf/x.h5", 3, "cnnjob: paper.pdf/x.h5: cannot be written, found "),
    ],
)
def test_an_out_that_cannot_be(here: Path, out: str, code: int, message: str) -> None:
    (here / "paper.pdf").write_text("%PDF")
    refused = cnnjob("prepare", "digits", "--out", out)
    assert (refused.exit_code, refused.stdout) == (code, "")
    assert refused.stderr.startswith(message)
    assert refused.stderr.count("\n") == 1
    assert [path.read_text() for path in here.iterdir()] == ["%PDF"]
    assert cnnjob("prepare", "digits", "--out", "paper.pdf", "--force").exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_half_written(here: Path, number: signal.Signals) -> None:
    """It comes as soon as the temporary file is there, and so many large images take a second."""
    for split, count in (("train", 60), ("test", 1)):
        (here / "pets" / split / "cat").mkdir(parents=True)
        for place in range(count):
            (here / "pets" / split / "cat" / f"{place}.jpeg").symlink_to(here / "large.jpeg")
    Image.new("RGB", (1400, 1400)).save(here / "large.jpeg")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    arguments = [sys.executable, "-m", "cnnjob", "prepare", "pets"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as child:
        while not list(here.glob("data/.pets.h5.*")):
            assert child.poll() is None
            time.sleep(0.001)
        child.send_signal(number)
        _, stderr = child.communicate()
    assert (child.returncode, stderr.splitlines()[-1]) == (130, "cnnjob: interrupted"), stderr
    assert list((here / "data").iterdir()) == []
