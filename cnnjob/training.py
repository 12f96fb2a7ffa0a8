"""The loop: one run from where it stands to its end, or to a place from which it can go on.

for epoch: for step:  batch(seed, epoch, step) ▸ forward ▸ loss ▸ backward ▸ update
evaluate ▸ one history record ▸ best weights ▸ checkpoint when it is time
stop asked?  save at the step boundary ▸ same folder, same bits
end: predictions, weights, result.json
"""

import json
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cnnjob import checkpoints, environments, files, metrics, nn, predictions, runs
from cnnjob.checkpoints import Checkpoint, Progress
from cnnjob.datasets import Dataset
from cnnjob.errors import BusyError, CnnjobError, DataError, JobError, TrainingError
from cnnjob.jobs import Job
from cnnjob.networks import Classifier, network_of, optimiser_of, pixels_of
from cnnjob.nn.random import Purpose, permutation
from cnnjob.runs import Claim, Run
from cnnjob.stopping import StopRequest

Array = np.ndarray[Any, Any]


class Listener(Protocol):
    """Whoever wants to hear how a training goes."""

    def say(self, text: str) -> None:
        """Hear a line of the log."""

    def start(self, job: Job, steps: int) -> None:
        """Hear how many steps an epoch has."""

    def step(self, epoch: int, step: int) -> None:
        """Hear that a step of an epoch is done."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Hear a record of the history."""


