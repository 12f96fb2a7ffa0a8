"""The commands of the documents do as they are said to: they run, in a folder of small data."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cnnjob.api import train
from cnnjob.cli.main import app
from cnnjob.jobs.job import Job
from tests.helpers.documents import DOCUMENTS, ON_SLURM, Reader, commands

EPOCH = "--set train.epochs=1"
SMALL = f"{EPOCH} --set train.batch_size=32"
ROUND = "--rounds 1"
HERE = {
    "cnnjob": "--version",
    "cnnjob --version": "",
    "cnnjob --help": "",
    "cnnjob bench": f"conv-64-128 {ROUND}",
    "cnnjob bench cifar10-baseline --rounds 6": ROUND,
    "cnnjob bench cifar10-small --rounds 4": ROUND,
    "cnnjob bench cifar10-resnet --rounds 4": ROUND,
    "cnnjob bench conv-64-128 --rounds 6": ROUND,
    "cnnjob bench data": f"--gigabytes 0.01 {ROUND}",
    "cnnjob bench data --gigabytes 8": f"--gigabytes 0.01 {ROUND}",
    "cnnjob bench mnist-baseline": ROUND,
    "cnnjob clean": "",
    "cnnjob clean RUN": "",
    "cnnjob demo": "",
    "cnnjob doctor": "",
    "cnnjob evaluate RUN --on DATASET": "",
    "cnnjob export": "RUN",
    "cnnjob export RUN": "",
    "cnnjob logs latest -f": "",
    "cnnjob new DATASET": "",
    "cnnjob predict RUN IMAGE": "",
    "cnnjob predict latest test:0 test:17": "",
    "cnnjob predict RUN test:0 test:17": "",
    "cnnjob predict RUN test:1014": "",
    "cnnjob prepare FOLDER --size 32x32": "",
    "cnnjob prepare NAME": "",
    "cnnjob prepare NAME --source FOLDER": "--sha256 MNIST_SUM",
    "cnnjob prepare cifar10 --source FILE.tar.xz --sha256 SUM --force": "",
    "cnnjob prepare mnist": "--source downloads/mnist --sha256 MNIST_SUM",
    "cnnjob prepare mnist --source ~/downloads/mnist": "--sha256 MNIST_SUM",
    "cnnjob report": "",
    "cnnjob report --figures": "",
    "cnnjob report --format svg,pdf": "",
    "cnnjob report RUN RUN": "",
    "cnnjob report RUNS": "",
    "cnnjob report runs/": "",
    "cnnjob show": "",
    "cnnjob show --keys": "",
    "cnnjob show --keys conv": "",
    "cnnjob show JOB": "",
    "cnnjob show RUN": "",
    "cnnjob show data/mnist.h5": "",
    "cnnjob show mnist": "",
    "cnnjob show mnist --set train.batch_size=64": "",
    "cnnjob status": "",
    "cnnjob status --wide": "",
    "cnnjob status RUN": "",
    "cnnjob submit digits --local --sweep train.learning_rate=0.005,0.05 --seeds 3": f"{EPOCH} --dry-run",
    "cnnjob submit": f"digits --local --dry-run --no-rehearsal {EPOCH}",
    "cnnjob train": f"digits {EPOCH}",
    "cnnjob train DATASET": EPOCH,
    "cnnjob train digits --set model.init_from=latest --set train.learning_rate=0.005": EPOCH,
    "cnnjob train JOB": EPOCH,
    "cnnjob train cifar10": EPOCH,
    "cnnjob show cifar10-course": "",
    "cnnjob train cifar10-course": SMALL,
    "cnnjob train cifar10-course --set seed=1": SMALL,
    "cnnjob train mnist-course --set seed=1": EPOCH,
    "cnnjob train cifar10-baseline": SMALL,
    "cnnjob train mine": EPOCH,
    "cnnjob train mnist": EPOCH,
    "cnnjob train mnist --set train.epochs=3": EPOCH,
    "cnnjob train mnist-baseline": EPOCH,
    "cnnjob train cifar10-small": f"{SMALL} --set train.lookahead.every=2",
    "cnnjob train mnist-cnn": f"{SMALL} --set train.lookahead.every=2",
    "cnnjob train mnist-cnn --set seed=1": f"{SMALL} --set train.lookahead.every=2",
    "cnnjob train mnist-cnn --set train.epochs=1": f"{SMALL} --set train.lookahead.every=2",
    "cnnjob train mnist-deep --set data.validation_fraction=0.1667": f"{SMALL} --set train.lookahead.every=2",
    "cnnjob verify-resume JOB": "--steps 80 --kills 1",
    "cnnjob verify-resume digits --kills 3 --seed 1": "--steps 80 --kills 1",
    "taskset -c 0 cnnjob bench cifar10-baseline --rounds 5": ROUND,
    "taskset -c 0 cnnjob bench mnist-baseline": ROUND,
}
"""What runs here, and what is appended for it to take a second or two and no network."""

PARSED = {
    r"cnnjob bench --device gpu": "a GPU; `pytest -m gpu`",
    r"cnnjob sync .*": "the package of the tool; tests/reporting/test_sync.py reads what the tools receive",
    r"cnnjob --install-completion": "the user's own shell; tests/cli/test_shell.py tries it in real ones",
    r"python3 -m venv .*|pip install .*|apt install .*": "the network; .ci/run installs and tests so",
    r"(pip (wheel|download)|uv|conda) .*": "the network and another installer; tried by hand, except conda",
    r"apptainer .*": "Apptainer; tests/test_installation.py parses the recipe",
    r"sphinx-build .*": "Sphinx; tests/test_site.py builds the site so",
    r"(CNNJOB_FAULTS_EVERY=1 )?pytest.*|pre-commit .*|\.ci/run": "to be outside the tests: it runs them",
    r"python -m tests\.fuzz .*": "minutes; tests/fuzz/test_fuzz.py runs it with few inputs",
    r"python -m tests\.durability\.corrupted": "minutes; tests/durability/test_corrupted.py tries each twelfth",
    r"python -m cnnjob\.jobs\.reference .*": "the file of the clone itself; tests/test_docs.py compares the two",
    r"python -m tests\.mutate .*": "an hour",
    r"python -m tests\.test_architecture": "nothing: that test compares what it prints with the document",
    r"slurm/cluster install": "root and the network; `pytest -m slurm` then uses it",
    r"slurm/root .*": "root, debootstrap and a quarter of an hour",
    r"python -m tests\.cuda\.counts.*": "NVRTC for some; tests/cuda/test_counts.py runs it for one job",
    r"python -m tests\.nn\.recipe .*": "torch, real data and a quarter of an hour",
    r"python -m tests\.nn\.halves .*": "real data and hours",
    r'python -c "import typer, rich"': "nothing: it is what another command is measured against",
    r"chromium .*": "a browser; tests/reporting/test_page_in_browser.py opens the page in it",
}
"""What is not run as it stands, and what it needs; tests/test_docs.py parses what of it is cnnjob's."""


