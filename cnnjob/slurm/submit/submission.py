"""Submitting runs as one SLURM job or as job arrays, each run only once even if submissions run concurrently."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

from cnnjob import files
from cnnjob.errors import BusyError, CnnjobError, JobError, SchedulerError
from cnnjob.jobs import json_files
from cnnjob.runs import claims, process
from cnnjob.runs.restart_log import PREDECESSOR
from cnnjob.runs.run import Run
from cnnjob.runs.summary import read_summary
from cnnjob.slurm.job_array import SWEEPS, JobArray
from cnnjob.slurm.job_index import JobIndex, add_submitter, number_of, users_of
from cnnjob.slurm.scheduler import client, queue, site
from cnnjob.slurm.scheduler.queue import QueuedJob
from cnnjob.slurm.submit import code_snapshot, executor, locks
from cnnjob.slurm.submit.batch_script import script_parameters, split_into_arrays
from cnnjob.slurm.submit.queued_runs import (
    REQUEST,
    complete_files,
    find_queued,
    find_successor,
    record_submission,
)
from cnnjob.slurm.submit.request import Request

LEFT_ALONE = {"finished", "running"}
"""States of runs that are not submitted."""
ONCE = {"begin", "hold"}
"""sbatch options that apply to a run's first job, but not to the successors of that job."""


@dataclass(frozen=True)
class Submitted:
    """The result of submitting one run."""

    run: Run
    job_id: str | None
    """Id of the run's new SLURM job; None if the run was not submitted."""
    status: str
    """``submitted``, ``finished``, ``running``, or ``queued as 17`` with the job id."""
    warning: str = ""
    """Why the SLURM job cannot start at present; empty if there is no known reason."""


class PartlySubmittedError(SchedulerError):
    """Raised if SLURM refused a job after accepting other jobs of the same submission."""

    def __init__(self, message: str, done: Sequence[Submitted]) -> None:
        """Create the error with a message and the results of the runs that were handled before the refusal."""
        super().__init__(message)
        self.done = done


class PartlyBusyError(BusyError):
    """Raised if some runs could not be submitted because another job is or may be training them.

    The other runs were submitted.
    """

    def __init__(self, refusals: Sequence[str], done: Sequence[Submitted]) -> None:
        """Create the error with one reason per run that was not submitted, and the results of the other runs."""
        super().__init__("\n".join(refusals))
        self.done = done


def submit(
    runs: Sequence[Run], request: Request, parallel: int | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Submitted]:
    """Submit runs as one job or as job arrays, except those that are finished, running or in the queue.

    If the file system supports locks, another submission into the same folder waits for this one to end. Otherwise,
    each submission reads the queue after calling sbatch; if a run then has two jobs, the submission that created the
    later one cancels it.

    Args:
        runs: runs created by :func:`cnnjob.runs.creation.create_run`, in one folder.
        request: the resources of each run.
        parallel: maximum number of runs at once; None for no limit.
        say: called with a message before waiting for another submission or for a job that is ending.

    Returns:
        One result per run, in the same order.

    Raises:
        BusyError: a run was removed while this submission waited for another one.
        JobError: SLURM would misinterpret the name of the folder.
        PartlyBusyError: some runs were not submitted, each for one of these reasons: a job for the run is already in
            the queue but was submitted for another folder; another user or another cluster may have a job for the run;
            or the run's own job is ending. The other runs were submitted.
        SchedulerError: SLURM refused a job, is not available, or did not answer.
    """
    _check_name(runs[0].path.resolve())
    with locks.submitting(runs[0].path.parent, say) as is_locked:
        if removed := next((run for run in runs if not os.path.lexists(run.job_file)), None):
            raise BusyError(f"{removed.path}: removed by another submission, which was refused. Run the command again")
        job_is_over = client.make_job_is_over(lambda: {job.job_id for job in queue.list_own_jobs()})
        states = {run.path: run.state(job_is_over) for run in runs}
        results = {run.path: Submitted(run, None, states[run.path]) for run in runs if states[run.path] in LEFT_ALONE}
        refusals: dict[Path, str] = {}
        if len(results) < len(runs):  # otherwise do not query SLURM: a finished sweep does not need it
            requested = {run for run in runs if (run.slurm_folder / REQUEST).exists()}
            sweeps = runs[0].path.parent / SWEEPS
            earlier_sweeps = {*sweeps.glob("*")}
            try:
                refusals = _submit_remaining(runs, request, parallel, say, results)
            except SchedulerError as error:
                if is_locked and client.was_refused(error):
                    for run in runs:
                        if run not in requested and not run.submission_file.exists():
                            (run.slurm_folder / REQUEST).unlink(missing_ok=True)
                    for sweep in {*sweeps.glob("*")} - earlier_sweeps:
                        if not any(sweep.glob("*.pkl")):  # SLURM accepted no job of this sweep
                            shutil.rmtree(sweep, ignore_errors=True)
                raise
    ordered = [results[run.path] for run in runs if run.path in results]
    if refusals:
        raise PartlyBusyError(list(refusals.values()), ordered)
    return ordered


