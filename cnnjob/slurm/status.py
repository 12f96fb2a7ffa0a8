"""How runs stand: their folders first, then one look at the queue for all, then one at the accounts.

A scheduler that does not answer, or says what cannot be read, changes no state: the folders then tell alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any

from cnnjob.errors import SchedulerError
from cnnjob.runs.process import HEARD_SECONDS
from cnnjob.runs.run import Run
from cnnjob.runs.summary import RunSummary, read_summary
from cnnjob.slurm.job_index import JobIndex, users_of
from cnnjob.slurm.scheduler import accounting, client, job_states, queue
from cnnjob.slurm.scheduler.accounting import JobOutcome
from cnnjob.slurm.scheduler.queue import QueuedJob, QueueListing

ANSWER_SECONDS = 10.0
"""For all questions to the scheduler together."""
ENDED_EARLY = {"pending", "stopped", "failed", "cancelled", "lost"}
STATES = ("pending", "running", "stopped", "finished", "failed", "cancelled", "lost", "damaged")


@dataclass(frozen=True)
class Status:
    """How one run stands."""

    summary: RunSummary
    state: str
    """One of ``STATES``."""
    detail: str = ""
    """A few words on it."""
    job: QueuedJob | None = None
    """Its job in the queue."""
    fate: JobOutcome | None = None
    """How its newest job ended."""
    own: tuple[QueuedJob, ...] = ()
    """Every job in the queue that cnnjob submitted for it."""
    error: str = ""
    """Why a process ended before it could claim the run, where that is known from elsewhere."""
    is_hidden: bool = False
    """Whether its job may be in a queue though it was not shown, as it is another user's or another cluster's."""
    left_queue: bool = False
    """Whether its newest job is gone from the queue, never started, and nobody knows how it ended."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether a job of another cluster may carry it."""
        return self.is_hidden and bool(self.summary.elsewhere)

    @property
    def is_resumable(self) -> bool:
        """Whether submitting it again resumes it; what somebody ended on purpose, or ended by itself, is not."""
        return self.state in {"pending", "stopped", "lost"} and not self.left_queue

    @property
    def job_id(self) -> str | None:
        """The job in the queue, or the newest."""
        return self.job.job_id if self.job else self.summary.job_id

    @property
    def node(self) -> str | None:
        """Where it runs, or ran last."""
        node = self.job.node if self.job and self.job.node not in {"", "(null)"} else self.summary.attempt.get("host")
        return str(node) if node else None

    @property
    def seconds_left(self) -> float | None:
        """How long it has still to run, where that is known."""
        return self.summary.seconds_left if self.state in {"pending", "running", "stopped"} else None

    def as_json(self) -> dict[str, Any]:
        """All facts, under names that stay."""
        seen, seconds = self.summary, self.seconds_left
        return {
            "run": seen.run.name,
            "path": str(seen.run.path),
            "state": self.state,
            "detail": self.detail,
            "epoch": seen.epoch,
            "epochs": seen.epochs,
            "split": seen.split,
            "loss": seen.score("loss"),
            "accuracy": seen.score("accuracy"),
            "seconds_left": None if seconds is None else round(seconds, 1),
            "job_id": self.job_id,
            "node": self.node,
            "restarts": max(0, seen.lives - 1),
            "slurm_state": self.job.state if self.job else self.fate.said if self.fate else None,
            "slurm_reason": self.job.reason if self.job else None,
        }


@dataclass(frozen=True)
class Answer:
    """How some runs stand, and what the scheduler did not tell."""

    statuses: list[Status]
    remark: str = ""
    silent: bool = False
    """Whether the queue was not read, or not all of it."""


