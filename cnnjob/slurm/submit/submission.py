"""Submitting runs: which of them need a job, their batch script, the snapshot of the code, and the job's record."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

from cnnjob import files
from cnnjob.errors import BusyError, DataError, JobError, SchedulerError
from cnnjob.jobs import json_files
from cnnjob.jobs.job import Job
from cnnjob.runs import process
from cnnjob.runs.process import now
from cnnjob.runs.restart_log import NO_STEP, PREDECESSOR, UNDECIDED, cancellation_file
from cnnjob.runs.run import Run
from cnnjob.runs.summary import RunSummary, read_summary
from cnnjob.slurm import job_array, next_command
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.job_index import JobIndex, add_submitter, number_of, users_of
from cnnjob.slurm.scheduler import client, job_states, queue, site
from cnnjob.slurm.scheduler.queue import QueuedJob
from cnnjob.slurm.status import may_go_on
from cnnjob.slurm.submit import code_snapshot, executor, locks
from cnnjob.slurm.submit.request import Request
from cnnjob.training.backend import first_backend

SIGNALS = "{1..16} {20..31} {34..64}"
"""All signals that a shell can trap except SIGCHLD (17), by which it notices the end of a child, and SIGCONT (18)."""
LEFT_ALONE = {"finished", "running"}
"""States of runs that are not submitted."""
REQUEST = "request.json"
"""Name of the file with the request, in a run's folder of SLURM files: a successor is submitted from it."""
ENDING_SECONDS, POLL_SECONDS = 15.0, 1.0
"""Time to wait for a job that is ending, and the pause between two checks."""
ONCE = {"begin", "hold"}
"""Options of sbatch that apply to the first job of a run, not to its successors."""


@dataclass(frozen=True)
class Submitted:
    """The result of submitting one run."""

    run: Run
    job_id: str | None
    """Id of its new job; None if it was not submitted."""
    why: str
    """``submitted``, ``finished``, ``running``, ``queued as 17``."""
    warning: str = ""
    """Reason why its job will wait, if known."""


class PartlySubmittedError(SchedulerError):
    """SLURM refused a job after it had accepted others of the same submission."""

    def __init__(self, message: str, done: Sequence[Submitted]) -> None:
        """Create the error, with the results of the runs before the refused ones."""
        super().__init__(message)
        self.done = done


class PartlyBusyError(BusyError):
    """Some runs could not be submitted, since a job has or may have them; the others were submitted."""

    def __init__(self, refusals: Sequence[str], done: Sequence[Submitted]) -> None:
        """Create the error, with the reasons of those that were not submitted and the results of the others."""
        super().__init__("\n".join(refusals))
        self.done = done


def submit(
    runs: Sequence[Run], request: Request, parallel: int | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Submitted]:
    """Submit runs as one job or as job arrays, except those that are finished, running or in the queue.

    If the file system has locks, another submission into the same folder waits for this one. If it has none, both read
    the queue afterwards, and of two jobs for one run the later one is cancelled by its own submission.

    Args:
        runs: created by :func:`cnnjob.runs.creation.create_run`, in one folder.
        request: the resources of each run.
        parallel: maximum number of runs at once; None for no limit.
        say: called with a sentence before waiting for another submission or for a job that is ending.

    Returns:
        One result per run, in their order.

    Raises:
        JobError: SLURM would misread the name of the folder.
        PartlyBusyError: for some of the runs, a job of another user or for another folder is or may be in the queue, or
            their job is ending; the others were submitted.
        SchedulerError: SLURM refused, is not there, or did not answer.
    """
    _check_name(runs[0].path.resolve())
    with locks.submitting(runs[0].path.parent, say):
        return _submit_left(runs, request, parallel, say)