class Silent:
    """Hears everything and says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def start(self, job: Job, steps: int) -> None:
        """Nothing."""

    def step(self, epoch: int, step: int) -> None:
        """Nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended."""

    run: Run
    state: Literal["finished", "stopped", "was finished"]
    why: str


def run_of(job: Job, dataset: Dataset, root: Path) -> Run:
    """The run of a job on a dataset; its job file is written when it is new.

    Raises:
        JobError: the job and the dataset do not fit together.
        DataError: the run's job file is damaged, or is another job's.
    """
    _check(job, dataset)
    run = Run.of(job, dataset.digest, root)
    digest = job.digest(dataset.digest)
    if run.job_file.exists():
        if run.frozen()["digest"] != digest:
            raise DataError(f"{run.job_file}: of another job with the same first digits; move it away")
        return run
    data = {
        "path": str(dataset.path.resolve()),
        "name": dataset.name,
        "digest": dataset.digest,
        "image_shape": dataset.image_shape,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
    }
    content = {"digest": digest, "job": job.model_dump(mode="json"), "data": data}
    with _written_or_said(run):
        run.path.mkdir(parents=True, exist_ok=True)
        files.create_exclusive(run.job_file, (json.dumps(content, indent=2) + "\n").encode())
    return run


@contextmanager
def _written_or_said(run: Run) -> Iterator[None]:
    """Say that the disk is full or failing; what was kept before is whole."""
    try:
        yield
    except OSError as error:
        raise CnnjobError(
            f"{run.path}: cannot be read or written, {error}; see to the disk and run the same command again"
        ) from error


def _check(job: Job, dataset: Dataset) -> None:
    """Find what does not fit before anything is written."""
    network_of(job.model, dataset.image_shape, len(dataset.class_names))
    if job.resources.backend == "cuda":
        raise JobError("resources.backend: 'cuda', but this version computes on the CPU only; set it to 'numpy'")
    training, _ = split(job, dataset)
    if len(training) < job.train.batch_size:
        raise JobError(
            f"train.batch_size: {job.train.batch_size} is more than the {len(training)} training images; lower it"
        )


def split(job: Job, dataset: Dataset) -> tuple[Array, Array]:
    """Which training images are trained on, and which are held out for validation.

    The choice is the same for every seed, so that seeds are compared on the same images.

    Args:
        job: how large a share is held out.
        dataset: where it has a validation split of its own, nothing is held out.

    Returns:
        int64 indices of both, ascending.
    """
    count = dataset.shapes["train"][0]
    held = 0 if "val" in dataset.splits else round(count * job.data.validation_fraction)
    order = permutation(count, 0, Purpose.VALIDATION)
    return np.sort(order[held:]), np.sort(order[:held])


def train(run: Run, listener: Listener | None = None) -> Outcome:
    """Train a run from where it stands.

    Args:
        run: made by :func:`run_of`.
        listener: hears how it goes.

    Returns:
        ``finished``, ``stopped`` (asked to; the same call goes on), or ``was finished``.

    Raises:
        BusyError: another process is writing the run; nothing was changed.
        DataError: the dataset or all checkpoints are damaged, or not those the run was made with.
        TrainingError: the loss is no longer a number.
    """
    if run.result_file.exists():
        return Outcome(run, "was finished", "finished")
    with _written_or_said(run):
        claim = runs.claim(run)
    if run.result_file.exists():  # finished by another process between the look and the claim
        claim.end("finished", run.result()["steps"])
        return Outcome(run, "was finished", "finished")
    with _cores() as workers, StopRequest() as stop, _told_apart(claim) as life, _written_or_said(run):
        training = Training(run, claim, workers, listener or Silent())
        life.training = training
        finished = training.go_on(stop)
        life.why = "finished" if finished else f"stopped: {stop.asked_by}"
    return Outcome(run, "finished" if finished else "stopped", life.why)


class _Life:
    """What is to be written at the end of an attempt."""

    training: "Training | None" = None
    why = ""


@contextmanager
def _told_apart(claim: Claim) -> Iterator[_Life]:
    """Write down why an attempt ended, whatever ended it; a lost claim is not ours to write to."""
    life = _Life()
    try:
        yield life
    except BusyError:
        raise
    except KeyboardInterrupt:
        life.why = "stopped: SIGINT twice, at once"
        raise
    except BaseException as error:
        life.why = f"failed: {error}" if isinstance(error, CnnjobError) else f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        if life.why:
            with suppress(OSError):  # then the run counts as lost, which can go on too
                claim.end(life.why, life.training.progress.step if life.training else 0)


@contextmanager
def _cores() -> Iterator[nn.Workers]:
    """Workers on all cores, and BLAS at one thread: its sums would depend on the number of threads."""
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it looks at every loaded library

    with threadpool_limits(1), nn.Workers(nn.available_cores()) as workers:
        yield workers


class Training:
    """One life of a run."""

    def __init__(self, run: Run, claim: Claim, workers: nn.Workers, listener: Listener) -> None:
        """Read the data, plan the network, and go to where the last life left off."""
        self.run, self.claim, self.listener = run, claim, listener
        self.job = job = run.job()
        self.environment = environments.describe("numpy")
        self.dataset = _dataset_of(run)
        network = network_of(job.model, self.dataset.image_shape, len(self.dataset.class_names))
        backend, optimiser = nn.NumPyBackend(workers), optimiser_of(job.train)
        self.state = nn.State(network, optimiser, backend.dtype)
        self.pixels = pixels_of(job.data, self.dataset.mean, self.dataset.std)
        self.classifier = Classifier(backend, network, self.state, self.pixels)
        self.best = np.zeros_like(self.state.parameters)
        images, labels = self.dataset.load("train")
        self.training_indices, held_out = split(job, self.dataset)
        self.steps = len(self.training_indices) // job.train.batch_size
        self.feed = nn.training_feed(images, labels, self.steps, job.train.batch_size, job.seed)
        self.plan = nn.TrainingPlan(
            backend, network, self.state, optimiser, self.feed, self.pixels, job.train.batch_size
        )
        self.watched = dict(self._watched(images, labels, held_out))
        self.progress = Progress()
        self._clock, self._cpu_clock = time.monotonic(), time.process_time()
        self._restore()

    def _watched(self, images: Array, labels: Array, held_out: Array) -> Iterator[tuple[str, tuple[Any, Array]]]:
        """The splits that are evaluated after each epoch: their plan and their labels."""
        if "val" in self.dataset.splits:
            images, labels = self.dataset.load("val")
            held_out = np.arange(len(images))
        if len(held_out):
            yield "validation", (self.classifier.plan(images, held_out), labels[held_out])
        if self.job.train.select_on == "test":
            images, labels = self.dataset.load("test")
            yield "test", (self.classifier.plan(images, np.arange(len(images))), labels)

    def _restore(self) -> None:
        """Take up the newest whole checkpoint, or start."""
        digest = self.run.frozen()["digest"]
        found, warnings = checkpoints.load(self.run.checkpoints_folder, digest)
        self.say(f"--- attempt {self.claim.number} on {self.environment['host']}, {self.environment['device']}")
        for warning in warnings:
            self.say(f"warning: {warning}; the checkpoint before it is taken")
        if found is None:
            self.state.initialise(self.classifier.network, self.job.seed)
        else:
            self._take_up(found)
        if not self.run.environment_file.exists():
            files.write_json(self.run.environment_file, self._frozen_environment(), fence=self.claim.check)
        self._compare_environment()
        self.claim.note(device=self.environment["device"], resumed_at_step=self.progress.step if found else None)
        self._write_history()

    def _frozen_environment(self) -> dict[str, Any]:
        return {**self.environment, "data_sha256": self.dataset.digest}

    def _take_up(self, found: Checkpoint) -> None:
        self.progress = replace(found.progress)
        for group, views in self._groups().items():
            for name, view in views.items():
                view[...] = found.arrays[f"{group}/{name}"]
        count = self.progress.epoch_step
        self.feed.losses[:count], self.feed.hits[:count] = found.arrays["losses"], found.arrays["hits"]
        self.say(f"resumed at epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def _compare_environment(self) -> None:
        """Say, and remember, when this machine may compute other bits than the run's first."""
        differing = environments.differences(self.run.environment(), self.environment)
        if differing:
            self.say(f"warning: bits may differ from step {self.progress.step}: {'; '.join(differing)}")
            if self.progress.bits_may_differ_from_step is None:
                self.progress.bits_may_differ_from_step = self.progress.step

    def _groups(self) -> dict[str, dict[str, Array]]:
        """The named arrays that a checkpoint keeps."""
        best = self.state.layout.views(self.best)
        return {"weights": self.state.weights, "velocity": self.state.slots, "best": best}

    def go_on(self, stop: StopRequest) -> bool:
        """Train to the end, or until asked to stop; say whether the run is finished."""
        self.listener.start(self.job, self.steps)
        if self.progress.step == 0:
            self._save_or_fail()  # a full disk is better met before the work than after it
        self._next_save = time.monotonic() + self.job.train.checkpoint_seconds
        while not self.progress.done:
            self._begin_epoch()
            while self.progress.epoch_step < self.steps:
                self._step()
                if stop.asked_by:
                    return self._stop(stop.asked_by)
                self._save_in_time()
            self._end_epoch()
            if stop.asked_by and not self.progress.done:
                return self._stop(stop.asked_by)
            self._save_in_time()
        self._save_or_fail()
        self._finish()
        return True

    def _begin_epoch(self) -> None:
        """Fill in what varies: the epoch's order and learning rates, by address."""
        epoch, train = self.progress.epoch, self.job.train
        shuffled = permutation(len(self.training_indices), self.job.seed, Purpose.ORDER, epoch)
        self.feed.order[:] = self.training_indices[shuffled[: len(self.feed.order)]]
        first, total = epoch * self.steps, train.epochs * self.steps
        self.feed.learning_rates[:] = nn.learning_rates(
            train.schedule, train.learning_rate, range(first, first + self.steps), total
        )
        self.feed.position[:] = self.progress.epoch_step, self.progress.step

    def _step(self) -> None:
        self.plan.step()
        loss = self.feed.losses[self.progress.epoch_step]
        if not math.isfinite(loss):
            raise TrainingError(self._cause(loss))
        self.progress.epoch_step += 1
        self.progress.step += 1
        self.listener.step(self.progress.epoch + 1, self.progress.epoch_step)

    def _cause(self, loss: float) -> str:
        before = self.feed.losses[self.progress.epoch_step - 1] if self.progress.epoch_step else None
        rate = self.feed.learning_rates[self.progress.epoch_step]
        last = "it was the epoch's first step" if before is None else f"the step before it was {before:.4g}"
        return (
            f"{self.run.path}: the loss is {loss} at step {self.progress.step + 1} (epoch {self.progress.epoch + 1}), "
            f"{last}, learning rate {rate:g}; lower train.learning_rate or change the initial weights"
        )

    def _end_epoch(self) -> None:
        """Evaluate, record, keep the best."""
        progress, train = self.progress, self.job.train
        record = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "learning_rate": float(self.feed.learning_rates[-1]),
            "train_loss": float(self.feed.losses.mean()),
            "train_accuracy": float(self.feed.hits.sum() / len(self.feed.order)),
        }
        for name, (plan, labels) in self.watched.items():
            probabilities = plan.probabilities()
            record[f"{name}_loss"] = metrics.cross_entropy(probabilities, labels)
            record[f"{name}_accuracy"] = metrics.accuracy(probabilities, labels)
        self._count_time()
        record["seconds"] = round(progress.epoch_seconds, 3)
        record["images_per_second"] = round(len(self.feed.order) / progress.epoch_seconds, 1)
        progress.history.append(record)
        progress.epoch, progress.epoch_step, progress.epoch_seconds = progress.epoch + 1, 0, 0.0
        score = progress.epoch if train.select_on == "last" else record[f"{train.select_on}_accuracy"]
        if score > progress.best_accuracy:
            progress.best_epoch, progress.best_accuracy = progress.epoch, score
            self.best[:] = self.state.parameters
        patience = train.early_stopping.patience if train.early_stopping else math.inf
        progress.done = progress.epoch == train.epochs or progress.epoch - progress.best_epoch >= patience
        self._write_history()
        self.listener.epoch(record)

    def _count_time(self) -> None:
        now, cpu = time.monotonic(), time.process_time()
        self.progress.epoch_seconds += now - self._clock
        self.progress.train_seconds += now - self._clock
        self.progress.cpu_seconds += cpu - self._cpu_clock
        self._clock, self._cpu_clock = now, cpu

    def _save(self) -> None:
        self._count_time()
        count = self.progress.epoch_step
        arrays = {f"{group}/{name}": view for group, views in self._groups().items() for name, view in views.items()}
        header = {
            "digest": self.run.frozen()["digest"],
            "data": self.dataset.digest,
            "attempt": self.claim.number,
            "environment": self.environment,
        }
        open_epoch = {"losses": self.feed.losses[:count], "hits": self.feed.hits[:count]}
        checkpoint = Checkpoint(self.progress, {**arrays, **open_epoch}, header)
        checkpoints.save(self.run.checkpoints_folder, checkpoint, self.claim.check)

    def _save_in_time(self) -> None:
        """Save when it is time; a full disk is said, and the training goes on."""
        if time.monotonic() < self._next_save:
            return
        try:
            self._save()
            self.claim.beat()
        except OSError as error:
            self.say(f"warning: no checkpoint at step {self.progress.step}, {error}; the one before it is kept")
        self._next_save = time.monotonic() + self.job.train.checkpoint_seconds

    def _save_or_fail(self) -> None:
        try:
            self._save()
        except OSError as error:
            raise CnnjobError(
                f"{self.run.checkpoints_folder}: no checkpoint at step {self.progress.step}, {error}; "
                "the one before it is kept, make room and run the same command again"
            ) from error

    def _stop(self, asked_by: str) -> bool:
        self._save_or_fail()
        self.say(f"stopped by {asked_by} at step {self.progress.step}; the same command goes on from there")
        return False

    def _write_history(self) -> None:
        """Write what people read; it is derived, so a failure loses nothing, and the end writes it again."""
        try:
            self._write_history_or_fail()
        except OSError as error:
            self.say(f"warning: {self.run.history_file} not written, {error}")

    def _write_history_or_fail(self) -> None:
        text = "".join(files.canonical_json(record) + "\n" for record in self.progress.history)
        files.write_whole(self.run.history_file, text.encode(), fence=self.claim.check)

    def _finish(self) -> None:
        """Evaluate the chosen weights on the test images, once, and write the results."""
        self._write_history_or_fail()
        self.state.parameters[:] = self.best
        files.write_arrays(self.run.weights_file, self.state.weights, fence=self.claim.check)
        images, labels = self.dataset.load("test")
        probabilities = self.classifier.probabilities(images)
        recorded = predictions.record(probabilities, images, labels, self.dataset.class_names)
        files.write_arrays(self.run.predictions_file, recorded, fence=self.claim.check)
        accuracy = metrics.accuracy(probabilities, labels)
        scores = {"test_accuracy": accuracy, "test_loss": metrics.cross_entropy(probabilities, labels)}
        files.write_json(self.run.result_file, {**scores, **self._costs()}, fence=self.claim.check)
        self.say(f"finished: test accuracy {accuracy:.4f}")

    def _costs(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "steps": progress.step,
            "train_seconds": round(progress.train_seconds, 3),
            "cpu_hours": round(progress.cpu_seconds / 3600, 6),
            "gpu_hours": 0.0,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "parameters": self.classifier.network.parameter_count,
            "device": self.environment["device"],
            "backend": self.environment["backend"],
            "selected_on": self.job.train.select_on,
            "attempts": self.claim.number,
            "bits_may_differ_from_step": progress.bits_may_differ_from_step,
        }

    def say(self, text: str) -> None:
        """Put a line into the log, and tell the listener; a log that cannot be written loses nothing."""
        self.listener.say(text)
        try:
            with self.run.log_file.open("a", encoding="utf-8") as log:
                log.write(f"{runs.now()} {text}\n")
        except OSError as error:
            self.listener.say(f"warning: {self.run.log_file} not written, {error}")


def dataset_of(job: Job, folder: Path) -> Dataset:
    """The packed dataset that a job names: a file, or a name in a folder.

    Raises:
        DataError: it is missing or damaged.
    """
    named = Path(job.dataset)
    return Dataset.open(named if named.suffix == ".h5" else folder / f"{job.dataset}.h5")


def _dataset_of(run: Run) -> Dataset:
    """The dataset that a run was made with.

    Raises:
        DataError: it is missing, damaged or not the same.
    """
    data = run.frozen()["data"]
    dataset = Dataset.open(Path(data["path"]))
    if dataset.digest != data["digest"]:
        raise DataError(
            f"{dataset.path}: not the data that {run.path} was made with "
            f"({dataset.digest[:8]}, it was {data['digest'][:8]}); prepare the same sources again"
        )
    return dataset
