"""Status of runs, from their folders first, then from one call of squeue for all, then from one of sacct.

If the scheduler does not answer, or its answer is not understood, the folders alone decide.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any

from cnnjob.errors import SchedulerError, format_seconds
from cnnjob.runs.process import RECENT_HEARTBEAT_SECONDS
from cnnjob.runs.run import Run
from cnnjob.runs.summary import RunSummary, read_summary
from cnnjob.slurm.job_index import JobIndex, number_of, users_of
from cnnjob.slurm.scheduler import accounting, client, job_states, queue
from cnnjob.slurm.scheduler.accounting import JobOutcome
from cnnjob.slurm.scheduler.queue import QueuedJob, QueueListing

ANSWER_SECONDS = 10.0
"""Time limit of all questions to the scheduler together."""
ENDED_EARLY = {"pending", "stopped", "failed", "cancelled", "lost"}
"""States of readable runs that are neither being trained nor finished."""
STATES = ("pending", "running", "stopped", "finished", "failed", "cancelled", "lost", "damaged")


@dataclass(frozen=True)
class Status:
    """The status of one run."""

    summary: RunSummary
    state: str
    """One of ``STATES``."""
    detail: str = ""
    """A few words on the state."""
    job: QueuedJob | None = None
    """Its job in the queue."""
    fate: JobOutcome | None = None
    """Outcome of its newest job."""
    own: tuple[QueuedJob, ...] = ()
    """All jobs in the queue that cnnjob submitted for it."""
    error: str = ""
    """Reason why a process ended before it could claim the run, if the caller knows."""
    is_hidden: bool = False
    """True if its job may be in a queue that was not shown: another user's job or another cluster's."""
    left_queue: bool = False
    """True if its newest job has left the queue without having started, and its outcome is not known."""

    @property
    def is_elsewhere(self) -> bool:
        """True if a job of another cluster may carry the run."""
        return self.is_hidden and bool(self.summary.other_cluster)

    @property
    def is_resumable(self) -> bool:
        """True if the run was interrupted and submitting it again resumes it.

        A run that was cancelled or failed is not, although submitting it resumes it too.
        """
        return self.state in {"pending", "stopped", "lost"} and not self.left_queue

    @property
    def job_id(self) -> str | None:
        """Id of the job in the queue, otherwise of the newest job."""
        return self.job.job_id if self.job else self.summary.job_id

    @property
    def node(self) -> str | None:
        """Name of the node on which the run is, or was last, trained."""
        node = self.job.node if self.job and self.job.node not in {"", "(null)"} else self.summary.attempt.get("host")
        return str(node) if node else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time left in the training; None if not known."""
        return self.summary.seconds_left if self.state in {"pending", "running", "stopped"} else None

    def as_json(self) -> dict[str, Any]:
        """Return all facts under names that do not change between versions."""
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
            "restarts": max(0, seen.n_attempts - 1),
            "slurm_state": self.job.state if self.job else self.fate.said if self.fate else None,
            "slurm_reason": self.job.reason if self.job else None,
        }


@dataclass(frozen=True)
class Answer:
    """Statuses of runs, with a remark on what the scheduler did not tell."""

    statuses: list[Status]
    remark: str = ""
    silent: bool = False
    """True if the queue could not be read, or not all of it."""


