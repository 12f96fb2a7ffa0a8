"""The training loop of one attempt: from the newest checkpoint, or from scratch, to the end or to a requested stop.

for epoch: for step:  batch(seed, epoch, step) ▸ forward ▸ loss ▸ backward ▸ update
evaluate ▸ one history record ▸ best weights ▸ checkpoint when it is due
stop requested?  save after the step ▸ resumes in the same folder, with the same bits
end: predictions, weights, result.json
"""

import math
import resource
import time
from dataclasses import replace
from typing import Any

import numpy as np

from cnnjob import files, nn
from cnnjob.errors import CnnjobError, TrainingError
from cnnjob.nn.random import Purpose, permutation
from cnnjob.runs import checkpoints, environment, npz
from cnnjob.runs.checkpoints import Checkpoint, TrainingProgress, newest_step
from cnnjob.runs.claims import Claim
from cnnjob.runs.process import now
from cnnjob.training import predict
from cnnjob.training.backend import describe_environment
from cnnjob.training.build import build_optimiser, build_pixels, build_schedule, build_training_options
from cnnjob.training.evaluation import (
    CHECKED_AT_ONCE_BYTES,
    DigestCheck,
    EvaluationSplit,
    load_evaluation_split,
    load_split,
    select_watched_splits,
)
from cnnjob.training.memory import evaluation_batch
from cnnjob.training.predict import Classifier
from cnnjob.training.progress import ProgressCallback, SafeProgress, format_epoch
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.stopping import StopRequest

Array = np.ndarray[Any, Any]


