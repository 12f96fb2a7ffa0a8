"""The training loop of one attempt: from the newest checkpoint, or from scratch, to the end or to a requested stop.

for epoch: for step:  batch(seed, epoch, step) ▸ forward ▸ loss ▸ backward ▸ update
evaluate ▸ one history record ▸ best weights ▸ checkpoint when due
stop requested?  save after the step ▸ resume in the same folder, with the same bits
end: predictions, weights, result.json
"""

import math
import resource
import time
from dataclasses import replace
from typing import Any

import numpy as np

from cnnjob import files, nn
from cnnjob.data.stored import RowReader
from cnnjob.errors import CnnjobError, TrainingError
from cnnjob.nn.cuda.availability import choose_kernel_cache
from cnnjob.nn.cuda.graphs import EAGER_RUNS
from cnnjob.nn.random import Purpose, permutation
from cnnjob.runs import checkpoints, environment, npz
from cnnjob.runs.checkpoints import Checkpoint, TrainingProgress, newest_step
from cnnjob.runs.claims import Claim
from cnnjob.runs.process import name_ctrl_c, now
from cnnjob.training.backend import describe_environment
from cnnjob.training.build import (
    InitialLayers,
    build_optimiser,
    build_pixels,
    build_schedule,
    build_training_options,
)
from cnnjob.training.inference.classifier import Classifier
from cnnjob.training.inference.examples import example_arrays, prediction_arrays
from cnnjob.training.loading import CHECKED_AT_ONCE_BYTES, TrainingData
from cnnjob.training.memory import IN_MEMORY, ImagePlacement
from cnnjob.training.progress import ProgressCallback, SafeProgress, format_epoch
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.stopping import StopRequest

Array = np.ndarray[Any, Any]