def statuses(runs: Sequence[Run], *, thorough: bool = False) -> Answer:
    """Return the statuses of runs.

    At most three commands are called: ``scontrol show config``, if the cluster of a run is recorded or a job may be
    hidden; ``squeue``; and ``sacct``, for at most :data:`cnnjob.slurm.scheduler.accounting.MOST_JOBS` jobs.

    Args:
        runs: any number of runs, which are only read.
        thorough: call sacct also for runs whose state is clear and only the cause is not.

    Returns:
        One status per run, in their order.
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
    # squeue still shows jobs that ended minutes ago, which saves the question to sacct
    fates = {one.run: _fate_of(job) for one in looks if (job := find.ended(one))}
    if asked:
        unclear = [one for one, job in zip(looks, found, strict=True) if not job and _is_unclear(one, thorough)]
        ids = {one.job_id for one in unclear if one.job_id and (thorough or one.run not in fates)}
        # squeue had at most 0.6 of the time and scontrol 0.2: sacct gets what is left, and is skipped if nothing is
        accounts = _fates(sorted(ids, key=number_of), end - time.monotonic())
        told_of = {one.run: fate for one in looks if (fate := accounts.get(one.job_id or "")) and _may_be_of(fate, one)}
        # sacct may lag behind the queue by seconds: what it says of a live job counts only if the queue was cut
        fates |= {run: fate for run, fate in told_of.items() if fate.state in job_states.ENDED or not asked.whole}
    # gone only if every line of squeue was understood: the job may be in one that was not
    told = [
        _status(one, job, fates.get(one.run), gone=bool(asked and asked.whole and not job and one.run not in hidden))
        for one, job in zip(looks, found, strict=True)
    ]
    told = [replace(one, is_hidden=one.summary.run in hidden) for one in told]
    return Answer([_with_remarks(one, find.own(one.summary)) for one in told], remark, silent)


def _on_this_cluster(looks: Sequence[RunSummary], ask_config: Callable[[], Mapping[str, str]]) -> list[RunSummary]:
    """Return the summaries as seen on this cluster, whose name is asked for only if a run's cluster is recorded."""
    left = [one for one in looks if one.state not in {"finished", "damaged"}]
    recorded = any(record.get("cluster") for one in left for record in (one.attempt, one.submission))
    here = client.cluster(ask_config) if recorded else ""
    return [one.on(here) for one in looks]


def _hidden(
    looks: Sequence[RunSummary], found: Sequence[QueuedJob | None], ask_config: Callable[[], Mapping[str, str]]
) -> dict[Run, str]:
    """Return the runs whose job may be in a queue that was not shown, each with a remark.

    Args:
        looks: the summaries of all runs.
        found: the job of each in the queue, in the same order.
        ask_config: returns SLURM's configuration.
    """
    unshown = [
        one for one, job in zip(looks, found, strict=True) if not job and one.state not in {"finished", "damaged"}
    ]
    hidden = {
        one.run: f"squeue: jobs of cluster {one.other_cluster} are not known on this one, {one.here}"
        for one in unshown if one.other_cluster and may_go_on(one)
    }  # fmt: skip
    others = [one.run for one in unshown if one.is_other_users and one.run not in hidden]
    if others and client.hides_jobs(ask_config):
        said = "squeue: this site shows nobody the jobs of others; what became of those is not known here"
        hidden |= dict.fromkeys(others, said)
    return hidden


def may_go_on(seen: RunSummary) -> bool:
    """Return whether the newest job of a run may still be there or restart it, as far as the folder tells."""
    is_submitted = str(seen.submission.get("job_id")) == str(seen.job_id)
    is_left = seen.state != "running" and (seen.current_decision.get("restarted") == "" or not is_submitted)
    return not (is_settled(seen) or seen.was_cancelled_by_cnnjob or is_left)


def of_folder(run: Run, error: str = "") -> Status:
    """Return the status of a run by its folder alone.

    Args:
        run: the run.
        error: why a process ended before it could claim the run; then the run has failed.
    """
    seen = read_summary(run)
    if not error and seen.state in {"pending", "stopped", "lost"} and (cancelled := _cancelled(seen, None)):
        return Status(seen, "cancelled", cancelled)
    return Status(seen, "failed" if error else seen.state, seen.damage, error=error)


def queue_of(looks: Sequence[RunSummary]) -> tuple[QueueListing | None, str]:
    """Ask squeue for the jobs of unfinished runs.

    Returns:
        The answer, and a remark if it is not whole; None and the reason if there is no answer; None and an empty string
        if no question was necessary.
    """
    left = [one for one in looks if one.state not in {"finished", "damaged"}]
    if not left:
        return None, ""
    try:
        ids = {job_id for one in left for job_id in one.job_ids}
        asked = queue.listing(users_of(left), ids, ended=True, seconds=0.6 * ANSWER_SECONDS)
    except SchedulerError as error:
        # a machine without SLURM, and no run that had a job: nothing is missing
        no_slurm = "not found" in str(error) and not any(one.job_id for one in looks)
        return None, "" if no_slurm else f"squeue: {_short(error)}; this is what the run folders tell"
    strange = "squeue: its answer was not understood, or not all; what is missing there is not taken for gone"
    return asked, "" if asked.whole else strange


def _short(error: SchedulerError) -> str:
    """Return an error in a few words: the last line of what the command printed."""
    said = str(error).splitlines()[-1].partition("; ")[0].rpartition(": ")[2]
    return said or "no answer"


