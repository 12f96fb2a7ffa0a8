"""The commands ``cnnjob train``, ``predict``, ``evaluate`` and ``demo``."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.data.show import print_setup
from cnnjob.cli.screen import Screen, print_json, print_last, print_notes, print_table, print_warning, progress_bar
from cnnjob.errors import EXIT_STOPPED, plural, printable, shorten_middle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnnjob.training.inference.predict import Prediction

TABLE_WIDTH = 80
"""Maximum width of a table of predictions, in characters."""


def train(
    job: opt.JOB,
    overrides: opt.OVERRIDES = None,
    data: opt.DATA = opt.DATA_FOLDER,
    runs: opt.RUNS = opt.RUNS_FOLDER,
    stage: opt.STAGE = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", rich_help_panel=opt.OUTPUT_GROUP, help="Print only warnings and the result."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            rich_help_panel=opt.OUTPUT_GROUP,
            help="Before training, print all settings, as 'show JOB' does.",
        ),
    ] = False,
) -> None:
    """Train a job on this machine, or resume it where it stopped.

    Ctrl-C stops training at the next step and saves all work; run the same command to resume.

    Example: cnnjob train mnist --set train.epochs=3
    """
    from cnnjob.data.dataset import Dataset
    from cnnjob.runs.creation import describe_replaced_runs
    from cnnjob.runs.process import name_ctrl_c
    from cnnjob.slurm.scheduler import client
    from cnnjob.training.default_job import load_job
    from cnnjob.training.setup import TrainingSetup
    from cnnjob.training.staging import stage_dataset
    from cnnjob.training.train import train as train_run

    requested = load_job(job, overrides or (), data, runs)
    setup = TrainingSetup.checked(requested, Dataset.find(requested.dataset, data))
    run = setup.create_run(runs)
    for message in describe_replaced_runs([run]):
        print_warning(message)
    # A finished run is not trained again, so its dataset is not copied.
    if stage and not run.result_file.exists():
        staged = stage_dataset(setup.dataset, lambda text: typer.echo(text, err=True))
        setup = TrainingSetup.of_run(run, setup.job, staged)
    if verbose:
        print_setup(setup)
    with Screen(quiet=quiet) as screen:
        outcome = train_run(run, screen, setup=setup, job_is_over=client.job_is_over)
    if outcome.state == "stopped":
        print_last(f"{run.path}: {name_ctrl_c(outcome.why)}; run the same command to resume")
        raise typer.Exit(EXIT_STOPPED)
    result = run.result()
    epochs, best = result.get("epochs", math.inf), result.get("best_epoch")
    line = f"{run.path}: {outcome.state}, test accuracy {100 * result.get('test_accuracy', math.nan):.2f} %"
    views = result.get("test_time_augmentation", "none")
    if views != "none":
        line += f" (test-time augmentation: {views})"
    if epochs < requested.train.epochs:
        line += f"; stopped early after epoch {epochs} of {requested.train.epochs}, best epoch {best}"
    print_last(line)


def predict(
    run: opt.RUN,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            autocompletion=completion.images,
            help="Image files, folders of them, .npy files (uint8, N×H×W×C), or test:N, train:N or val:N from the "
            "run's dataset.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the run's dataset; by default, the folder used for training."),
    ] = None,
    invert: Annotated[
        bool,
        typer.Option("--invert", help="Invert the pixels first, for example for dark digits on a light background."),
    ] = False,
    as_json: Annotated[bool, opt.json_option("Print the probabilities of all classes as JSON.")] = False,
) -> None:
    """Print the most probable classes of each image.

    For each image, up to three classes are printed with their probabilities; with --json, all classes are printed.
    Images of the run's own dataset are numbered from 0: test:0 is the first test image, and val:0 the first validation
    image. For these images, the true class is printed too. Image files are scaled if their size differs from that of
    the training images; a warning is printed if their background or contrast is unlike that of the training images. If
    the run is unfinished, its best weights so far are used.

    Example: cnnjob predict runs/mnist-1a2b3c4d test:0 test:17 seven.png
    """
    from cnnjob.runs.run import Run
    from cnnjob.training.inference.predict import predict as predict_images

    predictions = predict_images(
        Run(run), images, data, invert=invert, say=lambda text: typer.echo(f"cnnjob: {text}", err=True)
    )
    print_notes(Run(run))
    for size in sorted({each.scaled_from for each in predictions if each.scaled_from}):
        typer.echo(
            f"cnnjob: images of {size[0]}×{size[1]} pixels were scaled to the size of the training images",
            err=True,
        )
    by_remark: dict[str, list[str]] = {}
    for each in predictions:
        for remark in each.remarks:
            by_remark.setdefault(remark, []).append(each.image)
    for remark, (first, *others) in by_remark.items():
        more = f" and {plural(len(others), 'other image')}" if others else ""
        typer.echo(f"cnnjob: {first}{more}: {remark}", err=True)
    if as_json:
        print_json([
            {
                "image": each.image,
                "class": each.class_name,
                "probability": each.probability,
                "probabilities": each.probabilities,
                "remarks": list(each.remarks),
                **({} if each.true_class is None else {"true_class": each.true_class}),
            }
            for each in predictions
        ])  # fmt: skip
        return
    print_table(*_prediction_table(predictions), spare=[])


def _prediction_table(predictions: "Sequence[Prediction]") -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of a table at most 80 columns wide; long names are shortened."""
    header = ["image", "prediction", "second", "third", "true class"]
    truths = [printable(each.true_class or "") for each in predictions]
    ranked = [[(printable(name), p) for name, p in each.probabilities.items()][:3] for each in predictions]
    longest = max(len(name) for name in (*truths, *(name for row in ranked for name, _ in row)))
    width = min(longest, 10 if any(truths) else 14)  # leaves at least 14 columns for the image
    rows = []
    for row, truth in zip(ranked, truths, strict=True):
        cells = [f"{shorten_middle(name, width):<{width}} {p:.3f}" for name, p in row]
        rows.append([*cells, *[""] * (3 - len(cells)), shorten_middle(truth, width)])
    columns = list(zip(header[1:], *rows, strict=True))
    # 3: the gap in tables of more than LONG_TABLE rows; in others, it is 2.
    left = TABLE_WIDTH - sum(max(map(len, column)) + 3 for column in columns if any(column[1:]))
    images = [shorten_middle(printable(each.image), left) for each in predictions]
    return header, [[image, *row] for image, row in zip(images, rows, strict=True)]


