"""The command ``cnnjob show``, and the descriptions of datasets and jobs that other commands print too."""

import sys
from math import prod
from pathlib import Path
from textwrap import fill, indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.screen import console, gigabytes, print_json, print_notes, print_table
from cnnjob.errors import DataError, JobError, closest_name, plural

if TYPE_CHECKING:
    from cnnjob.data.dataset import Dataset
    from cnnjob.jobs.job import Job
    from cnnjob.training.setup import TrainingSetup

MAX_ADVICE_WIDTH = 80
"""Width of the paragraph below the example of a job file, in characters."""


def show(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            autocompletion=completion.shown,
            help="A dataset file, a job name, a job file, or the folder or name of a run; with --keys, a key or table.",
        ),
    ] = None,
    overrides: opt.OVERRIDES = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="Explain the keys of a job file, with an example; with WHAT, only that part.")
    ] = False,
    data: opt.DATA = opt.DATA_FOLDER,
    as_json: Annotated[bool, opt.json_option("Print the same as JSON; for a job, also its memory in bytes.")] = False,
) -> None:
    """List datasets and jobs, or show one of them.

    The checksums of a dataset file are verified. With --keys, an example of a job file is printed, followed by one line
    per key; 'show --keys conv' explains only the keys with that name or in that table.

    Example: cnnjob show mnist-baseline --set train.batch_size=256
    """
    if keys:
        _explain_keys(what, as_json=as_json)
    elif what is None:
        _list(data, as_json=as_json)
    elif what.endswith((".h5", ".hdf5")):
        _verify(Path(what), as_json=as_json)
    else:
        from cnnjob.runs.run import Run
        from cnnjob.training.default_job import load_job

        run = Run(_run_to_show(what, data))
        is_run = run.job_file.exists()
        if is_run and overrides:
            raise JobError(f"{what}: the job of a run cannot be changed. Omit --set")
        show_job = _print_job_as_json if as_json else _show_job
        if is_run:
            show_job(run.job(), data, run.name)
            print_notes(run)
        else:
            show_job(load_job(what, overrides or (), data), data)


def _run_to_show(what: str, data: Path) -> Path:
    """Return the folder of the run that an argument names, or the argument itself as a path.

    An argument that names a job or a dataset is returned as a path even if it is also the name of a run.
    """
    from cnnjob.jobs.job import list_jobs
    from cnnjob.runs.summary import resolve_run

    if what in list_jobs() or "." in what or "/" in what or (data / f"{what}.h5").exists():
        return Path(what)
    try:
        return resolve_run(Path(what), opt.RUNS_FOLDER)
    except DataError:
        return Path(what)


def _explain_keys(what: str | None, *, as_json: bool) -> None:
    """Print all job file keys after an example, or only the keys with the name ``what`` or in the table ``what``."""
    from dataclasses import asdict
    from itertools import groupby

    from cnnjob.jobs import reference

    keys = reference.list_keys()
    chosen = [key for key in keys if what is None or key.is_about(what)]
    if what and not chosen:
        close = closest_name(what, [word for key in keys for word in (key.table, key.dotted, key.name) if word])
        suggestion = f"Did you mean {close}?" if close else "Specify a key or a table, such as train.optimiser"
        raise JobError(f"show --keys {what}: no such key or table. {suggestion}")
    if as_json:
        print_json([asdict(key) for key in chosen])
        return
    if what is None:
        example = indent(reference.EXAMPLE, "    ")
        typer.echo(f"A job file, jobs/NAME.toml:\n\n{example}\n{fill(reference.ADVICE, MAX_ADVICE_WIDTH)}\n")
    for _, rows in groupby(chosen, key=lambda key: key.table):
        for key in rows:
            default = key.default if key.default in {"required", "–"} else f"default {key.default}"
            # The descriptions are written in Markdown, for docs/job-file.md.
            line = f"{key.dotted} ({key.takes}; {default}): {key.meaning}".replace("`", "").replace("; –)", ")")
            # One line per key for grep; on a terminal, long lines are wrapped.
            typer.echo(fill(line, console().width, subsequent_indent="    ") if sys.stdout.isatty() else line)
        if sys.stdout.isatty():
            typer.echo()


