"""Summary of a run folder, the starting point for status, diagnosis and report.

Only what one line of ``status`` needs is read from each file, since there may be thousands of runs.
"""

import os
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import CnnjobError, DataError, JobError, closest_name, plural
from cnnjob.jobs import json_files
from cnnjob.jobs.job import FORMAT, Job
from cnnjob.runs import clock, schemas
from cnnjob.runs.clock import SKEW_SECONDS
from cnnjob.runs.process import ahead_seconds, heartbeat_age_seconds, may_be_same_cluster, shares_processes
from cnnjob.runs.restart_log import SlurmRecords, read_slurm_records
from cnnjob.runs.run import UNRECORDED, Run, looks_like_a_run, manifest_format, version_notes

LATEST = "latest"
"""Name that stands for the run with the most recent attempt."""
_LISTED_NAMES = 5
"""Maximum number of names that a message about an ambiguous name lists."""
SPLITS = ("validation", "test", "train")
"""Splits whose loss and accuracy can be shown; the first one that the history contains is used."""
_TAIL_BYTES = 4096
"""Number of bytes read from the end of ``history.jsonl``."""
_PACE_EPOCHS = 5
"""Number of most recent epochs from which the remaining time is estimated."""
_UNREADABLE = (CnnjobError, OSError, LookupError, TypeError, ValueError)  # a damaged file may contain anything