def _submit_left(
    runs: Sequence[Run], request: Request, parallel: int | None, say: Callable[[str], None]
) -> list[Submitted]:
    """Submit the runs that no job or process has."""
    job_is_over = client.ended_among(lambda: {job.job_id for job in queue.mine()})
    states = {run.path: run.state(job_is_over) for run in runs}
    done = {run.path: Submitted(run, None, states[run.path]) for run in runs if states[run.path] in LEFT_ALONE}
    refusals: dict[Path, str] = {}
    if len(done) < len(runs):  # else SLURM is not asked at all: a finished sweep needs none
        here = site.query_site()
        here.check(request)
        queued, refusals = _queued([run for run in runs if run.path not in done], request, say)
        for run, job_id in queued.items():
            done[run.path] = Submitted(run, None, f"queued as {job_id}")
        code = code_snapshot.save_snapshot(runs[0])
        by_path = {run.path.resolve(): run for run in runs}
        job_ids: list[str] = []
        left = [run for run in runs if run.path not in {*done, *refusals}]
        for batch in in_batches(left, here.max_array_size):
            # with --parallel, the next array waits for this one: otherwise each could have so many tasks running
            try:
                job_id, earlier = _submit(batch, request, code, parallel, after=job_ids if parallel else ())
            except SchedulerError as error:
                if not job_ids:
                    raise
                accepted = [done[run.path] for run in runs if run.path in done]
                raise PartlySubmittedError(str(error), accepted) from error
            for resolved, element in _elements(batch, job_id):
                run, job = by_path[resolved.path], earlier.get(resolved.path)
                kept = Submitted(run, element, "submitted", here.waits(request))
                done[run.path] = Submitted(run, None, f"queued as {job}") if job else kept
            job_ids.append(job_id)
    told = [done[run.path] for run in runs if run.path in done]
    if refusals:
        raise PartlyBusyError(list(refusals.values()), told)
    return told


