"""The command ``cnnjob submit``."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.data.prepare import ending_as_interrupted
from cnnjob.cli.data.show import memory_line
from cnnjob.cli.screen import print_warning, warn_of_clocks
from cnnjob.errors import EXIT_STOPPED, BusyError, CnnjobError, JobError, SchedulerError, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnnjob.data.dataset import Dataset
    from cnnjob.jobs.job import Job
    from cnnjob.runs.run import Run
    from cnnjob.slurm.run_state import Status
    from cnnjob.slurm.submit.backend_parts import Part
    from cnnjob.slurm.submit.request import Request
    from cnnjob.slurm.submit.submission import Submitted

JOBS = Annotated[
    opt.Words,
    typer.Argument(
        metavar="JOB",
        autocompletion=completion.jobs,
        help="Job names or job files; by default, the job for the only prepared dataset.",
    ),
]
SWEEP = Annotated[
    opt.Words,
    typer.Option(
        metavar="KEY=A,B",
        autocompletion=completion.settings,
        rich_help_panel=opt.JOB_GROUP,
        help="Create one run per value, or per combination of values; can be repeated.",
    ),
]
SEEDS = Annotated[
    opt.Number,
    typer.Option(
        metavar="N", rich_help_panel=opt.JOB_GROUP, min=1, help="Number of seeds, counting up from the job's seed."
    ),
]
PARALLEL = Annotated[
    opt.Number,
    typer.Option(metavar="N", rich_help_panel=opt.START_GROUP, min=1, help="Maximum number of runs at once."),
]
WAIT = Annotated[bool, typer.Option("--wait", rich_help_panel=opt.START_GROUP, help="Wait until all runs have ended.")]
LOCAL = Annotated[
    bool, typer.Option("--local", rich_help_panel=opt.START_GROUP, help="Train on this machine, without SLURM.")
]
DRY_RUN = Annotated[
    bool,
    typer.Option(
        "--dry-run", rich_help_panel=opt.START_GROUP, help="Show and rehearse the job without submitting anything."
    ),
]
REHEARSAL = Annotated[
    bool,
    typer.Option(
        "--rehearsal/--no-rehearsal",
        rich_help_panel=opt.START_GROUP,
        help="With --dry-run, train for four steps on this machine.",
    ),
]


def submit(
    jobs: JOBS = None,
    overrides: opt.OVERRIDES = None,
    sweep: SWEEP = None,
    seeds: SEEDS = None,
    local: LOCAL = False,
    dry_run: DRY_RUN = False,
    rehearsal: REHEARSAL = True,
    parallel: PARALLEL = None,
    wait: WAIT = False,
    stage: opt.STAGE = None,
    time: opt.TIME = None,
    cpus_per_task: opt.CPUS_PER_TASK = None,
    mem: opt.MEM = None,
    mem_per_cpu: opt.MEM_PER_CPU = None,
    mem_per_gpu: opt.MEM_PER_GPU = None,
    gpus: opt.GPUS = None,
    gpus_per_node: opt.GPUS_PER_NODE = None,
    gres: opt.GRES = None,
    profile: opt.PROFILE = None,
    partition: opt.PARTITION = None,
    account: opt.ACCOUNT = None,
    qos: opt.QOS = None,
    constraint: opt.CONSTRAINT = None,
    nodelist: opt.NODELIST = None,
    exclude: opt.EXCLUDE = None,
    dependency: opt.DEPENDENCY = None,
    job_name: opt.JOB_NAME = None,
    requeue: opt.REQUEUE = None,
    sbatch: opt.SBATCH = None,
    data: opt.DATA = opt.DATA_FOLDER,
    runs: opt.RUNS = opt.RUNS_FOLDER,
) -> None:
    """Submit jobs to SLURM; stopped runs are resumed.

    Finished and running runs are left alone. A sweep is submitted as one job array. --local and --dry-run do not need
    SLURM.

    Example: cnnjob submit mnist --partition gpu --time 2h --seeds 3
    """
    from cnnjob.jobs.sweep import expand
    from cnnjob.runs.run import Run
    from cnnjob.slurm.submit import profiles
    from cnnjob.training.default_job import DefaultJobs

    given = {
        "partition": partition, "account": account, "qos": qos, "time": time, "cpus_per_task": cpus_per_task,
        "mem": mem, "mem_per_cpu": mem_per_cpu, "mem_per_gpu": mem_per_gpu, "gpus": gpus, "gres": gres,
        "gpus_per_node": gpus_per_node, "constraint": constraint, "nodelist": nodelist, "exclude": exclude,
        "dependency": dependency, "job_name": job_name, "requeue": requeue, "stage": stage}  # fmt: skip
    request = profiles.load_request(profile, given, sbatch or ())
    asks_for_gpus = profiles.requests_gpus(given, sbatch or ())
    # The user's overrides come last, so that --set resources.backend=… overrides the profile.
    settings = [*([f"resources.backend={request.backend}"] if request.backend else []), *(overrides or ())]
    names = jobs or [_only_job(data)]
    grids = [_checked_grid(expand(name, settings, sweep or (), seeds, DefaultJobs(data)), data, runs) for name in names]
    if dry_run:
        for grid in grids:
            _dry_run(grid, request, runs, parallel, asked=asks_for_gpus, rehearsal=rehearsal)
        typer.echo("nothing was submitted")
        return
    known = set(Run.all(runs))
    new = [run for grid in grids for job, dataset in grid if (run := Run.of(job, dataset.digest, runs)) not in known]
    try:
        # All jobs have been checked by now, so an error in one job does not leave runs of the other jobs behind.
        created = {path: named for grid in grids for path, named in _create_runs(grid, runs).items()}
        if not local:
            parts = [part for grid in grids for part in _split_by_gpus(grid, runs, request, asked=asks_for_gpus)]
            _submit_all(parts, {path: settings for path, (_, settings) in created.items()}, parallel)
    except CnnjobError:
        from cnnjob.slurm.submit.submission import remove_unused

        remove_unused(new)
        raise
    if local:
        _run_here(created, request, parallel or 1)
    elif wait:
        _wait_for([run for part in parts for run in part.runs])


def _split_by_gpus(
    grid: "Sequence[tuple[Job, Dataset]]", root: Path, request: "Request", *, asked: bool
) -> "list[Part]":
    """Split a grid's runs by the GPUs they use, and warn about GPUs that are requested but cannot be used."""
    from cnnjob.runs.run import Run
    from cnnjob.slurm.submit.backend_parts import split_by_backend

    runs = [(job, Run.of(job, dataset.digest, root)) for job, dataset in grid]
    pairs = list({run.path: (job, run) for job, run in runs}.values())
    parts = split_by_backend(pairs, request, asks_for_gpus=asked)
    for warning in dict.fromkeys(warning for part in parts for warning in part.warnings()):  # each warning once
        print_warning(warning)
    return parts