def evaluate(
    run: opt.RUN,
    dataset: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="DATASET",
            autocompletion=completion.prepared_datasets,
            help="Prepared dataset: a name in the data folder, or an .h5 file.",
        ),
    ],
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Images to evaluate on: train, val or test.")] = "test",
    data: opt.DATA = opt.DATA_FOLDER,
    backend: Annotated[
        str,
        typer.Option(
            metavar="BACKEND",
            help="numpy, cuda, or auto: a GPU if there is one, unless the run's job asks for numpy.",
        ),
    ] = "auto",
    as_json: Annotated[bool, opt.json_option("Print all metrics and the confusion matrix as JSON.")] = False,
) -> None:
    """Evaluate a finished run on another prepared dataset.

    The command prints accuracy and loss, and, for each class, precision, recall, F1 and number of images (support).
    These values and the confusion matrix are also written to the folder RUN/evaluations/; the run's own result is not
    changed.

    Example: cnnjob evaluate runs/mnist-1a2b3c4d --on my-digits
    """
    from cnnjob.data.dataset import Dataset
    from cnnjob.runs import metrics
    from cnnjob.runs.run import Run
    from cnnjob.training.inference.evaluation import evaluate as evaluate_run

    with progress_bar() as on_progress:
        evaluation = evaluate_run(
            Run(run), Dataset.find(dataset, data), split, backend=backend, on_progress=on_progress or (lambda *_: None)
        )
    print_notes(Run(run))
    for remark in evaluation.remarks:
        print_warning(remark)
    if as_json:
        confusion = evaluation.counts.tolist()
        print_json({"path": str(evaluation.path), **evaluation.content(), "confusion": confusion})
        return
    columns = zip(*metrics.per_class(evaluation.counts), strict=True)
    rows = [
        [name, *(f"{value:.4f}" for value in shares), f"{support}"]
        for name, (*shares, support) in zip(evaluation.class_names, columns, strict=True)
    ]
    accuracy, loss, *means = evaluation.overall
    count = evaluation.counts.sum()
    mean = ["mean of the classes", *(f"{value:.4f}" for value in means), f"{count}"]
    print_table(["class", "precision", "recall", "F1", "support"], [*rows, mean])
    typer.echo(f"\n{run}: accuracy {100 * accuracy:.2f} %, loss {loss:z.4f} on {count:,} {split} images of {dataset}")
    typer.echo(f"written to {evaluation.path}; the confusion matrix is in {evaluation.path.stem}.csv")


def demo() -> None:
    """Prepare a small dataset, train on it and write a report.

    This takes only seconds. The digits are part of scikit-learn, so nothing is downloaded. The three commands are
    printed as they run.

    Example: cnnjob demo
    """
    from cnnjob.cli.data.prepare import prepare
    from cnnjob.cli.report import report

    typer.echo("$ cnnjob prepare digits")
    prepare("digits")
    typer.echo("$ cnnjob train digits")
    train("digits")
    typer.echo("$ cnnjob report runs/")
    report([opt.RUNS_FOLDER])
    typer.echo("Open report/index.html in a browser. To list other datasets and jobs:\n  cnnjob show")