@dataclass(frozen=True)
class RunSummary:
    """The summary of one run, read from its folder."""

    run: Run
    state: str
    """The state from :meth:`cnnjob.runs.run.Run.state`, or ``damaged``."""
    damage: str = ""
    """A message about a damaged file; empty if there is none.

    A finished run stays ``finished`` if only the record of its last attempt is damaged.
    """
    notes: tuple[str, ...] = ()
    """Remarks in addition to the state, each a sentence."""
    n_attempts: int = 0
    """Number of attempts."""
    attempt: dict[str, Any] = field(default_factory=dict)
    """The record of the last attempt; empty before the first."""
    heartbeat_age_seconds: float = 0.0
    """Seconds since the last heartbeat; 0 if that is dated in the future."""
    ahead_seconds: float = 0.0
    """How many seconds in the future the last heartbeat or the start of the last attempt is dated."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """The content of ``job.json``; empty if it is damaged."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Records of the most recent epochs, oldest first."""
    result: dict[str, Any] = field(default_factory=dict)
    """The content of ``result.json``; empty if the run is not finished."""
    submission: dict[str, Any] = field(default_factory=dict)
    """The record of the newest submission; empty if there is none."""
    restart_log: list[dict[str, Any]] = field(default_factory=list)
    """The restart log, oldest first."""
    cancellation: dict[str, Any] = field(default_factory=dict)
    """The record of ``cnnjob cancel``; empty if there is none."""
    original: str = ""
    """The folder that this one was copied from, to which the SLURM jobs and the process belong; empty if not a copy."""
    owner: int | None = None
    """The uid of the folder's owner."""
    submitter: int | None = None
    """The uid of the user who last submitted the run."""
    trainer: int | None = None
    """The uid of the last attempt's process."""
    here: str = ""
    """The cluster whose queue is read, if known (see :meth:`on`)."""
    is_older: bool = False
    """True if another version of cnnjob began the run, so that the run is not resumed."""

    @cached_property
    def job(self) -> Job:
        """The run's job, checked when it is first used.

        Raises:
            DataError: the job is missing or damaged.
            JobError: the job is not valid.
        """
        frozen = self.manifest or self.run.manifest()
        return Job.checked(frozen["job"], str(self.run.job_file), manifest_format(frozen))

    @property
    def job_id(self) -> str | None:
        """Id of the newest SLURM job: the submitted job, unless a later attempt ran in another job or outside SLURM."""
        submitted, lived = self.submission.get("job_id"), self.attempt.get("job_id")
        number = self.submission.get("attempt")
        # Times in ISO 8601 and UTC sort as text, and "~" sorts after all of them.
        later = str(self.submission.get("submitted", "~")) > str(self.attempt.get("started", ""))
        if isinstance(number, int):  # better than times: the clocks of several machines may differ
            later = self.n_attempts < number
        newest = submitted if submitted and (later or not self.attempt) else lived if self.attempt else submitted
        return None if newest is None else str(newest)

    @property
    def cluster(self) -> str | None:
        """The cluster of the newest SLURM job; None if it was not recorded."""
        is_submitted = self.job_id is not None and str(self.submission.get("job_id")) == self.job_id
        name = (self.submission if is_submitted else self.attempt).get("cluster")
        return None if name is None else str(name)

    @property
    def other_cluster(self) -> str:
        """The cluster of the newest SLURM job if that job is on another cluster; otherwise empty.

        Each cluster numbers its own jobs, so an unrelated job on this cluster may have the same id.
        """
        return str(self.cluster) if self.job_id and not may_be_same_cluster(self.cluster, self.here) else ""

    def on(self, here: str) -> "RunSummary":
        """Return this summary as seen from a cluster, without the records of older SLURM jobs on other clusters."""
        # SLURM numbers jobs per cluster, so another cluster's job id must not be looked up in this one's queue.
        seen = replace(self, here=here)
        if seen.other_cluster:
            return seen
        is_foreign = {
            name: not may_be_same_cluster(getattr(self, name).get("cluster"), here)
            for name in ("attempt", "submission")
        }
        attempt = {**self.attempt, "job_id": None} if is_foreign["attempt"] else self.attempt
        return replace(seen, attempt=attempt, submission={} if is_foreign["submission"] else self.submission)

    @property
    def job_ids(self) -> set[str]:
        """The ids of all SLURM jobs that may still be working on the run."""
        ids = {self.submission.get("job_id"), self.attempt.get("job_id")}
        return {str(one) for one in ids if one}

    @property
    def is_other_users(self) -> bool:
        """True if the run was last submitted by another user; False for root, who can see all users' SLURM jobs."""
        return bool(self.submission) and os.getuid() not in {0, self.submitter}

    @property
    def moved_from(self) -> str:
        """The folder that the newest SLURM job was submitted for if the run has since been moved; otherwise empty."""
        return str(self.submission["folder"]) if self.run.was_moved(self.submission) else ""

    @property
    def last_decision(self) -> dict[str, Any]:
        """The last entry of the restart log; empty if there is none, or if the log was copied along with the run."""
        return self.restart_log[-1] if self.restart_log and not self.original else {}

    @property
    def current_decision(self) -> dict[str, Any]:
        """The :attr:`last_decision` if it was made after the last attempt of the newest SLURM job; otherwise empty."""
        is_newest = may_be_same_cluster(self.last_decision.get("cluster"), self.cluster)
        if not self.job_id or str(self.last_decision.get("job_id")) != self.job_id or not is_newest:
            return {}
        decided, attempted = self.last_decision.get("job_restarts"), self.attempt.get("job_restarts") or 0
        is_earlier = decided is not None and str(self.attempt.get("job_id")) == self.job_id and decided < attempted
        return {} if is_earlier else self.last_decision

    @property
    def has_begun(self) -> bool:
        """True if the newest SLURM job has left any trace: an attempt, a decision or a log."""
        if str(self.attempt.get("job_id")) == self.job_id or self.current_decision:
            return True
        log = self.submission.get("log") if str(self.submission.get("job_id")) == self.job_id else None
        return bool(log) and Path(str(log)).exists()

    @property
    def is_on_this_host(self) -> bool:
        """True if the last attempt's process can be looked up by its pid on this host."""
        return bool(self.attempt) and shares_processes(self.attempt)

    @property
    def was_cancelled_by_cnnjob(self) -> bool:
        """True if ``cnnjob cancel`` ended the newest SLURM job, or the last attempt if that ran outside SLURM."""
        if not self.cancellation:
            return False
        jobs = self.cancellation.get("jobs") or []
        if self.job_id:
            return self.job_id in jobs and may_be_same_cluster(self.cancellation.get("cluster"), self.cluster)
        return not jobs and self.cancellation.get("attempt") == self.n_attempts

    @property
    def given_up(self) -> str:
        """Why the batch script gave up restarting the newest SLURM job; empty if it did not."""
        decision = str(self.current_decision.get("said", ""))
        return decision if "without progress" in decision or "own error" in decision else ""

    @property
    def recorded_state(self) -> str:
        """The state; if the run is not being trained, the records of its SLURM jobs are taken into account.

        It is then ``cancelled`` or ``failed`` if these records show it, even if no attempt began.
        """
        if self.state not in {"pending", "stopped", "lost"}:
            return self.state
        if self.was_cancelled_by_cnnjob or self.current_decision.get("ended_by") == "cancelled":
            return "cancelled"
        return "failed" if self.given_up else self.state

    @property
    def epochs(self) -> int | None:
        """The job's number of epochs, or None if unknown; early stopping may end training sooner."""
        job = self.manifest.get("job") or {}
        epochs = job["train"].get("epochs") if isinstance(job.get("train"), dict) else None
        return epochs if isinstance(epochs, int) else None

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        done = self.history[-1].get("epoch") if self.history else 0
        return done if isinstance(done, int) else 0

    @property
    def split(self) -> str | None:
        """The split whose loss and accuracy are shown; None before the first epoch."""
        last = self.history[-1] if self.history else {}
        return next((split for split in SPLITS if f"{split}_loss" in last), None)

    def score(self, what: str) -> float | None:
        """Return the last epoch's ``loss`` or ``accuracy`` on :attr:`split`; None if unknown."""
        value = self.history[-1].get(f"{self.split}_{what}") if self.history else None
        return float(value) if isinstance(value, int | float) else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds for the remaining epochs, based on recent ones; early stopping may end training sooner."""
        paces = [record.get("seconds") for record in self.history[-_PACE_EPOCHS:]]
        known = [float(pace) for pace in paces if isinstance(pace, int | float)]
        return (self.epochs - self.epoch) * sum(known) / len(known) if known and self.epochs else None


def find_runs(*paths: Path) -> list[Run]:
    """Return the runs at the given paths or directly inside them, sorted by name; other folders are skipped."""
    return [run for run in Run.all(*paths) if looks_like_a_run(run.path)]


def resolve_run(given: Path, root: Path, without: Container[str] = ()) -> Path:
    """Return the run folder that a path, a run's name, the beginning of its name, or ``latest`` refers to.

    Args:
        given: what the user typed; an existing path is returned unchanged, and anything with a slash is a path.
        root: the folder of runs in which names are looked up. ``latest`` is the run with the most recent attempt.
        without: names of runs that are ignored.

    Raises:
        DataError: there is no such run; the message suggests a similar name.
        JobError: the names of several runs begin with ``given``.
    """
    if os.path.lexists(given):
        return given
    is_name = len(given.parts) == 1
    folder = root if is_name else given.parent
    names = [run.name for run in find_runs(folder) if run.name not in without]
    if not is_name:
        matches = list[str]()
    elif given.name == LATEST:
        started = {name: start for name in names if (start := _last_start(Run(root / name)))}
        matches = [max(started, key=started.__getitem__)] if started else []
    else:
        matches = [name for name in names if name == given.name] or [
            name for name in names if name.startswith(given.name)
        ]
    if len(matches) == 1:
        return root / matches[0]
    if matches:
        found = f"{plural(len(matches), 'run')} in {root}/: {', '.join(matches[:_LISTED_NAMES])}"
        more = ", …" if len(matches) > _LISTED_NAMES else ""
        raise JobError(f"{given}: not a unique name (found {found}{more}). Type more of the name")
    close = closest_name(given.name, names)
    suggestion = f" Did you mean {close if is_name else folder / close}?" if close else ""
    raise DataError(
        f"{given}: no such run.{suggestion} Pass a run folder, or the beginning of the name of a run in {root}/. "
        "To list the runs:\n  cnnjob status"
    )


def _last_start(run: Run) -> datetime | None:
    """Return when the run's last attempt started; None if there is none or its record is damaged."""
    with suppress(*_UNREADABLE):
        record = json_files.read_checked(run.attempt_files()[-1], schemas.AttemptRecord)
        return datetime.fromisoformat(record["started"])
    return None


