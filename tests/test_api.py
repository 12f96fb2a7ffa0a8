"""The verbs of a notebook: the same files as the commands of these names."""

from pathlib import Path

import pytest

import cnnjob
from cnnjob.errors import JobError
from tests.helpers.fake_slurm import ANSWERS, FakeSlurm
from tests.helpers.run_folders import stopped_run


@pytest.mark.usefixtures("no_slurm")
def test_the_verbs_do_what_the_commands_do() -> None:
    digits = cnnjob.prepare("digits")
    assert (digits.path, cnnjob.prepare("digits").digest) == (Path("data/digits.h5"), digits.digest)
    job = cnnjob.Job.load("toy.toml", ["train.epochs=1"])
    run = cnnjob.train(job)
    assert (run.state(), run.path.parent, len(run.history())) == ("finished", Path("runs"), 1)
    assert cnnjob.train(job) == run
    stopped = stopped_run(Path("elsewhere"))
    reported = cnnjob.report([stopped], Path("some"))  # a whole folder is reported by the README's notebook
    assert ([row["run"] for row in reported.rows], Path("some/index.html").exists()) == ([stopped.name], True)


def test_submit(no_slurm: FakeSlurm) -> None:
    no_slurm.install(**ANSWERS)
    jobs = [cnnjob.Job.load("toy.toml", [f"seed={seed}"]) for seed in range(2)]
    runs = cnnjob.submit(jobs, partition="gpu", time="2h")
    assert [run.job().seed for run in runs] == [0, 1]
    [script] = Path("runs/.sweeps").glob("*/17_submission.sh")
    assert "#SBATCH --partition=gpu\n" in script.read_text()
    assert "#SBATCH --time=120\n" in script.read_text()
    with pytest.raises(JobError, match=r"partitoin: no such key\. Did you mean 'partition'"):
        cnnjob.submit(["toy.toml"], partitoin="gpu")