def remove_unused(runs: Iterable[Run]) -> None:
    """Remove new runs whose submission was refused, so that no run is left pending without a job.

    A run is kept if its folder contains more than the manifest and the initial weights, such as the record of a job or
    of an attempt, or a request that SLURM has not refused. The run is also kept if the file system does not support
    locks, or if a process is training it.

    Args:
        runs: runs in one folder that were created for the submission.
    """
    for run in runs:
        with locks.submitting(run.path.parent) as is_locked, suppress(OSError, CnnjobError):
            created = {run.job_file.name, run.initial_file.name, run.slurm_folder.name}
            unknown = {entry.name for entry in os.scandir(run.path)} - created
            if is_locked and not unknown and not any(run.slurm_folder.glob("*")):
                claims.claim(run)  # so that no other process begins to train it
                temporary = files.temporary_name(run.path)
                run.path.rename(temporary)  # from here on, no process can claim it
                shutil.rmtree(temporary)


def _submit_remaining(
    runs: Sequence[Run],
    request: Request,
    parallel: int | None,
    say: Callable[[str], None],
    results: dict[Path, Submitted],
) -> dict[Path, str]:
    """Submit the runs that have neither an entry in ``results`` nor a job, and add them to ``results``.

    Returns:
        The reason for each run that cannot be submitted now.

    Raises:
        PartlySubmittedError: SLURM refused an array after accepting another one.
        SchedulerError: SLURM refused the first array, is not available, or did not answer.
    """
    current_site = site.query_site()
    current_site.check(request)
    queued, refusals = find_queued([run for run in runs if run.path not in results], request, say)
    results |= {run.path: Submitted(run, None, f"queued as {job_id}") for run, job_id in queued.items()}
    code = code_snapshot.save_snapshot(runs[0])
    by_path = {run.path.resolve(): run for run in runs}
    warning = current_site.explain_wait(request)
    job_ids: list[str] = []
    remaining = [run for run in runs if run.path not in {*results, *refusals}]
    for array in split_into_arrays(remaining, current_site.max_array_size):
        # with --parallel, each array waits for the one before it; otherwise, every array could run that many tasks
        try:
            job_id, earlier = _submit_array(array, request, code, parallel, after=job_ids if parallel else ())
        except SchedulerError as error:
            if not job_ids:
                raise
            accepted = [results[run.path] for run in runs if run.path in results]
            raise PartlySubmittedError(str(error), accepted) from error
        for resolved, task_id in _task_ids(array, job_id):
            run, earlier_id = by_path[resolved.path], earlier.get(resolved.path)
            results[run.path] = (
                Submitted(run, None, f"queued as {earlier_id}")
                if earlier_id
                else Submitted(run, task_id, "submitted", warning)
            )
        job_ids.append(job_id)
    return refusals


def resubmit(run: Run) -> str:
    """Submit a run again with the request and the code of its last submission, and return the new job's id.

    The batch script calls this on the node if the job cannot be requeued.

    Raises:
        SchedulerError: SLURM refused the job, or did not answer.
    """
    request = Request.model_validate(json_files.read_checked(run.slurm_folder / REQUEST, Request))
    sbatch = {key: value for key, value in request.sbatch.items() if key not in ONCE}
    repeated = request.model_copy(update={"dependency": None, "sbatch": sbatch})
    array = JobArray.of([run])
    if successor := find_successor(array):
        complete_files({run: [successor]})
        return successor.job_id
    # on the node, this process itself runs the code snapshot, so the package's folder is the snapshot's folder
    return _submit_array(array, repeated, files.PACKAGE.parent, is_successor=True)[0]


