"""The attempts at a run: when each waited and ran, where it resumed, and how much work was lost."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cnnjob import files
from cnnjob.errors import DataError, printable, printable_lines
from cnnjob.jobs import json_files
from cnnjob.runs import schemas
from cnnjob.runs.run import Run

_RECORDS = {
    "job.json": schemas.SubmissionRecord,
    "restarts.json": list[schemas.RestartRecord],
    "cancelled.json": schemas.CancellationRecord,
}
"""Records in ``slurm/``, by file name, that a run can be shown without."""
LOG_LINES = 20
_LOG_BYTES = 8192
"""How much of the end of a log is read, in bytes."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run."""

    number: int
    host: str
    job_id: str | None
    waited_from: datetime | None
    """When it was submitted, or when the previous attempt ended."""
    started: datetime
    ended: datetime | None
    """None if it was killed, or is still running."""
    resumed_at: int | None
    """The step of the checkpoint that it resumed from; None if it started from scratch."""
    reached: int | None
    """The last step that it is known to have done."""
    lost_steps: int | None
    """Steps that it had done and the next attempt had to repeat; None if unknown, or if there is no next attempt."""
    why: str
    """Why it ended; empty if it has not ended."""
    decision: str
    """What the batch script decided after it, as text; empty without one."""


def read_attempts(run: Run) -> list[Attempt]:
    """Return the attempts at a run, oldest first.

    Raises:
        DataError: the record of an attempt is damaged.
    """
    attempts = run.attempts()
    submitted, restarts = _submission(run), _restarts(run)
    lives: list[Attempt] = []
    for place, attempt in enumerate(attempts):
        later = attempts[place + 1] if place + 1 < len(attempts) else None
        before = lives[-1].ended if lives else None
        # The submission record is of the newest job only. It tells when an attempt began to wait if it names that one.
        waited = before or (_time(submitted.get("submitted")) if submitted.get("attempt") == place + 1 else None)
        lives.append(_life(attempt, later, waited, restarts))
    return lives


def _life(
    attempt: dict[str, Any], later: dict[str, Any] | None, waited: datetime | None, restarts: Sequence[dict[str, Any]]
) -> Attempt:
    started = datetime.fromisoformat(attempt["started"])
    reached, resumed = attempt.get("step"), (later or {}).get("resumed_at_step")
    job_id = attempt.get("job_id")
    return Attempt(
        number=int(attempt["attempt"]),
        host=printable(str(attempt.get("host", ""))),
        job_id=printable(str(job_id)) if job_id else None,
        waited_from=waited if waited is None or waited <= started else None,  # the two machines' clocks may differ
        started=started,
        ended=_time(attempt.get("ended")),
        resumed_at=attempt.get("resumed_at_step"),
        reached=reached,
        lost_steps=None if reached is None or later is None else max(reached - (resumed or 0), 0),
        why=printable_lines(str(attempt.get("why") or ("" if later is None else "ended without a word"))),
        decision=printable_lines(_decision(job_id, attempt.get("job_restarts") or 0, restarts)),
    )


def _decision(job_id: Any, requeued: Any, restarts: Sequence[dict[str, Any]]) -> str:
    """Return the text of the decision made after an attempt; empty without one.

    A job that SLURM requeues keeps its id, so a decision belongs to the attempt with the same restart count. A record
    without that count, as older versions wrote it, is taken by its position among the job's decisions.
    """
    of_job = [one for one in restarts if job_id and one.get("job_id") == job_id]
    said = {one.get("job_restarts", place): str(one.get("said", "")) for place, one in enumerate(of_job)}
    return said.get(requeued, "")


def damages(run: Run) -> Iterator[str]:
    """Yield one message per damaged record among those that a run can be shown without."""
    for path in (run.slurm_folder / name for name in _RECORDS):
        if os.path.lexists(path):  # not exists(): a dangling link is damage too
            try:
                json_files.checked(files.read_json(path), _RECORDS[path.name], str(path))
            except DataError as error:
                yield str(error)


def _submission(run: Run) -> dict[str, Any]:
    try:
        return json_files.read(run.submission_file, schemas.SubmissionRecord)
    except DataError:
        return {}  # a run that was not submitted has none; if it is damaged, only the waiting time is unknown


def _restarts(run: Run) -> list[dict[str, Any]]:
    try:
        return json_files.read_list(run.slurm_folder / "restarts.json", schemas.RestartRecord)
    except DataError:
        return []


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def tail_of_log(run: Run) -> str:
    """Return the last lines of ``log.txt``; empty if there is none."""
    return "\n".join(files.read_tail(run.log_file, _LOG_BYTES).splitlines()[-LOG_LINES:])
