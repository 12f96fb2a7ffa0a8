"""``cnnjob prepare`` and ``cnnjob show`` as typed: what they refuse, and what they say of what is not there yet."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import indent

import h5py
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cnnjob.cli.data.prepare import ending_as_interrupted
from cnnjob.cli.main import app
from cnnjob.jobs.job import Job
from cnnjob.jobs.reference import EXAMPLE, list_keys
from cnnjob.training.default_job import DefaultJobs
from tests.helpers.image_sources import write_images


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
        ("", 2, "cnnjob: --out '': not a file name"),
        ("new/", 2, "cnnjob: --out new/: not a file name"),
        (".", 2, "cnnjob: .: not a file (found a folder)"),
        (
            "paper.pdf",
            2,
            "cnnjob: paper.pdf: the name of a prepared file must end in .h5 so that other commands recognise it "
            "(found 'paper.pdf')",
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
    assert cnnjob("prepare", "digits", "--out", "paper.pdf", "--force").exit_code == 2
    assert [path.read_text() for path in here.iterdir()] == ["%PDF"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_half_written(here: Path, number: signal.Signals) -> None:
    """It comes as soon as the temporary file is there, and so many large images take a second."""
    for split, label, count in (("train", "cat", 60), ("train", "dog", 1), ("test", "cat", 1), ("test", "dog", 1)):
        (here / "pets" / split / label).mkdir(parents=True)
        for place in range(count):
            (here / "pets" / split / label / f"{place}.jpeg").symlink_to(here / "large.jpeg")
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
    with pytest.raises(KeyboardInterrupt), ending_as_interrupted():  # noqa: PT012 - it is to come in between
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
    assert f"\nimages: {images} for training, 0 for validation" in shown.stdout
    assert "\nmemory of the arrays: " in shown.stdout
    assert shown.stdout.endswith(f"\ndata/{name}.h5 is not prepared yet; the sizes are from the catalogue\n")
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
    names = "mnist, fashion-mnist, cifar10, cifar100, digits"
    message = f"data/nope.h5: no such dataset, and nope is not one of {names}. To prepare your own images:"
    assert message in unknown.stderr
    assert "\n  cnnjob prepare PATH --out data/nope.h5\n" in unknown.stderr
    assert cnnjob("show", "job.toml", "--set", "dataset=other/x.h5").exit_code == 3
    (here / "data").mkdir()
    (here / "data" / "mnist.h5").touch()
    damaged = cnnjob("show", "job.toml", "--set", "dataset=mnist")
    assert (damaged.exit_code, "cannot be read as a prepared dataset" in damaged.stderr) == (3, True)


def test_a_broken_job_is_listed_with_what_is_wrong(here: Path) -> None:
    (here / "jobs").mkdir()
    (here / "jobs" / "a.toml").write_text("epochs = \n")
    (here / "jobs" / "b.toml").write_text(f'dataset = "mnist"\n{JOB}epoch = 3\n')
    (here / "jobs" / "c.toml").write_text(f'dataset = "mnist"\n{JOB}')
    listed = cnnjob("show")
    assert listed.exit_code == 0, listed.output
    assert re.search(r"^a +jobs/a.toml: not readable as TOML \(", listed.stdout, re.MULTILINE)
    assert re.search(r"^b +jobs/b.toml: not a valid job: train.epoch: no such key", listed.stdout, re.MULTILINE)
    assert re.search(r"^c +mnist +jobs/c.toml *$", listed.stdout, re.MULTILINE)


@pytest.mark.usefixtures("here")
def test_nothing_stands_on_a_stderr_that_is_no_terminal() -> None:
    prepared = cnnjob("prepare", "digits")
    assert (prepared.exit_code, prepared.stderr) == (0, "")


def draw(folder: Path, count: int) -> None:
    for split in ("train", "test"):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                colour = (60 * number, len(split), ord(label))
                Image.new("RGB", (9, 8), colour).save(folder / split / label / f"{number}.png")


def test_the_printed_commands_work(here: Path) -> None:
    draw(here / "my photos", 3)
    prepared = cnnjob("prepare", "my photos")
    assert (prepared.exit_code, prepared.stdout.splitlines()[-2]) == (0, "To train on it:")
    program, *command = shlex.split(prepared.stdout.splitlines()[-1])
    assert (program, command) == ("cnnjob", ["train", "my photos"])
    trained = cnnjob(*command, "--set", "train.epochs=2")
    assert trained.exit_code == 0, trained.output
    written = cnnjob("new", "my photos")
    assert written.exit_code == 0, written.output
    assert shlex.split(written.stdout.splitlines()[-1]) == ["cnnjob", "train", "my photos"]
    assert (here / "jobs" / "my photos.toml").read_text().startswith("# A job for my photos")
    again = cnnjob("train", "my photos", "--set", "train.epochs=2")
    assert again.stdout.replace("was finished", "finished") == trained.stdout  # the same run
    refused = cnnjob("new", "my photos")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "cnnjob: jobs/my photos.toml: already exists. Edit it, or remove it first\n",
    )


@pytest.mark.usefixtures("here")
def test_new_needs_a_dataset() -> None:
    missing = cnnjob("new", "photos")
    assert (missing.exit_code, "data/photos.h5: no such dataset." in missing.stderr) == (3, True)


@pytest.mark.usefixtures("here")
def test_new_says_which_included_job_it_replaces() -> None:
    assert cnnjob("prepare", "digits").exit_code == 0
    written = cnnjob("new", "digits")
    assert written.exit_code == 0
    assert written.stderr.startswith(
        "cnnjob: warning: jobs/digits.toml: takes precedence in this folder over the included job digits, "
    )


def test_a_dataset_of_a_name_that_a_job_of_another_has_is_trained_by_its_file(here: Path) -> None:
    draw(here / "cifar10-baseline", 2)
    prepared = cnnjob("prepare", "cifar10-baseline")
    assert prepared.stdout.splitlines()[-1].strip() == "cnnjob train data/cifar10-baseline.h5"


def test_show_lists_every_file_by_what_it_contains(here: Path) -> None:
    draw(here / "mnist", 2)
    assert cnnjob("prepare", "folder", "mnist").exit_code == 0
    assert cnnjob("prepare", "digits", "--out", "data/numbers.h5").exit_code == 0
    (here / "data" / "broken.h5").write_bytes(b"x")
    listed = cnnjob("show").stdout
    assert re.search(
        r"^mnist +data/mnist.h5 +8 images, 8x9 colour, 2 classes; not a published source", listed, re.MULTILINE
    )
    assert re.search(r"^digits +data/numbers.h5 +1,797 handwritten digits", listed, re.MULTILINE)
    assert re.search(r"^broken +data/broken.h5 +data/broken.h5: ", listed, re.MULTILINE)
    assert re.search(r"^cifar10 +not prepared +60,000 photographs", listed, re.MULTILINE)


def test_a_file_that_another_program_writes_is_left_alone(here: Path) -> None:
    (here / "data").mkdir()
    with h5py.File(here / "data" / "digits.h5", "w") as file:
        file["weights"] = [1.5]
        refused = cnnjob("prepare", "digits")
    assert (refused.exit_code, "open" in refused.stderr) == (2, True)
    assert "--force" not in refused.stderr
    refused = cnnjob("prepare", "digits")
    assert "not a cnnjob dataset (found another program's HDF5 file). Choose another --out\n" in refused.stderr


@pytest.mark.usefixtures("here")
def test_names_in_capitals_are_suggested() -> None:
    for name in ("CIFAR10", "Mnist"):
        assert f"Did you mean {name.lower()}?" in cnnjob("prepare", name).stderr
        assert f"Did you mean {name.lower()}?" in cnnjob("prepare", name, "--source", ".").stderr


def test_an_archive_gives_its_name_without_its_suffixes(here: Path) -> None:
    draw(here / "photos", 2)
    shutil.make_archive("my.photos", "gztar", here, "photos")
    prepared = cnnjob("prepare", "my.photos.tar.gz")
    assert prepared.exit_code == 0, prepared.output
    assert (here / "data" / "my.photos.h5").exists()
    assert prepared.stdout.splitlines()[-1].strip() == "cnnjob train my.photos"
    assert cnnjob("train", "my.photos", "--set", "train.epochs=1").exit_code == 0


def test_a_name_may_end_like_the_file(here: Path) -> None:
    draw(here / "photos", 2)
    prepared = cnnjob("prepare", "pets.h5", "--source", "photos")
    assert prepared.exit_code == 0, prepared.output
    assert [path.name for path in (here / "data").glob("pets*")] == ["pets.h5"]
    assert prepared.stdout.splitlines()[-1].strip() == "cnnjob train pets"


def test_a_dataset_of_one_class_is_no_training(here: Path) -> None:
    for split in ("train", "test"):
        write_images(here / "photos" / split / "cats", 2)
    prepared = cnnjob("prepare", "photos")
    assert (prepared.exit_code, prepared.stdout) == (3, "")
    assert "only one class, so there is nothing to learn (found 'cats'). Specify the folder" in prepared.stderr
    assert not (here / "data" / "photos.h5").exists()


def test_the_next_command_trains_the_users_images(here: Path) -> None:
    """A user's folder may have the name of a published dataset, begin with a hyphen, or contain a dot."""
    for seed, name in enumerate(("mnist", "-photos", "v1.0", "v1.1")):
        for label in "xy":
            write_images(here / name / label, 4, seed=100 * seed + ord(label))
        done = cnnjob("prepare", f"./{name}", "--test-fraction", "0.5")
        command = done.stdout.splitlines()[-1].split()
        assert command[:2] == ["cnnjob", "train"]
        assert Job.load(command[2], default=DefaultJobs(Path("data"))).dataset == command[2]
    for name in ("v1.0", "v1.1"):
        assert cnnjob("new", name).stdout.startswith(f"jobs/{name}.toml: written")
        assert cnnjob("show", name).exit_code == 0