def read_summary(run: Run) -> RunSummary:
    """Return the summary of a run folder; no error is raised, whatever the folder contains."""
    manifest, attempt, records = dict[str, Any](), dict[str, Any](), read_slurm_records(run)
    try:
        manifest = run.manifest()
        facts, attempt = _facts(run)
    except _UNREADABLE as error:
        facts = {"state": "damaged", "damage": str(error)}
    return RunSummary(
        run,
        manifest=manifest,
        notes=(*_notes(run, manifest, facts["state"]), *records.damage),
        history=_last_records(run.history_file),
        owner=_user_of(run.path),
        submitter=_user_of(run.submission_file),
        is_older=manifest_format(manifest) != FORMAT,
        **facts,
        **_own_records(run, attempt, records),
    )


def _notes(run: Run, manifest: dict[str, Any], state: str) -> Iterator[str]:
    """Yield the remarks to show in addition to a run's state."""
    if manifest:
        yield from version_notes(manifest)
    if state == "running" and run.unrecorded_seconds() is not None:
        yield UNRECORDED
    if state in {"running", "lost"} and not clock.is_readable(run.path.resolve(), run.path.parent, run.path):
        yield (
            "the last heartbeat's age is measured by this machine's clock, since the file system's cannot be read here"
        )


def _facts(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the summary fields that depend on the attempts and the result, and the last attempt's record."""
    paths, state, attempt = run.attempt_files(), run.state(), dict[str, Any]()
    facts: dict[str, Any] = {"state": state, "n_attempts": len(paths)}
    if state == "finished":
        facts["result"] = run.result()  # raises if it is damaged
    else:
        run.environment()  # likewise: training does not resume a run with a damaged environment record
    if paths:
        facts["trainer"] = _user_of(paths[-1])
        try:
            attempt = json_files.read_checked(paths[-1], schemas.AttemptRecord)
        except DataError as error:
            if state != "finished":  # the result does not depend on it, and training is over
                raise
            facts["damage"] = str(error)
    if attempt and state != "finished":
        now = clock.file_system_time(run.path.resolve(), run.path.parent, run.path)
        started_ahead = datetime.fromisoformat(attempt["started"]).timestamp() - now
        facts["heartbeat_age_seconds"] = heartbeat_age_seconds(paths[-1])
        facts["ahead_seconds"] = max(ahead_seconds(paths[-1]), started_ahead if started_ahead > SKEW_SECONDS else 0.0)
    return facts, attempt


def _own_records(run: Run, attempt: dict[str, Any], records: SlurmRecords) -> dict[str, Any]:
    """Return the summary fields that describe SLURM jobs and their processes.

    If the run folder is a copy, the jobs of the original folder are left out.
    """
    submission, cancellation = records.submission, records.cancellation
    known = [record for record in (attempt, submission) if record]
    others = [record for record in known if not run.owns(record)]
    is_copy = bool(known) and others == known
    return {
        "attempt": {**attempt, "job_id": None} if attempt in others else attempt,
        "submission": {} if submission in others else submission,
        "restart_log": records.restart_log,
        "cancellation": cancellation if run.owns(cancellation) else {},
        "original": str(others[0]["folder"]) if is_copy else "",
    }


def _user_of(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_uid
    return None


def _last_records(path: Path) -> list[dict[str, Any]]:
    """Return the last records of a history, oldest first."""
    records = []
    for line in files.read_tail(path, _TAIL_BYTES).split("\n"):
        with suppress(CnnjobError):  # the first line may be incomplete, and the last one is empty
            records.append(json_files.parse_checked(line, schemas.EpochRecord, str(path)))
    return records