def statuses(runs: Sequence[Run], *, thorough: bool = False) -> Answer:
    """How runs stand.

    Args:
        runs: any number; nothing in them is changed.
        thorough: ask the accounts also where the state is clear and only its cause is not.

    Returns:
        One status each, in their order. At most three questions are put to the scheduler: ``scontrol show config``
        where a run's cluster was written down or a job may be hidden, ``squeue``, and ``sacct`` of at most
        :data:`cnnjob.slurm.scheduler.accounting.MOST_JOBS` jobs.
    """
    end = time.monotonic() + ANSWER_SECONDS
    ask_config = cache(lambda: client.config(0.2 * ANSWER_SECONDS))
    looks = _on_this_cluster([read_summary(run) for run in runs], ask_config)
    asked, remark = queue_of(looks)
    jobs = asked.jobs if asked else []
    find = JobIndex(jobs)
    found = [find.of(one) for one in looks]
    hidden, silent = _hidden(looks, found, ask_config) if asked else dict[Run, str](), bool(remark)
    remark = remark or "; ".join(sorted({why for why in hidden.values() if why}))
    fates = {one.run: _fate_of(job) for one in looks if (job := find.ended(one))}
    if asked:
        unclear = [one for one, job in zip(looks, found, strict=True) if not job and _is_unclear(one, thorough)]
        ids = {one.job_id for one in unclear if one.job_id and (thorough or one.run not in fates)}
        accounts = _fates(sorted(ids), end - time.monotonic())
        told_of = {one.run: fate for one in looks if (fate := accounts.get(one.job_id or "")) and _may_be_of(fate, one)}
        fates |= {run: fate for run, fate in told_of.items() if fate.state in job_states.ENDED or not asked.whole}
    told = [
        _status(one, job, fates.get(one.run), gone=bool(asked and asked.whole and not job and one.run not in hidden))
        for one, job in zip(looks, found, strict=True)
    ]
    told = [replace(one, is_hidden=one.summary.run in hidden) for one in told]
    return Answer([_with_remarks(one, find.own(one.summary)) for one in told], remark, silent)


def _on_this_cluster(looks: Sequence[RunSummary], ask_config: Callable[[], Mapping[str, str]]) -> list[RunSummary]:
    """Return what the looks are on this cluster, whose name is asked for only where one was written down."""
    left = [one for one in looks if one.state not in {"finished", "damaged"}]
    recorded = any(record.get("cluster") for one in left for record in (one.attempt, one.submission))
    here = client.cluster(ask_config) if recorded else ""
    return [one.on(here) for one in looks]


def _hidden(
    looks: Sequence[RunSummary], found: Sequence[QueuedJob | None], ask_config: Callable[[], Mapping[str, str]]
) -> dict[Run, str]:
    """Return the runs whose job may be in a queue that was not shown, and what to say of it."""
    unshown = [
        one for one, job in zip(looks, found, strict=True) if not job and one.state not in {"finished", "damaged"}
    ]
    hidden = {
        one.run: f"squeue: jobs of cluster {one.elsewhere} are not known on this one, {one.here}"
        for one in unshown if one.elsewhere and may_go_on(one)
    }  # fmt: skip
    others = [one.run for one in unshown if one.is_anothers and one.run not in hidden]
    if others and client.hides_jobs(ask_config):
        said = "squeue: this site shows nobody the jobs of others; what became of those is not known here"
        hidden |= dict.fromkeys(others, said)
    return hidden


def may_go_on(seen: RunSummary) -> bool:
    """Return whether nothing in its folder says that its newest job has ended and does not bring it back."""
    is_submitted = str(seen.submission.get("job_id")) == str(seen.job_id)
    is_left = seen.state != "running" and (seen.decided.get("restarted") == "" or not is_submitted)
    return not (is_settled(seen) or seen.was_cancelled_here or is_left)


def of_folder(run: Run, error: str = "") -> Status:
    """Return how a run stands by its folder alone; one whose process ended with an error before its claim failed."""
    seen = read_summary(run)
    if not error and seen.state in {"pending", "stopped", "lost"} and (cancelled := _cancelled(seen, None)):
        return Status(seen, "cancelled", cancelled)
    return Status(seen, "failed" if error else seen.state, seen.trouble, error=error)


def queue_of(looks: Sequence[RunSummary]) -> tuple[QueueListing | None, str]:
    """What squeue answers on the jobs of unfinished runs; None, and why, where it does not."""
    left = [one for one in looks if one.state not in {"finished", "damaged"}]
    if not left:
        return None, ""
    try:
        ids = {job_id for one in left for job_id in one.job_ids}
        asked = queue.listing(users_of(left), ids, ended=True, seconds=0.6 * ANSWER_SECONDS)
    except SchedulerError as error:
        no_slurm = "not found" in str(error) and not any(one.job_id for one in looks)
        return None, "" if no_slurm else f"squeue: {_short(error)}; this is what the run folders tell"
    strange = "squeue: its answer was not understood, or not all; what is missing there is not taken for gone"
    return asked, "" if asked.whole else strange


def _short(error: SchedulerError) -> str:
    """What went wrong, in a few words: the last line of what the command said."""
    said = str(error).splitlines()[-1].partition("; ")[0].rpartition(": ")[2]
    return said or "no answer"


def _fate_of(job: QueuedJob) -> JobOutcome:
    return JobOutcome(job.job_id, job.state, job.state, "squeue", node=job.node, end=job.end)


