"""The real batch script, with only the commands of SLURM played."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cnnjob.runs.restart_log import try_read_restart_log
from cnnjob.runs.run import Run
from cnnjob.slurm.next_command import continue_command
from cnnjob.slurm.submit import executor
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm, slurm_time
from tests.helpers.slurm_runs import only_run, run_batch_script
from tests.helpers.toy_jobs import outcome_of, trained


def test_the_batch_script_of_a_job_with_a_mistake_of_its_own(slurm: FakeSlurm) -> None:
    slurm.install(scontrol='echo "$@" >> asked; echo "JobId=17 JobState=RUNNING Restarts=0"')
    cnnjob(
        "submit", "toy.toml", "--set", "train.learning_rate=900.0", "--set", "train.optimiser.sgd.momentum=0.99",
        "--set", "model.blocks=[{dense=8,activation='none'}]",
    )  # fmt: skip
    done = run_batch_script(only_run(), SLURM_JOB_END_TIME="9999999999")
    assert done.returncode == 1, done.stdout
    assert "the loss is" in done.stdout
    assert [told["said"] for told in try_read_restart_log(only_run())] == ["not restarted after the job's own error"]
    assert "requeue" not in Path("asked").read_text()


@pytest.mark.usefixtures("slurm")
def test_the_batch_script_of_a_job_whose_setup_fails() -> None:
    Path("site.toml").write_text('setup = ["module() { return 7; }", "module load cuda"]\n')
    cnnjob("submit", "toy.toml", "--profile", "site.toml")
    done = run_batch_script(only_run())
    assert done.returncode == 7, done.stdout
    assert [told["said"] for told in try_read_restart_log(only_run())] == ["not restarted after the job's own error"]


def test_the_batch_script_of_a_job_whose_time_is_over(slurm: FakeSlurm) -> None:
    """Each life ends before its limit with a step done; the scheduler puts it back."""
    cnnjob("submit", "toy.toml")
    run = only_run()
    for life_ in (1, 2):
        said = f"JobId=17 JobState=RUNNING Restarts=0 EndTime={slurm_time(executor.MARGIN_SECONDS - 1)}"
        slurm.install(scontrol=f'echo "$@" >> asked; echo "{said}"')
        done = run_batch_script(run)
        assert done.returncode == 75, done.stdout
        assert "cnnjob: " in done.stdout
        assert (run.state(), [told["step"] for told in try_read_restart_log(run)]) == (
            "stopped",
            list(range(1, life_ + 1)),
        )
    assert [attempt["why"] for attempt in run.attempts()] == ["stopped: time limit"] * 2
    assert Path("asked").read_text().splitlines().count("requeue 17") == 2


@pytest.mark.usefixtures("slurm")
def test_a_python_that_was_deleted_is_named_by_status() -> None:
    python = Path("venv/python").absolute()
    python.parent.mkdir()
    cnnjob("submit", "toy.toml")
    run = only_run()
    script = run.slurm_folder / "17_submission.sh"
    script.write_text(script.read_text().replace(sys.executable, str(python)))
    done = run_batch_script(run)
    assert (done.returncode, try_read_restart_log(run)) == (127, [])
    (run.slurm_folder / "17_0_log.out").write_text(done.stdout)
    shown = cnnjob("status", str(run.path)).stdout
    assert f"cause:     its job could not start: {python} is missing or cannot be executed, so it was not" in shown


TRAPPED = [*range(1, 9), *range(10, 17), *range(20, 32), *range(34, 65)]
HELD = 'echo $$ > task; while [ ! -e go ]; do /bin/sleep 0.05; done; shift 4; exec "$@"'


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
def test_no_signal_to_the_batch_script_decides(slurm: FakeSlurm, number: int | None) -> None:
    """The step works on under every signal; then it ends, or is killed, and that decides."""
    cnnjob("submit", "toy.toml")
    slurm.install(srun=HELD)
    run = only_run()
    with started_batch_script(run) as script:
        until(lambda: Path("task").exists() and bool(Path("task").read_text()))
        for one in TRAPPED:
            script.send_signal(one)
        assert script.poll() is None
        if number:
            os.kill(int(Path("task").read_text()), number)
        Path("go").touch()
        assert script.wait(60) == (128 + number if number else 0)
    assert [told["said"] for told in try_read_restart_log(run)] == ["job 17 is requeued" if number else "finished"]


def test_no_signal_ends_a_decision(slurm: FakeSlurm) -> None:
    cnnjob("submit", "toy.toml")
    asked = "echo $PPID > asked; while [ ! -e go ]; do /bin/sleep 0.05; done"
    slurm.install(srun="exit 137", scontrol=f'{asked}; echo "JobId=17 JobState=RUNNING Restarts=0"')
    run = only_run()
    with started_batch_script(run) as script:
        until(lambda: Path("asked").exists() and bool(Path("asked").read_text()))
        for one in TRAPPED:
            script.send_signal(one)
            if one != signal.SIGTERM:  # at which it asks again
                os.kill(int(Path("asked").read_text()), one)
        Path("go").touch()
        assert script.wait(60) == 137
    assert [told["said"] for told in try_read_restart_log(run)] == ["job 17 is requeued"]


@contextmanager
def started_batch_script(run: Run) -> Iterator[subprocess.Popen[bytes]]:
    known = {**os.environ, "SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    with Path("log").open("wb") as log:
        words = ["/bin/bash", str(run.slurm_folder / "17_submission.sh")]
        with subprocess.Popen(words, stdout=log, stderr=log, env=known) as script:
            yield script


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.usefixtures("slurm")
def test_the_batch_script_lives_the_run_to_its_end(tmp_path: Path) -> None:
    """The real script, pickle and code copy, with only the commands of SLURM played."""
    cnnjob("submit", "toy.toml", "--set", "train.epochs=3")
    run = only_run()
    done = run_batch_script(run)
    assert done.returncode == 0, done.stdout
    assert f"cnnjob: {run.path.resolve()}: finished" in done.stdout
    assert [told["said"] for told in try_read_restart_log(run)] == ["finished"]
    whole = trained(tmp_path / "whole", train__epochs=3).run
    assert outcome_of(run) == outcome_of(whole)
    again = cnnjob("submit", "toy.toml", "--set", "train.epochs=3")
    assert (again.exit_code, again.stdout) == (0, f"{run.path}: finished, nothing submitted\n")


@pytest.mark.usefixtures("slurm")
def test_the_batch_script_of_a_job_on_a_copy_of_its_dataset(tmp_path: Path) -> None:
    cnnjob("submit", "toy.toml", "--stage")
    done = run_batch_script(only_run(), SLURM_JOB_END_TIME="9999999999", SLURM_TMPDIR=str(tmp_path / "node"))
    assert done.returncode == 0, done.stdout
    [copy] = (tmp_path / "node").rglob("*.h5")
    assert f"{copy}: copying " in done.stdout
    assert only_run().state() == "finished"
    assert "--stage" in continue_command(only_run())


@pytest.mark.usefixtures("slurm")
def test_a_training_here_on_a_copy_of_its_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "node"))
    trained_here = cnnjob("train", "toy.toml", "--stage")
    assert trained_here.exit_code == 0, trained_here.output
    [copy] = (tmp_path / "node").rglob("*.h5")
    assert f"{copy}: copying " in trained_here.stderr
    assert cnnjob("train", "toy.toml", "--stage").exit_code == 0
