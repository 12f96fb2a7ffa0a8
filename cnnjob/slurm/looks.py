"""What a run folder tells at a glance: little is read of each, for there may be thousands."""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import CnnjobError
from cnnjob.runs import Run
from cnnjob.slurm.decisions import cancel_of, restarts_of

SPLITS = ("validation", "test", "train")
"""Whose loss and accuracy are shown: the first that there is."""
_TAIL_BYTES = 4096
_PACE_EPOCHS = 5
_UNREADABLE = (CnnjobError, OSError, LookupError, TypeError, ValueError)  # a file may say anything


@dataclass(frozen=True)
class Look:
    """What one folder told."""

    run: Run
    state: str
    """As :meth:`cnnjob.runs.Run.state`, or ``damaged``."""
    trouble: str = ""
    """What is damaged."""
    lives: int = 0
    attempt: dict[str, Any] = field(default_factory=dict)
    """The record of the last life; empty before the first."""
    heard_seconds: float = 0.0
    """How long ago the last life gave a sign of itself."""
    job: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """The last epochs."""
    submission: dict[str, Any] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """What was decided after each life in a job."""
    cancelled: dict[str, Any] = field(default_factory=dict)
    """What ``cnnjob cancel`` left."""
    owner: int = 0
    """The number of the folder's user."""

    @property
    def job_id(self) -> str | None:
        """The newest job: of the submission, unless a later life was of another or of none."""
        submitted, lived = self.submission.get("job_id"), self.attempt.get("job_id")
        later = str(self.submission.get("submitted", "~")) > str(self.attempt.get("started", ""))
        newest = submitted if submitted and (later or not self.attempt) else lived if self.attempt else submitted
        return None if newest is None else str(newest)

    @property
    def job_ids(self) -> set[str]:
        """Every job that may still carry it."""
        ids = {self.submission.get("job_id"), self.attempt.get("job_id"), self.decision.get("job_id")}
        return {str(one) for one in ids if one}

    @property
    def decision(self) -> dict[str, Any]:
        """What was decided last; empty where nothing was."""
        return self.decisions[-1] if self.decisions else {}

    @property
    def decided(self) -> dict[str, Any]:
        """The same, where it is of the newest job."""
        return self.decision if self.job_id and str(self.decision.get("job_id")) == self.job_id else {}

    @property
    def has_begun(self) -> bool:
        """Whether its newest job has left anything in the folder."""
        return str(self.attempt.get("job_id")) == self.job_id or bool(self.decided)

    @property
    def is_here(self) -> bool:
        """Whether the last life was on this host, where the process table answers for it."""
        return self.attempt.get("host") == socket.gethostname()

    @property
    def was_cancelled_here(self) -> bool:
        """Whether ``cnnjob cancel`` ended its newest job, or its last life where that had none."""
        if not self.cancelled:
            return False
        jobs = self.cancelled.get("jobs") or []
        return self.job_id in jobs if self.job_id else not jobs and self.cancelled.get("attempt") == self.lives

    @property
    def epochs(self) -> int | None:
        """How many epochs the job asks for, at most."""
        epochs = (self.job.get("train") or {}).get("epochs") if isinstance(self.job.get("train"), dict) else None
        return epochs if isinstance(epochs, int) else None

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        done = self.history[-1].get("epoch") if self.history else 0
        return done if isinstance(done, int) else 0

    @property
    def split(self) -> str | None:
        """Whose loss and accuracy are told."""
        last = self.history[-1] if self.history else {}
        return next((split for split in SPLITS if f"{split}_loss" in last), None)

    def score(self, what: str) -> float | None:
        """The last epoch's ``loss`` or ``accuracy``."""
        value = self.history[-1].get(f"{self.split}_{what}") if self.history else None
        return float(value) if isinstance(value, int | float) else None

    @property
    def seconds_left(self) -> float | None:
        """For the epochs that are left, by the pace of the last ones; early stopping may end it sooner."""
        paces = [record.get("seconds") for record in self.history[-_PACE_EPOCHS:]]
        known = [float(pace) for pace in paces if isinstance(pace, int | float)]
        return (self.epochs - self.epoch) * sum(known) / len(known) if known and self.epochs else None


def runs_at(*places: Path) -> list[Run]:
    """The runs at or right below the places, in order of name; folders that are none are left out."""
    return [run for run in Run.all(*places) if run.job_file.exists() or run.attempts_folder.exists()]


def look(run: Run) -> Look:
    """Look at a run folder; whatever it holds, nothing is raised."""
    frozen = _object(run.job_file)
    job = frozen.get("job")
    try:
        attempts = run.attempt_files()
        facts: dict[str, Any] = {"state": run.state(), "lives": len(attempts)}
        if attempts:
            facts |= {"attempt": _object(attempts[-1]), "heard_seconds": time.time() - attempts[-1].stat().st_mtime}
        if facts["state"] == "finished":
            run.result()
    except _UNREADABLE as error:
        facts = {"state": "damaged", "trouble": str(error)}
    if not isinstance(job, dict) and facts["state"] != "finished":
        facts = {**facts, "state": "damaged", "trouble": facts.get("trouble") or f"{run.job_file}: missing or damaged"}
    return Look(
        run,
        job=job if isinstance(job, dict) else {},
        history=_last_records(run.history_file),
        submission=_object(run.submission_file),
        decisions=restarts_of(run),
        cancelled=cancel_of(run),
        owner=run.path.stat().st_uid if run.path.exists() else os.getuid(),
        **facts,
    )


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where it is missing or damaged."""
    with suppress(*_UNREADABLE):
        return files.read_record(path)
    return {}


def _last_records(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a file of JSON objects."""
    records = []
    for line in tail(path, _TAIL_BYTES).splitlines():
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            records += [record] * isinstance(record, dict)
    return records


def tail(path: Path, count: int) -> str:
    """The last so many bytes of a file as text; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