def _only_job(data: Path) -> str:
    """Return the name of the only prepared dataset; the job that trains on this dataset has the same name."""
    prepared = sorted(path.stem for path in data.glob("*.h5"))
    if len(prepared) == 1:
        return prepared[0]
    if not prepared:
        raise JobError(f"submit: no job specified, and no dataset in {data}/. Prepare a dataset first")
    count = plural(len(prepared), "prepared dataset")
    raise JobError(f"submit: no job specified (found {count} in {data}/). Choose one of {', '.join(prepared)}")


def _checked_grid(jobs: "Sequence[Job]", data: Path, runs: Path) -> "list[tuple[Job, Dataset]]":
    """Return each job, with its initial weights located, and its dataset; all are checked before any run is created."""
    from cnnjob.data.dataset import Dataset
    from cnnjob.runs.initial import find_initial
    from cnnjob.training.setup import TrainingSetup

    grid = [(find_initial(job, runs), Dataset.find(job.dataset, data)) for job in jobs]
    for job, dataset in grid:
        TrainingSetup.checked(job, dataset)
    return grid


def _create_runs(grid: "Sequence[tuple[Job, Dataset]]", runs: Path) -> "dict[Path, tuple[Run, str]]":
    """Create a run for each job, and return each run and its description, by the run's folder.

    The description of a run lists the settings that distinguish it from the other runs.
    """
    from cnnjob.jobs.sweep import job_differences
    from cnnjob.runs.creation import create_run, describe_replaced_runs

    _print_initial(grid)
    created = [create_run(job, dataset, runs) for job, dataset in grid]
    for message in describe_replaced_runs(created):
        print_warning(message)
    differences = job_differences([job for job, _ in grid])
    return {
        run.path: (run, f" ({settings})" if settings else "")
        for run, settings in zip(created, differences, strict=True)
    }


