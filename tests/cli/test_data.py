"""``cnnjob prepare`` and ``cnnjob show`` as typed: what they refuse, and what they say of what is not there yet."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cnnjob.cli import data
from cnnjob.cli.main import app


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
        (".", 2, "cnnjob: .: not a file (found a folder)"),
        (
            "paper.pdf",
            2,
            "cnnjob: paper.pdf: it exists and is not a dataset of cnnjob (found a file that is no dataset)",
        ),
        ("paper.pdf/x.h5", 3, "cnnjob: paper.pdf/x.h5: cannot be written ("),
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-m", "cnnjob", "prepare", "pets"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as child:
        while not list(here.glob("data/.pets.h5.*")):
            assert child.poll() is None
            time.sleep(0.001)
        child.send_signal(number)
        _, stderr = child.communicate()
    assert (child.returncode, stderr.splitlines()[-1]) == (130, "cnnjob: interrupted"), stderr
    assert list((here / "data").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_ignores_comes_again(number: signal.Signals) -> None:
    class Grave:
        def __del__(self) -> None:
            signal.raise_signal(number)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), data.ending_as_interrupted():  # noqa: PT012 - it is to come in between
        Grave()
        time.sleep(60)
    assert time.monotonic() - begin < 60


JOB = """
[model]
blocks = [{ conv = 4, kernel = 3, pool = 2 }, { dense = 8 }]
[train]
epochs = 2
batch_size = 8
learning_rate = 0.05
"""


@pytest.mark.parametrize(
    ("name", "block", "images"),
    [
        ("mnist", "28×28×1", "60,000"),
        ("fashion-mnist", "28×28×1", "60,000"),
        ("cifar10", "32×32×3", "50,000"),
        ("cifar100", "32×32×3", "50,000"),
        ("digits", "8×8×1", "1,437"),
    ],
)
def test_a_job_is_shown_before_its_dataset_is_prepared(here: Path, name: str, block: str, images: str) -> None:
    (here / "job.toml").write_text(f'dataset = "{name}"\n{JOB}')
    shown = cnnjob("show", "job.toml", "--set", "data.validation_fraction=0", "--set", "train.select_on='test'")
    assert shown.exit_code == 0, shown.output
    assert re.search(rf"^conv1 +{block} ", shown.stdout, re.MULTILINE)
    assert f"\nimages: {images} to train on, 0 held out" in shown.stdout
    assert "\nmemory of the arrays: " in shown.stdout
    assert shown.stdout.endswith(f"\ndata/{name}.h5 is not prepared yet; its sizes are those of the catalogue\n")
    assert "\nrun: " not in shown.stdout


def test_what_the_catalogue_says_is_what_packing_gives(here: Path) -> None:
    (here / "job.toml").write_text(f'dataset = "digits"\n{JOB}')
    before = cnnjob("show", "job.toml").stdout
    assert cnnjob("prepare", "digits").exit_code == 0
    after = cnnjob("show", "job.toml").stdout
    assert before.splitlines()[:-1] == after.splitlines()[:-1]
    assert after.splitlines()[-1].startswith("run: job-")


def test_a_job_of_an_unknown_or_damaged_dataset_is_refused(here: Path) -> None:
    (here / "job.toml").write_text(f'dataset = "nope"\n{JOB}')
    unknown = cnnjob("show", "job.toml")
    assert unknown.exit_code == 3
    assert "data/nope.h5: no such dataset, " in unknown.stderr
    assert "pack one of mnist, fashion-mnist, cifar10, cifar100, digits, or " in unknown.stderr
    assert "`cnnjob prepare folder PATH --out data/nope.h5`" in unknown.stderr
    assert cnnjob("show", "job.toml", "--set", "dataset=other/x.h5").exit_code == 3
    (here / "data").mkdir()
    (here / "data" / "mnist.h5").touch()
    damaged = cnnjob("show", "job.toml", "--set", "dataset=mnist")
    assert (damaged.exit_code, "not readable as a prepared dataset" in damaged.stderr) == (3, True)


def test_a_broken_job_is_listed_with_what_is_wrong(here: Path) -> None:
    (here / "jobs").mkdir()
    (here / "jobs" / "a.toml").write_text("epochs = \n")
    (here / "jobs" / "b.toml").write_text(f'dataset = "mnist"\n{JOB}epoch = 3\n')
    (here / "jobs" / "c.toml").write_text(f'dataset = "mnist"\n{JOB}')
    listed = cnnjob("show")
    assert listed.exit_code == 0, listed.output
    assert re.search(r"^a +jobs/a.toml: not readable as TOML, ", listed.stdout, re.MULTILINE)
    assert re.search(r"^b +jobs/b.toml: not a valid job: train.epoch: no such key", listed.stdout, re.MULTILINE)
    assert re.search(r"^c +mnist +jobs/c.toml *$", listed.stdout, re.MULTILINE)


@pytest.mark.usefixtures("here")
def test_nothing_stands_on_a_stderr_that_is_no_terminal() -> None:
    prepared = cnnjob("prepare", "digits")
    assert (prepared.exit_code, prepared.stderr) == (0, "")
