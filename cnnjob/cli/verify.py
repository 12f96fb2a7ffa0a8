"""The command ``cnnjob verify-resume``."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnjob.cli import options as opt
from cnnjob.cli.data import DATA_FOLDER, ending_as_interrupted
from cnnjob.cli.screen import print_json, print_table
from cnnjob.errors import JobError

if TYPE_CHECKING:
    from cnnjob.checks.comparison import RunComparison, RunDifference
    from cnnjob.data.dataset import Dataset
    from cnnjob.jobs.job import Job
    from cnnjob.slurm.submit.request import Request

CLUSTER_FOLDER = Path("verify-resume")
SHORT_DIGITS = 12
SEEDS = 10**6


def verify_resume(
    job: opt.JOB,
    overrides: opt.OVERRIDES = None,
    steps: Annotated[int, typer.Option(min=1, help="Shorten the job to the epochs that hold so many steps.")] = 2000,
    kills: Annotated[int, typer.Option(min=1, help="How often to kill it.")] = 5,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the moments; a new one by default.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A new folder to keep both runs in.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
    profile: opt.PROFILE = None,
    partition: opt.PARTITION = None,
    account: opt.ACCOUNT = None,
    qos: opt.QOS = None,
    time: opt.TIME = None,
    cpus_per_task: opt.CPUS_PER_TASK = None,
    mem: opt.MEM = None,
    gpus: opt.GPUS = None,
    sbatch: opt.SBATCH = None,
    wait_minutes: Annotated[float, typer.Option(min=0, help="On a cluster: then the jobs are cancelled.")] = 120,
    data: opt.DATA = DATA_FOLDER,
) -> None:
    """Run a job unbroken and killed, and compare the bits.

    It is killed at random moments. With any option of sbatch's it runs on the cluster, in a folder under
    verify-resume/. Ctrl-C cancels its jobs.

    Exit code 0: they are the same. 1: they are not; the first differences are named, and both runs kept.

    Example: cnnjob verify-resume digits --kills 3
    """
    import shutil
    from random import SystemRandom

    from cnnjob.checks.resume import shorten_job
    from cnnjob.data.dataset import Dataset
    from cnnjob.jobs.job import Job

    given = {
        "partition": partition, "account": account, "qos": qos, "time": time, "cpus_per_task": cpus_per_task,
        "mem": mem, "gpus": gpus}  # fmt: skip
    on_cluster = any(value is not None for value in (profile, sbatch, *given.values()))
    request = _request(profile, given, sbatch) if on_cluster else None
    chosen = [f"resources.backend={request.backend}"] if request and request.backend else []
    whole = Job.load(job, [*chosen, *(overrides or ())])
    dataset = Dataset.find(whole.dataset, data)
    request = request and request.with_gpus(whole.resources.backend, asked=_asks_for_gpus(given, sbatch))
    short = shorten_job(whole, dataset, steps)
    seed = SystemRandom().randrange(SEEDS) if seed is None else seed
    _say(_plan(whole, short, dataset, kills, seed))
    # `passing`: the folder is removed at the end, even after Ctrl-C or an error, unless --keep is given or bits differ.
    folder, passing = _new_folder(keep, short.name if request else None), keep is None
    try:
        with ending_as_interrupted():
            verdict = _verify(short, dataset, folder, request, kills, seed, wait_minutes)
        passing = passing and verdict.same
    finally:
        if passing:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # the folder of another verification is in it
                CLUSTER_FOLDER.rmdir()
    _print(verdict, None if passing else folder, as_json=as_json)
    if not verdict.same:
        raise typer.Exit(1)


def _request(profile: str | None, given: dict[str, Any], sbatch: list[str] | None) -> "Request":
    from cnnjob.slurm.submit import profiles

    return profiles.load(profile, given, sbatch or ())


def _asks_for_gpus(given: dict[str, Any], sbatch: list[str] | None) -> bool:
    from cnnjob.slurm.submit import profiles

    return profiles.ask_for_gpus(given, sbatch or ())


def _verify(
    job: "Job", dataset: "Dataset", folder: Path, request: "Request | None", kills: int, seed: int, wait_minutes: float
) -> "RunComparison":
    """Verify on the cluster if there is a request, otherwise on this machine."""
    if request is None:
        from cnnjob.checks.resume import verify_resume

        return verify_resume(job, dataset, folder, kills, seed, _say)
    from cnnjob.checks.resume_slurm import verify_resume_on_slurm as verify_there

    return verify_there(job, dataset, folder, request, kills, seed, wait_minutes, _say)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _plan(whole: "Job", short: "Job", dataset: "Dataset", kills: int, seed: int) -> str:
    from cnnjob.checks.resume import steps_per_epoch

    epochs, all_epochs, steps = short.train.epochs, whole.train.epochs, steps_per_epoch(short, dataset)
    part = f"all {epochs}" if epochs == all_epochs else f"{epochs} of {all_epochs}"
    return f"{short.name}: {part} epochs of {steps:,} steps; unbroken, then killed {kills} times, seed {seed}"


def _new_folder(keep: Path | None, on_cluster: str | None) -> Path:
    """Create the folder of both runs.

    It is ``keep`` if given. Otherwise it is a temporary folder, on a cluster under ``verify-resume/`` in the current
    folder, named after the job: the nodes do not see this machine's ``/tmp``.
    """
    import tempfile

    if keep is None and on_cluster:
        CLUSTER_FOLDER.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{on_cluster}-", dir=CLUSTER_FOLDER))
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="cnnjob-"))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise JobError(f"--keep {keep}: there is something already; name a new folder")
    keep.mkdir(parents=True, exist_ok=True)
    return keep


def _print(verdict: "RunComparison", kept: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json({**verdict.as_json(), "folder": str(kept) if kept else None})
        return
    print_table(["killed in life", "after", "at step", "during", "saved", "went on from"], _kills(verdict))
    typer.echo()
    print_table(["SHA-256", "unbroken", "killed", ""], _digests(verdict))
    typer.echo()
    for line in (*map(_difference, verdict.differences), *verdict.remarks):
        typer.echo(line)
    if kept:
        typer.echo(f"both runs are kept in {kept}")
    differing = ", ".join(difference.what for difference in verdict.differences)
    typer.echo(f"{verdict.run}: " + ("the bits are the same" if verdict.same else f"the bits differ in {differing}"))


def _kills(verdict: "RunComparison") -> list[list[str]]:
    return [
        [str(kill.life), f"{kill.seconds:.2f} s", *map(_known, (kill.step, kill.during, kill.saved_step)),
         _known(kill.resumed_at_step)]
        for kill in verdict.kills
    ]  # fmt: skip


def _known(value: object) -> str:
    return "–" if value is None else str(value)


def _digests(verdict: "RunComparison") -> list[list[str]]:
    rows = [
        [what, one[:SHORT_DIGITS], other[:SHORT_DIGITS], "equal" if one == other else "different"]
        for what, (one, other) in verdict.digests.items()
    ]
    return [*rows, ["(training time)", *(f"{seconds:.1f} s" for seconds in verdict.train_seconds), ""]]


def _difference(found: "RunDifference") -> str:
    return f"{found.what}: {found.where} is {found.unbroken} unbroken, {found.killed} killed"
