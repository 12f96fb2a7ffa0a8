"""The commands of the README and CONTRIBUTING do as they are said to: they run, in a folder of small data."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cnnjob.cli import app
from cnnjob.jobs import Job
from cnnjob.verbs import pack, train
from tests import packing_sources as sources

ROOT = Path(__file__).parent.parent
PROGRAMS = r"(?:cnnjob|pytest|\.ci/run)(?: |$)|(?:python3?|pip|pre-commit|slurm/cluster|apt|chromium|taskset) "

EPOCH = "--set train.epochs=1"
SMALL = f"{EPOCH} --set train.batch_size=32"
HERE = {
    "cnnjob": "--version",
    "cnnjob --help": "",
    "cnnjob clean": "",
    "cnnjob clean RUN": "",
    "cnnjob doctor": "",
    "cnnjob predict RUN IMAGE": "",
    "cnnjob predict RUN test:0 test:17": "",
    "cnnjob predict RUN test:17": "",
    "cnnjob prepare FOLDER --size 32x32": "",
    "cnnjob prepare NAME": "",
    "cnnjob prepare NAME --source FOLDER": "--sha256 MNIST_SUM",
    "cnnjob prepare cifar10": "--source FILE.tar.xz --sha256 SUM",
    "cnnjob prepare cifar10 --source FILE.tar.xz --sha256 SUM --force": "",
    "cnnjob prepare mnist --source ~/downloads/mnist": "--sha256 MNIST_SUM",
    "cnnjob report RUNS": "",
    "cnnjob report runs/": "",
    "cnnjob show": "",
    "cnnjob show JOB": "",
    "cnnjob show data/mnist.h5": "",
    "cnnjob show mnist": "",
    "cnnjob status": "",
    "cnnjob status RUN": "",
    "cnnjob submit digits --local --sweep train.learning_rate=0.005,0.05 --seeds 3": f"{EPOCH} --dry-run",
    "cnnjob train JOB": EPOCH,
    "cnnjob train cifar10": EPOCH,
    "cnnjob train cifar10-baseline": SMALL,
    "cnnjob train cifar10-small": SMALL,
    "cnnjob train mnist": EPOCH,
    "cnnjob train mnist-baseline": EPOCH,
    "cnnjob train mnist-cnn --set seed=1": SMALL,
}
"""What runs here, and what is appended for it to take less than a second and no network."""

_SLURM = "a SLURM; tests/cluster runs this command with a partition of its own"
_REPEATS = "minutes; tests/test_verification.py and tests/test_bench.py run this command with less to do"
PARSED = {
    r"cnnjob submit (JOB|--partition gpu|mnist -p gpu .*)": _SLURM,
    r"cnnjob doctor --write-profile (NAME|mysite)": _SLURM,
    r"cnnjob (logs RUN -f|cancel RUN|verify-resume JOB --partition gpu)": _SLURM,
    r"cnnjob verify-resume( JOB| digits .*)?|(taskset -c \d )?cnnjob bench.*": _REPEATS,
    r"cnnjob export RUN": "onnx, which not every environment has; tests/test_exports.py runs it",
    r"cnnjob --install-completion": "the user's own shell; tests/test_shell.py runs its --show-completion in real ones",
    r"python3 -m venv .*|pip install .*|apt install .*": "the network; .ci/run installs and tests so",
    r"pytest.*|pre-commit .*|\.ci/run": "to be outside the tests: it runs them",
    r"slurm/cluster install": "root and the network; `pytest -m slurm` then uses it",
    r"python -m tests\.nn\.recipe .*": "torch, real data and a quarter of an hour",
    r'python -c "import typer, rich"': "nothing: it is what another command is measured against",
    r"chromium .*": "a browser; tests/test_page_in_browser.py opens the page in it",
}
"""What is only parsed, in tests/test_docs.py where it is of cnnjob, and what it needs."""


def commands() -> Iterator[str]:
    """Every command of a block or between backticks, in one line."""
    for name in ("README.md", "CONTRIBUTING.md"):
        text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
        found = re.findall(r"^ {4}([^\n]+)$", text, re.MULTILINE) + re.findall(r"`([^`]+)`", text)
        lines = (" ".join(line.partition(" # ")[0].split()) for line in found)
        yield from (line for line in lines if re.match(PROGRAMS, line))


def test_every_command_is_run_or_has_a_reason_not_to_be() -> None:
    known = set(commands())
    parsed = {command for command in known for pattern in PARSED if re.fullmatch(pattern, command)}
    assert known - set(HERE) - parsed == set(), "say in HERE how it runs, or in PARSED why it does not"
    assert set(HERE) - known == set(), "no document says it any more"
    assert set(HERE) & parsed == set()
    for pattern in PARSED:
        assert any(re.fullmatch(pattern, command) for command in known), pattern


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources in the originals' formats, packed, an image, and a finished run of the digits."""
    root = tmp_path_factory.mktemp("place")
    images = [sources.idx(sources.random_bytes((n, 28, 28), n)) for n in (300, 40)]
    labels = [sources.idx(np.arange(n, dtype=np.uint8) % 10) for n in (300, 40)]
    mnist = sources.write_mnist(
        root / "downloads" / "mnist",
        train_images=images[0],
        train_labels=labels[0],
        t10k_images=images[1],
        t10k_labels=labels[1],
    )
    members = {name: sources.cifar_batch(seed, n=40) for seed, name in enumerate(sources.CIFAR10_BATCHES)}
    cifar = sources.write_tar(root / "cifar10.tar.xz", members, "w:xz")
    for folder in ("train/cats", "train/dogs", "test/cats", "test/dogs"):
        sources.write_images(root / "pets" / folder, 4)
    pack("mnist", root / "data" / "mnist.h5", source=mnist, sha256=sources.pin(mnist))
    pack("cifar10", root / "data" / "cifar10.h5", source=cifar, sha256=sources.sha256(cifar))
    pack("digits", root / "data" / "digits.h5")
    train(Job.load("digits", ["train.epochs=1"]), data=root / "data", runs=root / "runs")
    return root


@pytest.mark.parametrize("command", HERE)
def test_a_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("PATH", "/nowhere")  # no SLURM
    words = [meant(word, place, command) for word in shlex.split(f"{command} {HERE[command]}")]
    found = CliRunner().invoke(app, words[1:])
    assert found.exit_code == 0, found.output


def meant(word: str, place: Path, command: str) -> str:
    """What a reader puts in the place of a word in capitals."""
    mnist = place / "downloads" / "mnist"
    named = "mnist" if "--source" in command else "digits"
    return {
        "RUN": str(next((place / "runs").glob("digits-*"))),
        "RUNS": "runs/",
        "JOB": "digits",
        "NAME": named,
        "IMAGE": str(next((place / "pets" / "test" / "cats").iterdir())),
        "FOLDER": str(mnist) if named == "mnist" else "pets",
        "MNIST_SUM": sources.pin(mnist),
        "FILE.tar.xz": "cifar10.tar.xz",
        "SUM": sources.sha256(place / "cifar10.tar.xz"),
    }.get(word, str(Path(word).expanduser()) if word.startswith("~") else word)