class Trainer:
    """The state of a training during one attempt, and its loop."""

    def __init__(
        self,
        claim: Claim,
        setup: TrainingSetup,
        backend: nn.Backend,
        listener: ProgressCallback,
        checked_at_once_bytes: int = CHECKED_AT_ONCE_BYTES,
    ) -> None:
        """Load the data, plan the network's steps, and restore the newest checkpoint or initialise the weights.

        Args:
            claim: of the run to train.
            setup: the run's job, dataset, network and split.
            backend: what computes.
            listener: receives progress events.
            checked_at_once_bytes: as in :func:`cnnjob.training.train.train`.
        """
        job, dataset, network = setup.job, setup.dataset, setup.network
        self.run, self.claim, self.job, self.dataset, self.listener = (
            claim.run,
            claim,
            job,
            dataset,
            SafeProgress(listener),
        )
        self.backend = backend
        self.digest = self.run.manifest()["digest"]
        self.environment = describe_environment(backend)
        optimiser = build_optimiser(job.train)
        self.state = nn.State(network, optimiser, backend)
        pixels = build_pixels(job.data, dataset.mean, dataset.std)
        self.best = backend.zeros(self.state.parameters.shape, backend.dtype)
        self.digests = DigestCheck(dataset, checked_at_once_bytes)
        images, labels = load_split(dataset, "train", backend, self.digests)
        self.training_indices = setup.training
        # Held-out images stay where they are among the training images: one array on the device, two lists of indices.
        validation = EvaluationSplit(images, setup.validation, labels[setup.validation])
        if "val" in dataset.splits:
            validation = load_evaluation_split(dataset, "val", backend, self.digests)
        self.test = load_evaluation_split(dataset, "test", backend, self.digests)
        self.digests.start()
        self.steps = setup.steps_per_epoch
        self.feed = nn.build_step_inputs(backend, images, labels, self.steps, job.train.batch_size, job.seed)
        self.schedule, self.lookahead, self.pixels = build_schedule(job.train), optimiser.lookahead, pixels
        self.plan = nn.TrainingPlan(
            backend,
            network,
            self.state,
            optimiser,
            self.feed,
            pixels,
            job.train.batch_size,
            build_training_options(job),
        )
        self.watched = dict(select_watched_splits(job, validation, self.test))
        batch = evaluation_batch([dataset.shapes["test"][0], *(len(split.order) for split in self.watched.values())])
        views = job.train.test_time_augmentation
        evaluation = nn.EvaluationPlan(backend, network, self.state, pixels, batch, views)
        self.classifier = Classifier(network, self.state, evaluation)
        self.progress = TrainingProgress()
        self.learning_rates, self.losses = np.zeros(self.steps), np.zeros(self.steps)
        self._looked_at = 0  # steps of this epoch whose losses are known to be finite
        self._clock, self._cpu_clock = time.monotonic(), backend.cpu_seconds
        self._next_save = math.inf
        self._restore()

    def _restore(self) -> None:
        """Restore the newest intact checkpoint, or start from scratch."""
        names = self.state.layout.shapes
        shapes = {f"{group}/{name}": shape for group in self._buffers() for name, shape in names.items()}
        contents = checkpoints.ExpectedArrays(shapes, self.steps)
        found, warnings = checkpoints.load(self.run.checkpoints_folder, self.digest, contents)
        self.say(f"--- attempt {self.claim.number} on {self.environment['host']}, {self.environment['device']}")
        if self.job.train.precision != self.environment["precision"]:
            self.say(f"train.precision: {self.job.train.precision!r} is for a GPU, NumPy computes in float32")
        for warning in warnings:
            self.say(f"warning: {warning}; the checkpoint before it is taken")
        if found is None:
            # Attempts that ended before their first step, for example for lack of memory, are no reason to warn.
            if any(attempt.get("step") for attempt in self.run.attempts()):
                self.say("warning: no checkpoint is left of the attempts before, starting anew")
            self._initialise()
        else:
            self._take_up(found)
        if not self.run.environment_file.exists():
            files.write_json(self.run.environment_file, self._frozen_environment(), fence=self.claim.check)
        self._compare_environment()
        self.claim.note(device=self.environment["device"], resumed_at_step=self.progress.step if found else None)
        self._write_history()

    def _initialise(self) -> None:
        """Draw the initial weights; whitening filters are computed from the first training images."""
        images = self.backend.host(self.feed.images[: nn.WHITENING_IMAGES])
        seen = self.training_indices[self.training_indices < len(images)]
        self.state.initialise(self.classifier.network, self.job.seed, images[seen], self.pixels)

    def _frozen_environment(self) -> dict[str, Any]:
        return {**self.environment, "data_sha256": self.dataset.digest}

    def _take_up(self, found: Checkpoint) -> None:
        """Copy a checkpoint's progress and arrays into this training."""
        self.progress = replace(found.progress)
        for group, flat in self._buffers().items():
            names = self.state.layout.shapes
            self.state.write({name: found.arrays[f"{group}/{name}"] for name in names}, flat)
        for name, buffer in {"losses": self.feed.losses, "hits": self.feed.n_correct}.items():
            epoch = np.zeros(self.steps, buffer.dtype)
            epoch[: self.progress.epoch_step] = found.arrays[name]
            self.backend.copy(epoch, buffer)
        self.say(f"resumed at epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def _compare_environment(self) -> None:
        """Log, and remember from which step, if this machine may compute other bits than the first attempt's."""
        differing = environment.environment_differences(self.run.environment(), self.environment)
        if differing:
            self.say(f"warning: bits may differ from step {self.progress.step}: {'; '.join(differing)}")
            if self.progress.bits_may_differ_from_step is None:
                self.progress.bits_may_differ_from_step = self.progress.step

    def _buffers(self) -> dict[str, Array]:
        """The flat buffers that a checkpoint holds, by name."""
        return {**self.state.saved_buffers, "best": self.best}

    def go_on(self, stop: StopRequest) -> bool:
        """Train to the end, or until a stop is requested; return whether the run is finished."""
        self.listener.start(self.job, self.steps)
        self._next_save = time.monotonic() + self.job.train.checkpoint_seconds
        if self.progress.step == 0:  # save at once: a full disk should show before the work, not after it
            if self.digests.passed():
                self._save_or_fail()
            else:
                self._next_save = 0  # save as soon as the data are checked
        while not self.progress.done:
            self._begin_epoch()
            while self.progress.epoch_step < self.steps:
                self._step()
                if stop.asked_by:
                    return self._stop(stop.asked_by)
                self._save_in_time()
            self._end_epoch()
            # Asked again, since an evaluation may take long. After the last epoch the results are written anyway.
            if stop.asked_by and not self.progress.done:
                return self._stop(stop.asked_by)
            self._save_in_time()
        # Save before the results: if the process dies in between, the next attempt has no step left but to finish.
        self._save_or_fail()
        self._finish()
        return True

    def _begin_epoch(self) -> None:
        """Fill the feed for an epoch: order, learning rates, lookahead and position.

        All of it is computed from the seed and the epoch's number, so a resumed attempt continues in the middle of an
        epoch without any saved generator state.
        """
        epoch, train = self.progress.epoch, self.job.train
        shuffled = permutation(len(self.training_indices), self.job.seed, Purpose.ORDER, epoch)
        # (steps · batch_size,); the images that fill no last batch are others in each epoch.
        self.backend.copy(self.training_indices[shuffled[: len(self.feed.order)]], self.feed.order)
        first, total = epoch * self.steps, train.epochs * self.steps
        steps = range(first, first + self.steps)
        self.learning_rates = self.schedule.rates(steps, total)
        if self.lookahead:
            self.backend.copy(self.lookahead.alphas(steps, total), self.feed.lookahead)
        self.backend.copy(self.learning_rates, self.feed.learning_rates)
        self.backend.copy(np.array([self.progress.epoch_step, self.progress.step]), self.feed.position)
        self._looked_at = self.progress.epoch_step

    def _step(self) -> None:
        self.plan.step()
        self.progress.epoch_step += 1
        self.progress.step += 1
        # On a GPU, reading a loss would wait for all queued steps, so there it waits for the epoch's end or a save.
        if self.backend.synchronous:
            self._look()
        self.listener.step(self.progress.epoch + 1, self.progress.epoch_step)

    def _look(self) -> None:
        """Check the losses of the steps since the last check; the attempt fails at the first that is not finite."""
        self.losses = self.backend.host(self.feed.losses)
        new = self.losses[self._looked_at : self.progress.epoch_step]
        if not np.isfinite(new).all():
            # Later steps have already run. Progress is set back, so that the attempt's record has the last good step
            # and the message the failing one.
            good = int(np.isfinite(new).argmin())
            self.progress.step -= len(new) - good
            self.progress.epoch_step -= len(new) - good
            raise TrainingError(self._cause(new[good]))
        self._looked_at = self.progress.epoch_step

    def _cause(self, loss: float, what: str = "loss") -> str:
        """Return the message of a failure: the step at which a value stopped being finite, and what preceded it."""
        done, step, epoch = self.progress.epoch_step, self.progress.step, self.progress.epoch + 1
        failing = min(done + 1, self.steps)  # after the epoch's last step it is an evaluation that found it
        before = "it was the epoch's first step" if done == 0 else f"the step before it was {self.losses[done - 1]:.4g}"
        return (
            f"{self.run.path}: the {what} is {loss} at step {step - done + failing} (epoch {epoch}), {before}, "
            f"learning rate {self.learning_rates[failing - 1]:g}; {self._remedy}"
        )

    @property
    def _remedy(self) -> str:
        halves = self.environment["precision"] == "float16"
        more = ", or train.precision: float16 ends at 65504" if halves else ""
        return f"lower train.learning_rate or change the initial weights{more}"

    def _require_finite_weights(self) -> None:
        """Fail if the epoch's last update, or the running statistics, overflowed: no training loss shows that."""
        for name, array in self.state.read(self.state.parameters).items():
            if not np.isfinite(array).all():
                raise TrainingError(self._cause(float(np.abs(array).max()), f"largest value of {name}"))

    def _end_epoch(self) -> None:
        """Evaluate, add a record to the history, and keep the weights if they are the best so far."""
        self.digests.wait()  # an epoch on changed data must not be recorded, nor its weights be kept
        self._look()
        self._require_finite_weights()
        progress, train = self.progress, self.job.train
        record = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "learning_rate": float(self.learning_rates[-1]),
            "train_loss": float(self.losses.mean()),
            "train_accuracy": float(self.backend.host(self.feed.n_correct).sum() / len(self.feed.order)),
        }
        for name, watched in self.watched.items():
            _, loss, accuracy = watched.scores(self.classifier)
            if not math.isfinite(loss):
                raise TrainingError(self._cause(loss, f"{name} loss"))
            record[f"{name}_loss"], record[f"{name}_accuracy"] = loss, accuracy
        self._count_time()
        record["seconds"] = round(progress.epoch_seconds, 3)
        record["images_per_second"] = round(len(self.feed.order) / progress.epoch_seconds, 1)
        progress.history.append(record)
        progress.epoch, progress.epoch_step, progress.epoch_seconds = progress.epoch + 1, 0, 0.0
        # With "last" the score is the epoch's number, so that each epoch is better than the one before.
        score = progress.epoch if train.select_on == "last" else record[f"{train.select_on}_accuracy"]
        if score > progress.best_accuracy:  # strictly: of equal epochs the first is kept
            progress.best_epoch, progress.best_accuracy = progress.epoch, score
            self.backend.copy(self.state.parameters, self.best)
        patience = train.early_stopping.patience if train.early_stopping else math.inf
        progress.done = progress.epoch == train.epochs or progress.epoch - progress.best_epoch >= patience
        self._write_history()
        self.say(format_epoch(record, train.epochs))

    def _count_time(self) -> None:
        # Called before each save, so that a checkpoint holds the time of just the work that it holds.
        clock, cpu_clock = time.monotonic(), self.backend.cpu_seconds
        self.progress.epoch_seconds += clock - self._clock
        self.progress.train_seconds += clock - self._clock
        self.progress.cpu_seconds += cpu_clock - self._cpu_clock
        self._clock, self._cpu_clock = clock, cpu_clock

    def _save(self) -> None:
        self.digests.wait()  # nothing that was computed from damaged data is ever saved
        self._look()
        self._count_time()
        count = self.progress.epoch_step
        arrays = {
            f"{group}/{name}": view
            for group, flat in self._buffers().items()
            for name, view in self.state.read(flat).items()
        }
        header = {
            "digest": self.digest,
            "data": self.dataset.digest,
            "attempt": self.claim.number,
            "environment": self.environment,
        }
        open_epoch = {"losses": self.losses[:count], "hits": self.backend.host(self.feed.n_correct)[:count]}
        checkpoint = Checkpoint(self.progress, {**arrays, **open_epoch}, header)
        try:
            checkpoints.save(self.run.checkpoints_folder, checkpoint, self.claim.check)
        except TrainingError as error:
            raise TrainingError(f"{self.run.path}: {error}; {self._remedy}") from error

    def _save_in_time(self) -> None:
        """Save if a checkpoint is due and the data are checked; if the disk is full, log that and continue."""
        if not self.digests.passed() or time.monotonic() < self._next_save:
            return
        try:
            self._save()
        except OSError as error:
            self.say(f"warning: could not save the checkpoint at step {self.progress.step} ({error}); {self._kept}")
        self._next_save = time.monotonic() + self.job.train.checkpoint_seconds

    def _save_or_fail(self) -> None:
        try:
            self._save()
        except OSError as error:
            raise CnnjobError(
                f"{self.run.checkpoints_folder}: could not save the checkpoint at step {self.progress.step} ({error}); "
                f"{self._kept}. Free disk space and run the same command to resume"
            ) from error

    @property
    def _kept(self) -> str:
        step = newest_step(self.run.checkpoints_folder)
        return f"the one at step {step} is intact" if step else "nothing was saved before it"

    def _stop(self, asked_by: str) -> bool:
        self._save_or_fail()
        self.say(f"stopped by {asked_by} at step {self.progress.step}; run the same command to resume")
        return False

    def _write_history(self) -> None:
        """Write ``history.jsonl``; if that fails, nothing is lost: it is derived, and written again at the end."""
        try:
            self._write_history_or_fail()
        except OSError as error:
            self.say(f"warning: {self.run.history_file} not written, {error}")

    def _write_history_or_fail(self) -> None:
        text = "".join(files.canonical_json(record) + "\n" for record in self.progress.history)
        files.write_whole(self.run.history_file, text.encode(), fence=self.claim.check)

    def _finish(self) -> None:
        """Evaluate the chosen weights on the test images, once, and write the results."""
        # result.json is written last: its presence means "finished", so everything else must exist by then.
        self._write_history_or_fail()
        self.backend.copy(self.best, self.state.parameters)
        probabilities, loss, accuracy = self.test.scores(self.classifier)
        if not np.isfinite(probabilities).all():
            weights = f"the weights of epoch {self.progress.best_epoch}"
            raise TrainingError(f"{self.run.path}: the test loss with {weights} is {loss}; {self._remedy}")
        npz.write_arrays(self.run.weights_file, self.state.read(self.best), fence=self.claim.check)
        recorded = predict.prediction_arrays(
            probabilities, self.backend.host(self.test.images), self.test.labels, self.dataset.class_names
        )
        npz.write_arrays(self.run.predictions_file, recorded, fence=self.claim.check)
        result = {"test_accuracy": accuracy, "test_loss": loss, **self._costs()}
        files.write_json(self.run.result_file, result, fence=self.claim.check)
        self.say(f"finished: test accuracy {accuracy:.4f}")

    def _costs(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "steps": progress.step,
            "train_seconds": round(progress.train_seconds, 3),
            "cpu_hours": round(progress.cpu_seconds / 3600, 6),
            "gpu_hours": round(progress.train_seconds / 3600, 6) if self.backend.name == "cuda" else 0.0,
            # Of this process only; worker processes share its arrays and take some 20 MB each of their own. Linux
            # counts ru_maxrss in KiB.
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "parameters": self.classifier.network.parameter_count,
            "device": self.environment["device"],
            "backend": self.environment["backend"],
            "precision": self.environment["precision"],
            "selected_on": self.job.train.select_on,
            "test_time_augmentation": self.job.train.test_time_augmentation,
            "attempts": self.claim.number,
            "bits_may_differ_from_step": progress.bits_may_differ_from_step,
        }

    def say(self, text: str) -> None:
        """Append a line to the log, and pass it to the progress callback."""
        self.listener.say(text)
        self.log(text)

    def log(self, text: str) -> None:
        """Append a line to the log; if that fails, tell the progress callback and continue."""
        try:
            files.append_text(self.run.log_file, f"{now()} {text}\n")
        except OSError as error:
            self.listener.say(f"warning: {self.run.log_file} not written, {error}")