def test_an_example_and_every_key_are_explained() -> None:
    shown = cnnjob("show", "--keys").stdout
    assert indent(EXAMPLE, "    ") in shown
    lines = shown.splitlines()
    assert [line.partition(" (")[0] for line in lines[-len(list_keys()) :]] == [key.dotted for key in list_keys()]
    assert "`" not in shown
    assert json.loads(cnnjob("show", "--keys", "--json").stdout)[0]["name"] == "name"


def test_the_example_of_a_job_file_is_a_job(tmp_path: Path) -> None:
    (tmp_path / "example.toml").write_text(EXAMPLE)
    job = Job.load(str(tmp_path / "example.toml"))
    blocks = job.model_dump(mode="json")["model"]["blocks"]
    assert {next(iter(block)) for block in blocks} == {"conv", "residual", "global_pool", "dense", "dropout"}


@pytest.mark.parametrize(
    ("subject", "keys"),
    [
        ("train.epochs", ["train.epochs"]),
        ("patience", ["train.early_stopping.patience"]),
        ("train.lookahead", ["train.lookahead", *(f"train.lookahead.{key}" for key in ("every", "decay", "power"))]),
        ("global_pool", ["{ global_pool = … }.global_pool"]),
    ],
)
def test_one_key_or_table_is_explained(subject: str, keys: list[str]) -> None:
    shown = cnnjob("show", "--keys", subject).stdout.splitlines()
    assert [line.partition(" (")[0] for line in shown] == keys


def test_blocks_are_explained_and_misspelt_keys_are_suggested() -> None:
    blocks = cnnjob("show", "--keys", "blocks").stdout
    assert all(f"{{ {kind} = … }}.{kind} " in blocks for kind in ("conv", "residual", "dense"))
    found = cnnjob("show", "--keys", "optimizer")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "no such key or table. Did you mean optimiser?" in found.stderr


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("train.optimiser=admw", "adamw"), ("train.schedule=cosin", "cosine"), ("data.augment.flip=randm", "random"),
        ("train.precision=flot16", "float16"), ("resources.backend=numy", "numpy"),
    ],
)  # fmt: skip
def test_misspelt_values_are_suggested(override: str, suggestion: str) -> None:
    found = cnnjob("show", "digits", "--set", override)
    assert (found.exit_code, found.stderr.rstrip().endswith(f". Did you mean '{suggestion}'?")) == (2, True), (
        found.stderr
    )
