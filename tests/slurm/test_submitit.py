"""What is used of submitit without being documented: each name is checked before an upgrade breaks a submission."""

import importlib.util
from importlib.metadata import version
from pathlib import Path

import pytest
import submitit  # noqa: TID253
from submitit.core.utils import DelayedSubmission  # noqa: TID253
from submitit.slurm import slurm  # noqa: TID253

ADVICE = f"submitit {version('submitit')} lacks it: adapt cnnjob/slurm/submit/, or cap submitit in pyproject.toml"


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (slurm, "_make_sbatch_string"),
        (submitit.SlurmExecutor, "_submit_command"),
        (DelayedSubmission, "set_timeout"),
        (DelayedSubmission, "dump"),
    ],
)
def test_undocumented_names_are_there(owner: object, name: str) -> None:
    assert hasattr(owner, name), f"{owner}.{name}: {ADVICE}"


def test_the_program_that_a_batch_script_starts_is_there() -> None:
    assert importlib.util.find_spec("submitit.core._submit"), f"submitit.core._submit: {ADVICE}"


def test_a_local_job_has_its_process(tmp_path: Path) -> None:
    job = submitit.LocalExecutor(tmp_path).submit(abs, -3)
    assert hasattr(job, "_process"), f"LocalJob._process: {ADVICE}"
    assert job.result() == 3


def test_a_job_reads_the_pickle_that_is_written_for_it(tmp_path: Path) -> None:
    job: submitit.SlurmJob[int] = submitit.SlurmJob(tmp_path, "17", [0])
    assert job.paths.submitted_pickle == tmp_path / "17_submitted.pkl", ADVICE
