"""The lives of a run: when it waited, when it ran, where it went on, and what work was lost."""

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
"""Of ``slurm/``: records without which a run is shown all the same."""
LOG_LINES = 20
_LOG_BYTES = 8192


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run."""

    number: int
    host: str
    job_id: str | None
    waited_from: datetime | None
    """When it was submitted, or when the life before it ended."""
    started: datetime
    ended: datetime | None
    """None where it was killed, or still runs."""
    resumed_at: int | None
    """The step it went on from; None for a start from nothing."""
    reached: int | None
    """The last step that it is known to have done."""
    lost_steps: int | None
    """What it had done and the next life had to do again; None where that is not known, or there is no next life."""
    why: str
    decision: str
    """What SLURM's batch script decided after it."""


def summarise_attempts(run: Run) -> list[Attempt]:
    """The lives of a run, oldest first.

    Raises:
        DataError: a record of them is damaged.
    """
    attempts = run.attempts()
    submitted, restarts = _submission(run), _restarts(run)
    lives: list[Attempt] = []
    for place, attempt in enumerate(attempts):
        later = attempts[place + 1] if place + 1 < len(attempts) else None
        before = lives[-1].ended if lives else None
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
        waited_from=waited if waited is None or waited <= started else None,
        started=started,
        ended=_time(attempt.get("ended")),
        resumed_at=attempt.get("resumed_at_step"),
        reached=reached,
        lost_steps=None if reached is None or later is None else max(reached - (resumed or 0), 0),
        why=printable_lines(str(attempt.get("why") or ("" if later is None else "ended without a word"))),
        decision=printable_lines(_decision(job_id, attempt.get("job_restarts") or 0, restarts)),
    )


def _decision(job_id: Any, requeued: Any, restarts: Sequence[dict[str, Any]]) -> str:
    """Return what was decided after this attempt; a decision without a number is that of its place among the job's."""
    of_job = [one for one in restarts if job_id and one.get("job_id") == job_id]
    said = {one.get("job_restarts", place): str(one.get("said", "")) for place, one in enumerate(of_job)}
    return said.get(requeued, "")


def damages(run: Run) -> Iterator[str]:
    """Yield what is wrong with the records that a run is shown without."""
    for path in (run.slurm_folder / name for name in _RECORDS):
        if os.path.lexists(path):
            try:
                json_files.checked(files.read_json(path), _RECORDS[path.name], str(path))
            except DataError as error:
                yield str(error)


def _submission(run: Run) -> dict[str, Any]:
    try:
        return json_files.read(run.submission_file, schemas.SubmissionRecord)
    except DataError:
        return {}  # a run that was not submitted has none; a damaged one costs the waiting, not the run


def _restarts(run: Run) -> list[dict[str, Any]]:
    try:
        return json_files.read_list(run.slurm_folder / "restarts.json", schemas.RestartRecord)
    except DataError:
        return []


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def tail_of_log(run: Run) -> str:
    """The last lines of the log; empty where there is none."""
    return "\n".join(files.read_tail(run.log_file, _LOG_BYTES).splitlines()[-LOG_LINES:])