def test_every_command_is_run_or_has_a_reason_not_to_be() -> None:
    known, run = set(commands()), {*HERE, *ON_SLURM}
    parsed = {command for command in known for pattern in PARSED if re.fullmatch(pattern, command)}
    assert known - run - parsed == set(), "say in HERE or ON_SLURM how it runs, or in PARSED why it does not"
    assert run - known == set(), "no document says it any more"
    assert run & parsed == set()
    for pattern in PARSED:
        assert any(re.fullmatch(pattern, command) for command in known), pattern


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """One who has prepared all, and has a finished run of the digits."""
    one = Reader.in_folder(tmp_path_factory.mktemp("place"))
    one.pack()
    train(Job.load("digits", ["train.epochs=1"]), data=one.folder / "data", runs=one.folder / "runs")
    return one


@pytest.mark.documents
@pytest.mark.parametrize("command", HERE)
def test_a_command_runs(reader: Reader, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(reader.folder)
    monkeypatch.setenv("HOME", str(reader.folder))
    monkeypatch.setenv("PATH", "/nowhere")  # no SLURM
    found = CliRunner().invoke(app, reader.words(command, HERE[command]))
    assert found.exit_code == 0, found.output


WITH_PYTHON = {path.name: path for path in DOCUMENTS if "```python" in path.read_text()}


@pytest.mark.documents
@pytest.mark.parametrize(
    "name", sorted({*WITH_PYTHON} - {"other-tools.md"})
)  # tests/reporting/test_other_tools.py runs that
def test_the_python_of_a_document_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Reader.in_folder(tmp_path).pack()
    monkeypatch.chdir(tmp_path)
    variables: dict[str, object] = {}
    for code in re.findall(r"^```python\n(.*?)^```", WITH_PYTHON[name].read_text(), re.MULTILINE | re.DOTALL):
        exec(code, variables)
    assert {"prepare", "train"} & {*variables}