def _fate_of(job: QueuedJob) -> JobOutcome:
    return JobOutcome(job.job_id, job.state, job.state, "squeue", node=job.node, end=job.end)


def _is_unclear(seen: RunSummary, thorough: bool) -> bool:  # noqa: FBT001 - private
    """Return whether sacct is to be asked about a run whose job is not in the queue."""
    if seen.state in {"finished", "damaged"} or not seen.job_id or seen.other_cluster:
        return False
    if thorough:
        return seen.state != "running" or not seen.is_on_this_host
    if seen.state == "running":  # a process with a recent heartbeat is alive, whatever sacct says of its job's number
        return not seen.is_on_this_host and _is_quiet(seen)
    return seen.state != "failed" and not _given_up(seen) and not seen.was_cancelled_by_cnnjob


def _may_be_of(fate: JobOutcome, seen: RunSummary) -> bool:
    """Return whether an outcome may be that of a run's newest job, and not of an older job with the same number."""
    is_submitted = str(seen.submission.get("job_id")) == seen.job_id
    since = seen.submission.get("submitted") if is_submitted else seen.attempt.get("started")
    with suppress(ValueError, OverflowError):
        ended = datetime.fromisoformat(fate.end).timestamp()
        return ended >= datetime.fromisoformat(str(since)).timestamp() - client.CLOCKS_SECONDS
    return True


def _fates(ids: Sequence[str], seconds: float) -> dict[str, JobOutcome]:
    """Return the outcomes that sacct knows; none if the site keeps no accounting or no time is left."""
    if not ids or seconds <= 0:
        return {}
    try:
        return accounting.job_outcomes(ids, seconds)
    except SchedulerError:
        return {}


def _status(seen: RunSummary, job: QueuedJob | None, fate: JobOutcome | None, *, gone: bool) -> Status:
    fate = None if job or seen.other_cluster else fate
    if seen.state in {"finished", "damaged"}:
        return Status(seen, seen.state, seen.damage)
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
    """Return whether a job that is gone never started, as far as the folder tells."""
    return bool(seen.job_id) and seen.state != "running" and not seen.has_begun and not seen.was_cancelled_by_cnnjob


def left(seen: RunSummary) -> str:
    """Return a sentence on a job that is gone and never started."""
    return f"job {seen.job_id} left the queue before it started (cancelled or purged)"


def _with_remarks(status: Status, own: Sequence[QueuedJob]) -> Status:
    """Add to the detail what is unusual about a run's jobs: there are several, or they are for another folder."""
    seen, detail = status.summary, [status.detail]
    if own and seen.moved_from:
        detail.append(f"job {own[0].job_id} is for {seen.moved_from}, from where this folder was moved")
    elif seen.original and not own and status.state != "finished":
        detail.append(f"a copy of {seen.original}, whose jobs are not its own")
        if status.state == "running":
            heard = format_seconds(seen.heartbeat_age_seconds)
            detail[-1] = f"a copy of {seen.original}, or that under another name, heard of {heard} ago"
    if seen.other_cluster and status.state != "finished":
        detail.append(f"job {seen.job_id} is of cluster {seen.other_cluster}, and this one is {seen.here}")
    others = [job.job_id for job in own if status.job and job.job_id != status.job.job_id]
    if others:
        detail.append(f"job {', '.join(others)} is for it too")
    return replace(status, detail="; ".join(filter(None, detail)), own=tuple(own))


def _waiting(seen: RunSummary, job: QueuedJob) -> tuple[str, str]:
    if seen.state == "running" and (seen.other_cluster or str(seen.attempt.get("job_id")) != job.job_id):
        return "running", f"job {job.job_id} waits too"
    wait = job_states.waits_for(job.reason)
    never = ", it never starts so" if wait.never else ""
    return "pending", f"{wait.words}{never}"


def _in_a_job(seen: RunSummary, job: QueuedJob) -> tuple[str, str]:
    """Return the state and a few words on it while the job runs."""
    same = not seen.other_cluster and str(seen.attempt.get("job_id")) == job.job_id
    if seen.state == "failed" and same:
        return "failed", "its job is ending"
    if job.state not in job_states.RUNNING:
        return seen.state, f"SLURM says {job.state}"
    if job.state != "RUNNING":
        return "running", f"SLURM says {job.state}"
    if seen.state == "running":
        return "running", ""
    quiet = same and seen.state == "lost"
    return "running", f"no sign of life for {format_seconds(seen.heartbeat_age_seconds)}" if quiet else "its job starts"