class Trainer:
    """The training state during one attempt, and the training loop."""

    def __init__(
        self,
        claim: Claim,
        setup: TrainingSetup,
        backend: nn.Backend,
        callback: ProgressCallback,
        checked_at_once_bytes: int = CHECKED_AT_ONCE_BYTES,
        placement: ImagePlacement = IN_MEMORY,
    ) -> None:
        """Load the data, plan the steps, and restore the newest checkpoint or initialise the weights.

        Args:
            claim: the claim on the run to train.
            setup: the run's job, dataset, network and split.
            backend: the backend to train on.
            callback: receives progress events.
            checked_at_once_bytes: as in :func:`cnnjob.training.train.train`.
            placement: the location of the images.
        """
        self.run, self.claim, self.callback = claim.run, claim, SafeProgress(callback)
        self.job, self.dataset, self.backend = setup.job, setup.dataset, backend
        self.digest = self.run.manifest()["digest"]
        self.environment = describe_environment(backend)
        self.steps = setup.steps_per_epoch
        self.training_indices = setup.training
        self.data = TrainingData(setup, backend, placement, checked_at_once_bytes)
        self.inputs = self.data.inputs
        self._plan(setup.network)
        self.progress = TrainingProgress()
        self.learning_rates, self.losses = np.zeros(self.steps), np.zeros(self.steps)
        self._checked_steps = 0  # number of steps in this epoch whose losses are known to be finite
        compile_seconds = self._compile()
        self._clock, self._cpu_clock = time.monotonic(), backend.cpu_seconds
        self._next_save = math.inf
        self._restore_or_initialise(compile_seconds)

    def _plan(self, network: nn.Network) -> None:
        """Allocate the training state, and plan the steps and evaluations."""
        backend, job = self.backend, self.job
        optimiser = build_optimiser(job.train)
        self.schedule, self.momentum = build_schedule(job.train), optimiser.momentum
        self.lookahead, self.ema = optimiser.lookahead, optimiser.ema
        self.pixels = build_pixels(job.data, self.dataset.mean, self.dataset.std)
        self.state = nn.State(network, optimiser, backend)
        self.best = backend.zeros(self.state.parameters.shape, backend.dtype)
        self.options = build_training_options(job)
        self.plan = nn.TrainingPlan(
            backend, network, self.state, optimiser, self.inputs, self.pixels, job.train.batch_size, self.options
        )
        views, batch = job.train.test_time_augmentation, self.data.evaluation_batch
        evaluation = nn.EvaluationPlan(backend, network, self.state, self.pixels, batch, views, self.data.stream)
        self.classifier = Classifier(network, self.state, evaluation, self.pixels)

    def _compile(self) -> float | None:
        """On a GPU, run and record each step before any time is counted; return how long this takes, in seconds.

        The first runs of a step compile its kernels and load cuBLAS's. The training state is zero again afterwards.
        """
        if self.backend.synchronous:
            return None
        start = time.monotonic()
        for _ in range(EAGER_RUNS + 1):
            self.backend.copy(np.zeros(2, np.int64), self.inputs.position)  # an epoch may have a single step
            self.plan.step()
            for split in self.data.watched.values():
                self.classifier.probabilities(split.images, split.order[:1])
        for flat in self._buffers().values():
            self.backend.copy(np.zeros(flat.shape, flat.dtype), flat)
        return round(time.monotonic() - start, 3)

    def _restore_or_initialise(self, compile_seconds: float | None) -> None:
        """Restore the newest intact checkpoint, or draw the initial weights."""
        names = self.state.layout.shapes
        shapes = {f"{group}/{name}": shape for group in self._buffers() for name, shape in names.items()}
        contents = checkpoints.ExpectedArrays(shapes, self.steps)
        checkpoint, warnings = checkpoints.load_newest(self.run.checkpoints_folder, self.digest, contents)
        self.say(f"--- attempt {self.claim.number} on {self.environment['host']}, {self.environment['device']}")
        if compile_seconds is not None:
            stored = f"they are stored in {choose_kernel_cache()}"
            self.say(f"compiled the kernels in {compile_seconds:.1f} s, before the first epoch; {stored}")
        if self.job.train.precision != self.environment["precision"]:
            needed, found = "a GPU", "NumPy"
            if self.backend.name == "cuda":
                needed, found = "a GPU of compute capability 8.0 or newer", "this one"
            self.say(f"train.precision: {self.job.train.precision!r} needs {needed}; {found} uses float32")
        if self.data.stream:
            message = f"images are read from {self.dataset.path} during training"
            if self.backend.name == "cuda":
                message += f"; {self.data.stream.n_resident:,} of {len(self.data.images):,} stay on the GPU"
            self.say(message)
        for warning in warnings:
            self.say(f"warning: {warning}. Using the previous checkpoint")
        if checkpoint:
            self._restore(checkpoint)
        else:
            # Attempts that ended before their first step, for example from lack of memory, are no reason for a warning.
            if any(attempt.get("step") for attempt in self.run.attempts()):
                self.say("warning: no checkpoint from previous attempts is left; training from scratch")
            self._initialise()
        if not self.run.environment_file.exists():
            origin = self.run.manifest().get("initial")
            content = {
                **self.environment,
                "data_sha256": self.dataset.digest,
                **({"initial": origin} if origin else {}),
            }
            files.write_json(self.run.environment_file, content, fence=self.claim.check)
        self._compare_environment()
        resumed_at_step = self.progress.step if checkpoint else None
        total_steps = self.steps * self.job.train.epochs
        facts = {"device": self.environment["device"], "resumed_at_step": resumed_at_step, "steps": total_steps}
        self.claim.note(**facts, compile_seconds=compile_seconds)
        self._write_history()

    def _initialise(self) -> None:
        """Draw the initial weights; with ``model.init_from``, take those that fit from the run's ``initial.npz``."""
        network, given = self.classifier.network, dict[str, Array]()
        if self.job.model.init_from and (initial := InitialLayers.of(self.run.job(), network)):
            given |= initial.arrays
            for line in initial.describe():
                self.say(line)
        images = None if next(iter(network.parameters)) in given else self._whitening_images()
        self.state.initialise(network, self.job.seed, images, self.pixels, given)

    def _whitening_images(self) -> Array | None:
        """Return the images from which whitening filters are computed; None if the network has no such filters."""
        if not any(parameter.init == "whitening" for parameter in self.classifier.network.parameters.values()):
            return None
        count = nn.count_whitening_images(self.dataset.image_shape)
        indices = self.training_indices[self.training_indices < count]
        if isinstance(self.data.images, RowReader):
            return self.data.images[indices]
        images: Array = self.backend.host(self.data.images[:count])[indices]
        return images

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint's progress and arrays into the training state."""
        self.progress = replace(checkpoint.progress)
        for group, flat in self._buffers().items():
            names = self.state.layout.shapes
            self.state.write({name: checkpoint.arrays[f"{group}/{name}"] for name in names}, flat)
        for name, buffer in {"losses": self.inputs.losses, "hits": self.inputs.n_correct}.items():
            epoch = np.zeros(self.steps, buffer.dtype)
            epoch[: self.progress.epoch_step] = checkpoint.arrays[name]
            self.backend.copy(epoch, buffer)
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.step}"
        self.say(f"resumed at {where}" if self.progress.step else "started again; no step had been saved")

    def _compare_environment(self) -> None:
        """Log a warning if the environment differs from that of the first attempt: bits of the results may differ.

        The current step is recorded as the first whose bits may differ, unless an earlier step has been recorded.
        """
        differing = environment.environment_differences(self.run.environment(), self.environment)
        if differing:
            self.say(f"warning: bits may differ from step {self.progress.step} onwards: {'; '.join(differing)}")
            if self.progress.bits_may_differ_from_step is None:
                self.progress.bits_may_differ_from_step = self.progress.step

    def _buffers(self) -> dict[str, Array]:
        """Return the flat buffers that a checkpoint contains, by name."""
        return {**self.state.saved_buffers, "best": self.best}

    def train(self, stop: StopRequest) -> bool:
        """Train to the end, or until a stop is requested; return whether the run is finished."""
        self.callback.start(self.job, self.steps)
        self._next_save = time.monotonic() + self.job.train.checkpoint_seconds
        if self.progress.step == 0:  # save at once: a full disk should be noticed before training, not after it
            if self.data.check.passed():
                self._save_or_fail()
            else:
                self._next_save = 0  # save as soon as the data have been checked
        while not self.progress.done:
            self._begin_epoch()
            while self.progress.epoch_step < self.steps:
                self._step()
                if stop.requested_by:
                    return self._stop(stop.requested_by)
                self._save_if_due()
            self._end_epoch()
            # Checked again, since evaluation takes time. After the last epoch, the results are written in any case.
            if stop.requested_by and not self.progress.done:
                return self._stop(stop.requested_by)
            self._save_if_due()
        # Save before the results: if the process dies in between, the next attempt only has to write the results.
        self._save_or_fail()
        self._finish()
        return True

    def _begin_epoch(self) -> None:
        """Fill the inputs for an epoch's steps: order, learning rates, averages, mixup and position.

        All of them are computed from the seed and the epoch number, so a resumed attempt can continue in the middle of
        an epoch without any saved generator state.
        """
        self._count_time(in_epoch=False)
        epoch, train = self.progress.epoch, self.job.train
        shuffled = permutation(len(self.training_indices), self.job.seed, Purpose.ORDER, epoch)
        # (steps · batch_size,); the images left out because they do not fill a batch differ from epoch to epoch.
        order = self.training_indices[shuffled[: len(self.inputs.order)]]
        self.backend.copy(order, self.inputs.order)
        if self.data.stream and isinstance(self.data.images, RowReader):
            rows = self.data.stream.start(self.data.images, order, train.batch_size, self.progress.epoch_step)
            self.backend.copy(rows, self.inputs.rows)
        first, total = epoch * self.steps, train.epochs * self.steps
        steps = range(first, first + self.steps)
        self.learning_rates = self.schedule.rates(steps, total)
        if self.lookahead:
            self.backend.copy(self.lookahead.alphas(steps, total), self.inputs.lookahead)
        if self.ema:
            self.backend.copy(self.ema.decays(steps), self.inputs.ema)
        if self.options.mixes and self.options.augmentation:
            shares = self.options.augmentation.shares(self.job.seed, epoch, self.steps)
            self.backend.copy(shares, self.inputs.mixup)
        self.backend.copy(self.learning_rates, self.inputs.learning_rates)
        drops = self.schedule.momentum_drops(steps, total, self.momentum)
        self.backend.copy(drops, self.inputs.momentum_drop)
        self.backend.copy(np.array([self.progress.epoch_step, self.progress.step]), self.inputs.position)
        self._checked_steps = self.progress.epoch_step

    def _step(self) -> None:
        if self.data.stream:
            self.data.stream.next()
        self.plan.step()
        self.progress.epoch_step += 1
        self.progress.step += 1
        # On a GPU, reading a loss would block on all queued steps, so the check is left to the epoch's end or a save.
        if self.backend.synchronous:
            self._check_losses()
            self.callback.loss(float(self.losses[self.progress.epoch_step - 1]))
        self.callback.step(self.progress.epoch + 1, self.progress.epoch_step)

    def _check_losses(self) -> None:
        """Check the losses of all steps since the last check; a loss that is not finite ends the attempt."""
        self.losses = self.backend.host(self.inputs.losses)
        new = self.losses[self._checked_steps : self.progress.epoch_step]
        if not np.isfinite(new).all():
            # Later steps have already run. Progress is set back so that the attempt's record shows the last good step,
            # and the message the failing one.
            good = int(np.isfinite(new).argmin())
            self.progress.step -= len(new) - good
            self.progress.epoch_step -= len(new) - good
            raise self._divergence(new[good])
        self._checked_steps = self.progress.epoch_step

    def _divergence(self, value: float, name: str = "loss") -> TrainingError:
        """Return the error for a non-finite value, with the step and the previous loss."""
        done, step, epoch = self.progress.epoch_step, self.progress.step, self.progress.epoch + 1
        failing = min(done + 1, self.steps)  # after the epoch's last step, the value comes from the evaluation
        before = f"previous loss {self.losses[done - 1]:.4g}" if done else "first step of the epoch"
        return TrainingError(
            f"{self.run.path}: the {name} is {value} at step {step - done + failing} (epoch {epoch}, {before}, "
            f"learning rate {self.learning_rates[failing - 1]:g}). {self._remedy}"
        )

    @property
    def _remedy(self) -> str:
        """The advice for a run that diverged."""
        if self.environment["precision"] == "float16":
            return (
                "Lower train.learning_rate, or change the initial weights or train.precision: the largest float16 "
                "number is 65504"
            )
        return "Lower train.learning_rate or change the initial weights"

    def _end_epoch(self) -> None:
        """Evaluate, add a history record, and copy the weights if they are the best so far."""
        self.data.check.wait()  # an epoch on damaged data must not be recorded, nor may its weights become the best
        self._check_losses()
        # An overflow in the epoch's last update or in the running statistics does not show in any training loss.
        for name, array in self.state.read(self.state.parameters).items():
            if not np.isfinite(array).all():
                raise self._divergence(float(np.abs(array).max()), f"largest value of {name}")
        progress, train = self.progress, self.job.train
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "learning_rate": float(self.learning_rates[-1]),
            "train_loss": float(self.losses.mean()),
            "train_accuracy": float(self.backend.host(self.inputs.n_correct).sum() / len(self.inputs.order)),
        }
        for name, watched in self.data.watched.items():
            _, loss, accuracy = watched.evaluate(self.classifier)
            if not math.isfinite(loss):
                raise self._divergence(loss, f"{name} loss")
            record[f"{name}_loss"], record[f"{name}_accuracy"] = loss, accuracy
        self._count_time(in_epoch=True)
        record["seconds"] = round(progress.epoch_seconds, 3)
        record["images_per_second"] = round(len(self.inputs.order) / progress.epoch_seconds, 1)
        record["ended"] = now()
        progress.history.append(record)
        progress.epoch, progress.epoch_step, progress.epoch_seconds = progress.epoch + 1, 0, 0.0
        # With "last", the score is the epoch number, so that each epoch is better than the previous one.
        score = progress.epoch if train.select_on == "last" else record[f"{train.select_on}_accuracy"]
        if score > progress.best_accuracy:  # strictly greater: of equally good epochs, the first is kept
            progress.best_epoch, progress.best_accuracy = progress.epoch, score
            self.backend.copy(self.state.evaluated, self.best)
        patience = train.early_stopping.patience if train.early_stopping else math.inf
        progress.done = progress.epoch == train.epochs or progress.epoch - progress.best_epoch >= patience
        self._write_history()
        self.callback.end_epoch(record)
        self.say(format_epoch(record, train.epochs))

    def _count_time(self, *, in_epoch: bool) -> None:
        # Called before each save, so that a checkpoint's times cover exactly the work that it contains. The time of an
        # epoch is that of its steps and evaluations; the time of writing files is counted in train_seconds alone.
        clock, cpu_clock = time.monotonic(), self.backend.cpu_seconds
        self.progress.epoch_seconds += clock - self._clock if in_epoch else 0.0
        self.progress.train_seconds += clock - self._clock
        self.progress.cpu_seconds += cpu_clock - self._cpu_clock
        self._clock, self._cpu_clock = clock, cpu_clock

    def _save(self) -> None:
        self.data.check.wait()  # nothing computed from damaged data is ever saved
        self._check_losses()
        count = self.progress.epoch_step
        self._count_time(in_epoch=count > 0)
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
        open_epoch = {"losses": self.losses[:count], "hits": self.backend.host(self.inputs.n_correct)[:count]}
        checkpoint = Checkpoint(self.progress, {**arrays, **open_epoch}, header)
        try:
            checkpoints.save(self.run.checkpoints_folder, checkpoint, self.claim.check)
        except TrainingError as error:
            raise TrainingError(f"{self.run.path}: {error}. {self._remedy}") from error
        finally:
            self._count_time(in_epoch=False)

    def _save_if_due(self) -> None:
        """Save if a checkpoint is due and the data have been checked; if the disk is full, log this and continue."""
        if not self.data.check.passed() or time.monotonic() < self._next_save:
            return
        try:
            self._save()
        except OSError as error:
            step = self.progress.step
            self.say(f"warning: could not save the checkpoint at step {step} ({error}); {self._earlier_checkpoint}")
        self._next_save = time.monotonic() + self.job.train.checkpoint_seconds

    def _save_or_fail(self) -> None:
        try:
            self._save()
        except OSError as error:
            raise CnnjobError(
                f"{self.run.checkpoints_folder}: could not save the checkpoint at step {self.progress.step} ({error}); "
                f"{self._earlier_checkpoint}. Free disk space and run the same command to resume"
            ) from error

    @property
    def _earlier_checkpoint(self) -> str:
        step = newest_step(self.run.checkpoints_folder)
        return f"the one at step {step} is intact" if step else "there is no earlier one"

    def _stop(self, requested_by: str) -> bool:
        self._save_or_fail()
        self.say(f"stopped by {name_ctrl_c(requested_by)} at step {self.progress.step}; run the same command to resume")
        return False

    def _write_history(self) -> None:
        """Write ``history.jsonl``; a failure is only logged.

        Every checkpoint also stores the history, and the file is rewritten at the end of training.
        """
        try:
            self._write_history_or_fail()
        except OSError as error:
            self.say(f"warning: could not write {self.run.history_file} ({error})")

    def _write_history_or_fail(self) -> None:
        text = "".join(files.canonical_json(record) + "\n" for record in self.progress.history)
        files.write_whole(self.run.history_file, text.encode(), fence=self.claim.check)

    def _finish(self) -> None:
        """Evaluate the chosen weights on the test images, once, and write the results."""
        # result.json is written last: its presence means "finished", so everything else must exist by then.
        self._write_history_or_fail()
        self.backend.copy(self.best, self.state.evaluated)
        test = self.data.test
        probabilities, loss, accuracy = test.evaluate(self.classifier)
        if not np.isfinite(probabilities).all():
            weights = f"the weights of epoch {self.progress.best_epoch}"
            raise TrainingError(f"{self.run.path}: the test loss is {loss} with {weights}. {self._remedy}")
        npz.write_arrays(self.run.weights_file, self.state.read(self.best), fence=self.claim.check)
        images = test.images if isinstance(test.images, RowReader) else self.backend.host(test.images)
        predictions = prediction_arrays(probabilities, images, test.labels, self.dataset.class_names)
        npz.write_arrays(self.run.predictions_file, predictions, fence=self.claim.check)
        examples = example_arrays(self.classifier, probabilities, images, test.labels)
        npz.write_arrays(self.run.examples_file, examples, fence=self.claim.check)
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
            # For this process only; worker processes share its arrays and use another 20 MB or so each. Linux reports
            # ru_maxrss in KiB.
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
        self.callback.say(text)
        self.log(text)

    def log(self, text: str) -> None:
        """Append a line to the log; if that fails, pass a warning to the progress callback and continue."""
        try:
            files.append_text(self.run.log_file, f"{now()} {text}\n")
        except OSError as error:
            self.callback.say(f"warning: could not write {self.run.log_file} ({error})")
