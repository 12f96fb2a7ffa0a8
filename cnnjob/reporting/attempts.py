"""The attempts at a run: when each waited and ran, at which step it resumed, and how much work was lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cnnjob.errors import printable, printable_lines
from cnnjob.runs.process import name_ctrl_c
from cnnjob.runs.summary import RunSummary


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run."""

    number: int
    host: str
    job_id: str | None
    waited_from: datetime | None
    """When the attempt began to wait: when it was submitted, or when the previous one ended; None if not known."""
    started: datetime
    ended: datetime | None
    """None if the attempt was killed or is still running."""
    resumed_at: int | None
    """Step of the checkpoint that the attempt resumed from; None if it started from scratch."""
    reached: int | None
    """The last step that the attempt is known to have completed."""
    lost_steps: int | None
    """Number of steps that the next attempt had to repeat; None if unknown or if there is no next attempt."""
    why: str
    """Why the attempt ended; empty if it has not ended."""
    decision: str
    """The text of the batch script's decision after the attempt; empty if there is none."""


def read_attempts(summary: RunSummary) -> list[Attempt]:
    """Return the attempts at a run, oldest first.

    Raises:
        DataError: an attempt record is damaged.
    """
    records, attempts = summary.run.attempts(), list[Attempt]()
    for index, record in enumerate(records):
        next_record = records[index + 1] if index + 1 < len(records) else None
        waited_from = attempts[-1].ended if attempts else None
        # Only the newest SLURM job has a submission record; it shows when that job's first attempt began to wait.
        if waited_from is None and summary.submission.get("attempt") == index + 1:
            waited_from = _time(summary.submission.get("submitted"))
        attempts.append(_build_attempt(record, next_record, waited_from, summary.restart_log))
    return attempts


def _build_attempt(
    record: dict[str, Any],
    next_record: dict[str, Any] | None,
    waited_from: datetime | None,
    restart_log: Sequence[dict[str, Any]],
) -> Attempt:
    """Build an attempt from its own record and the record of the next attempt."""
    started = datetime.fromisoformat(record["started"])
    reached, job_id = record.get("step"), record.get("job_id")
    lost_steps = None
    if reached is not None and next_record is not None:
        lost_steps = max(reached - (next_record.get("resumed_at_step") or 0), 0)
    unrecorded = "" if next_record is None else "the process died without recording why"
    why = name_ctrl_c(record.get("why") or "") or unrecorded
    return Attempt(
        number=int(record["attempt"]),
        host=printable(str(record.get("host", ""))),
        job_id=printable(str(job_id)) if job_id else None,
        # The clocks of two machines may differ.
        waited_from=waited_from if waited_from is None or waited_from <= started else None,
        started=started,
        ended=_time(record.get("ended")),
        resumed_at=record.get("resumed_at_step"),
        reached=reached,
        lost_steps=lost_steps,
        why=printable_lines(str(why)),
        decision=printable_lines(_find_decision(record, restart_log)),
    )


def _find_decision(record: dict[str, Any], restart_log: Sequence[dict[str, Any]]) -> str:
    """Return the text of the decision made after an attempt; empty if there is none.

    Since a requeued SLURM job keeps its id, the decision is identified by the job id and the restart count. Older
    versions did not record the restart count; their entries are identified by their position among the job's entries.
    """
    job_id = record.get("job_id")
    entries = [entry for entry in restart_log if job_id and entry.get("job_id") == job_id]
    texts = {entry.get("job_restarts", index): str(entry.get("said", "")) for index, entry in enumerate(entries)}
    return texts.get(record.get("job_restarts") or 0, "")


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