def _without_a_job(seen: RunSummary, fate: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """Return the state of a run that has no job waiting or running.

    Args:
        seen: the summary of its folder.
        fate: the outcome of its newest job, if known.
        gone: whether the queue was read and the job is not in it.

    Returns:
        The state, and a few words on it.
    """
    if fate and fate.state in job_states.WAITING | job_states.RUNNING:  # its line of the queue was not understood
        return ("pending" if fate.state in job_states.WAITING else "running"), f"{fate.said_by} says {fate.said}"
    if seen.state == "running":
        return _alive_or_lost(seen, fate, gone=gone)
    if seen.state != "failed" and (cancelled := _cancelled(seen, fate)):
        return "cancelled", cancelled
    if given_up := _given_up(seen):
        return "failed", given_up
    if seen.state == "pending":
        return _never_began(seen, fate, gone=gone)
    said = str(seen.current_decision.get("said", ""))
    return seen.state, said if said.startswith("not restarted") else ""


def is_settled(seen: RunSummary) -> bool:
    """Return whether a run's folder says that nothing will restart it by itself."""
    if seen.state in {"finished", "failed", "damaged"}:
        return True
    return seen.state != "running" and (seen.current_decision.get("ended_by") == "cancelled" or bool(_given_up(seen)))


def _is_quiet(seen: RunSummary) -> bool:
    """Return whether no recent heartbeat contradicts a scheduler that does not know the job.

    A heartbeat from the future proves nothing, as one of the clocks is wrong.
    """
    return seen.heartbeat_age_seconds >= RECENT_HEARTBEAT_SECONDS or seen.ahead_seconds > 0


def skew(seen: RunSummary) -> str:
    """Return a sentence on clocks that differ; empty if none do."""
    if not seen.ahead_seconds:
        return ""
    ahead, host = format_seconds(seen.ahead_seconds), seen.attempt.get("host") or "its machine"
    return f"its last sign of life is {ahead} in the future, so the clock of {host} or of this machine is wrong"


def _given_up(seen: RunSummary) -> str:
    """Return why its batch script has given the run up; empty if it has not."""
    said = str(seen.current_decision.get("said", ""))
    return said if "without progress" in said or "own error" in said else ""


def _alive_or_lost(seen: RunSummary, fate: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """Return the state of a run whose last attempt has recorded no end and was heard of recently."""
    if (
        seen.is_on_this_host or not seen.job_id
    ):  # the summary has looked its process up, or there is no job to ask about
        return "running", ""
    if fate and fate.state in job_states.ENDED:
        return ("cancelled" if fate.state == "CANCELLED" else "lost"), f"job {fate.job_id} {fate.said}"
    if gone and _is_quiet(seen):
        heard = "" if seen.ahead_seconds else f", no sign of life for {format_seconds(seen.heartbeat_age_seconds)}"
        return "lost", f"job {seen.job_id} is gone{heard}"
    return "running", ""


def _cancelled(seen: RunSummary, fate: JobOutcome | None) -> str:
    """Return by whom or with which job a run was cancelled, as far as is known; empty if it was not."""
    if fate and fate.state == "CANCELLED":
        return f"job {fate.job_id} {fate.said}"
    if seen.was_cancelled_by_cnnjob:
        return f"by {seen.cancellation.get('by')}"
    # The batch script cannot tell a deadline from a cancellation, as SLURM says COMPLETING for both until the job has
    # ended. The outcome can.
    if fate and fate.state in job_states.ENDED:
        return ""
    return f"job {seen.job_id}" if seen.current_decision.get("ended_by") == "cancelled" else ""


def _never_began(seen: RunSummary, fate: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """Return the state of a run without an attempt whose job is not in the queue."""
    if not seen.job_id:
        return "pending", "not submitted"
    if fate and fate.state in job_states.REFUSED:
        return "failed", f"job {fate.job_id} {fate.said} before the run began"
    if fate:
        return "lost", f"job {fate.job_id} {fate.said} before the run began"
    unknown = "" if seen.other_cluster else f"job {seen.job_id}"
    return ("lost", f"job {seen.job_id} ended before the run began") if gone else ("pending", unknown)
