"""Cancellation of runs: their SLURM jobs are cancelled, and training processes outside those jobs are asked to stop.

A run may be trained inside a SLURM job that cnnjob did not submit, for example by ``cnnjob train`` in an
``salloc`` session. Such a job is never cancelled, because other work may depend on it; only the training process is
asked to stop (:mod:`cnnjob.slurm.stop_process`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from cnnjob import files
from cnnjob.errors import DataError, SchedulerError
from cnnjob.runs.restart_log import cancellation_file, find_local_wait, try_read_cancellation
from cnnjob.runs.run import Run
from cnnjob.runs.summary import read_summary
from cnnjob.slurm.job_index import JobIndex
from cnnjob.slurm.run_state import Status
from cnnjob.slurm.scheduler import client, job_states
from cnnjob.slurm.scheduler.queue import QueuedJob
from cnnjob.slurm.status import query_queue, query_statuses
from cnnjob.slurm.stop_process import Cancellation, job_ids_of, restore_record, stop_process, write_record


def cancel(runs: Sequence[Run]) -> list[Cancellation]:
    """Cancel the SLURM jobs submitted for the runs, and ask processes that train the runs outside those jobs to stop.

    The cancellation is first recorded in each run's folder, which prevents a batch script from restarting the run. A
    batch script that checked for the record just before it was written may still submit a job, so the queue is read
    again at the end.

    SLURM is queried as in :func:`cnnjob.slurm.status.query_statuses`. ``scancel`` is called once for all jobs. The
    queue is then read again, and ``scancel`` is called once more for each run that has a new job.

    Args:
        runs: any number of runs; those with nothing to cancel are left unchanged.

    Returns:
        One result per run, in the same order. If one run cannot be cancelled, the others still are.

    Raises:
        SchedulerError: the queue could not be read and may contain a job for one of the runs, or ``scancel`` failed.
            In either case, the cancellation records are left as they were.
    """
    answer = query_statuses(runs)
    unfinished = [status for status in answer.statuses if status.state not in {"finished", "damaged"}]
    if answer.silent and any(status.summary.job_id for status in unfinished):
        raise SchedulerError(f"{answer.remark.partition(';')[0]}. Nothing was cancelled. Try again")
    statuses = [replace(status, own_jobs=_jobs_to_cancel(status)) for status in answer.statuses]
    refused = {status.summary.run: refusal for status in statuses if (refusal := _refuse_links(status))}
    with_jobs = [status for status in statuses if status.own_jobs and status.summary.run not in refused]
    with _recorded(with_jobs):
        lines = client.cancel_jobs(sorted({job.job_id for status in with_jobs for job in status.own_jobs}))
    results = [refused.get(status.summary.run) or _result_for(status, lines) for status in statuses]
    later = _cancel_new_jobs(with_jobs)  # last: a batch script that saw no record has by now submitted a job
    return [_join_results(result, later[result.run]) if result.run in later else result for result in results]


def _join_results(first: Cancellation, second: Cancellation) -> Cancellation:
    return Cancellation(first.run, f"{first.message}; {second.message}", max(first.exit_code, second.exit_code))


def _jobs_to_cancel(status: Status) -> tuple[QueuedJob, ...]:
    """Return the SLURM jobs to cancel for a run: all of its jobs, or only the waiting ones if the run is finished.

    If a finished run still has a running job, that job is about to end by itself.
    """
    if status.state != "finished":
        return status.own_jobs
    return tuple(job for job in status.own_jobs if job.state in job_states.WAITING)


def _refuse_links(status: Status) -> Cancellation | None:
    """Return the result for a run that cannot be cancelled because of symbolic links in its folder; otherwise None."""
    run = status.summary.run
    if not status.own_jobs and status.summary.state != "running" and not find_local_wait(run):
        return None
    try:
        run.require_no_links()
    except DataError as error:
        return Cancellation(run, f"not cancelled: {error}", error.exit_code)
    return None


@contextmanager
def _recorded(statuses: Sequence[Status]) -> Iterator[None]:
    """Record the cancellation in each run's folder; if the ``with`` block fails, restore the previous records."""
    try:
        for status in statuses:
            write_record(status.summary, job_ids_of(status))
        yield
    except BaseException:  # including Ctrl-C: the record of a failed cancellation would prevent a restart
        for status in statuses:
            restore_record(status.summary)
        raise


