"""Run folders whose run has a SLURM job, or had one, in every state."""

import os
import pwd
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnjob import files
from cnnjob.runs.run import Run
from cnnjob.slurm import diagnosis, run_state, status
from tests.helpers.run_folders import change_json, lost_run, pending_run, running_run, stopped_run

UID = os.getuid()
ME = pwd.getpwuid(UID).pw_name
LATER = "2999-01-01T00:00:00+00:00"
MakeRun = Callable[[Path], Run]


def with_job(run: Run, job_id: str = "17", **facts: Any) -> Run:
    """Record that a SLURM job carries a run."""
    run.slurm_folder.mkdir(exist_ok=True)
    log = str(run.slurm_folder / f"{job_id}_0_log.out")
    record = {"job_id": job_id, "comment": f"cnnjob {run.path.resolve()} 1", "log": log, "submitted": LATER}
    files.write_json(run.submission_file, record | facts)
    return run


def on_another_host(run: Run, age_seconds: float, job_id: str = "17") -> Run:
    """Move the last attempt to another host, with its last heartbeat so many seconds ago."""
    [*_, last] = run.attempt_files()
    change_json(last, host="n1", job_id=job_id)
    for path in (last, run.heartbeat_file):
        os.utime(path, (time.time() - age_seconds,) * 2)
    return run


def with_decision(run: Run, **facts: Any) -> Run:
    """Record what the batch script decided."""
    run.slurm_folder.mkdir(exist_ok=True)
    decision = {"job_id": "17", "ended_by": "itself", "code": 1, "step": 100, "restarted": "", "said": "finished"}
    files.write_json(run.slurm_folder / "restarts.json", [decision | facts])
    return run


def with_log(run: Run, text: str, job_id: str = "17") -> Run:
    """Write the job's log."""
    run.slurm_folder.mkdir(exist_ok=True)
    (run.slurm_folder / f"{job_id}_0_log.out").write_text(text)
    return run


def status_of(run: Run, *, thorough: bool = False) -> run_state.Status:
    return status.query_statuses([run], thorough=thorough).statuses[0]


def cause_of(run: Run) -> diagnosis.Cause:
    return diagnosis.diagnose(status_of(run, thorough=True))


def waiting_run(root: Path) -> Run:
    return with_job(pending_run(root))


def stopped_in_job(root: Path) -> Run:
    run = with_job(stopped_run(root))
    change_json(run.attempt_files()[-1], job_id="17")
    return run


def lost_in_job(root: Path) -> Run:
    run = with_job(lost_run(root))
    change_json(run.attempt_files()[-1], job_id="17")
    return run


def failed_run(root: Path, why: str = "failed: KeyError: 'x'") -> Run:
    run = stopped_in_job(root)
    change_json(run.attempt_files()[-1], why=why)
    return run


def cancelled_by_script(root: Path) -> Run:
    return with_decision(
        stopped_in_job(root), ended_by="cancelled", said="cancelled; submit the job again to resume it"
    )


def crash_loop(root: Path) -> Run:
    return with_decision(lost_in_job(root), code=137, said="3 restarts without progress")


def silent_run(root: Path) -> Run:
    return on_another_host(with_job(running_run(root)), 200)


def remote_run(root: Path) -> Run:
    return on_another_host(with_job(running_run(root)), 20)


BANNER = "2026-01-01T00:00:00+00:00 --- attempt 1 on n1, cpu\n"
TRACE = """Traceback (most recent call last):
  File "/a/life.py", line 3, in __call__
    self._run_attempt()
    ~~~~~~~~~~^^
  File "/a/loops.py", line 12, in _step
    raise KeyError("x")
KeyError: 'x'
"""


def only_run() -> Run:
    [found] = [path for path in Path("runs").iterdir() if not path.name.startswith(".")]
    return Run(found)


def file_contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def run_batch_script(run: Run, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", **environment}
    return subprocess.run(
        ["/bin/bash", run.path / "slurm" / "17_submission.sh"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=known, check=False,
    )  # fmt: skip


def set_job(monkeypatch: pytest.MonkeyPatch, job_id: str, restarts: int) -> None:
    """Make this process an attempt in a SLURM job."""
    monkeypatch.setenv("SLURM_JOB_ID", job_id)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))


def write_result(run: Run) -> None:
    run.result_file.write_text('{"test_accuracy": 0.5}')