def _queued(
    runs: Sequence[Run], request: Request, say: Callable[[str], None]
) -> tuple[dict[Run, str], dict[Path, str]]:
    """Return the jobs of runs that are in the queue, and the reasons why other runs cannot be submitted now.

    If a job is ending and will not restart its run, wait for its end for up to ``ENDING_SECONDS``.

    Raises:
        SchedulerError: the queue could not be read.
    """
    end, is_said = time.monotonic() + ENDING_SECONDS, False
    while True:
        looks, find = _carriers_of(runs)
        jobs = {seen.run: (seen, find.own(seen)) for seen in looks}
        ending = {run.path: text for run, (seen, found) in jobs.items() if (text := _ending(seen, found))}
        if not ending or time.monotonic() > end:
            break
        if not is_said:
            is_said = True
            say(f"{len(ending)} of {len(runs)} runs have a job that is ending, waiting for up to {ENDING_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    refusals = {seen.run.path: text for seen, found in jobs.values() if (text := _refusal(seen, found, find))} | ending
    carried = {run: found for run, (_, found) in jobs.items() if found and run.path not in refusals}
    _complete(carried, request)
    for run in carried:  # the user wants it to run, so an earlier cancellation no longer counts
        with suppress(OSError):
            cancellation_file(run).unlink(missing_ok=True)
    return {run: found[0].job_id for run, found in carried.items()}, refusals


def _carriers_of(runs: Sequence[Run]) -> tuple[list[RunSummary], JobIndex]:
    """Return the summaries of runs, and an index of the jobs that carry them.

    Raises:
        SchedulerError: the queue could not be read.
    """
    here = client.cluster()
    looks = [read_summary(run).on(here) for run in runs]
    listing = queue.listing(users_of(looks), {job_id for one in looks for job_id in one.job_ids})
    listing.require_whole()
    return looks, JobIndex(listing.jobs)


def _complete(carried: Mapping[Run, Sequence[QueuedJob]], request: Request | None = None) -> None:
    """Write the missing files and records of jobs in the queue.

    They were removed, or the submission was killed before it wrote them, or sbatch's answer with the id got lost.
    """
    jobs = [(run, job, job_array.batch_of(job)) for run, found in carried.items() for job in found]
    incomplete = [(run, job, batch) for run, job, batch in jobs if batch and executor.lacks(batch, job.job_id)]
    for run, job, batch in incomplete:
        executor.supply(batch, job.job_id.partition("_")[0])
        if request and not os.path.lexists(run.slurm_folder / REQUEST):  # a batch script reads it for a successor
            run.slurm_folder.mkdir(exist_ok=True)
            files.write_json(run.slurm_folder / REQUEST, request.model_dump(mode="json"))
        _record(batch, run, job.job_id, {"comment": job.comment, "shown": job.comment})


def _refusal(seen: RunSummary, jobs: Sequence[QueuedJob], find: JobIndex) -> str:
    """Return why a run cannot be submitted: its job is for another folder or may be hidden. Empty if it can."""
    if jobs and seen.moved_from:
        return (
            f"{seen.run.path}: job {jobs[0].job_id} is in the queue for {seen.moved_from}, from where this folder was "
            f"moved, and would not find it. Move it back, or cancel that job and submit again:\n"
            f"  {next_command.cancel_command(seen.run)}"
        )
    if not jobs and seen.other_cluster and may_go_on(seen):
        return (
            f"{seen.run.path}: job {seen.job_id} of cluster {seen.other_cluster} may carry it, and this one is "
            f"{seen.here}. Look for it there:\n  squeue -M {shlex.quote(seen.other_cluster)} -j {seen.job_id}\n"
            f"If it has ended:\n  rm {shlex.quote(str(seen.run.submission_file))}"
        )
    if not jobs and seen.is_other_users and may_go_on(seen) and client.hides_jobs():
        return (
            f"{seen.run.path}: job {seen.job_id} of another user may carry it, and this site shows nobody the jobs of "
            f"others. Ask that user; if the job has ended:\n  rm {shlex.quote(str(seen.run.submission_file))}"
        )
    waiting = find.for_folder(Path(seen.original)) if seen.original and not Path(seen.original).exists() else []
    if waiting:  # moved to another file system: this folder is a copy, of one that no longer exists
        return (
            f"{seen.run.path}: job {waiting[0].job_id} is in the queue for {seen.original}, which is not there any "
            f"more. Cancel it, then submit again:\n  scancel {waiting[0].job_id}"
        )
    return ""


def _ending(seen: RunSummary, jobs: Sequence[QueuedJob]) -> str:
    """Return a message if all jobs of a run are ending and will not restart it; otherwise empty.

    Those are jobs that were cancelled, and jobs whose batch script has decided against a restart.
    """
    left = {
        *(seen.cancellation.get("jobs") or []),
        *([seen.job_id] if seen.current_decision.get("restarted") == "" else []),
    }
    if jobs and all(job.state == job_states.ENDING and job.job_id in left for job in jobs):
        return f"{seen.run.path}: job {jobs[-1].job_id} is ending. Run the same command in a moment"
    return ""


@dataclass(frozen=True)
class Part:
    """Runs with the same backend and the same request."""

    backend: str
    """Their backend: ``numpy``, ``cuda``, or ``auto``."""
    request: Request
    runs: list[Run]


def in_parts(jobs: Sequence[tuple[Job, Run]], request: Request, *, asked: bool) -> list[Part]:
    """Split runs by backend: the one that a run was started with, otherwise the one of its job.

    Args:
        jobs: each run with its job, which has the resources of this submission.
        request: the request, to which GPUs are added or from which they are removed.
        asked: whether the command line requests GPUs.

    Returns:
        The parts, each with its runs in their order.

    Raises:
        JobError: a run was started with another backend than its job asks for.
    """
    found: dict[str, list[Run]] = {}
    for job, run in jobs:
        found.setdefault(_backend(job, run), []).append(run)
    return [Part(backend, request.with_gpus(backend, asked=asked), runs) for backend, runs in found.items()]


def _backend(job: Job, run: Run) -> str:
    asked = job.resources.backend
    with suppress(DataError):  # a damaged folder: its job reports that
        return asked if run.state() == "finished" else first_backend(job, run) or asked
    return asked


def resubmit(run: Run) -> str:
    """Submit a run again with the request and the code of its last submission, and return the job's id.

    Called on the node by the batch script, in place of a requeue.

    Raises:
        SchedulerError: SLURM refused, or did not answer.
    """
    request = Request.model_validate(json_files.read(run.slurm_folder / REQUEST, Request))
    sbatch = {key: value for key, value in request.sbatch.items() if key not in ONCE}
    again = request.model_copy(update={"dependency": None, "sbatch": sbatch})
    batch = JobArray.of([run])
    if known := _taken(batch):  # by an earlier try of this batch script
        _complete({run: [known]})
        return known.job_id
    # on the node this process itself runs the snapshot of the code, so its own folder is that of the snapshot
    return _submit(batch, again, files.PACKAGE.parent, is_successor=True)[0]


def _taken(batch: JobArray) -> QueuedJob | None:
    """Return the successor that an earlier try submitted without receiving sbatch's answer, or None.

    Raises:
        SchedulerError: the scheduler did not answer.
    """
    try:
        listing = queue.listing([os.getuid()])
        found = [job for job in listing.jobs if job.comment == batch.comment and job.job_id != process.job_id()]
        if not found:
            listing.require_whole()
    except SchedulerError as error:
        if client.is_silent(error):
            raise
        return None  # squeue refused, which is no reason against a successor
    return found[0] if found else None


def script(batch: JobArray, request: Request, parallel: int | None = None) -> str:
    """Return the exact batch script that would be submitted now; needs no SLURM."""
    return executor.script(batch, _parameters(batch, request, code_snapshot.snapshot_folder(batch.runs[0]), parallel))


def in_batches(runs: Sequence[Run], size: int) -> list[JobArray]:
    """Split runs into as few jobs as possible, each with at most ``size`` array tasks."""
    return [JobArray.of(runs[first : first + size]) for first in range(0, len(runs), size)]


def _submit(
    batch: JobArray, request: Request, code: Path, parallel: int | None = None, *, after: Sequence[str] = (),
    is_successor: bool = False,
) -> tuple[str, dict[Path, str]]:  # fmt: skip
    """Submit runs as one job.

    Args:
        batch: the runs.
        request: their resources.
        code: the snapshot of the code.
        parallel: maximum number of array tasks at once.
        after: ids of jobs that must have ended before this one starts.
        is_successor: whether the batch script of the runs' last job submits this one.

    Returns:
        The job's id, and for each run that another submission was faster with, the id of its earlier job.
    """
    for run in batch.runs:
        run.require_no_links()
    add_submitter(batch.runs[0].path.parent)  # before sbatch: others must find the job from its first moment
    batch.write()
    asked = request.model_dump(mode="json")
    before = [run for run in batch.runs if (run.slurm_folder / REQUEST).exists()]
    # A first request is written before sbatch, as the job may start at once and then need it. A new request of a run
    # that has one is written only if the job is kept: until then it is the request of an earlier job.
    for run in set(batch.runs).difference(before):
        run.slurm_folder.mkdir(parents=True, exist_ok=True)
        files.write_json(run.slurm_folder / REQUEST, asked)
    parameters = _parameters(batch, _after(request, after), code, parallel)
    if is_successor:  # on its node it checks whether this job was cancelled meanwhile, and then does not train
        parameters["setup"].append(f"export {PREDECESSOR}={process.job_id() or ''}")
    job_id = executor.submit(batch, parameters)
    jobs, comments = _jobs_of(batch)
    # a successor must not give way to the earlier job, which is the one that submits it
    earlier = {} if is_successor else _withdraw(batch, job_id, parameters["comment"], jobs)
    for run, element in _elements(batch, job_id):
        if run.path not in earlier:
            if run in before:
                files.write_json(run.slurm_folder / REQUEST, asked)
            comment = {"comment": parameters["comment"], "shown": comments.get(element)}
            _record(batch, run, element, comment)
    return job_id, earlier


def _record(batch: JobArray, run: Run, element: str, comment: Mapping[str, str | None]) -> None:
    """Record which job carries a run, with its comment as requested and as the queue shows it.

    The two differ where the site rewrites comments.
    """
    log = batch.files_folder / f"{element}_0_log.out"
    said = {
        "cluster": client.cluster() or None,
        "job_id": element,
        **comment,
        "log": str(log),
        "attempt": job_array.attempt_of(run),
    }
    files.write_json(run.submission_file, {**said, **run.identity(), "submitted": now()})


def _jobs_of(batch: JobArray) -> tuple[dict[Path, list[QueuedJob]], dict[str, str]]:
    """Return the jobs that carry each of the runs, oldest first, and the comment of every job by its id.

    Both are empty if the queue cannot be read now.
    """
    looks = [read_summary(run) for run in batch.runs]
    try:
        jobs = queue.listing(users_of(looks)).jobs
    except SchedulerError:
        return {}, {}
    find = JobIndex(jobs)
    return {seen.run.path: find.own(seen) for seen in looks}, {job.job_id: job.comment for job in jobs}


def _withdraw(batch: JobArray, job_id: str, comment: str, jobs: Mapping[Path, Sequence[QueuedJob]]) -> dict[Path, str]:
    """Cancel those array tasks of a job whose runs an earlier job carries; return the earlier jobs by run.

    Two submissions that do not exclude each other by a lock both read the queue after their sbatch. The smaller number
    wins, so that they agree without talking to each other.

    Raises:
        SchedulerError: the tasks could not be cancelled.
    """
    first = {path: one[0] for path, one in jobs.items() if one and number_of(one[0].job_id) < int(job_id)}
    # the same comment: the other submission may have taken this job for its own, and left the earlier one without files
    for twin in {job.job_id.partition("_")[0] for job in first.values() if job.comment == comment}:
        executor.lend(batch, job_id, twin)
    earlier = {path: job.job_id for path, job in first.items()}
    ours = [element for run, element in _elements(batch, job_id) if run.path in earlier]
    ours = [job_id] if len(ours) == len(batch.runs) else ours  # the whole array by one id
    try:
        refused = "; ".join(client.refusals(ours, client.cancel(ours)).values())
    except SchedulerError as error:
        refused = str(error)
    if refused:
        raise SchedulerError(
            f"{batch.name}: job {', '.join(sorted(set(earlier.values())))} was submitted at the same time, and job "
            f"{job_id} could not be cancelled ({refused}). Cancel it:\n  scancel {' '.join(ours)}"
        )
    return earlier


def _elements(batch: JobArray, job_id: str) -> list[tuple[Run, str]]:
    """Return each run with the id of the job or array task that carries it."""
    return [(run, f"{job_id}_{element}" if batch.is_array else job_id) for element, run in enumerate(batch.runs)]


def _after(request: Request, job_ids: Sequence[str]) -> Request:
    waits = [*([request.dependency] if request.dependency else []), *(f"afterany:{job_id}" for job_id in job_ids)]
    return request.model_copy(update={"dependency": ",".join(waits) or None})


def _check_name(path: Path) -> None:
    """Check that SLURM takes the path of a run's folder literally.

    Raises:
        JobError: the path has a percent sign, or a line end or another control character.
    """
    if any(category(letter) == "Cc" for letter in str(path)):
        raise JobError(
            f"--runs {str(path.parent)!r}: a batch script cannot hold a control character. Rename the folder"
        )
    if "%" in str(path):
        raise JobError(f"--runs {path.parent}: SLURM reads the % as a pattern; give a folder without it")


def _path(request: Request) -> list[str]:
    """Return the line by which the script finds SLURM's commands if sbatch is told which environment to export."""
    srun = shutil.which("srun")
    if not srun or not any(key.lstrip("-") == "export" for key in request.sbatch):
        return []
    return [f"export PATH={shlex.quote(str(Path(srun).parent))}:$PATH"]


def _own_code(code: Path) -> list[str]:
    """Return the lines of a shell function that makes Python run a copy of the code, whatever the environment."""
    variables = code_snapshot.environment(code)
    values = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value is not None]
    unset = [name for name, value in variables.items() if value is None]
    return ["own_code() {", f"    unset {' '.join(unset)}", f"    export {' '.join(values)}", "}"]


