"""What a run folder tells at a glance: little is read of each, for there may be thousands."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import CnnjobError
from cnnjob.jobs import json_files
from cnnjob.jobs.job import FORMAT
from cnnjob.runs import clock, schemas
from cnnjob.runs.attempts import damages
from cnnjob.runs.clock import SKEW_SECONDS
from cnnjob.runs.process import ahead_seconds, may_be_one, shares_processes, silent_seconds
from cnnjob.runs.restart_log import cancel_of, restarts_of
from cnnjob.runs.run import UNRECORDED, Run, format_of, looks_like_a_run, notes_on

SPLITS = ("validation", "test", "train")
"""Whose loss and accuracy are shown: the first that there is."""
_TAIL_BYTES = 4096
_PACE_EPOCHS = 5
_UNREADABLE = (CnnjobError, OSError, LookupError, TypeError, ValueError)  # a file may say anything


@dataclass(frozen=True)
class RunSummary:
    """What one folder told."""

    run: Run
    state: str
    """As :meth:`cnnjob.runs.run.Run.state`, or ``damaged``."""
    trouble: str = ""
    """What is damaged."""
    note: str = ""
    """What must be known beside its state."""
    lives: int = 0
    attempt: dict[str, Any] = field(default_factory=dict)
    """The record of the last life; empty before the first."""
    heard_seconds: float = 0.0
    """Since the last sign of life; one from the future counts as now."""
    ahead_seconds: float = 0.0
    """How far the last sign of life, or the last attempt's start, is in the future."""
    job: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """The last epochs."""
    submission: dict[str, Any] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """What was decided after each life in a job."""
    cancelled: dict[str, Any] = field(default_factory=dict)
    """What ``cnnjob cancel`` left."""
    original: str = ""
    """The folder that this one is a copy of, whose jobs and process are not its own."""
    owner: int | None = None
    """The number of the folder's user."""
    submitter: int | None = None
    """The number of the user who submitted it last."""
    trainer: int | None = None
    """The number of the user whose process the last attempt is."""
    here: str = ""
    """The cluster whose queue is read, where that is known (:meth:`on`)."""
    is_older: bool = False
    """Whether another version began it, so that it is not resumed."""

    @property
    def job_id(self) -> str | None:
        """The newest job: of the submission, unless a later life was of another or of none."""
        submitted, lived = self.submission.get("job_id"), self.attempt.get("job_id")
        number = self.submission.get("attempt")
        later = str(self.submission.get("submitted", "~")) > str(self.attempt.get("started", ""))
        if isinstance(number, int):  # clocks of several machines may differ
            later = self.lives < number
        newest = submitted if submitted and (later or not self.attempt) else lived if self.attempt else submitted
        return None if newest is None else str(newest)

    @property
    def cluster(self) -> str | None:
        """The cluster of the newest job; None where it was not written down."""
        is_submitted = self.job_id is not None and str(self.submission.get("job_id")) == self.job_id
        name = (self.submission if is_submitted else self.attempt).get("cluster")
        return None if name is None else str(name)

    @property
    def elsewhere(self) -> str:
        """The cluster of the newest job, where its number is another job's here; else empty."""
        return str(self.cluster) if self.job_id and not may_be_one(self.cluster, self.here) else ""

    def on(self, here: str) -> "RunSummary":
        """Return what this look is on a cluster, where older jobs of other clusters are none."""
        seen = replace(self, here=here)
        if seen.elsewhere:
            return seen
        is_foreign = {
            name: not may_be_one(getattr(self, name).get("cluster"), here) for name in ("attempt", "submission")
        }
        attempt = {**self.attempt, "job_id": None} if is_foreign["attempt"] else self.attempt
        return replace(seen, attempt=attempt, submission={} if is_foreign["submission"] else self.submission)

    @property
    def job_ids(self) -> set[str]:
        """Every job that may still carry it."""
        ids = {self.submission.get("job_id"), self.attempt.get("job_id")}
        return {str(one) for one in ids if one}

    @property
    def is_anothers(self) -> bool:
        """Whether another user submitted it last; root sees the jobs of all."""
        return bool(self.submission) and os.getuid() not in {0, self.submitter}

    @property
    def moved_from(self) -> str:
        """The folder that its newest job was submitted for, where it was moved since then; else empty."""
        return str(self.submission["folder"]) if self.run.was_moved(self.submission) else ""

    @property
    def decision(self) -> dict[str, Any]:
        """What was decided last; empty where nothing was."""
        return self.decisions[-1] if self.decisions else {}

    @property
    def decided(self) -> dict[str, Any]:
        """The same, where it is of the newest job, and not of an attempt before its last."""
        is_newest = may_be_one(self.decision.get("cluster"), self.cluster)
        if not self.job_id or str(self.decision.get("job_id")) != self.job_id or not is_newest:
            return {}
        decided, attempted = self.decision.get("job_restarts"), self.attempt.get("job_restarts") or 0
        is_earlier = decided is not None and str(self.attempt.get("job_id")) == self.job_id and decided < attempted
        return {} if is_earlier else self.decision

    @property
    def has_begun(self) -> bool:
        """Whether its newest job has left anything in the folder."""
        if str(self.attempt.get("job_id")) == self.job_id or self.decided:
            return True
        log = self.submission.get("log") if str(self.submission.get("job_id")) == self.job_id else None
        return bool(log) and Path(str(log)).exists()

    @property
    def is_here(self) -> bool:
        """Whether the last life was where the process table answers for it."""
        return bool(self.attempt) and shares_processes(self.attempt)

    @property
    def was_cancelled_here(self) -> bool:
        """Whether ``cnnjob cancel`` ended its newest job, or its last life where that had none."""
        if not self.cancelled:
            return False
        jobs = self.cancelled.get("jobs") or []
        if self.job_id:
            return self.job_id in jobs and may_be_one(self.cancelled.get("cluster"), self.cluster)
        return not jobs and self.cancelled.get("attempt") == self.lives

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
    return [run for run in Run.all(*places) if looks_like_a_run(run.path)]


