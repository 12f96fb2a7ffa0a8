"""Progress callbacks for training, and formatting of progress as text."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol

from cnnjob.errors import format_seconds
from cnnjob.jobs.job import Job

BAR_WIDTH = 16
"""Width of the bar that shows the progress within an epoch, in characters."""
REFRESH_SECONDS = 0.2
"""Minimum time between two updates of the bar in a notebook."""
_DIVERGED = 1e5


class ProgressCallback(Protocol):
    """A callback that receives the progress events of a training run."""

    def say(self, text: str) -> None:
        """Receive a log line."""

    def start(self, job: Job, steps: int) -> None:
        """Receive the job and its number of steps per epoch, before the first step of an attempt."""

    def loss(self, loss: float) -> None:
        """Receive a step's loss, before :meth:`step` is called; not called on a GPU, where reading it would block."""

    def step(self, epoch: int, step: int) -> None:
        """Receive the epoch number and the step number within the epoch, both starting at 1, after each step."""

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Receive the history record of an epoch after its evaluation."""


class NoProgress:
    """A callback that ignores all progress events."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def start(self, job: Job, steps: int) -> None:
        """Do nothing."""

    def loss(self, loss: float) -> None:
        """Do nothing."""

    def step(self, epoch: int, step: int) -> None:
        """Do nothing."""

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Do nothing."""


class EpochLines(NoProgress):
    """A callback that prints the lines of the log to stderr: one per epoch, and warnings."""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - what a script shows by default


class SafeProgress:
    """A wrapper that passes events on to a callback and ignores the callback's output errors.

    A closed pipe, a lost terminal or a full disk must not end training.
    """

    def __init__(self, callback: ProgressCallback) -> None:
        """Wrap a callback."""
        self._callback = callback

    def say(self, text: str) -> None:
        """Pass on a log line."""
        with suppress(OSError):
            self._callback.say(text)

    def start(self, job: Job, steps: int) -> None:
        """Pass on the job and its number of steps per epoch."""
        with suppress(OSError):
            self._callback.start(job, steps)

    def loss(self, loss: float) -> None:
        """Pass on the loss of a step."""
        with suppress(OSError):
            self._callback.loss(loss)

    def step(self, epoch: int, step: int) -> None:
        """Pass on the epoch and step numbers after a step."""
        with suppress(OSError):
            self._callback.step(epoch, step)

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Pass on the history record of an epoch."""
        with suppress(OSError):
            self._callback.end_epoch(record)


class ProgressText:
    """The text next to a progress bar: epoch, step, mean loss of the epoch, last accuracy, and the time left."""

    def __init__(self, steps: int, epochs: int) -> None:
        """Start the text for ``epochs`` epochs of ``steps`` steps each."""
        self._steps, self._epochs = steps, epochs
        self._estimate = TimeEstimate(steps, epochs)
        self._loss_sum, self._n_losses = 0.0, 0
        self._accuracy = ""

    def loss(self, loss: float) -> None:
        """Add the loss of a step to the mean over the epoch."""
        self._loss_sum, self._n_losses = self._loss_sum + loss, self._n_losses + 1

    def step(self, epoch: int, step: int, width: int = sys.maxsize) -> str:
        """Record that a step has ended, and return the text with as many parts as fit into ``width`` characters."""
        self._estimate.step(epoch, step)
        counts = [f"epoch {epoch}/{self._epochs}", f"step {step}/{self._steps}"]
        loss = [f"loss {self._loss_sum / self._n_losses:z.3f}"] if self._n_losses else []
        accuracy = [self._accuracy] if self._accuracy else []
        both, total = list[str](), list[str]()
        if left := self._estimate.seconds_left():
            both = [f"{format_seconds(left[0])} left of this epoch", f"{format_seconds(left[1])} in all"]
            total = [f"{format_seconds(left[1])} left in all"]
        *longer, shortest = (
            " · ".join(parts)
            for parts in (
                [*counts, *loss, *accuracy, *both],
                [counts[0], *loss, *accuracy, *both],
                [counts[0], *loss, *accuracy, *total],
                [counts[0], *accuracy, *total],
                [counts[0], *total],
            )
        )
        return next((text for text in longer if len(text) <= width), shortest)

    def end_epoch(self, record: dict[str, Any]) -> str:
        """Store the accuracy, reset the mean loss for the next epoch, and return a summary of the ended epoch."""
        self._estimate.end_epoch()
        self._loss_sum, self._n_losses = 0.0, 0
        for name, label in (("validation_accuracy", "val acc"), ("test_accuracy", "test acc")):
            if name in record:
                self._accuracy = f"{label} {100 * record[name]:.1f} %"
                break
        parts = [f"epoch {record['epoch']}/{self._epochs}", f"loss {record['train_loss']:z.3f}", self._accuracy]
        return " · ".join(filter(None, parts))