def _is_unclear(seen: RunSummary, thorough: bool) -> bool:  # noqa: FBT001 - private
    """Whether the accounts are to be asked for a run whose job is not in the queue."""
    if seen.state in {"finished", "damaged"} or not seen.job_id or seen.elsewhere:
        return False
    if thorough:
        return seen.state != "running" or not seen.is_here
    if seen.state == "running":
        return not seen.is_here and _is_quiet(seen)
    return seen.state != "failed" and not _given_up(seen) and not seen.was_cancelled_here


def _may_be_of(fate: JobOutcome, seen: RunSummary) -> bool:
    """Return whether a job that ended may be a run's newest, and not one that had its number long before."""
    is_submitted = str(seen.submission.get("job_id")) == seen.job_id
    since = seen.submission.get("submitted") if is_submitted else seen.attempt.get("started")
    with suppress(ValueError, OverflowError):
        ended = datetime.fromisoformat(fate.end).timestamp()
        return ended >= datetime.fromisoformat(str(since)).timestamp() - client.CLOCKS_SECONDS
    return True


def _fates(ids: Sequence[str], seconds: float) -> dict[str, JobOutcome]:
    """What sacct says of jobs; nothing where there are no accounts, or no time is left."""
    if not ids or seconds <= 0:
        return {}
    try:
        return accounting.job_outcomes(ids, seconds)
    except SchedulerError:
        return {}


def _status(seen: RunSummary, job: QueuedJob | None, fate: JobOutcome | None, *, gone: bool) -> Status:
    fate = None if job or seen.elsewhere else fate
    if seen.state in {"finished", "damaged"}:
        return Status(seen, seen.state, seen.trouble)
    if gone and not fate and _left_queue(seen):
        return Status(seen, "lost" if seen.state == "pending" else seen.state, left(seen), left_queue=True)
    if job and job.state in job_states.WAITING:
        state, detail = _waiting(seen, job)
    elif job and job.state != job_states.ENDING:
        state, detail = _in_a_job(seen, job)
    else:
        state, detail = _without_a_job(seen, fate, gone=gone)
        detail = "its job is ending" if job else detail
    older = "begun by another version, not resumed" if seen.is_older and not job and state in ENDED_EARLY else ""
    return Status(seen, state, "; ".join(filter(None, (detail, older, skew(seen)))), job, fate)


def _left_queue(seen: RunSummary) -> bool:
    """Return whether a job that is gone had not started, as far as the folder tells."""
    return bool(seen.job_id) and seen.state != "running" and not seen.has_begun and not seen.was_cancelled_here


def left(seen: RunSummary) -> str:
    """Return what is known of a job that is gone and never started."""
    return f"job {seen.job_id} left the queue before it started (cancelled or purged)"


def _with_remarks(status: Status, own: Sequence[QueuedJob]) -> Status:
    """Add what is unusual about the jobs of a run: there are several, or they are for another folder."""
    seen, detail = status.summary, [status.detail]
    if own and seen.moved_from:
        detail.append(f"job {own[0].job_id} is for {seen.moved_from}, from where this folder was moved")
    elif seen.original and not own and status.state != "finished":
        detail.append(f"a copy of {seen.original}, whose jobs are not its own")
        if status.state == "running":
            detail[-1] = (
                f"a copy of {seen.original}, or that under another name, heard of {span(seen.heard_seconds)} ago"
            )
    if seen.elsewhere and status.state != "finished":
        detail.append(f"job {seen.job_id} is of cluster {seen.elsewhere}, and this one is {seen.here}")
    others = [job.job_id for job in own if status.job and job.job_id != status.job.job_id]
    if others:
        detail.append(f"job {', '.join(others)} is for it too")
    return replace(status, detail="; ".join(filter(None, detail)), own=tuple(own))


def _waiting(seen: RunSummary, job: QueuedJob) -> tuple[str, str]:
    if seen.state == "running" and (seen.elsewhere or str(seen.attempt.get("job_id")) != job.job_id):
        return "running", f"job {job.job_id} waits too"
    wait = job_states.waits_for(job.reason)
    never = ", it never starts so" if wait.never else ""
    return "pending", f"{wait.words}{never}"


def _in_a_job(seen: RunSummary, job: QueuedJob) -> tuple[str, str]:
    """The state while its job runs."""
    same = not seen.elsewhere and str(seen.attempt.get("job_id")) == job.job_id
    if seen.state == "failed" and same:
        return "failed", "its job is ending"
    if job.state not in job_states.RUNNING:
        return seen.state, f"SLURM says {job.state}"
    if job.state != "RUNNING":
        return "running", f"SLURM says {job.state}"
    if seen.state == "running":
        return "running", ""
    quiet = same and seen.state == "lost"
    return "running", f"no sign of life for {span(seen.heard_seconds)}" if quiet else "its job starts"