def read_summary(run: Run) -> RunSummary:
    """Look at a run folder; whatever it holds, nothing is raised."""
    frozen, attempt = dict[str, Any](), dict[str, Any]()
    try:
        frozen = run.manifest()
        facts, attempt = _facts(run)
    except _UNREADABLE as error:
        facts = {"state": "damaged", "trouble": str(error)}
    return RunSummary(
        run,
        job=frozen.get("job", {}),
        note="; ".join(_notes(run, frozen, facts)),
        history=_last_records(run.history_file),
        owner=_user_of(run.path),
        submitter=_user_of(run.submission_file),
        is_older=format_of(frozen) != FORMAT,
        **facts,
        **_records(run, attempt),
    )


def _notes(run: Run, frozen: dict[str, Any], facts: dict[str, Any]) -> Iterator[str]:
    """Return what must be known of a run beside its state."""
    if frozen:
        yield from notes_on(frozen)
    if facts["state"] == "running" and run.unrecorded_seconds() is not None:
        yield UNRECORDED
    if facts["state"] in {"running", "lost"} and not clock.is_known(run.path.resolve(), run.path.parent, run.path):
        yield "the last sign of life is dated by this machine's clock, as the file system's is not known here"
    yield from damages(run)


def _facts(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a run's attempts and its result say, and the last attempt's record."""
    attempts, attempt = run.attempt_files(), dict[str, Any]()
    facts: dict[str, Any] = {"state": run.state(), "lives": len(attempts)}
    if attempts:
        attempt = json_files.read(attempts[-1], schemas.AttemptRecord)
        facts["trainer"] = _user_of(attempts[-1])
    if facts["state"] == "finished":
        run.result()
    elif attempts:
        facts["heard_seconds"] = silent_seconds(attempts[-1])
        facts["ahead_seconds"] = max(ahead_seconds(attempts[-1]), _ahead(run, attempt))
    return facts, attempt


def _ahead(run: Run, attempt: dict[str, Any]) -> float:
    """How far an attempt's start is in the future; 0 for less than clocks usually differ by."""
    now = clock.now_of(run.path.resolve(), run.path.parent, run.path)
    ahead = datetime.fromisoformat(attempt["started"]).timestamp() - now
    return ahead if ahead > SKEW_SECONDS else 0.0


def _records(run: Run, attempt: dict[str, Any]) -> dict[str, Any]:
    """What was written down of jobs and processes, as far as it is of this folder and not of one it is a copy of."""
    submission, cancelled = submission_of(run), cancel_of(run)
    known = [record for record in (attempt, submission) if record]
    others = [record for record in known if not run.owns(record)]
    is_copy = bool(known) and others == known
    return {
        "attempt": {**attempt, "job_id": None} if attempt in others else attempt,
        "submission": {} if submission in others else submission,
        "decisions": [] if is_copy else restarts_of(run),
        "cancelled": cancelled if run.owns(cancelled) else {},
        "original": str(others[0]["folder"]) if is_copy else "",
    }


def _user_of(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_uid
    return None


def submission_of(run: Run) -> dict[str, Any]:
    """Return what a run's newest submission says; nothing where there is none, or it is damaged."""
    with suppress(CnnjobError):
        return json_files.read(run.submission_file, schemas.SubmissionRecord)
    return {}


def _last_records(path: Path) -> list[dict[str, Any]]:
    """Return the last whole lines of a history."""
    records = []
    for line in files.read_tail(path, _TAIL_BYTES).split("\n"):
        with suppress(CnnjobError):
            records.append(json_files.parse(line, schemas.EpochRecord, str(path)))
    return records
