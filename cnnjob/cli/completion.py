"""What the shell offers at TAB: jobs, datasets, runs, profiles. Folders are listed, nothing is opened or loaded."""

from collections.abc import Iterable
from pathlib import Path

from cnnjob.jobs.lookup import named_toml_files

DATASETS = ("mnist", "fashion-mnist", "cifar10", "cifar100", "digits")
ADDRESSES = ("test:0", "train:0", "val:0")
WORKLOADS = ("mnist-baseline", "cifar10-baseline", "cifar10", "cifar10-small", "conv-64-128")
SETTINGS = (
    *("dataset", "seed", "data.pixels", "data.validation_fraction", "data.augment", "model.blocks"),
    *("train.epochs", "train.batch_size", "train.learning_rate", "train.schedule"),
    *("train.schedule.cosine.warmup", "train.schedule.triangular.warmup", "train.optimiser"),
    *("train.optimiser.sgd.momentum", "train.optimiser.sgd.nesterov", "train.optimiser.adamw.beta2"),
    *("train.weight_decay", "train.lookahead", "train.label_smoothing"),
    *("train.precision", "train.select_on", "train.test_time_augmentation", "train.early_stopping"),
    *("train.checkpoint_seconds", "resources.backend"),
)
"""Keys of a job file; those of its classifier are seldom set."""


def settings(incomplete: str) -> list[str]:
    """Keys of a job file; the value is the user's."""
    return _beginning(incomplete, SETTINGS)


def jobs(incomplete: str) -> list[str]:
    """Names of jobs; a job file where there is none: then the shell offers files."""
    return _beginning(incomplete, named_toml_files("jobs"))


def datasets(incomplete: str) -> list[str]:
    """Datasets that can be prepared by name."""
    return _beginning(incomplete, (*DATASETS, "folder"))


def shown(incomplete: str) -> list[str]:
    """Packed files and jobs."""
    return [*_beginning(incomplete, sorted(map(str, Path("data").glob("*.h5")))), *jobs(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Run folders: those below the folder that is being typed, or below ``runs/``."""
    place = Path(incomplete[: incomplete.rindex("/") + 1]) if "/" in incomplete else Path("runs")
    found = place.iterdir() if place.is_dir() else ()
    return _beginning(incomplete, sorted(str(path) for path in found if path.is_dir() and path.name[0] != "."))


def images(incomplete: str) -> list[str]:
    """Addresses in a run's dataset, and files beside those that begin alike; else the shell offers files."""
    addresses = _beginning(incomplete, ADDRESSES) if incomplete else []
    return addresses and addresses + _beginning(incomplete, sorted(map(str, Path().iterdir())))


def profiles(incomplete: str) -> list[str]:
    """Names of cluster profiles."""
    return _beginning(incomplete, named_toml_files("slurm"))


def workloads(incomplete: str) -> list[str]:
    """What ``bench`` measures."""
    return _beginning(incomplete, WORKLOADS)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and name.isprintable()]
