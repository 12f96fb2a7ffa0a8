"""Run folders that were made before the package's modules moved: they are read, resumed and known to the queue."""

import json
from pathlib import Path

import numpy as np
import pytest

from cnnjob.reporting.report import report
from cnnjob.runs import npz
from cnnjob.runs.run import Run
from tests.helpers import earlier_runs
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import ANSWERS, FakeSlurm, queue_row, recorded_calls, set_answers
from tests.helpers.slurm_runs import run_batch_script


@pytest.fixture
def runs(idle_slurm: FakeSlurm) -> dict[str, Run]:
    """The stored runs in the current folder, and their jobs in the queue."""
    runs = earlier_runs.unpack(Path.cwd())
    of_run, of_sweep = (json.loads(runs[name].submission_file.read_text())["comment"] for name in ("waiting", "18_0"))
    rows = [
        queue_row("PENDING", "Priority", comment=of_run),
        queue_row("RUNNING", node="n1", job="18_0", comment=of_sweep),
        queue_row("PENDING", "Resources", job="18_1", comment=of_sweep),
    ]
    set_answers(idle_slurm, "".join(rows))
    return runs


def test_status_names_the_state_of_each(runs: dict[str, Run]) -> None:
    rows = {row["run"]: row for row in json.loads(cnnjob("status", "--json").stdout)}
    expected = {
        "finished": ("finished", 3, None),
        "stopped": ("stopped", 1, None),
        "waiting": ("pending", 0, "17"),
        "18_0": ("running", 0, "18_0"),
        "18_1": ("pending", 0, "18_1"),
    }
    columns = ("state", "epoch", "job_id")
    assert {name: tuple(rows[runs[name].name][column] for column in columns) for name in expected} == expected
    assert len(rows) == len(expected)
    assert not [line for name in expected for line in cnnjob("status", str(runs[name].path)).stdout.splitlines()
                if line.startswith("note:")]  # fmt: skip


def test_report_and_show_read_them(runs: dict[str, Run]) -> None:
    reported = report(Run.all(Path("runs")), Path("report"))
    rows = {row["run"]: (row["state"], row["test_accuracy"], row["reason"]) for row in reported.rows}
    waiting = ("pending", None, "pending: not started yet")
    assert rows == {
        runs["finished"].name: ("finished", 0.675, None),
        runs["stopped"].name: ("stopped", None, "stopped: SIGUSR1"),
        **{runs[name].name: waiting for name in ("waiting", "18_0", "18_1")},
    }
    shown = cnnjob("show", "data/toy.h5")
    assert (shown.exit_code, "all checksums match" in shown.stdout) == (0, True), shown.output
    shown = cnnjob("show", str(runs["stopped"].path))
    assert (shown.exit_code, "\ntotal" in shown.stdout, "seed = 1\n" in shown.stdout) == (0, True, True), shown.output
    assert cnnjob("logs", str(runs["finished"].path)).stdout.endswith("finished: test accuracy 0.6750\n")


def test_the_stopped_run_resumes_to_the_weights_of_the_unbroken_one(runs: dict[str, Run]) -> None:
    """Bit for bit where NumPy and the processor compute as those of the stored runs did, else to rounding."""
    run, unbroken = runs["stopped"], runs["unbroken"]
    done = cnnjob("train", "toy.toml", "--set", "seed=1")
    assert done.exit_code == 0, done.output
    assert "resumed at epoch 2, step 11\n" in done.stderr
    assert [(attempt["step"], attempt["resumed_at_step"]) for attempt in run.attempts()] == [(11, None), (24, 11)]
    if run.result()["bits_may_differ_from_step"] is None:
        assert run.weights_file.read_bytes() == unbroken.weights_file.read_bytes()
    expected = npz.read_arrays(unbroken.weights_file)
    assert run.weights().keys() == expected.keys()
    for name, array in run.weights().items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.usefixtures("runs")
def test_jobs_in_the_queue_are_not_submitted_again_and_can_be_cancelled(idle_slurm: FakeSlurm) -> None:
    idle_slurm.install(**{name: ANSWERS[name] for name in ("sbatch", "srun", "scontrol")})
    for changes, job_ids in (("--set seed=2", ["17"]), ("--sweep train.learning_rate=0.1,0.2", ["18_0", "18_1"])):
        done = cnnjob("submit", "toy.toml", *changes.split())
        lines = done.stdout.splitlines()
        assert (done.exit_code, len(lines)) == (0, len(job_ids)), done.output
        assert all(job_id in line and "nothing submitted" in line for job_id, line in zip(job_ids, lines, strict=True))
    assert cnnjob("cancel", "runs").exit_code == 0
    assert [call for call in recorded_calls(idle_slurm) if "scancel" in call] == ["scancel 17 18_0 18_1"]


def test_a_queued_job_without_its_copy_of_the_code_says_so_and_can_be_submitted_again(
    runs: dict[str, Run], idle_slurm: FakeSlurm
) -> None:
    """Its pickle and its batch script name modules that have moved."""
    run = runs["waiting"]
    idle_slurm.install(**{name: ANSWERS[name] for name in ("srun", "scontrol")})
    done = run_batch_script(run)
    assert done.returncode == 1
    assert f"cnnjob: {run.path}: " in done.stdout
    (run.slurm_folder / "17_0_log.out").write_text(done.stdout)
    set_answers(idle_slurm, "", "17|FAILED|1:0|n1|\n")
    status = cnnjob("status", str(run.path)).stdout
    assert "\nstate:     failed\n" in status
    assert "ModuleNotFoundError: No module named 'cnnjob.slurm.life'" in status
    assert "\nnext:      cnnjob submit toy.toml --set seed=2 " in status
    idle_slurm.install(sbatch='echo "Submitted batch job 19"')
    assert "submitted as job 19" in cnnjob("submit", "toy.toml", "--set", "seed=2").stdout