def _parameters(batch: JobArray, request: Request, code: Path, parallel: int | None) -> dict[str, Any]:
    """Return the parameters of submitit for a request, with the shell lines around the job in its script.

    The script survives every signal that can be trapped until its step has ended. Its EXIT trap then decides about a
    restart and exits with the step's code.
    """
    again = f"{executor.python()} -m cnnjob.slurm.node.restart {shlex.quote(str(batch.folder))} $1"
    undecided = shlex.quote(f"cnnjob: {batch.folder}: {sys.executable} {UNDECIDED}")
    whatever = [
        *_path(request),
        *_own_code(code),
        "restart() {",
        f"    trap '' {SIGNALS}",
        f"    own_code; {again} || echo {undecided} $?",
        "    exit $1",
        "}",
        "trap 'restart $?' EXIT  # whatever ends the job, and however early",
        f"trap : {SIGNALS}  # no signal ends this script before its step: only the step's exit code decides",
    ]
    # own_code comes twice: setup lines may change the environment, and the EXIT trap also runs if they fail
    setup = ["set -e", *request.setup, "set +e"] if request.setup else []
    lines = [
        "own_code",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it over by itself",
        f"export SLURM_EXIT_ERROR={NO_STEP}  # srun's own exit code where it could not run the step",
    ]
    count = len(batch.runs)
    return {
        **request.parameters(),
        **({"map_count": count, "array_parallelism": parallel or count} if batch.is_array else {}),
        "job_name": request.job_name or batch.name,
        "comment": batch.comment,
        "wckey": None,  # submitit would set its own
        "stderr_to_stdout": True,
        "srun_args": ["--export=ALL"],  # of this script's environment, also where sbatch got --export=NONE
        "setup": [*whatever, *setup, *lines],
    }