def _print_initial(grid: "Sequence[tuple[Job, Dataset]]") -> None:
    """Print where initial weights come from and which layers take them; the same text is printed only once."""
    from cnnjob.training.setup import TrainingSetup

    setups = (TrainingSetup.build(job, dataset) for job, dataset in grid if job.model.init_from)
    for text in dict.fromkeys("\n".join(setup.describe_initial()) for setup in setups):
        typer.echo(text)


def _submit(part: "Part", names: "dict[Path, str]", parallel: int | None) -> None:
    from cnnjob.slurm.submit.submission import PartlyBusyError, PartlySubmittedError
    from cnnjob.slurm.submit.submission import submit as submit_runs

    warn_of_clocks(part.runs)
    try:
        _print_submitted(
            submit_runs(part.runs, part.request, parallel, lambda text: typer.echo(f"cnnjob: {text}", err=True)),
            names,
            part.request,
        )
    except (PartlyBusyError, PartlySubmittedError) as error:
        # Jobs submitted before the error are in the queue, so their job IDs are printed.
        _print_submitted(error.done, names, part.request)
        raise


def _print_submitted(submitted: "Sequence[Submitted]", names: "dict[Path, str]", request: "Request") -> None:
    for warning in sorted({done.warning for done in submitted if done.warning}):
        print_warning(warning)
    for done in submitted:
        outcome = f"{done.status}, nothing submitted"
        if done.job_id:
            outcome = f"submitted as job {done.job_id}: {request.describe()}"
        typer.echo(f"{done.run.path}{names[done.run.path]}: {outcome}")


def _submit_all(parts: "Sequence[Part]", names: "dict[Path, str]", parallel: int | None) -> None:
    from cnnjob.slurm.scheduler.client import is_absent

    refusals: list[str] = []
    for part in parts:
        try:
            _submit(part, names, parallel)
        except BusyError as error:  # the other parts are still submitted
            refusals.append(str(error))
        except SchedulerError as error:
            if is_absent(error):
                raise SchedulerError(f"{error}. To train here, without SLURM:\n  cnnjob submit --local") from error
            raise
    if refusals:
        raise BusyError("\n".join(refusals))


def _wait_for(runs: "Sequence[Run]") -> None:
    """Wait for runs to end, print how each one ended, and exit as described in :func:`exit_as`.

    If a SLURM job will not start without intervention, print the reason.
    """
    from cnnjob.slurm.wait import wait_for_runs

    ended = []
    for status in wait_for_runs(runs):
        if status.job is None:
            ended.append(status)
            typer.echo(describe_end(status))
        else:
            _print_held(status)
    exit_as(ended)


def _run_here(runs: "dict[Path, tuple[Run, str]]", request: "Request", parallel: int) -> None:
    from cnnjob.slurm.run_state import status_from_folder
    from cnnjob.slurm.submit.local import run_here
    from cnnjob.training.staging import STAGE

    unfinished = [run for run, _ in runs.values() if run.state() not in {"finished", "running"}]
    for run, settings in runs.values():
        typer.echo(
            f"{run.path}{settings}: {'will be trained here' if run in unfinished else f'{run.state()}, left alone'}"
        )
    ended = [status_from_folder(run) for run, _ in runs.values() if run not in unfinished]
    if unfinished:
        cores = plural(request.cpus_per_task, "core")
        typer.echo(
            f"{parallel} at a time, with {cores} each. Ctrl-C stops training and saves all work. To see the status:"
        )
        typer.echo("  cnnjob status")
    if request.stage:
        os.environ[STAGE] = "1"  # inherited by the training processes
    with ending_as_interrupted():
        for done in run_here(unfinished, parallel, request.cpus_per_task, request.time_minutes):
            ended.append(status_from_folder(done.run, done.error))
            typer.echo(describe_end(ended[-1]))
    exit_as(ended)


