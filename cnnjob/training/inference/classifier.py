"""Networks with the weights of a run, ready to classify images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnjob import nn
from cnnjob.data.stored import RowReader
from cnnjob.errors import DataError
from cnnjob.runs import checkpoints
from cnnjob.runs.run import Run
from cnnjob.training.build import build_network, build_pixels
from cnnjob.training.memory import EVALUATION_BATCH

TRAIN_AGAIN = "Train again with a lower train.learning_rate or different initial weights"


@dataclass(frozen=True)
class Classifier:
    """A network with weights, ready to classify images."""

    network: nn.Network
    state: nn.State
    plan: nn.EvaluationPlan
    pixels: nn.PixelNormalisation

    def probabilities(self, images: np.ndarray | RowReader, order: np.ndarray | None = None) -> np.ndarray:
        """Compute the class probabilities of images.

        Args:
            images: uint8 (N, H, W, C), in memory; or a reader, if the plan has a stream.
            order: int64, indices of the images to classify; all by default.

        Returns:
            (len(order), classes); each row sums to 1.
        """
        return self.plan.probabilities(images, np.arange(len(images)) if order is None else order)


def load_classifier(run: Run, backend: nn.Backend | None = None) -> Classifier:
    """Load the network of a finished run with its chosen weights.

    Args:
        run: a finished run.
        backend: the backend; NumPy in this process by default.

    Returns:
        The classifier.

    Raises:
        DataError: the run is not finished; its weights are missing, damaged, not finite or from another network; or
            its test loss is not finite.
    """
    require_finished(run)
    return _build_classifier(run, run.weights(), run.weights_file, backend)


def load_best_so_far(run: Run, say: Callable[[str], object]) -> Classifier:
    """Load the network of an unfinished run with the best weights in its newest checkpoint.

    Args:
        run: an unfinished run.
        say: receives messages for the user: which weights are used, and which checkpoints are damaged.

    Returns:
        The classifier, with NumPy in this process.

    Raises:
        DataError: the run has no intact checkpoint after its first epoch, or its weights are damaged, not finite or
            from another network.
    """
    checkpoint, damaged = checkpoints.find_newest(run.checkpoints_folder, run.manifest()["digest"])
    for warning in damaged.values():
        say(f"warning: {warning}. Using the previous checkpoint")
    if not checkpoint or not checkpoint.progress.best_epoch:
        raise DataError(
            f"{run.path}: not finished, and its first epoch has not been saved yet, so there are no weights. "
            "Train it further"
        )
    progress, prefix = checkpoint.progress, "best/"
    say(
        f"{run.path}: not finished; using its best weights so far, those of epoch {progress.best_epoch} (from the "
        f"checkpoint at step {progress.step})"
    )
    weights = {name.removeprefix(prefix): array for name, array in checkpoint.arrays.items() if name.startswith(prefix)}
    return _build_classifier(run, weights, run.checkpoints_folder)


def require_finished(run: Run) -> None:
    """Check that a folder is a run that is finished, and that its loss is finite.

    Raises:
        DataError: the folder is not a run, or the run is not finished, or its test loss is not finite.
    """
    require_run(run)
    if not run.result_file.exists():
        raise DataError(f"{run.path}: not finished, so no weights have been chosen yet. Finish training it first")
    loss = run.result().get("test_loss")
    if isinstance(loss, float) and not math.isfinite(loss):  # older versions let such a run finish
        raise DataError(f"{run.result_file}: the test loss is {loss}. {TRAIN_AGAIN}")


def require_run(run: Run) -> None:
    """Check that a folder is a run, finished or not.

    Raises:
        DataError: the folder does not exist, or is not a run.
    """
    if not run.path.is_dir():
        in_runs = Path("runs") / run.path
        example = f", such as {in_runs}" if in_runs.is_dir() else ""
        raise DataError(f"{run.path}: no such run. Pass the folder of a run{example}")
    if not run.job_file.exists():
        raise DataError(f"{run.path}: not a run folder, since it has no job.json. Pass the folder of a run")


def _build_classifier(
    run: Run, weights: dict[str, np.ndarray], source: Path, backend: nn.Backend | None = None
) -> Classifier:
    """Build a run's network with weights read from the file ``source``; refuse weights that do not fit the network."""
    job, data = run.job(), run.data()
    network = build_network(job.model, tuple(data["image_shape"]), len(data["class_names"]))
    backend = backend or nn.NumPyBackend(nn.Workers(1))
    state = nn.State(network, nn.Sgd(), backend)  # nothing is trained, and plain SGD needs no buffers
    if {name: array.shape for name, array in weights.items()} != state.layout.shapes:
        raise DataError(f"{source}: does not match {run.job_file}. Restore the file that was changed, or train again")
    if any(array.dtype != np.float32 for array in weights.values()):
        raise DataError(f"{source}: damaged (some weights are not float32). Restore it, or train again")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise DataError(f"{source}: some weights are not finite. {TRAIN_AGAIN}")
    state.write(weights, state.parameters)
    pixels = build_pixels(job.data, tuple(data["mean"]), tuple(data["std"]))
    views = job.train.test_time_augmentation
    plan = nn.EvaluationPlan(backend, network, state, pixels, EVALUATION_BATCH, views)
    return Classifier(network, state, plan, pixels)
