"""The state of a run, determined from its folder, its SLURM job in the queue and the outcome of its newest SLURM job.

This module does not query SLURM. If the folder and the scheduler disagree, the folder takes precedence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cnnjob.errors import format_seconds
from cnnjob.runs.process import RECENT_HEARTBEAT_SECONDS
from cnnjob.runs.run import Run
from cnnjob.runs.summary import RunSummary, read_summary
from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.scheduler.accounting import JobOutcome
from cnnjob.slurm.scheduler.queue import QueuedJob

ENDED_EARLY = {"pending", "stopped", "failed", "cancelled", "lost"}
"""States of readable runs that are neither being trained nor finished."""
STATES = ("pending", "running", "stopped", "finished", "failed", "cancelled", "lost", "damaged")


@dataclass(frozen=True)
class Status:
    """The status of a run."""

    summary: RunSummary
    state: str
    """One of ``STATES``."""
    detail: str = ""
    """A short remark on the state."""
    job: QueuedJob | None = None
    """The run's SLURM job in the queue."""
    outcome: JobOutcome | None = None
    """Outcome of the run's newest SLURM job."""
    own_jobs: tuple[QueuedJob, ...] = ()
    """All SLURM jobs in the queue that cnnjob submitted for the run."""
    error: str = ""
    """Reason why a process ended before it could claim the run, if known to the caller."""
    is_hidden: bool = False
    """True if the run may have a job, of another user or on another cluster, that squeue does not show here."""
    left_queue: bool = False
    """True if the run's newest job left the queue without having started, and its outcome is not known."""
    sacct_answered: bool = False
    """True if sacct was queried for the run's newest job and answered, even if it did not list the job."""

    @property
    def is_elsewhere(self) -> bool:
        """True if the run may have a job on another cluster."""
        return self.is_hidden and bool(self.summary.other_cluster)

    @property
    def is_resumable(self) -> bool:
        """True if the run was interrupted and submitting it again resumes it.

        False for a run that was cancelled or failed, although submitting it would also resume it.
        """
        return self.state in {"pending", "stopped", "lost"} and not self.left_queue

    @property
    def job_id(self) -> str | None:
        """Id of the run's SLURM job in the queue or, if there is none, of its newest SLURM job."""
        return self.job.job_id if self.job else self.summary.job_id

    @property
    def node(self) -> str | None:
        """Name of the node on which the run is being trained or was last trained."""
        node = self.job.node if self.job and self.job.node not in {"", "(null)"} else self.summary.attempt.get("host")
        return str(node) if node else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining training time in seconds; None if not known."""
        return self.summary.seconds_left if self.state in {"pending", "running", "stopped"} else None

    def as_json(self) -> dict[str, Any]:
        """Return the status as a dict for JSON; the keys do not change between versions."""
        summary, seconds = self.summary, self.seconds_left
        slurm_state = self.job.state if self.job else self.outcome.printed if self.outcome else None
        return {
            "run": summary.run.name,
            "path": str(summary.run.path),
            "state": self.state,
            "detail": self.detail,
            "epoch": summary.epoch,
            "epochs": summary.epochs,
            "split": summary.split,
            "loss": summary.score("loss"),
            "accuracy": summary.score("accuracy"),
            "test_accuracy": summary.result.get("test_accuracy"),
            "seconds_left": None if seconds is None else round(seconds, 1),
            "job_id": self.job_id,
            "node": self.node,
            "restarts": max(0, summary.n_attempts - 1),
            "slurm_state": slurm_state,
            "slurm_reason": self.job.reason if self.job else None,
        }


def status_from_folder(run: Run, error: str = "") -> Status:
    """Return the status of a run from its folder alone.

    Args:
        run: the run.
        error: why a process ended before it could claim the run; if given, the state is ``failed``.
    """
    summary = read_summary(run)
    if error:
        return Status(summary, "failed", summary.damage, error=error)
    if summary.state in {"pending", "stopped", "lost"} and (cancelled := _describe_cancellation(summary, None)):
        return Status(summary, "cancelled", cancelled)
    return Status(summary, summary.state, summary.damage)


def decide_status(summary: RunSummary, job: QueuedJob | None, outcome: JobOutcome | None, *, gone: bool) -> Status:
    """Return the status of a run.

    Args:
        summary: the summary of the run's folder.
        job: the run's job in the queue.
        outcome: the outcome of the run's newest job, if known.
        gone: whether the whole queue was read and contains no job for the run.
    """
    outcome = None if job or summary.other_cluster else outcome
    if summary.state in {"finished", "damaged"}:
        return Status(summary, summary.state, summary.damage)
    # a job that is gone never started if the folder shows no trace of it
    never_started = bool(summary.job_id) and summary.state != "running" and not summary.has_begun
    if gone and not outcome and never_started and not summary.was_cancelled_by_cnnjob:
        state = "lost" if summary.state == "pending" else summary.state
        return Status(summary, state, describe_left_queue(summary), left_queue=True)
    if job and job.state in job_states.WAITING:
        state, detail = _decide_waiting(summary, job)
    elif job and job.state != job_states.ENDING:
        state, detail = _decide_in_job(summary, job)
    else:
        state, detail = _decide_without_job(summary, outcome, gone=gone)
        detail = "its job is ending" if job else detail
    remarks = [detail]
    if summary.is_older and not job and state in ENDED_EARLY:
        remarks.append("started by another version of cnnjob, so it cannot be resumed")
    remarks.append(describe_heartbeat_skew(summary))
    return Status(summary, state, "; ".join(filter(None, remarks)), job, outcome)


def _decide_waiting(summary: RunSummary, job: QueuedJob) -> tuple[str, str]:
    """Return the state and a remark for a run whose job is waiting."""
    if summary.state == "running" and (summary.other_cluster or str(summary.attempt.get("job_id")) != job.job_id):
        return "running", f"job {job.job_id} is also waiting"
    wait = job_states.parse_reason(job.reason)
    return "pending", f"{wait.phrase}, so it will never start" if wait.never else wait.phrase


def _decide_in_job(summary: RunSummary, job: QueuedJob) -> tuple[str, str]:
    """Return the state and a remark for a run whose job is running."""
    is_same_job = not summary.other_cluster and str(summary.attempt.get("job_id")) == job.job_id
    if summary.state == "failed" and is_same_job:
        return "failed", "its job is ending"
    if job.state not in job_states.RUNNING:
        return summary.state, f"SLURM reports {job.state}"
    if job.state != "RUNNING":
        return "running", f"SLURM reports {job.state}"
    if summary.state == "running":
        return "running", ""
    if is_same_job and summary.state == "lost":
        return "running", f"no heartbeat for {format_seconds(summary.heartbeat_age_seconds)}"
    return "running", "its job is starting"


def _decide_without_job(summary: RunSummary, outcome: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """Return the state and a remark for a run without a waiting or running job."""
    # squeue listed the job, but its line was not understood
    if outcome and outcome.state in job_states.WAITING | job_states.RUNNING:
        state = "pending" if outcome.state in job_states.WAITING else "running"
        return state, f"{outcome.source} reports {outcome.printed}"
    if summary.state == "running":
        return _decide_alive_or_lost(summary, outcome, gone=gone)
    if summary.state != "failed" and (cancelled := _describe_cancellation(summary, outcome)):
        return "cancelled", cancelled
    if given_up := summary.given_up:
        return "failed", given_up
    if summary.state == "pending":
        return _decide_unstarted(summary, outcome, gone=gone)
    decision = str(summary.current_decision.get("said", ""))
    return summary.state, decision if decision.startswith("not restarted") else ""


def _decide_alive_or_lost(summary: RunSummary, outcome: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """Return the state and a remark for a run whose last attempt has a recent heartbeat and no recorded end."""
    # on this host, the summary has already looked for its process
    if summary.is_on_this_host or not summary.job_id:
        return "running", ""
    if outcome and outcome.state in job_states.ENDED:
        state = "cancelled" if outcome.state == "CANCELLED" else "lost"
        return state, f"job {outcome.job_id} {outcome.printed}"
    if gone and is_quiet(summary):
        heard = "" if summary.ahead_seconds else f", no heartbeat for {format_seconds(summary.heartbeat_age_seconds)}"
        return "lost", f"job {summary.job_id} is no longer in the queue{heard}"
    return "running", ""


def _decide_unstarted(summary: RunSummary, outcome: JobOutcome | None, *, gone: bool) -> tuple[str, str]:
    """Return the state and a remark for a run that has no attempt and no job in the queue."""
    if not summary.job_id:
        return "pending", "not submitted"
    if outcome:
        # The same failure would recur, so the run has failed; after any other end, submitting it again may help.
        state = "failed" if outcome.state in job_states.REFUSED else "lost"
        return state, f"job {outcome.job_id} {outcome.printed} before the run began"
    if gone:
        return "lost", f"job {summary.job_id} ended before the run began"
    return "pending", "" if summary.other_cluster else f"job {summary.job_id}"


def _describe_cancellation(summary: RunSummary, outcome: JobOutcome | None) -> str:
    """Return a remark that names the cancelled job or the user who cancelled the run; empty if it was not cancelled."""
    if outcome and outcome.state == "CANCELLED":
        return f"job {outcome.job_id} {outcome.printed}"
    if summary.was_cancelled_by_cnnjob:
        return f"by {summary.cancellation.get('by')}"
    # The batch script cannot distinguish a deadline from a cancellation, as SLURM reports COMPLETING for both until
    # the job has ended. The outcome distinguishes them.
    if outcome and outcome.state in job_states.ENDED:
        return ""
    return f"job {summary.job_id}" if summary.current_decision.get("ended_by") == "cancelled" else ""


def add_job_remarks(status: Status, own_jobs: Sequence[QueuedJob]) -> Status:
    """Return a status with added remarks about a moved or copied folder, a job on another cluster, and extra jobs."""
    summary, remarks = status.summary, [status.detail]
    if own_jobs and summary.moved_from:
        remarks.append(f"job {own_jobs[0].job_id} is for {summary.moved_from}, the previous path of this folder")
    elif summary.original and not own_jobs and status.state == "running":
        heard = format_seconds(summary.heartbeat_age_seconds)
        remarks.append(f"a copy of {summary.original}, or the same folder at another path; last heartbeat {heard} ago")
    elif summary.original and not own_jobs and status.state != "finished":
        remarks.append(f"a copy of {summary.original}, whose jobs do not train this copy")
    if summary.other_cluster and status.state != "finished":
        remarks.append(f"job {summary.job_id} is on cluster {summary.other_cluster}; this cluster is {summary.here}")
    others = [job.job_id for job in own_jobs if status.job and job.job_id != status.job.job_id]
    if others:
        remarks.append(f"job {', '.join(others)} also belongs to it")
    return replace(status, detail="; ".join(filter(None, remarks)), own_jobs=tuple(own_jobs))


def describe_left_queue(summary: RunSummary) -> str:
    """Return a sentence about a job that left the queue without having started."""
    return f"job {summary.job_id} left the queue before it started (cancelled or purged)"


def describe_heartbeat_skew(summary: RunSummary) -> str:
    """Return a sentence about the last heartbeat if it is dated in the future; otherwise an empty string."""
    if not summary.ahead_seconds:
        return ""
    ahead, host = format_seconds(summary.ahead_seconds), summary.attempt.get("host") or "its machine"
    return f"its last heartbeat is {ahead} in the future, so the clock of {host} or of this machine is wrong"


def is_settled(summary: RunSummary) -> bool:
    """Return whether a run's folder shows that the run will not be restarted automatically."""
    if summary.state in {"finished", "failed", "damaged"}:
        return True
    is_cancelled = summary.current_decision.get("ended_by") == "cancelled"
    return summary.state != "running" and (is_cancelled or bool(summary.given_up))


def may_be_restarted(summary: RunSummary) -> bool:
    """Return whether a run's newest job may still exist or restart the run, according to the run's folder."""
    is_submitted = str(summary.submission.get("job_id")) == str(summary.job_id)
    was_left = summary.state != "running" and (summary.current_decision.get("restarted") == "" or not is_submitted)
    return not (is_settled(summary) or summary.was_cancelled_by_cnnjob or was_left)


def is_quiet(summary: RunSummary) -> bool:
    """Return whether a run has no recent heartbeat, so that it may be lost if the scheduler does not list its job.

    A heartbeat dated in the future does not count as recent, because one of the clocks is wrong.
    """
    return summary.heartbeat_age_seconds >= RECENT_HEARTBEAT_SECONDS or summary.ahead_seconds > 0