def _list(data: Path, *, as_json: bool) -> None:
    """Print every file in the dataset folder, the known datasets missing from it, and the jobs."""
    from cnnjob.data.prepare.prepare import KNOWN
    from cnnjob.jobs import job as jobs

    datasets = [_dataset_row(path) for path in sorted(data.glob("*.h5"))]
    names = {row["dataset"] for row in datasets}
    datasets += [
        {"dataset": entry.name, "prepared": False, "file": None, "about": entry.about}
        for entry in KNOWN
        if entry.name not in names
    ]
    jobs_found = [_listed(path) for path in jobs.list_jobs().values()]
    if as_json:
        job_rows = [{"job": name, "dataset": dataset, "file": file} for name, dataset, file in jobs_found]
        print_json({"datasets": datasets, "jobs": job_rows})
        return
    rows = [[row["dataset"], row["file"] or "not prepared", row["about"]] for row in datasets]
    print_table(["dataset", "file", "what it is"], rows)
    print_table(["job", "dataset", "file"], jobs_found)


def _dataset_row(path: Path) -> dict[str, Any]:
    """Return the row for a file in the list of datasets.

    The dataset is identified by the content of the file, not by the name of the file.
    """
    from cnnjob.data.dataset import Dataset
    from cnnjob.data.prepare.catalogue import published_entry

    try:
        dataset = Dataset.open(path)
    except DataError as error:
        return {"dataset": path.stem, "prepared": False, "file": str(path), "about": " ".join(str(error).split())}
    if entry := published_entry(dataset):
        about = entry.about
    else:
        (height, width, channels), classes = dataset.image_shape, len(dataset.class_names)
        count = sum(count for count, *_ in dataset.shapes.values())
        colour = "grey" if channels == 1 else "colour"
        named = ", ".join(dataset.source_sha256)
        about = f"{count:,} images, {height}x{width} {colour}, {classes} classes; not a published source ({named})"
    return {"dataset": dataset.name, "prepared": True, "file": str(path), "about": about}


def _listed(path: Path) -> list[str]:
    """Return a job's row in the list of jobs; the row of an invalid job contains its first error."""
    from cnnjob.jobs.job import Job

    try:
        job = Job.load(str(path))
    except JobError as error:
        lines = map(str.strip, str(error).splitlines()[:2])
        return [path.stem, "", " ".join(lines)]
    return [job.name, job.dataset, str(path)]


def _verify(path: Path, *, as_json: bool) -> None:
    from cnnjob.data.dataset import Dataset

    dataset = Dataset.open(path)
    dataset.verify()
    if as_json:
        print_json(dataset_as_json(dataset))
        return
    print_dataset(dataset)
    for name, digest in {**dataset.source_sha256, **dataset.array_sha256}.items():
        typer.echo(f"{digest}  {name}")
    if skipped := dataset.options.get("skipped"):
        typer.echo(f"{plural(len(skipped), 'unusable file')} skipped:")
        for message in skipped.values():
            typer.echo(f"  {message}")
    typer.echo(f"{path}: {dataset.name}, all checksums match, and mean and std match the training images")
    if not dataset.is_sealed:
        typer.echo(
            "the attributes have no checksum, because an older version wrote the file; prepare it again with --force"
        )


def print_dataset(dataset: "Dataset") -> None:
    """Print the number of images per class and split, the shapes, and the mean and standard deviation."""
    print_table(
        ["class", *dataset.splits],
        [
            [name, *map(str, counts)]
            for name, *counts in zip(dataset.class_names, *map(dataset.counts, dataset.splits), strict=True)
        ],
    )
    for split, (count, *shape) in dataset.shapes.items():
        typer.echo(f"{split}: {count:,} images, {'×'.join(map(str, shape))}")
    for label, values in (("mean", dataset.mean), ("std", dataset.std)):
        typer.echo(f"{label} of the training pixels / 255: {', '.join(f'{value:.4f}' for value in values)}")


def dataset_as_json(dataset: "Dataset") -> dict[str, Any]:
    """Return a prepared dataset's properties as a dict for JSON; the keys are part of the public interface."""
    return {
        "path": str(dataset.path),
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "shapes": dataset.shapes,
        "counts": {split: list(map(int, dataset.counts(split))) for split in dataset.splits},
        "mean": list(map(float, dataset.mean)),
        "std": list(map(float, dataset.std)),
        "source_sha256": dataset.source_sha256,
        "array_sha256": dataset.array_sha256,
        "skipped": dataset.options.get("skipped", {}),
    }


