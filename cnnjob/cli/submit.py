"""``cnnjob submit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli.data import DATA_FOLDER, memory_line
from cnnjob.cli.screen import DATA, OVERRIDES, RUNS
from cnnjob.cli.train import RUNS_FOLDER
from cnnjob.errors import JobError

if TYPE_CHECKING:
    from cnnjob.jobs import Job
    from cnnjob.slurm.requests import Request

Text = str | None
Number = int | None


def submit(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[JOB]...", help="Names or job files; that of the one prepared dataset."),
    ] = None,
    overrides: OVERRIDES = None,
    profile: Annotated[Text, typer.Option(help="Cluster profile: a name in slurm/, or a file.")] = None,
    partition: Annotated[Text, typer.Option("--partition", "-p", help="As sbatch's.")] = None,
    account: Annotated[Text, typer.Option("--account", "-A", help="As sbatch's.")] = None,
    qos: Annotated[Text, typer.Option("--qos", "-q", help="As sbatch's.")] = None,
    time: Annotated[Text, typer.Option("--time", "-t", help="As sbatch's, or 90m, 2h, 1d12h.")] = None,
    cpus_per_task: Annotated[Number, typer.Option("--cpus-per-task", "-c", min=1, help="Cores, all used.")] = None,
    mem: Annotated[Text, typer.Option(help="As sbatch's; one of the three.")] = None,
    mem_per_cpu: Annotated[Text, typer.Option(help="As sbatch's; one of the three.")] = None,
    mem_per_gpu: Annotated[Text, typer.Option(help="As sbatch's; one of the three.")] = None,
    gpus: Annotated[Number, typer.Option(min=0, help="GPUs; one unless the backend is numpy.")] = None,
    constraint: Annotated[Text, typer.Option("--constraint", "-C", help="As sbatch's.")] = None,
    nodelist: Annotated[Text, typer.Option("--nodelist", "-w", help="As sbatch's.")] = None,
    exclude: Annotated[Text, typer.Option("--exclude", "-x", help="As sbatch's.")] = None,
    dependency: Annotated[Text, typer.Option(help="As sbatch's.")] = None,
    requeue: Annotated[bool | None, typer.Option("--requeue/--no-requeue", help="As sbatch's.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option("--sbatch", metavar="KEY=VALUE", help="Any other option of sbatch; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show and rehearse; submit nothing.")] = False,
    rehearsal: Annotated[
        bool, typer.Option("--rehearsal/--no-rehearsal", help="With --dry-run: four steps here.")
    ] = True,
    data: DATA = DATA_FOLDER,
    runs: RUNS = RUNS_FOLDER,
) -> None:
    """Submit jobs to SLURM; a finished or running one is left alone, an unfinished one goes on.

    Example: cnnjob submit mnist --partition gpu --time 2h
    """
    from cnnjob.jobs import Job
    from cnnjob.slurm import requests

    given = {
        "partition": partition, "account": account, "qos": qos, "time": time, "cpus_per_task": cpus_per_task,
        "mem": mem, "mem_per_cpu": mem_per_cpu, "mem_per_gpu": mem_per_gpu, "gpus": gpus, "constraint": constraint,
        "nodelist": nodelist, "exclude": exclude, "dependency": dependency, "requeue": requeue,
    }  # fmt: skip
    request = requests.load(profile, given, sbatch or ())
    for name in jobs or [_only_job(data)]:
        chosen = [*([f"resources.backend={request.backend}"] if request.backend else []), *(overrides or ())]
        job = Job.load(name, chosen)
        ask = request if request.gpus is not None else request.model_copy(update={"gpus": _gpus(job)})
        if dry_run:
            _dry_run(job, ask, data, runs, rehearsal=rehearsal)
        else:
            _submit(job, ask, data, runs)


def _gpus(job: "Job") -> int:
    """One GPU unless the job computes with NumPy."""
    return int(job.resources.backend != "numpy")


def _only_job(data: Path) -> str:
    """The job of the one dataset that is prepared."""
    from cnnjob.jobs import known

    prepared = {path.stem for path in data.glob("*.h5")} & set(known())
    if len(prepared) == 1:
        return prepared.pop()
    found = f"{len(prepared)} prepared datasets have one" if prepared else f"no dataset in {data}/ has one"
    raise JobError(f"submit: no job named, and {found}; name one of {', '.join(known())}")


def _submit(job: "Job", request: "Request", data: Path, runs: Path) -> None:
    from cnnjob.bindings import dataset_of, run_of
    from cnnjob.slurm.submission import submit as submit_run

    run = run_of(job, dataset_of(job, data), runs)
    done = submit_run(run, request)
    if done.job_id is None:
        typer.echo(f"{run.path}: {done.why}, nothing submitted")
    else:
        typer.echo(f"{run.path}: submitted as job {done.job_id}: {request.sentence()}")


def _dry_run(job: "Job", request: "Request", data: Path, runs: Path, *, rehearsal: bool) -> None:
    from cnnjob.bindings import dataset_of
    from cnnjob.cli.data import as_toml
    from cnnjob.runs import Run
    from cnnjob.slurm.submission import script

    dataset = dataset_of(job, data)
    run = Run.of(job, dataset.digest, runs)
    typer.echo(as_toml(job.model_dump(mode="json", exclude_none=True)))
    typer.echo(f"\nrun: {run.path}\nrequest: {request.sentence()}\n{memory_line(job, dataset)}\n")
    typer.echo(script(run, request))
    if rehearsal:
        from cnnjob.rehearsals import rehearse

        for line in rehearse(job, dataset):
            typer.echo(f"rehearsal: {line}")
    typer.echo("nothing was submitted")