class NotebookBar:
    """A progress callback that shows a progress bar below a notebook cell, and prints only warnings."""

    def __init__(self) -> None:
        """Create the callback; the progress bar appears when training starts."""
        self._bar: Any = None
        self._output: Any = None
        self._text = ProgressText(0, 0)
        self._shown = -math.inf

    @staticmethod
    def is_possible() -> bool:
        """Return whether this process runs a notebook."""
        if "IPython" not in sys.modules:  # otherwise, rich is not imported
            return False
        from rich.console import Console  # noqa: PLC0415

        return Console().is_jupyter

    def say(self, text: str) -> None:
        """Print a warning."""
        if text.startswith("warning"):
            print(text)  # noqa: T201 - a notebook shows it below the cell

    def start(self, job: Job, steps: int) -> None:
        """Show the bar."""
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self._text = ProgressText(steps, job.train.epochs)
        self._bar = Progress(BarColumn(BAR_WIDTH), TextColumn("{task.description}", markup=False))
        self._bar.add_task("", total=steps)
        # rich's own live display needs ipywidgets; IPython can display and update rich's renderables without them.
        self._output = import_module("IPython.display").display(self._bar, display_id=True)

    def loss(self, loss: float) -> None:
        """Add the loss of a step to the mean over the epoch."""
        self._text.loss(loss)

    def step(self, epoch: int, step: int) -> None:
        """Advance the bar; it is drawn a few times per second, and after the last step of an epoch."""
        [task] = self._bar.tasks
        self._bar.update(task.id, completed=step, description=self._text.step(epoch, step))
        if time.monotonic() - self._shown >= REFRESH_SECONDS or step == task.total:
            self._shown = time.monotonic()
            self._output.update(self._bar)

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Show the loss and the accuracy after an epoch."""
        self._bar.update(self._bar.tasks[0].id, description=self._text.end_epoch(record))
        self._output.update(self._bar)


class TimeEstimate:
    """An estimate of the time left, from the durations of the steps and evaluations of this attempt."""

    def __init__(self, steps: int, epochs: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start an estimate for ``epochs`` epochs of ``steps`` steps each."""
        self._steps, self._epochs, self._clock = steps, epochs, clock
        self._epoch = self._step = self._first_step = 0
        self._time = self._first_time = 0.0
        self._step_seconds: float | None = None
        self._evaluation_seconds = 0.0

    def step(self, epoch: int, step: int) -> None:
        """Record that a step has ended."""
        self._time = self._clock()
        if epoch != self._epoch:
            # The first step of an attempt plans the buffers, and one after an evaluation includes its duration.
            self._epoch, self._first_step, self._first_time = epoch, step, self._time
        self._step = step
        if step > self._first_step:
            self._step_seconds = (self._time - self._first_time) / (step - self._first_step)

    def end_epoch(self) -> None:
        """Record that the evaluation after an epoch has ended."""
        self._evaluation_seconds = self._clock() - self._time

    def seconds_left(self) -> tuple[float, float] | None:
        """Return the time left in this epoch and in all epochs, in seconds; None before the second step."""
        if self._step_seconds is None:
            return None
        epoch = (self._steps - self._step) * self._step_seconds + self._evaluation_seconds
        later = (self._epochs - self._epoch) * (self._steps * self._step_seconds + self._evaluation_seconds)
        return epoch, epoch + later


def format_loss(loss: float) -> str:
    """Return a loss with four decimal places, or in scientific notation if training has diverged."""
    return f"{loss:z.4f}" if abs(loss) < _DIVERGED else f"{loss:.3e}"


def format_epoch(record: dict[str, Any], epochs: int) -> str:
    """Return an epoch's history record as one line of text."""
    scores = "; ".join(
        f"{name} loss {format_loss(record[f'{name}_loss'])}, accuracy {record[f'{name}_accuracy']:.4f}"
        for name in ("train", "validation", "test")
        if f"{name}_loss" in record
    )
    speed = f"{record['seconds']:.1f} s, {record['images_per_second']:,.0f} images/s"
    return f"epoch {record['epoch']}/{epochs}: {scores}; {speed}"