def _cancel_new_jobs(cancelled: Sequence[Status]) -> dict[Run, Cancellation]:
    """Cancel jobs that were submitted or requeued while the runs were being cancelled; return the results by run."""
    if not cancelled:
        return {}
    summaries = [read_summary(status.summary.run).on(status.summary.here) for status in cancelled]
    listing, remark = query_queue(summaries)
    if remark:
        message = (
            f"another job may have been submitted in the meantime ({remark.partition(';')[0]}). "
            "Run the same command again"
        )
        return {summary.run: Cancellation(summary.run, message, SchedulerError.exit_code) for summary in summaries}
    index = JobIndex(listing.jobs if listing else [])
    results = {}
    for status, summary in zip(cancelled, summaries, strict=True):
        if job_ids := _new_jobs(status, index.jobs_for(summary)):
            results[summary.run] = _cancel_later_jobs(summary.run, job_ids)
    return results


def _new_jobs(status: Status, jobs: Sequence[QueuedJob]) -> list[str]:
    """Return the ids of a run's jobs that were submitted or requeued after the run was cancelled."""
    waited = {job.job_id: job.state in job_states.WAITING for job in status.own_jobs}
    return [
        job.job_id for job in jobs
        if job.state != job_states.ENDING
        and (job.job_id not in waited or (job.state in job_states.WAITING and not waited[job.job_id]))
    ]  # fmt: skip


def _cancel_later_jobs(run: Run, job_ids: Sequence[str]) -> Cancellation:
    """Cancel jobs that were submitted or requeued during the cancellation, and add them to the cancellation record."""
    record = try_read_cancellation(run)
    with suppress(OSError):
        files.write_json(cancellation_file(run), {**record, "jobs": [*(record.get("jobs") or []), *job_ids]})
    try:
        refused = client.refusals(job_ids, client.cancel_jobs(job_ids))
    except SchedulerError as error:
        refused = dict.fromkeys(job_ids, str(error))
    cancelled = [job_id for job_id in job_ids if job_id not in refused]
    phrases = [f"cancelled job {job_id}, which was submitted in the meantime" for job_id in cancelled]
    phrases += _describe_refusals(refused)
    return Cancellation(run, "; ".join(phrases), SchedulerError.exit_code if refused else 0)


def _describe_refusals(refused: Mapping[str, str]) -> list[str]:
    return [f"job {job_id} was not cancelled: {line.strip()}" for job_id, line in refused.items()]


def _result_for(status: Status, lines: Sequence[str]) -> Cancellation:
    """Finish cancelling a run whose jobs have already been cancelled, and return the result.

    A process that trains the run but does not belong to any of these jobs is stopped.

    Args:
        status: the run's status.
        lines: the lines that ``scancel`` printed about the jobs of all runs.
    """
    if not status.own_jobs:
        return stop_process(status)
    refused = client.refusals(job_ids_of(status), lines)
    result = _result_for_jobs(status, refused)
    summary = status.summary
    job_id = summary.attempt.get("job_id")
    # An attempt whose job has ended and submitted a successor does not count as being outside the run's jobs, even if
    # the attempt was killed and its end was therefore not recorded.
    ended = {summary.last_decision.get("job_id"), *job_ids_of(status)}
    if summary.state != "running" or (job_id is not None and job_id in ended):
        return result
    remaining = tuple(job for job in status.own_jobs if job.job_id not in refused)
    return _join_results(result, stop_process(replace(status, own_jobs=remaining)))


def _result_for_jobs(status: Status, refused: Mapping[str, str]) -> Cancellation:
    """Return the result of cancelling a run's jobs; if some were not cancelled, correct the cancellation record."""
    cancelled = [job for job in status.own_jobs if job.job_id not in refused]
    phrases = _describe_refusals(refused)
    if cancelled:
        waited = all(job.state in job_states.WAITING for job in cancelled)
        job_ids = ", ".join(job.job_id for job in cancelled)
        phrases.insert(0, f"cancelled job {job_ids}, which {'was waiting' if waited else 'will save before it ends'}")
    if refused and cancelled:
        write_record(status.summary, [job.job_id for job in cancelled])
    elif refused:
        restore_record(status.summary)
    return Cancellation(status.summary.run, "; ".join(phrases), SchedulerError.exit_code if refused else 0)