def describe_end(status: "Status") -> str:
    """Return one line with a run's path, its state, and the test accuracy or, if the run is not finished, the cause."""
    from cnnjob.slurm.diagnosis import diagnose

    run = status.summary.run
    if status.state == "finished":
        outcome = f"test accuracy {100 * status.summary.result.get('test_accuracy', math.nan):.2f} %"
    else:
        outcome = status.error or " ".join(diagnose(status).sentence.split())
    return f"{run.path}: {status.state}, {outcome}"


def _print_held(status: "Status") -> None:
    """Print why a SLURM job does not start by itself and, if known, the command that resolves the problem."""
    from cnnjob.slurm.diagnosis import diagnose

    command = diagnose(status).command
    advice = f". To change that:\n  {command}" if command else ""
    typer.echo(f"{status.summary.run.path}: job {status.job_id} will not start by itself; {status.detail}{advice}")


def exit_as(ended: "Sequence[Status]") -> None:
    """Exit with 1 if a run failed or was cancelled, else 75 if a run can be resumed, else 5 if a run is still running.

    After status 75, running the same command again resumes the run. If all runs have finished, return.
    """
    unfinished = [status for status in ended if status.state != "finished"]
    if not unfinished:
        return
    if any(not status.is_resumable and status.state != "running" for status in unfinished):
        raise typer.Exit(1)
    raise typer.Exit(EXIT_STOPPED if any(status.is_resumable for status in unfinished) else BusyError.exit_code)


def _dry_run(
    grid: "Sequence[tuple[Job, Dataset]]", request: "Request", root: Path, parallel: int | None, *,
    asked: bool, rehearsal: bool,
) -> None:  # fmt: skip
    """Print the runs that would be submitted, their requests and a forecast; rehearse the first job if asked to."""
    from cnnjob.jobs.sweep import job_differences
    from cnnjob.jobs.toml import format_toml
    from cnnjob.runs.run import Run
    from cnnjob.slurm.submit.estimate import describe_estimate
    from cnnjob.training.setup import TrainingSetup

    job, dataset = grid[0]
    runs = [Run.of(job, dataset.digest, root) for job, dataset in grid]
    parts = _split_by_gpus(grid, root, request, asked=asked)
    typer.echo(format_toml(job.model_dump(mode="json", exclude_none=True)) + "\n")
    for run, settings in zip(runs, job_differences([job for job, _ in grid]), strict=True):
        typer.echo(f"run: {run.path}{settings and f' ({settings})'}, {run.state()}")
    _print_initial(grid)
    for part in parts:
        each = " each" if len(part.runs) > 1 else ""
        share = f", {len(part.runs)} of {len(runs)} runs" if len(part.runs) < len(runs) else ""
        typer.echo(f"request: {part.request.describe()}{each}{share}")
    typer.echo(memory_line(TrainingSetup.build(job, dataset)))
    typer.echo(f"time: {describe_estimate(job, dataset.digest, root)}")
    for part in parts:
        unfinished = [run for run in part.runs if run.state() not in {"finished", "running"}]
        _forecast(unfinished, part.request, parallel)
    if rehearsal:
        from cnnjob.checks.rehearsal import rehearse

        for line in rehearse(job, dataset):
            typer.echo(f"rehearsal: {line}")


def _forecast(runs: "Sequence[Run]", request: "Request", parallel: int | None) -> None:
    """Print SLURM's answer to a request, what would happen if the job ended early, and the exact batch script."""
    from cnnjob.slurm.submit import batch_script
    from cnnjob.slurm.submit import dry_run as forecasts

    here, answer = forecasts.try_query_site()
    if here:
        here.check(request)
        if warning := here.explain_wait(request):
            typer.echo(f"partition: {warning}")
    typer.echo(f"time limit: {forecasts.describe_time_limit(request, here)}")
    typer.echo(f"preemption: {forecasts.describe_preemption(request, here)}")
    refusals = []
    for array in batch_script.split_into_arrays(runs, here.max_array_size if here else len(runs) or 1):
        script = batch_script.preview_script(array, request, parallel)
        message, is_refused = forecasts.query_start(script) if here else (answer, False)
        if is_refused:
            refusals.append(message)
        typer.echo(f"SLURM: {message}\n\n{script}")
    # Raised after all scripts have been printed, so that the user can read the refused ones.
    if refusals:
        raise SchedulerError(f"this request would be refused: {refusals[0]}")
