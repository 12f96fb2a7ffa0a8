"""Shell completion of jobs, datasets, runs and profiles.

To stay fast, this module lists folders but opens no files, and it imports no large libraries.
"""

from collections.abc import Iterable
from pathlib import Path

from cnnjob.jobs.lookup import named_toml_files

# Duplicated here because importing the catalogue, the benchmarks or the job schema is too slow for TAB completion.
DATASETS = ("mnist", "fashion-mnist", "cifar10", "cifar100", "digits")
ADDRESSES = ("test:0", "train:0", "val:0")
WORKLOADS = (
    *("mnist-baseline", "cifar10-baseline", "cifar10", "cifar10-small", "cifar10-fast", "cifar10-resnet"),
    *("conv-64-128", "data"),
)
SETTINGS = (
    *("dataset", "seed", "data.pixels", "data.validation_fraction", "data.augment", "model.blocks"),
    *("model.init_from", "model.init_sha256"),
    *("train.epochs", "train.batch_size", "train.learning_rate", "train.schedule"),
    *("train.schedule.cosine.warmup", "train.schedule.triangular.warmup", "train.schedule.step.milestones"),
    *("train.schedule.step.gamma", "train.schedule.one_cycle.warmup", "train.optimiser"),
    *("train.optimiser.sgd.momentum", "train.optimiser.sgd.nesterov", "train.optimiser.adamw.beta2"),
    *("train.optimiser.muon.ns_steps", "train.optimiser.muon.others"),
    *("train.clip_norm", "train.weight_decay", "train.lookahead", "train.ema", "train.label_smoothing"),
    *("train.precision", "train.select_on", "train.test_time_augmentation", "train.early_stopping"),
    *("train.checkpoint_seconds", "resources.backend"),
)
"""Job file keys for ``--set``, except those of the classifier, which are rarely set."""


def settings(incomplete: str) -> list[str]:
    """Return the job file keys that begin with the typed text; values are not completed."""
    return _matching(incomplete, SETTINGS)


def jobs(incomplete: str) -> list[str]:
    """Return the job names that begin with the typed text.

    If there are none, the shell offers files, such as job files.
    """
    return _matching(incomplete, named_toml_files("jobs"))


def datasets(incomplete: str) -> list[str]:
    """Return the names for ``cnnjob prepare`` that begin with the typed text: known datasets and ``folder``."""
    return _matching(incomplete, (*DATASETS, "folder"))


def prepared_datasets(incomplete: str) -> list[str]:
    """Return dataset names in ``data/`` that begin with the typed text; if there are none, the shell offers files."""
    return _matching(incomplete, sorted(path.stem for path in Path("data").glob("*.h5")))


def shown(incomplete: str) -> list[str]:
    """Return the paths of prepared datasets and the names of jobs that begin with the typed text."""
    return [*_matching(incomplete, sorted(map(str, Path("data").glob("*.h5")))), *jobs(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Return the matching run folders; if the text contains no slash, return the matching names in ``runs/``."""
    is_path = "/" in incomplete
    folder = Path(incomplete[: incomplete.rindex("/") + 1]) if is_path else Path("runs")
    paths = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."] if folder.is_dir() else []
    if is_path or not paths:
        return _matching(incomplete, sorted(map(str, paths)))
    return _matching(incomplete, [*sorted(path.name for path in paths), "latest"])


def images(incomplete: str) -> list[str]:
    """Return the image addresses that match, such as ``test:0``, followed by the files that match.

    If no address matches, no files are returned either: the shell then completes file names itself.
    """
    addresses = _matching(incomplete, ADDRESSES) if incomplete else []
    return addresses and addresses + _matching(incomplete, sorted(map(str, Path().iterdir())))


def profile_names(incomplete: str) -> list[str]:
    """Return the matching cluster profiles."""
    return _matching(incomplete, named_toml_files("slurm"))


def workloads(incomplete: str) -> list[str]:
    """Return the matching workload names for ``cnnjob bench``."""
    return _matching(incomplete, WORKLOADS)


def _matching(incomplete: str, names: Iterable[str]) -> list[str]:
    # The shell would insert an unprintable file name into the command line unescaped, with its control characters.
    return [name for name in names if name.startswith(incomplete) and name.isprintable()]
