"""The command ``cnnjob verify-resume``."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import options as opt
from cnnjob.cli.data.prepare import ending_as_interrupted
from cnnjob.cli.screen import print_json, print_table
from cnnjob.errors import JobError, plural

if TYPE_CHECKING:
    from cnnjob.checks.comparison import RunComparison
    from cnnjob.data.dataset import Dataset
    from cnnjob.jobs.job import Job
    from cnnjob.slurm.submit.request import Request

TEST_GROUP = "The test"
CLUSTER_FOLDER = Path("verify-resume")
SHORT_DIGITS = 12
SEEDS = 10**6


def verify_resume(
    job: opt.JOB,
    overrides: opt.OVERRIDES = None,
    steps: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=TEST_GROUP, min=1, help="Train for only as many epochs as N steps take."
        ),
    ] = 2000,
    kills: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=TEST_GROUP, min=1, help="Number of times to kill the run.")
    ] = 5,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=TEST_GROUP, min=0, help="Seed for the kill times; random by default."
        ),
    ] = None,
    wait_minutes: Annotated[
        float,
        typer.Option(
            metavar="MINUTES",
            rich_help_panel=TEST_GROUP,
            min=0,
            help="On a cluster: minutes to wait for both runs, including their time in the queue.",
        ),
    ] = 120,
    time: opt.TIME = None,
    cpus_per_task: opt.CPUS_PER_TASK = None,
    mem: opt.MEM = None,
    gpus: opt.GPUS = None,
    profile: opt.PROFILE = None,
    partition: opt.PARTITION = None,
    account: opt.ACCOUNT = None,
    qos: opt.QOS = None,
    sbatch: opt.SBATCH = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", rich_help_panel=opt.FOLDERS_GROUP, help="Keep both runs in this new folder."),
    ] = None,
    as_json: Annotated[bool, opt.json_option("Print the comparison as JSON.")] = False,
    data: opt.DATA = opt.DATA_FOLDER,
) -> None:
    """Test that a killed run resumes with bit-identical results.

    The job runs once without interruption, and once with kills at random moments. With any sbatch option, both runs are
    submitted to SLURM, in a folder under verify-resume/; Ctrl-C cancels them.

    The exit code is 0 if the bits are the same, and 1 if they differ. If they differ, the first differences are listed,
    and both runs are kept.

    Example: cnnjob verify-resume digits --kills 3
    """
    import shutil
    from random import SystemRandom

    from cnnjob.checks.resume import shorten_job
    from cnnjob.data.dataset import Dataset
    from cnnjob.slurm.submit import profiles
    from cnnjob.training.default_job import load_job

    given = {
        "partition": partition, "account": account, "qos": qos, "time": time, "cpus_per_task": cpus_per_task,
        "mem": mem, "gpus": gpus}  # fmt: skip
    on_cluster = any(value is not None for value in (profile, sbatch, *given.values()))
    request = profiles.load_request(profile, given, sbatch or ()) if on_cluster else None
    defaults = [f"resources.backend={request.backend}"] if request and request.backend else []
    # The user's overrides come last, so that --set resources.backend=… overrides the profile.
    whole = load_job(job, [*defaults, *(overrides or ())], data)
    dataset = Dataset.find(whole.dataset, data)
    asks_for_gpus = profiles.requests_gpus(given, sbatch or ())
    request = request and request.with_gpus(whole.resources.backend, explicit=asks_for_gpus)
    short = shorten_job(whole, dataset, steps)
    # The seed is printed with the plan, so that --seed can repeat the kill times.
    seed = SystemRandom().randrange(SEEDS) if seed is None else seed
    _say(_plan(whole, short, dataset, kills, seed))
    # The folder is removed at the end, even after Ctrl-C or an error, unless --keep is given or the bits differ.
    folder, is_temporary = _new_folder(keep, short.name if request else None), keep is None
    try:
        with ending_as_interrupted():
            comparison = _run_verification(short, dataset, folder, request, kills, seed, wait_minutes)
        is_temporary = is_temporary and comparison.same
    finally:
        if is_temporary:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another verification is using the folder
                CLUSTER_FOLDER.rmdir()
    _print_comparison(comparison, None if is_temporary else folder, as_json=as_json)
    if not comparison.same:
        raise typer.Exit(1)


def _run_verification(
    job: "Job", dataset: "Dataset", folder: Path, request: "Request | None", kills: int, seed: int, wait_minutes: float
) -> "RunComparison":
    """Run the verification on the cluster if SLURM resources are requested, otherwise on this machine."""
    if request is None:
        from cnnjob.checks.resume import verify_resume

        return verify_resume(job, dataset, folder, kills, seed, _say)
    from cnnjob.checks.resume_slurm import verify_resume_on_slurm

    return verify_resume_on_slurm(job, dataset, folder, request, kills, seed, wait_minutes, _say)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _plan(whole: "Job", short: "Job", dataset: "Dataset", kills: int, seed: int) -> str:
    from cnnjob.checks.resume import steps_per_epoch

    epochs, all_epochs, steps = short.train.epochs, whole.train.epochs, steps_per_epoch(short, dataset)
    part = f"all {epochs}" if epochs == all_epochs else f"{epochs} of {all_epochs}"
    total = f"{part} epochs of {steps:,} steps"
    return f"{short.name}: {total}; once uninterrupted, once killed {plural(kills, 'time')}; seed {seed}"


def _new_folder(keep: Path | None, on_cluster: str | None) -> Path:
    """Create the folder for the uninterrupted and the killed run.

    The folder is ``keep`` if given, otherwise a temporary folder. Cluster nodes cannot see this machine's ``/tmp``, so
    the temporary folder for runs on a cluster is ``verify-resume/JOB-…``, relative to the current folder.
    """
    import tempfile

    if keep is None and on_cluster:
        CLUSTER_FOLDER.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{on_cluster}-", dir=CLUSTER_FOLDER))
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="cnnjob-"))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise JobError(f"--keep {keep}: already exists and is not an empty folder. Choose a new folder")
    keep.mkdir(parents=True, exist_ok=True)
    return keep


def _print_comparison(comparison: "RunComparison", kept: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json({**comparison.as_json(), "folder": str(kept) if kept else None})
        return
    print_table(["attempt", "killed after", "at step", "during", "saved step", "resumed at"], _kills(comparison))
    typer.echo()
    print_table(["SHA-256", "uninterrupted", "killed", ""], _digests(comparison))
    typer.echo()
    for difference in comparison.differences:
        values = f"{difference.uninterrupted} in the uninterrupted run, {difference.killed} in the killed run"
        typer.echo(f"{difference.part}: {difference.where} is {values}")
    for remark in comparison.remarks:
        typer.echo(remark)
    if kept:
        typer.echo(f"both runs are kept in {kept}")
    differing = ", ".join(difference.part for difference in comparison.differences)
    typer.echo(
        f"{comparison.run}: " + ("the bits are the same" if comparison.same else f"the bits differ in {differing}")
    )


def _kills(comparison: "RunComparison") -> list[list[str]]:
    return [
        [str(kill.attempt), f"{kill.seconds:.2f} s", *map(_known, (kill.step, kill.during, kill.saved_step)),
         _known(kill.resumed_at_step)]
        for kill in comparison.kills
    ]  # fmt: skip


def _known(value: object) -> str:
    return "–" if value is None else str(value)


def _digests(comparison: "RunComparison") -> list[list[str]]:
    rows = [
        [part, expected[:SHORT_DIGITS], actual[:SHORT_DIGITS], "equal" if expected == actual else "different"]
        for part, (expected, actual) in comparison.digests.items()
    ]
    return [*rows, ["(training time)", *(f"{seconds:.1f} s" for seconds in comparison.train_seconds), ""]]
