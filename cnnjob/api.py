"""The public functions for notebooks and scripts: prepare, train, submit, predict, evaluate, report.

They do the same as the commands with the same names, but print nothing, except that training shows a progress bar in a
notebook, and prints one line per epoch elsewhere. By default, they use the same folders: ``data/`` for datasets,
``runs/`` for runs and ``report/`` for the report.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare import prepare as preparation
from cnnjob.data.prepare.arrays.in_memory import arrays_of
from cnnjob.jobs.job import Job
from cnnjob.reporting import report as reports
from cnnjob.reporting.figures import FORMATS, check_formats
from cnnjob.reporting.plots import Format
from cnnjob.reporting.report import Report
from cnnjob.runs.creation import describe_replaced_runs
from cnnjob.runs.initial import find_initial
from cnnjob.runs.run import Run
from cnnjob.runs.summary import resolve_run
from cnnjob.slurm.scheduler.client import job_is_over
from cnnjob.training import train as training
from cnnjob.training.default_job import load_job
from cnnjob.training.inference import evaluation
from cnnjob.training.inference import predict as inference
from cnnjob.training.inference.evaluation import Evaluation
from cnnjob.training.inference.predict import Prediction
from cnnjob.training.progress import EpochLines, NotebookBar, ProgressCallback
from cnnjob.training.setup import TrainingSetup

DATA, RUNS, REPORT = Path("data"), Path("runs"), Path("report")


def prepare(
    name: str,
    out: Path | str | None = None,
    *,
    images: Any = None,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Dataset:
    """Write a dataset as one verified HDF5 file, unless the file already exists.

    Args:
        name: ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100`` or ``digits``; any other name requires
            ``source`` or ``images``.
        out: the file to write; ``data/NAME.h5`` by default.
        images: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), or a dict of such arrays with the keys ``train``,
            ``test`` and optionally ``val``.
        labels: integers (N,), or a dict of such arrays; with ``source``, the path to a table of labels.
        class_names: the names of classes 0, 1, 2, …; only with ``images``.
        options: keyword arguments of :func:`cnnjob.data.prepare.prepare.prepare`: ``source``, ``sha256``, ``size``,
            ``test_fraction``, ``force``.

    Returns:
        The dataset.
    """
    name = name.removesuffix(".h5")
    if images is not None:
        options["arrays"] = arrays_of(name, images, labels, class_names)
    elif labels is not None:
        options["labels"] = Path(labels)
    return preparation.prepare(name, Path(out or DATA / f"{name}.h5"), **options).dataset


def train(
    job: Job | str,
    *,
    data: Path | str = DATA,
    runs: Path | str = RUNS,
    progress: ProgressCallback | Literal[False] | None = None,
) -> Run:
    """Train a job on this machine, or resume it where it stopped.

    Args:
        job: a job, a job name or a job file.
        data: the folder that contains the job's dataset.
        runs: the runs folder.
        progress: receives progress events; by default, a notebook shows a progress bar, and any other program prints
            one line per epoch to stderr. False shows nothing.

    Returns:
        The run. Its state is ``finished``, or ``stopped`` if a stop was requested by a signal other than Ctrl-C; the
        same call then resumes it.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the interruption of a notebook's cell, stopped the run after its work was saved;
            the same call resumes it.
    """
    setup, run = _set_up(job, data, runs)
    _warn_of_older([run])
    if progress is None:
        progress = NotebookBar() if NotebookBar.is_possible() else EpochLines()
    outcome = training.train(run, progress or None, setup=setup, job_is_over=job_is_over)
    if outcome.why == "stopped: SIGINT":  # the caller's next lines need a finished run
        raise KeyboardInterrupt(f"{run.path}: stopped, and all work is saved. Train the job again to resume")
    return run


def submit(
    jobs: Iterable[Job | str], *, profile: str | None = None, parallel: int | None = None, data: Path | str = DATA,
    runs: Path | str = RUNS, **options: Any,
) -> list[Run]:  # fmt: skip
    """Submit jobs to SLURM, as a job array if there are several; skip those that are finished, running or waiting.

    Args:
        jobs: jobs, job names or job files.
        profile: the name of a cluster profile.
        parallel: the maximum number of array tasks that run at once.
        data: the folder that contains the jobs' datasets.
        runs: the runs folder.
        options: sbatch options, such as ``partition="gpu"`` and ``time="2h"``; one GPU is requested by default.

    Returns:
        One run per job, in order; ``cnnjob status`` shows their states.

    Raises:
        CnnjobError: a job cannot be submitted, for example because SLURM refused it. New runs without a SLURM job are
            removed.
    """
    from cnnjob.slurm.submit import backend_parts, profiles, submission  # noqa: PLC0415 - submitit is loaded only when something is submitted

    request = profiles.load_request(profile, options)
    known = set(Run.all(Path(runs)))
    pairs = list[tuple[Job, Run]]()
    try:
        for job in jobs:
            setup, run = _set_up(job, data, runs)
            pairs.append((setup.job, run))
        _warn_of_older(run for _, run in pairs)
        for part in backend_parts.split_by_backend(pairs, request, asks_for_gpus=profiles.requests_gpus(options)):
            submission.submit(part.runs, part.request, parallel)
    except Exception:
        submission.remove_unused(run for _, run in pairs if run not in known)
        raise
    return [run for _, run in pairs]


def predict(
    run: Run | Path | str, images: Any, *, data: Path | str | None = None, runs: Path | str = RUNS, invert: bool = False
) -> list[Prediction]:
    """Predict the classes of images.

    Args:
        run: a run; or a run's folder, its name, the beginning of its name, or ``latest``. If the run is not finished,
            its best weights so far are used.
        images: one of the following, or a list of them: an address in the run's dataset, such as ``test:17``; an image
            file; a folder of image files; an ``.npy`` file; or an array, uint8 (H, W, C) or (N, H, W, C), where C may
            be left out if the images are grey. Image files are scaled to the size of the training images; arrays must
            have that size.
        data: the folder that contains the run's dataset; by default, the folder recorded in the run.
        runs: the folder in which the run is looked up by name.
        invert: True to invert all pixels (255 − x) first, for example for dark digits on a light background.

    Returns:
        One prediction per image, in order. Its ``remarks`` include a warning if the image's background or contrast is
        unlike that of the training images.

    Raises:
        DataError: the run has no weights yet, or an image or the dataset is missing or cannot be used.
        JobError: an address does not refer to an image, or the names of several runs begin with ``run``.
    """
    given = images if isinstance(images, list | tuple) else [images]
    words = [image if hasattr(image, "dtype") else str(image) for image in given]
    found = _find_run(run, runs)
    return inference.predict(found, words, Path(data) if data else None, invert=invert, say=warnings.warn)


def evaluate(
    run: Run | Path | str, on: Dataset | Path | str, split: str = "test", *, data: Path | str = DATA,
    runs: Path | str = RUNS,
    backend: str = "auto",
) -> Evaluation:  # fmt: skip
    """Evaluate a finished run on a prepared dataset, and write the metrics to ``evaluations/`` in the run's folder.

    Args:
        run: a finished run; or a run's folder, its name, the beginning of its name, or ``latest``.
        on: a dataset, the name of a dataset in ``data``, or the path of an ``.h5`` file. The shape of its images and
            the number of its classes must be those of the network.
        split: ``train``, ``val`` or ``test``.
        data: the folder in which the dataset is looked up by name.
        runs: the folder in which the run is looked up by name.
        backend: ``numpy``, ``cuda``, or ``auto``: a GPU if one can be used and the run's job does not ask for NumPy.

    Returns:
        The metrics and the confusion matrix.
    """
    dataset = on if isinstance(on, Dataset) else Dataset.find(on, data)
    return evaluation.evaluate(_find_run(run, runs), dataset, split, backend=backend)


def report(
    runs: Path | str | Run | Sequence[Run] = RUNS, out: Path | str = REPORT, *, figures: bool | Sequence[Format] = False
) -> Report:
    """Write a report on runs: one HTML page, tables and, if requested, figures.

    Args:
        runs: the runs folder, a run, or a list of runs.
        out: the folder to write to.
        figures: whether to draw figures for papers and slides, as PNG, SVG and PDF; or a list of these formats, such
            as ``["pdf"]``. Figures of an earlier report are kept while they still show these runs.

    Returns:
        The report, with the rows of its tables and the paths of its files.

    Raises:
        JobError: a format is not known, or ``out`` cannot be written.
    """
    formats = check_formats((FORMATS if figures else ()) if isinstance(figures, bool) else figures)
    if isinstance(runs, Path | str):
        runs = Run.all(Path(runs))
    return reports.report([runs] if isinstance(runs, Run) else runs, Path(out), formats=formats)


def _find_run(run: Run | Path | str, runs: Path | str) -> Run:
    return run if isinstance(run, Run) else Run(resolve_run(Path(run), Path(runs)))


def _set_up(job: Job | str, data: Path | str, runs: Path | str) -> tuple[TrainingSetup, Run]:
    """Return a job's training setup, checked against the dataset, and the job's run, which is created if necessary."""
    data, runs = Path(data), Path(runs)
    job = load_job(job, data=data, runs=runs) if isinstance(job, str) else find_initial(job, runs)
    setup = TrainingSetup.checked(job, Dataset.find(job.dataset, data))
    return setup, setup.create_run(runs)


def _warn_of_older(runs: Iterable[Run]) -> None:
    for message in describe_replaced_runs(runs):
        warnings.warn(message, stacklevel=3)