def _submit_array(
    array: JobArray, request: Request, code: Path, parallel: int | None = None, *, after: Sequence[str] = (),
    is_successor: bool = False,
) -> tuple[str, dict[Path, str]]:  # fmt: skip
    """Submit runs as one SLURM job.

    Args:
        array: the runs.
        request: the runs' resources.
        code: folder of the code snapshot.
        parallel: maximum number of array tasks that run at once; None for no limit.
        after: ids of jobs that must have ended before this one starts.
        is_successor: whether this job is submitted by the batch script of the runs' previous job.

    Returns:
        The job id, and the id of the earlier job for each run that another submission had already submitted.
    """
    for run in array.runs:
        run.require_no_links()
    add_submitter(array.runs[0].path.parent)  # before sbatch, so that other users can find the job at once
    array.write()
    content = request.model_dump(mode="json")
    with_request = [run for run in array.runs if (run.slurm_folder / REQUEST).exists()]
    # A run's first request is written before sbatch is called, since the job may start at once and need it. If the run
    # already has a request, which belongs to an earlier job, the new one replaces it only if the new job is kept.
    for run in set(array.runs).difference(with_request):
        run.slurm_folder.mkdir(parents=True, exist_ok=True)
        files.write_json(run.slurm_folder / REQUEST, content)
    dependencies = [*([request.dependency] if request.dependency else []), *(f"afterany:{job_id}" for job_id in after)]
    dependent = request.model_copy(update={"dependency": ",".join(dependencies) or None})
    parameters = script_parameters(array, dependent, code, parallel)
    if is_successor:  # if this job is cancelled in the meantime, the successor does not train
        parameters["setup"].append(f"export {PREDECESSOR}={process.job_id() or ''}")
    comment = parameters["comment"]
    job_id = executor.submit_array(array, parameters)
    jobs, comments = _read_queued_jobs(array)
    # a successor must not be withdrawn in favour of the earlier job, which is the one that submits it
    earlier = {} if is_successor else _withdraw(array, job_id, comment, jobs)
    for run, task_id in _task_ids(array, job_id):
        if run.path not in earlier:
            if run in with_request:
                files.write_json(run.slurm_folder / REQUEST, content)
            record_submission(array, run, task_id, comment=comment, shown=comments.get(task_id))
    return job_id, earlier


def _read_queued_jobs(array: JobArray) -> tuple[dict[Path, list[QueuedJob]], dict[str, str]]:
    """Return the jobs for each run, oldest first, and the comment of every job by job id.

    Both dicts are empty if the queue cannot be read at present.
    """
    summaries = [read_summary(run) for run in array.runs]
    try:
        jobs = queue.list_queue(users_of(summaries)).jobs
    except SchedulerError:
        return {}, {}
    index = JobIndex(jobs)
    own = {summary.run.path: index.jobs_for(summary) for summary in summaries}
    return own, {job.job_id: job.comment for job in jobs}


def _withdraw(array: JobArray, job_id: str, comment: str, jobs: Mapping[Path, Sequence[QueuedJob]]) -> dict[Path, str]:
    """Cancel a job's array tasks for runs that already have an earlier job; return the earlier job's id for each run.

    If two submissions run concurrently without a lock, each reads the queue after calling sbatch. Both keep the job
    with the smaller id, so that exactly one job remains.

    Raises:
        SchedulerError: the tasks could not be cancelled.
    """
    oldest = {path: own[0] for path, own in jobs.items() if own and number_of(own[0].job_id) < int(job_id)}
    # with the same comment, the other submission may have mistaken this job for its own, so its job has no pickles
    for twin in {job.job_id.partition("_")[0] for job in oldest.values() if job.comment == comment}:
        executor.link_pickles(array, job_id, twin)
    earlier = {path: job.job_id for path, job in oldest.items()}
    withdrawn = [task_id for run, task_id in _task_ids(array, job_id) if run.path in earlier]
    if len(withdrawn) == len(array.runs):
        withdrawn = [job_id]  # the whole array by one id
    try:
        refused = "; ".join(client.refusals(withdrawn, client.cancel_jobs(withdrawn)).values())
    except SchedulerError as error:
        refused = str(error)
    if refused:
        raise SchedulerError(
            f"{array.name}: job {', '.join(sorted(set(earlier.values())))} was submitted for the same runs at the same "
            f"time, and job {job_id} could not be cancelled ({refused}). Cancel it:\n  scancel {' '.join(withdrawn)}"
        )
    return earlier


def _task_ids(array: JobArray, job_id: str) -> list[tuple[Run, str]]:
    """Return each run with the id of the job or array task that trains it."""
    return [(run, f"{job_id}_{index}" if array.is_array else job_id) for index, run in enumerate(array.runs)]


def _check_name(path: Path) -> None:
    """Check that SLURM takes the path of a run's folder literally.

    Raises:
        JobError: the path contains a percent sign, a line break or another control character.
    """
    if any(category(letter) == "Cc" for letter in str(path)):
        raise JobError(
            f"--runs {str(path.parent)!r}: a batch script cannot contain control characters. Rename the folder"
        )
    if "%" in str(path):
        raise JobError(f"--runs {path.parent}: SLURM would expand the % in this path. Choose a folder without a %")
