"""``job.json``: the resolved job of a run and the data that it was made for."""

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from cnnjob.jobs.json_files import Count, Fields, Number, Sha256


class ManifestData(Fields):
    """What ``job.json`` says of the dataset."""

    path: str
    name: str
    digest: Sha256
    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=3, max_length=3)] | None = None
    class_names: Annotated[list[str], Field(min_length=1)] | None = None
    mean: list[Number] | None = None
    std: list[Number] | None = None

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
    """What is read of a job of any version."""

    name: str
    seed: Count
    model: _Model
    train: _Train


class Manifest(Fields):
    """``job.json``: the resolved job and its data; nothing else may stand there, so that its seal cannot be renamed."""

    model_config = ConfigDict(extra="forbid")

    job: _Job
    data: ManifestData
    digest: Sha256
    format: Count | None = None
    sha256: Sha256 | None = None
    """Missing in a file that was made before records were sealed, and before their format was written down."""