def _without_a_job(seen: RunSummary, fate: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """The state without a job that waits or runs.

    Args:
        seen: its folder.
        fate: how its newest job ended, where that is known.
        gone: whether the queue was read, and it is not there.

    Returns:
        The state, and a few words.
    """
    if fate and fate.state in job_states.WAITING | job_states.RUNNING:  # the queue's answer was cut
        return ("pending" if fate.state in job_states.WAITING else "running"), f"{fate.said_by} says {fate.said}"
    if seen.state == "running":
        return _alive_or_lost(seen, fate, gone=gone)
    if seen.state != "failed" and (cancelled := _cancelled(seen, fate)):
        return "cancelled", cancelled
    if given_up := _given_up(seen):
        return "failed", given_up
    if seen.state == "pending":
        return _never_began(seen, fate, gone=gone)
    said = str(seen.decided.get("said", ""))
    return seen.state, said if said.startswith("not restarted") else ""


def is_settled(seen: RunSummary) -> bool:
    """Whether its folder says that nothing will bring it back by itself."""
    if seen.state in {"finished", "failed", "damaged"}:
        return True
    return seen.state != "running" and (seen.decided.get("ended_by") == "cancelled" or bool(_given_up(seen)))


def _is_quiet(seen: RunSummary) -> bool:
    """Return whether no sign of life contradicts a scheduler that does not know the job; none from the future does."""
    return seen.heard_seconds >= HEARD_SECONDS or seen.ahead_seconds > 0


def skew(seen: RunSummary) -> str:
    """Return what is wrong with the clocks; empty where nothing is."""
    if not seen.ahead_seconds:
        return ""
    ahead, host = span(seen.ahead_seconds), seen.attempt.get("host") or "its machine"
    return f"its last sign of life is {ahead} in the future, so the clock of {host} or of this machine is wrong"


def _given_up(seen: RunSummary) -> str:
    """Why its batch script does not bring it back, where that is for good; empty otherwise."""
    said = str(seen.decided.get("said", ""))
    return said if "without progress" in said or "own error" in said else ""


def _alive_or_lost(seen: RunSummary, fate: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """The state of a life that has not said its end."""
    if seen.is_here or not seen.job_id:
        return "running", ""
    if fate and fate.state in job_states.ENDED:
        return ("cancelled" if fate.state == "CANCELLED" else "lost"), f"job {fate.job_id} {fate.said}"
    if gone and _is_quiet(seen):
        heard = "" if seen.ahead_seconds else f", no sign of life for {span(seen.heard_seconds)}"
        return "lost", f"job {seen.job_id} is gone{heard}"
    return "running", ""


def _cancelled(seen: RunSummary, fate: JobOutcome | None) -> str:
    """By whom it was cancelled, as far as is known; empty where it was not."""
    if fate and fate.state == "CANCELLED":
        return f"job {fate.job_id} {fate.said}"
    if seen.was_cancelled_here:
        return f"by {seen.cancelled.get('by')}"
    if fate and fate.state in job_states.ENDED:  # a deadline looks like a cancellation until the job has ended
        return ""
    return f"job {seen.job_id}" if seen.decided.get("ended_by") == "cancelled" else ""


def _never_began(seen: RunSummary, fate: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """The state of a run without a life, whose job is not in the queue."""
    if not seen.job_id:
        return "pending", "not submitted"
    if fate and fate.state in job_states.REFUSED:
        return "failed", f"job {fate.job_id} {fate.said} before the run began"
    if fate:
        return "lost", f"job {fate.job_id} {fate.said} before the run began"
    unknown = "" if seen.elsewhere else f"job {seen.job_id}"
    return ("lost", f"job {seen.job_id} ended before the run began") if gone else ("pending", unknown)


def span(seconds: float) -> str:
    """Seconds for people: ``40 s``, ``5 min``, ``1 h 5 min``, ``2 d 3 h``."""
    minutes = round(seconds / 60)
    if seconds < 100:  # noqa: PLR2004 - as people say it
        return f"{max(0, round(seconds))} s"
    hours, left = divmod(minutes, 60)
    days, rest = divmod(hours, 24)
    if days:
        return f"{days} d {rest} h"
    return f"{hours} h {left} min" if hours else f"{minutes} min"
