"""Schema of ``job.json``: a run's resolved job and the dataset that the run was created for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from cnnjob.jobs.json_files import Count, Fields, Sha256

INITIAL = "initial.npz"
"""Name of the file with the initial weights in a run's folder; also ``model.init_from`` in the run's ``job.json``."""


class ManifestData(Fields):
    """The dataset in ``job.json``."""

    path: str
    """Absolute path of the HDF5 file, with symbolic links resolved."""
    name: str
    """Name of the dataset."""
    digest: Sha256
    """:attr:`cnnjob.data.dataset.Dataset.digest`."""
    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=3, max_length=3)] | None = None
    class_names: Annotated[list[str], Field(min_length=1)] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.image_shape and any(len(by) != self.image_shape[-1] for by in (self.mean, self.std) if by is not None):
            raise ValueError("mean and std need one number per channel of image_shape")
        return self


class _Model(Fields):
    blocks: list[dict[str, Any]]


class _Train(Fields):
    epochs: Count
    batch_size: Count


class _Job(Fields):
    """The fields of a job that are read, regardless of which version of cnnjob wrote the job."""

    name: str
    seed: Count
    model: _Model
    train: _Train


class InitialRecord(Fields):
    """The origin of the weights in ``initial.npz``."""

    source: str
    """Absolute path of the file that the weights were copied from; the file may no longer exist."""
    sha256: Sha256
    """SHA-256 of ``initial.npz``."""
    run: str | None = None
    """Name of the run that trained the weights; None if they came from a file outside a run."""
    digest: Sha256 | None = None
    """Digest of the run that trained the weights; None if they came from a file outside a run."""


class Manifest(Fields):
    """The content of ``job.json``.

    Unknown fields are refused, so that a file whose ``sha256`` field has been renamed is not accepted.
    """

    model_config = ConfigDict(extra="forbid")

    job: _Job
    data: ManifestData
    digest: Sha256
    """:meth:`cnnjob.jobs.job.Job.digest`, whose first digits are part of the run folder's name."""
    initial: InitialRecord | None = None
    """The origin of the initial weights; None if they are drawn at random."""
    format: Count | None = None
    sha256: Sha256 | None = None
    """The seal; missing in files written by versions without seals."""


def job_in(frozen: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the job in a manifest; any initial weights are to be read from the run's own copy in ``folder``."""
    job: dict[str, Any] = frozen["job"]
    if not job["model"].get("init_from"):
        return job
    return {**job, "model": {**job["model"], "init_from": str(folder / INITIAL)}}
