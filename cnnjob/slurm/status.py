"""Status of runs, determined from their folders and from one squeue call and one sacct call for all runs.

If the scheduler does not answer, or its answer cannot be parsed, the status is determined from the folders alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from cnnjob.errors import SchedulerError
from cnnjob.runs.run import Run
from cnnjob.runs.summary import RunSummary, read_summary
from cnnjob.slurm.job_index import JobIndex, number_of, users_of
from cnnjob.slurm.run_state import Status, add_job_remarks, decide_status, is_quiet, may_be_restarted
from cnnjob.slurm.scheduler import accounting, client, job_states, queue
from cnnjob.slurm.scheduler.accounting import JobOutcome
from cnnjob.slurm.scheduler.queue import QueuedJob, QueueListing
from cnnjob.slurm.scheduler.times import parse_time

ANSWER_SECONDS = 10.0
"""Time limit, in seconds, for all scheduler queries together."""
NO_LONGER_QUEUED = {"finished", "damaged"}
"""States of runs about which SLURM is not queried."""


@dataclass(frozen=True)
class Answer:
    """The statuses of runs, and a remark on any information that the scheduler did not provide."""

    statuses: list[Status]
    remark: str = ""
    silent: bool = False
    """True if the queue could not be read completely."""


def query_statuses(runs: Sequence[Run], *, thorough: bool = False) -> Answer:
    """Return the statuses of runs.

    At most three commands are run: ``scontrol show config``, if a run's cluster is recorded or a job may be hidden;
    ``squeue``; and ``sacct``, for at most :data:`cnnjob.slurm.scheduler.accounting.MOST_JOBS` jobs.

    Args:
        runs: any number of runs; they are not changed.
        thorough: whether to call sacct even for runs whose state is clear, to find the cause of that state.

    Returns:
        One status per run, in the same order.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    ask_config = cache(lambda: client.query_config(0.2 * ANSWER_SECONDS))
    summaries = _on_this_cluster([read_summary(run) for run in runs], ask_config)
    listing, remark = query_queue(summaries)
    index = JobIndex(listing.jobs if listing else [])
    jobs = [index.job_for(summary) for summary in summaries]
    hidden = _find_hidden(summaries, jobs, ask_config) if listing else {}
    silent = bool(remark)
    remark = remark or "; ".join(sorted({reason for reason in hidden.values() if reason}))
    outcomes, answered = _find_outcomes(summaries, jobs, index, listing, deadline, thorough=thorough)
    complete = bool(listing and listing.complete)
    statuses = []
    for summary, job in zip(summaries, jobs, strict=True):
        # gone only if every line of squeue's output was parsed: the job may be in a line that was not
        gone = complete and not job and summary.run not in hidden
        status = decide_status(summary, job, outcomes.get(summary.run), gone=gone)
        status = replace(status, is_hidden=summary.run in hidden, sacct_answered=summary.job_id in answered)
        statuses.append(add_job_remarks(status, index.jobs_for(summary)))
    return Answer(statuses, remark, silent)


def _on_this_cluster(summaries: Sequence[RunSummary], ask_config: Callable[[], Mapping[str, str]]) -> list[RunSummary]:
    """Return the summaries as seen from this cluster.

    The name of this cluster is queried only if the cluster of an unfinished run is recorded.
    """
    open_ones = [summary for summary in summaries if summary.state not in NO_LONGER_QUEUED]
    recorded = any(record.get("cluster") for summary in open_ones for record in (summary.attempt, summary.submission))
    here = client.current_cluster(ask_config) if recorded else ""
    return [summary.on(here) for summary in summaries]


def _find_hidden(
    summaries: Sequence[RunSummary], jobs: Sequence[QueuedJob | None], ask_config: Callable[[], Mapping[str, str]]
) -> dict[Run, str]:
    """Return the runs whose SLURM jobs may be hidden from this user or this cluster, each with the reason.

    Args:
        summaries: the summaries of all runs.
        jobs: the runs' jobs in the queue, in the same order.
        ask_config: function that returns SLURM's configuration.
    """
    unshown = [
        summary for summary, job in zip(summaries, jobs, strict=True)
        if not job and summary.state not in NO_LONGER_QUEUED
    ]  # fmt: skip
    hidden = {
        summary.run: f"squeue: jobs on cluster {summary.other_cluster} are not visible from cluster {summary.here}"
        for summary in unshown if summary.other_cluster and may_be_restarted(summary)
    }  # fmt: skip
    others = [summary.run for summary in unshown if summary.is_other_users and summary.run not in hidden]
    if others and client.hides_jobs(ask_config):
        remark = "squeue: this site hides the jobs of other users; their states are not known here"
        hidden |= dict.fromkeys(others, remark)
    return hidden