def _print_job_as_json(job: "Job", data: Path, run: str | None = None) -> None:
    """Print a resolved job as JSON, with its memory requirement and the name of its run.

    The name depends on the dataset's digest, so it is null if the dataset has not been prepared.
    """
    from dataclasses import asdict

    from cnnjob.runs.run import Run
    from cnnjob.training.memory import STREAMED, estimate_memory
    from cnnjob.training.setup import TrainingSetup

    dataset, is_prepared = _dataset_or_catalogue(job, data)
    run = run or (Run.of(job, dataset.digest, data).name if is_prepared else None)
    setup = TrainingSetup.build(job, dataset)
    memory = asdict(estimate_memory(setup))
    streamed = asdict(estimate_memory(setup, placement=STREAMED))
    initial = setup.initial_layers()
    print_json({
        "job": job.model_dump(mode="json"),
        "run": run,
        "initial": initial.as_json() if initial else None,
        "memory_bytes": memory,
        "memory_bytes_streamed": streamed,
    })  # fmt: skip


def _show_job(job: "Job", data: Path, run: str | None = None) -> None:
    from cnnjob.runs.run import Run
    from cnnjob.training.setup import TrainingSetup

    dataset, is_prepared = _dataset_or_catalogue(job, data)
    print_setup(TrainingSetup.build(job, dataset))
    if run or is_prepared:
        typer.echo(f"run: {run or Run.of(job, dataset.digest, data).name}")
    else:
        typer.echo(f"{dataset.path} is not prepared yet; the sizes are from the catalogue")


def print_setup(setup: "TrainingSetup") -> None:
    """Print a job, its network, the numbers of images, and the amount of memory that training needs."""
    from cnnjob.jobs.toml import format_toml

    typer.echo(format_toml(setup.job.model_dump(mode="json", exclude_none=True)))
    network = setup.network
    counts = [sum(prod(p.shape) for p in layer.parameters.values() if p.counts) for layer in network.layers]
    rows = [
        [layer.name, "×".join(map(str, layer.input_shape)), "×".join(map(str, layer.output_shape)), f"{count:,}"]
        for layer, count in zip(network.layers, counts, strict=True)
    ]
    print_table(["block", "in", "out", "parameters"], [*rows, ["total", "", "", f"{network.parameter_count:,}"]])
    for line in setup.describe_initial():
        typer.echo(line)
    typer.echo(f"images: {setup.n_training:,} for training, {setup.n_validation:,} for validation")
    typer.echo(memory_line(setup))


def _dataset_or_catalogue(job: "Job", data: Path) -> "tuple[Dataset, bool]":
    """Return a job's dataset and True. If the dataset is not prepared, return its catalogue description and False."""
    from cnnjob.data.dataset import SUFFIXES, Dataset
    from cnnjob.data.prepare.prepare import KNOWN

    path = data / f"{job.dataset}.h5"
    if path.exists() or Path(job.dataset).suffix in SUFFIXES:
        return Dataset.find(job.dataset, data), True
    for entry in KNOWN:
        if entry.name == job.dataset:
            return entry.described(path), False
    known = ", ".join(entry.name for entry in KNOWN)
    raise DataError(
        f"{path}: no such dataset, and {job.dataset} is not one of {known}. To prepare your own images:\n"
        f"  cnnjob prepare PATH --out {path}"
    )


def memory_line(setup: "TrainingSetup") -> str:
    """Return one line that states the exact amount of memory that the training arrays need."""
    from cnnjob.training.memory import STREAMED, estimate_device_memory, estimate_memory

    memory = estimate_memory(setup)
    parts = {
        "data": memory.data,
        "parameters": memory.parameters,
        "training": memory.training,
        "evaluation": memory.evaluation,
        "checkpoint": memory.checkpoint,
    }
    named = ", ".join(f"{name} {gigabytes(count)}" for name, count in parts.items())
    on_gpu = gigabytes(estimate_device_memory(setup).on_device)
    elsewhere = "" if setup.job.resources.backend == "numpy" else f"; on a GPU {on_gpu}"
    streamed = estimate_memory(setup, placement=STREAMED).total
    if streamed < memory.total:
        elsewhere += f"; {gigabytes(streamed)} with streamed images"
    return f"memory of the arrays: {gigabytes(memory.total)}: {named}{elsewhere}"
