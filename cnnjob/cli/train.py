"""The commands ``cnnjob train``, ``predict`` and ``demo``."""

import math
from pathlib import Path
from typing import Annotated

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.data import DATA_FOLDER
from cnnjob.cli.screen import Screen, print_json, print_last, print_notes, print_table
from cnnjob.errors import EXIT_STOPPED

RUNS_FOLDER = Path("runs")


def train(
    job: opt.JOB,
    overrides: opt.OVERRIDES = None,
    data: opt.DATA = DATA_FOLDER,
    runs: opt.RUNS = RUNS_FOLDER,
) -> None:
    """Train a job here, or resume it where it was stopped.

    Ctrl-C stops it at the next step with all its work saved; run the same command to resume.

    Example: cnnjob train mnist --set train.epochs=3
    """
    from cnnjob.data.dataset import Dataset
    from cnnjob.runs.creation import describe_replaced_runs
    from cnnjob.slurm.scheduler import client
    from cnnjob.training.default_job import load_job
    from cnnjob.training.setup import TrainingSetup
    from cnnjob.training.train import train as train_run

    wanted = load_job(job, overrides or (), data)
    setup = TrainingSetup.checked(wanted, Dataset.find(wanted.dataset, data))
    run = setup.create_run(runs)
    for anew in describe_replaced_runs([run]):
        typer.echo(anew, err=True)
    with Screen() as screen:
        outcome = train_run(run, screen, setup=setup, job_is_over=client.job_is_over)
    if outcome.state == "stopped":
        print_last(f"{run.path}: {outcome.why}; run the same command to resume")
        raise typer.Exit(EXIT_STOPPED)
    result = run.result()
    epochs, best = result.get("epochs", math.inf), result.get("best_epoch")
    early = f"; ended after epoch {epochs} of {wanted.train.epochs}, no better since {best}"
    said = f"{outcome.state}, test accuracy {100 * result.get('test_accuracy', math.nan):.2f} %"
    views = result.get("test_time_augmentation", "none")
    seen = "" if views == "none" else f" (test-time augmentation: {views})"
    print_last(f"{run.path}: {said}{seen}{early if epochs < wanted.train.epochs else ''}")


def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", autocompletion=completion.runs, help="Folder of a finished run.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            autocompletion=completion.images,
            help="Image files, .npy files of uint8 (N, H, W, C), or test:N, train:N, val:N of the run's data.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the run's dataset; where it lay at first by default.")
    ] = None,
    as_json: opt.JSON = False,
) -> None:
    """Print the class and its probability for each image.

    Of images of the run's own dataset, which are counted from 0, it says the true class too; val:N are those that it
    held out. Files of other sizes are scaled.

    Example: cnnjob predict runs/mnist-1a2b3c4d test:0 test:17 seven.png
    """
    from cnnjob.runs.run import Run
    from cnnjob.training.predict import predict as predict_images

    guesses = predict_images(Run(run), images, data)
    print_notes(Run(run))
    for size in sorted({g.scaled_from for g in guesses if g.scaled_from}):
        typer.echo(
            f"cnnjob: scaled from {size[0]}×{size[1]} pixels; the network knows only images like its own", err=True
        )
    rows = [{"image": g.image, "class": g.class_name, "probability": g.probability} for g in guesses]
    truths = [{"true_class": g.true_class} if g.true_class is not None else {} for g in guesses]
    if as_json:
        print_json([row | truth for row, truth in zip(rows, truths, strict=True)])
        return
    header = ["image", "class", "probability", *(["true class"] if any(truths) else [])]
    cells = [[g.image, g.class_name, f"{g.probability:.4f}", g.true_class or ""] for g in guesses]
    print_table(header, [row[: len(header)] for row in cells])


def demo() -> None:
    """Prepare, train and report a small dataset in seconds.

    The digits are embedded; the three commands are printed as they are run.

    Example: cnnjob demo
    """
    from cnnjob.cli.data import prepare
    from cnnjob.cli.report import report

    typer.echo("$ cnnjob prepare digits")
    prepare("digits")
    typer.echo("$ cnnjob train digits")
    train("digits")
    typer.echo("$ cnnjob report runs/")
    report([RUNS_FOLDER])
    pictures = sorted(Path("report").rglob("*.png"))
    typer.echo("pictures:\n" + "\n".join(f"  {path}" for path in pictures))
    typer.echo("open report/index.html in a browser; `cnnjob show` lists other datasets and jobs")
