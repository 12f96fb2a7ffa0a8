"""Functions that create run folders, open a run's dataset, and find unfinished runs begun by other versions."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.data.dataset import Dataset
from cnnjob.errors import CnnjobError, DataError
from cnnjob.files import disk_errors_as_cnnjob_error
from cnnjob.jobs import json_files
from cnnjob.jobs.job import FORMAT, Job
from cnnjob.jobs.manifest import INITIAL
from cnnjob.runs.initial import copy_initial, read_initial
from cnnjob.runs.run import Run, manifest_format


def create_run(job: Job, dataset: Dataset, root: Path) -> Run:
    """Return a job's run on a dataset; write the manifest if the run is new or the job's resources have changed.

    Args:
        job: a job that has been checked against the dataset; its initial weights, if it has any, are copied.
        dataset: the job's dataset.
        root: the folder that contains the runs.

    Returns:
        The run.

    Raises:
        DataError: the run's manifest is damaged or belongs to another job, or the initial weights cannot be read.
    """
    run = Run.of(job, dataset.digest, root)
    digest = job.digest(dataset.digest)
    frozen = run.manifest() if run.job_file.exists() else {}
    if frozen and frozen["digest"] != digest:  # the folder's name holds only the first 8 digits
        raise DataError(
            f"{run.job_file}: belongs to another job, whose digest begins with the same digits. Move that run's "
            "folder elsewhere"
        )
    initial, settings = None, job.model_dump(mode="json")
    if job.model.init_from:
        initial = read_initial(job)
        settings["model"]["init_from"] = INITIAL
        if not frozen or run.state() not in {"finished", "running"}:
            # Before the manifest, so that a run that exists has its weights. A damaged copy is replaced.
            with disk_errors_as_cnnjob_error(run.path):
                run.path.mkdir(parents=True, exist_ok=True)
                copy_initial(run, initial)
    if frozen and (frozen["job"] == settings or run.state() in {"finished", "running"}):
        return run
    data: dict[str, Any] = {
        "path": str(dataset.path.resolve()),
        "name": dataset.name,
        "digest": dataset.digest,
        "image_shape": dataset.image_shape,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
        # How images with other sizes or with transparency were prepared, if not by default.
        **{key: dataset.options[key] for key in ("fit", "background") if key in dataset.options},
    }
    # The same weights may be given by another path later; the first one is where they came from.
    origin = {"initial": frozen.get("initial") or initial.origin} if initial else {}
    content = json_files.add_seal({"format": FORMAT, "digest": digest, "job": settings, "data": data, **origin})
    with disk_errors_as_cnnjob_error(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        if frozen:
            files.write_json(run.job_file, content)
        else:  # two processes may create the run at once; the first one's manifest is kept
            files.create_exclusive(run.job_file, files.readable_json(content).encode())
    return run


def open_run_dataset(run: Run, dataset: Dataset | None = None) -> Dataset:
    """Open the dataset that a run was created with, and check it against the run's manifest.

    Args:
        run: the run.
        dataset: the dataset to check, if its file has moved; by default, the file named in the run's manifest is
            opened.

    Returns:
        The dataset, whose digest is the one recorded in the manifest.

    Raises:
        DataError: the dataset is missing or damaged, or is not the one that the run was created with.
    """
    data = run.data()
    opened = dataset or Dataset.open(Path(data["path"]))
    if opened.digest != data["digest"]:
        found_digest, expected = files.short_digest(opened.digest), files.short_digest(data["digest"])
        raise DataError(
            f"{opened.path}: not the data that {run.path} was created with (found digest {found_digest}, expected "
            f"{expected}). Prepare the dataset again from the same sources"
        )
    # The digest covers only images and labels, but standardised pixels also depend on these two.
    if [[*opened.mean], [*opened.std]] != [[*data["mean"]], [*data["std"]]]:
        raise DataError(
            f"{opened.path}: damaged (mean and std differ from those that {run.path} was created with; found "
            f"{opened.mean} and {opened.std}). Prepare the dataset again from the same sources"
        )
    return opened


def find_unfinished_older_runs(root: Path, name: str) -> dict[str, Run]:
    """Return a job's unfinished runs that were created by another version of cnnjob; this version cannot resume them.

    Args:
        root: the folder that contains the runs.
        name: the job's name.

    Returns:
        The runs, by the digest that this version computes from each run's job and data.
    """
    older: dict[str, Run] = {}
    for run in map(Run, sorted(root.glob(f"{name}-*"))):
        with suppress(CnnjobError):
            frozen = {} if run.result_file.exists() else run.manifest()
            if frozen and manifest_format(frozen) != FORMAT:
                older[run.job().digest(str(run.data()["digest"]))] = run
    return older


def describe_replaced_runs(runs: Iterable[Run]) -> Iterator[str]:
    """Yield a message for each new run that replaces an unfinished run begun by another version of cnnjob.

    Args:
        runs: runs from :func:`create_run`, of which only the pending ones are considered.

    Yields:
        A message for the user.
    """
    older_runs: dict[tuple[Path, str], dict[str, Run]] = {}
    for run in runs:
        if run.state() != "pending":
            continue
        frozen = run.manifest()
        key = run.path.parent, frozen["job"]["name"]
        if key not in older_runs:
            older_runs[key] = find_unfinished_older_runs(*key)
        if older := older_runs[key].get(frozen["digest"]):
            yield (
                f"{older.path}: created by another version of cnnjob, and not finished. Its validation images "
                f"were chosen differently, so it is not resumed; the new run is {run.path}"
            )
