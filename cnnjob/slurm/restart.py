"""Whether and how a run goes on after a life of it ended; called by the batch script, whatever ended it.

    python -m cnnjob.slurm.restart RUN CODE

Requeues this very job where the site allows it, else submits a successor. Only restarts without
progress are counted. What the job did to itself (a bad job, a bug, a loss that is no number) is never
restarted, and what somebody cancelled stays cancelled.
"""

import os
import sys
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.checkpoints import newest_step
from cnnjob.errors import CnnjobError, DataError, SchedulerError
from cnnjob.runs import Run
from cnnjob.slurm import scheduler

RESTARTS_WITHOUT_PROGRESS = 3
GONE = 128
"""Exit codes from here on are of a process that a signal ended."""


def decide(run: Run, code: int, ended_by: str) -> str:
    """Say why a run is not to be restarted, or nothing when it is.

    Args:
        run: the run.
        code: the exit code of its last life.
        ended_by: what :func:`cnnjob.slurm.scheduler.ended_by` says of this job.

    Returns:
        The reason to leave it, or ``""``.
    """
    state = run.state()
    if state == "finished":
        return "finished"
    if ended_by == "cancelled":
        return "cancelled; submit the job again to go on"
    if ended_by == "requeued":
        return "SLURM has put the job back into its queue"
    if state == "failed" or (0 < code < GONE and state not in {"stopped", "lost"}):
        return "the job's own error is not restarted"
    if restarts_without_progress(restarts_of(run), newest_step(run.checkpoints_folder)) >= RESTARTS_WITHOUT_PROGRESS:
        return f"{RESTARTS_WITHOUT_PROGRESS} restarts without progress"
    return ""


def restarts_without_progress(restarts: list[dict[str, Any]], step: int) -> int:
    """How many restarts in a row, up to now, left the newest checkpoint at the same step."""
    return len(list(takewhile(lambda restart: restart["step"] == step, reversed(restarts))))


def restarts_of(run: Run) -> list[dict[str, Any]]:
    """What was decided after each life, oldest first: job, who ended it, its code, the step, what was said."""
    path = run.path / "slurm" / "restarts.json"
    try:
        return list(files.read_json(path)) if path.exists() else []
    except (DataError, TypeError):
        return []  # a damaged record of restarts is no reason to give up a run


def restart(run: Run, job_id: str) -> str:
    """Requeue this job, or submit a successor; say which.

    Raises:
        SchedulerError: neither could be done.
    """
    from cnnjob.slurm.submission import resubmit  # noqa: PLC0415 - submitit is not needed for a requeue

    try:
        scheduler.ask(["scontrol", "requeue", job_id])
    except SchedulerError as refused:
        successor = resubmit(run)
        return f"job {successor} goes on ({refused})"
    return f"job {job_id} is requeued"


def main(folder: str, code: str) -> None:
    """Decide, do it, and write it down; the batch script then ends with the life's own code."""
    run, job_id = Run(Path(folder)), os.environ["SLURM_JOB_ID"]
    before, step, ended_by = restarts_of(run), newest_step(run.checkpoints_folder), "unknown"
    with suppress(SchedulerError):  # a scheduler that does not answer is no reason to give up a run
        ended_by = scheduler.ended_by(scheduler.job(job_id), int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    said = decide(run, int(code), ended_by)
    told = {"job_id": job_id, "ended_by": ended_by, "code": int(code), "step": step, "said": said or "to be restarted"}
    path = run.path / "slurm" / "restarts.json"
    files.write_json(path, [*before, told])  # first: a requeue ends this script at once
    try:
        said = said or restart(run, job_id)
    except CnnjobError as error:
        said = f"not restarted, {error}"
    print(f"cnnjob: {run.path}: {said}", flush=True)  # noqa: T201 - the job's own log
    files.write_json(path, [*before, {**told, "said": said}])


if __name__ == "__main__":
    main(*sys.argv[1:3])
