"""Settings and fixtures of all tests: hypothesis draws the same examples every time, without a deadline.

``pytest --hypothesis-profile explore`` draws new ones, and many. Ctrl-C and SIGQUIT act, here and in what the tests
start, also where the tests themselves were started in the background by a shell that has both ignored.

The default tests run in one process per core. What ``-m`` or a path selects runs in this process: the heavier tests use
all cores themselves or share one SLURM, and a few tests end sooner than other processes start.
"""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.fake_slurm import ANSWERS, JOB_OF_NUMPY, FakeSlurm, set_answers
from tests.helpers.run_folders import JOB_FILE
from tests.helpers.toy_jobs import dataset

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("same")

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Set what xdist reads next; an option that was given on the command line decides."""
    if hasattr(config, "workerinput") or config.pluginmanager.has_plugin("_cov"):
        return  # in such a process, which would start more of them; or pytest-cov has to know beforehand, by -n
    selected = config.args != config.getini("testpaths") or config.option.markexpr not in config.getini("addopts")
    if not selected and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses, config.option.maxprocesses, config.option.dist = "auto", 8, "worksteal"


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A machine without a SLURM, with the toy dataset and job."""
    slurm = FakeSlurm(tmp_path / "commands")
    place = tmp_path / "here and there"
    (place / "data").mkdir(parents=True)
    dataset(place / "data")
    (place / "toy.toml").write_text(JOB_OF_NUMPY)
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", str(slurm.folder))
    return slurm


@pytest.fixture
def slurm(no_slurm: FakeSlurm) -> FakeSlurm:
    """The same, with a SLURM that accepts each job as number 17."""
    no_slurm.install(**ANSWERS)
    return no_slurm


@pytest.fixture
def idle_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A folder with a job file, and a SLURM with an empty queue, whose commands record their calls."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    Path("tiny.toml").write_text(JOB_FILE)
    slurm = FakeSlurm(tmp_path / "commands")
    monkeypatch.setenv("PATH", str(slurm.folder))
    set_answers(slurm)
    return slurm


@pytest.fixture
def counting_slurm(no_slurm: FakeSlurm) -> FakeSlurm:
    """A SLURM that numbers its jobs from 17 and keeps the scripts that are submitted."""
    no_slurm.install(**ANSWERS)
    count = 'n=$(cat count 2>/dev/null || echo 16); echo $((n + 1)) > count; cp "$1" $((n + 1)).sh'
    no_slurm.install(cp='exec /bin/cp "$@"', cat='exec /bin/cat "$@"')
    no_slurm.install(sbatch=f'[ "$1" = --test-only ] && exit; {count}; echo "Submitted batch job $((n + 1))"')
    return no_slurm
