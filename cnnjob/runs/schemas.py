"""Schemas of the JSON files in a run folder, except ``job.json``, which is in :mod:`cnnjob.jobs.manifest`."""

from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from cnnjob.jobs.json_files import Count, Fields, Inode, Sha256, Share, Time


class EnvironmentRecord(Fields):
    """``environment.json``: environment of the first attempt, from :func:`cnnjob.runs.environment.describe`."""

    commit: str | None = None
    dirty: bool | None = None
    data_sha256: str | None = None
    device: str | None = None
    backend: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    bits: dict[str, Any] = Field(default_factory=dict)


class AttemptRecord(Fields):
    """``attempts/NNNN.json``: an attempt's process, and how the attempt ended.

    The fields that identify the process and the folder come from :func:`cnnjob.runs.process.process_identity` and
    :meth:`cnnjob.runs.run.Run.identity`.
    """

    attempt: Count
    host: str
    boot: str
    pid: Count
    pid_started: str | None
    pid_namespace: str | None = None
    uid: Count | None = None
    cluster: str | None = None
    started: Time
    ended: Time | None
    why: str | None
    step: Count | None = None
    job_id: str | None = None
    job_restarts: Count | None = None
    job_step: str | None = None
    folder: str | None = None
    inode: Inode | None = None
    parents: list[Inode] | None = None
    resumed_at_step: Count | None = None
    steps: Count | None = None
    device: str | None = None
    compile_seconds: float | None = None


class ProgressRecord(Fields):
    """A :class:`cnnjob.runs.checkpoints.TrainingProgress` in a checkpoint's header."""

    model_config = ConfigDict(extra="forbid")  # every field becomes an argument of TrainingProgress

    epoch: Count = 0
    epoch_step: Count = 0
    step: Count = 0
    done: bool = False
    best_epoch: Count = 0
    best_accuracy: float = -1.0
    history: list["EpochRecord"] = Field(default_factory=list)
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    cpu_seconds: float = 0.0
    bits_may_differ_from_step: Count | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self.history) != self.epoch or self.best_epoch > self.epoch:
            raise ValueError(
                f"{self.epoch} epochs were completed, but {len(self.history)} are recorded and the best is epoch "
                f"{self.best_epoch}"
            )
        return self


class CheckpointHeader(Fields):
    """The header of a checkpoint, which is stored as JSON in one of its arrays."""

    format: Count
    digest: Sha256
    progress: ProgressRecord


class EpochRecord(Fields):
    """One line of ``history.jsonl``."""

    epoch: Count
    step: Count
    learning_rate: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    ended: Time | None = None
    train_loss: float | None = None
    train_accuracy: Share | None = None
    validation_loss: float | None = None
    validation_accuracy: Share | None = None
    test_loss: float | None = None
    test_accuracy: Share | None = None


class ResultRecord(Fields):
    """``result.json``: the metrics and costs of a finished run."""

    test_accuracy: Share
    test_loss: float | None = None
    epochs: Count | None = None
    best_epoch: Count | None = None
    steps: Count | None = None
    train_seconds: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    peak_memory_bytes: Count | None = None
    parameters: Count | None = None
    device: str | None = None
    backend: str | None = None
    precision: str | None = None
    selected_on: str | None = None
    test_time_augmentation: str | None = None
    attempts: Count | None = None
    bits_may_differ_from_step: Count | None = None


class EvaluatedDataset(Fields):
    """The dataset of an evaluation."""

    name: str
    path: str
    digest: Sha256


class EvaluationRecord(Fields):
    """``evaluations/DATASET-SPLIT-<digest8>.json``: a finished run's metrics on another dataset."""

    dataset: EvaluatedDataset
    split: str
    backend: str | None = None
    images: Count
    accuracy: Share
    loss: float
    f1_macro: Share


class SubmissionRecord(Fields):
    """``slurm/job.json``: the newest SLURM submission."""

    cluster: str | None = None
    job_id: str | None = None
    log: str | None = None
    comment: str | None = None
    shown: str | None = None
    attempt: Count | None = None
    folder: str | None = None
    inode: Inode | None = None
    parents: list[Inode] | None = None
    submitted: Time | None = None


class RestartRecord(Fields):
    """One entry of the restart log, ``slurm/restarts.json``: the decision after an attempt."""

    step: Count
    cluster: str | None = None
    job_id: str | None = None
    job_restarts: Count | None = None
    ended_by: str | None = None
    code: int | None = None
    restarted: str | None = None
    said: str | None = None


class LocalWait(Fields):
    """``slurm/local.json``: the process that will train a run without SLURM."""

    host: str
    boot: str
    pid: Count
    pid_started: str | None
    pid_namespace: str | None = None
    folder: str | None = None
    inode: Inode | None = None


class CancellationRecord(Fields):
    """``slurm/cancelled.json``: the record of the last ``cnnjob cancel``."""

    by: str | None = None
    cluster: str | None = None
    jobs: list[str] = Field(default_factory=list)
    attempt: Count | None = None
    folder: str | None = None
    inode: Inode | None = None
    parents: list[Inode] | None = None
    time: Time | None = None