def query_queue(summaries: Sequence[RunSummary]) -> tuple[QueueListing | None, str]:
    """Query squeue for the jobs of unfinished runs.

    Returns:
        The listing, and a remark if it is incomplete; None and the reason if squeue did not answer; None and an empty
        string if no query was necessary.
    """
    open_ones = [summary for summary in summaries if summary.state not in NO_LONGER_QUEUED]
    if not open_ones:
        return None, ""
    try:
        job_ids = {job_id for summary in open_ones for job_id in summary.job_ids}
        listing = queue.list_queue(users_of(open_ones), job_ids, ended=True, seconds=0.6 * ANSWER_SECONDS)
    except SchedulerError as error:
        # on a machine that does not belong to a cluster, if no run ever had a job, nothing is missing
        if client.is_absent(error) and not any(summary.job_id for summary in summaries):
            return None, ""
        # shortened to the last line that the command printed, without the advice
        reason = str(error).splitlines()[-1].partition(". ")[0].rpartition(": ")[2]
        return None, f"squeue: {reason or 'no answer'}; the states shown are from the run folders"
    if listing.complete:
        return listing, ""
    return listing, "squeue: part of its output could not be parsed; jobs missing from it do not count as ended"


def _find_outcomes(
    summaries: Sequence[RunSummary], jobs: Sequence[QueuedJob | None], index: JobIndex, listing: QueueListing | None,
    deadline: float, *, thorough: bool,
) -> tuple[dict[Run, JobOutcome], set[str]]:  # fmt: skip
    """Return the outcomes of the runs' newest jobs, and the ids of the jobs for which sacct was queried successfully.

    Args:
        summaries: the summaries of all runs.
        jobs: the runs' jobs in the queue, in the same order.
        index: the index of the jobs in the queue.
        listing: squeue's listing; if it is None, sacct is not called either.
        deadline: the monotonic time by which sacct must have answered.
        thorough: as in :func:`query_statuses`.
    """
    if listing is None:
        return {}, set()
    # squeue still shows jobs that ended minutes ago, for which sacct need not be called
    outcomes = {summary.run: _outcome_in_queue(job) for summary in summaries if (job := index.ended_job_for(summary))}
    without_job = [summary for summary, job in zip(summaries, jobs, strict=True) if not job]
    unclear = [summary for summary in without_job if _is_unclear(summary, thorough)]
    if not thorough:
        unclear = [summary for summary in unclear if summary.run not in outcomes]
    # squeue may take 60 % of the time and scontrol 20 %: sacct gets the rest, and is skipped if no time is left
    accounts, answered = _query_outcomes(unclear, deadline - time.monotonic())
    for summary in summaries:
        outcome = accounts.get(summary.job_id or "")
        # sacct may lag behind the queue, so a live state counts only if the queue listing is incomplete
        counts = outcome and (outcome.state in job_states.ENDED or not listing.complete)
        if outcome and counts and _may_be_of(outcome, summary):
            outcomes[summary.run] = outcome
    return outcomes, answered


def _outcome_in_queue(job: QueuedJob) -> JobOutcome:
    """Return the outcome of a job that squeue still shows although it has ended."""
    return JobOutcome(job.job_id, job.state, job.state, "squeue", node=job.node, end=job.end)


def _is_unclear(summary: RunSummary, thorough: bool) -> bool:  # noqa: FBT001 - private
    """Return whether sacct should be queried for a run whose job is not in the queue."""
    if summary.state in NO_LONGER_QUEUED or not summary.job_id or summary.other_cluster:
        return False
    if thorough:
        return summary.state != "running" or not summary.is_on_this_host
    if summary.state == "running":
        # a process with a recent heartbeat is alive, whatever sacct reports for its job id
        return not summary.is_on_this_host and is_quiet(summary)
    return summary.state != "failed" and not summary.given_up and not summary.was_cancelled_by_cnnjob


def _query_outcomes(summaries: Sequence[RunSummary], seconds: float) -> tuple[dict[str, JobOutcome], set[str]]:
    """Return the outcomes reported by sacct, by job id, and the ids that were queried successfully.

    Both are empty if the site has no accounting or no time is left.
    """
    job_ids = {summary.job_id for summary in summaries if summary.job_id}
    if not job_ids or seconds <= 0:
        return {}, set()
    try:
        return accounting.query_outcomes(sorted(job_ids, key=number_of), seconds), job_ids
    except SchedulerError:
        return {}, set()


def _may_be_of(outcome: JobOutcome, summary: RunSummary) -> bool:
    """Return whether an outcome may belong to a run's newest job rather than to an older job with the same id."""
    is_submitted = str(summary.submission.get("job_id")) == summary.job_id
    since = summary.submission.get("submitted") if is_submitted else summary.attempt.get("started")
    ended, began = parse_time(outcome.end), parse_time(str(since))
    return ended is None or began is None or ended >= began - client.CLOCKS_SECONDS
