"""Groups of runs that differ only in their seed, and statistics of each group.

Means have 95 % intervals by Student's t; a single value has no interval.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cnnjob.files import canonical_json
from cnnjob.jobs.dotted_keys import belongs_to_selected_kind
from cnnjob.reporting.record import BLOCKS, Record

CONFIDENCE = 0.95
_MAX_LABEL_LETTERS = 100
_MAX_PARENTS = 3
"""Maximum number of runs that are named in a remark on fine-tuning."""
_BLOCK_KINDS = re.compile(r"(?:^|[,(+] ?)(\w+)")
"""Matches the kind of each block in the ``model.blocks`` setting, such as ``conv`` in ``conv 32``."""
_WITHOUT_EFFECT = ("name", "seed", "resources", "train.checkpoint_seconds")
"""Settings in which the runs of a group may differ: those that do not affect the result, and the seed."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    half_width: float | None
    """Half the width of the 95 % interval; None if there is only one value."""
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Return whether the whole interval is on one side of zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width


@dataclass(frozen=True)
class Group:
    """Runs with the same settings and data; only their seeds may differ."""

    label: str
    """A unique name: the job's name, the settings that differ, or a number."""
    settings: dict[str, Any]
    """Settings that differ between groups, by their shortest unambiguous name."""
    records: tuple[Record, ...]
    """The group's runs, ordered by seed and name."""

    @property
    def dataset(self) -> str:
        """The dataset's name and the first digits of its digest."""
        return str(self.records[0].settings.get("dataset"))

    @cached_property
    def by_seed(self) -> dict[Any, Record]:
        """The first finished run of each seed; a copy of a run does not count as a second measurement."""
        finished: dict[Any, Record] = {}
        for record in self.records:
            if record.row["state"] == "finished" and isinstance(record.row["test_accuracy"], int | float):
                finished.setdefault(record.row["seed"], record)
        return finished

    @property
    def remarks(self) -> list[str]:
        """Caveats about the accuracy: a model chosen on the test images, fine-tuning, test-time augmentation."""
        rows = [record.row for record in self.by_seed.values()]
        views = {row["test_time_augmentation"] for row in rows} - {"none"}
        remarks = [f"test-time augmentation: {view}" for view in sorted(views)]
        parents = sorted({record.parent for record in self.records} - {""})
        if parents and "init_from" not in self.settings:
            remarks.insert(0, f"fine-tuned from {', '.join(parents[:_MAX_PARENTS])}")
        if any(row["selected_on"] == "test" for row in rows):
            remarks.insert(0, "optimistic: chosen on the test images")
        return remarks

    def interval(self, column: str) -> Interval | None:
        """Return a column's mean over the finished runs, one run per seed; None if no run has a value."""
        values = [record.row[column] for record in self.by_seed.values()]
        return interval([value for value in values if isinstance(value, int | float)])


def interval(values: Sequence[float]) -> Interval | None:
    """Return the mean of values with its 95 % interval by Student's t; None if there are no values."""
    from scipy.special import stdtrit  # noqa: PLC0415 - takes half a second to import

    n = len(values)
    if n < 2:  # noqa: PLR2004 - one value has no spread
        return Interval(float(values[0]), None, 1) if n else None
    error = float(np.std(values, ddof=1)) / math.sqrt(n)  # standard error of the mean
    return Interval(float(np.mean(values)), float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error, n)


def group_runs(records: Iterable[Record]) -> list[Group]:
    """Group runs that differ only in their seed.

    Args:
        records: runs in any order. A run whose job cannot be read belongs to no group. For every other run,
            ``record.row["group"]`` is set to the label of the run's group.

    Returns:
        The groups by descending mean test accuracy; groups without a finished run come last.
    """
    members: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.settings:
            members[canonical_json(result_settings(record))].append(record)
    # The job in a manifest is not validated here, so its seed may be anything; padded text can always be compared.
    ordered = [sorted(group, key=lambda record: (str(record.row["seed"]).zfill(10), record.name))
               for group in members.values()]  # fmt: skip
    settings = _add_enclosing_tables([result_settings(group[0]) for group in ordered])
    keys = _select_shown_settings(settings)
    names = short_names(keys)
    groups = [
        Group("", {names[key]: values.get(key) for key in keys}, tuple(group))
        for values, group in zip(settings, ordered, strict=True)
    ]
    labelled = _label_groups(sorted(groups, key=_rank))
    for group in labelled:
        for record in group.records:
            record.row["group"] = group.label
    return labelled


def _label_groups(groups: list[Group]) -> list[Group]:
    """Label each group by its job and distinguishing settings; if that label is too long, by its job and a number."""
    jobs = [_job(group) for group in groups]
    peers = {job: [group.settings for group in groups if _job(group) == job] for job in dict.fromkeys(jobs)}
    distinguishing = {job: _find_distinguishing_settings(settings) for job, settings in peers.items()}
    labels = []
    for group, job in zip(groups, jobs, strict=True):
        keys = distinguishing[job]
        words = [f"{key} {setting_text(group.settings[key])}" for key in keys]
        labels.append(", ".join([job, *words] if len(peers) > 1 or not keys else words))
    return [
        replace(group, label=label if len(label) <= _MAX_LABEL_LETTERS else f"{job} {number}")
        for number, (group, label, job) in enumerate(zip(groups, labels, jobs, strict=True), start=1)
    ]


def _find_distinguishing_settings(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys of the settings that distinguish groups of the same job.

    The presence of an optional table, such as ``early_stopping``, is not one of them if the other keys suffice to
    distinguish the groups. A table without effect is omitted from a job, for example if the job has fewer epochs than
    the patience in the table.
    """
    keys = differing_settings(settings)
    fewer = [
        key
        for key in keys
        if {repr(values.get(key)) for values in settings} - {"None", "True"}
        or any(other.startswith(f"{key}.") for other in keys)
    ]
    rows = {canonical_json([values.get(key) for key in fewer]) for values in settings}
    return fewer if len(rows) == len(settings) else keys


def _job(group: Group) -> str:
    return str(group.records[0].row["job"])


def _select_shown_settings(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys of the settings that differ between groups.

    If the networks have different kinds of blocks, the settings of individual blocks are not comparable. They are then
    replaced by the one-line description of all blocks, provided that the groups still differ.
    """
    keys = differing_settings(settings)
    kinds = {tuple(_BLOCK_KINDS.findall(values.get(BLOCKS, ""))) for values in settings}
    summarised = [key for key in keys if not key.startswith(f"{BLOCKS}.")]
    rows = {canonical_json([values.get(key) for key in summarised]) for values in settings}
    if len(kinds) > 1 and len(rows) == len(settings):
        return summarised
    return [key for key in keys if key != BLOCKS]


def _rank(group: Group) -> tuple[float, str, str]:
    # Settings and name break ties, so that the order does not depend on the order of the folders.
    accuracy = group.interval("test_accuracy")
    return -accuracy.mean if accuracy else math.inf, str(group.settings), group.records[0].name


def result_settings(record: Record) -> dict[str, Any]:
    """Return the settings that determine the result, without the seed."""
    return {
        key: value for key, value in record.settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in _WITHOUT_EFFECT)
    }  # fmt: skip


def _add_enclosing_tables(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each group's settings with an added entry for each of the group's tables that other groups omit.

    The entry's key is the table's name, and its value is ``True``. It is inserted before the keys of the table.
    """
    optional = {key for values in settings for key, value in values.items() if value is None}
    completed: list[dict[str, Any]] = []
    for values in settings:
        completed.append({})
        for key, value in values.items():
            completed[-1].update(
                dict.fromkeys((table for table in _iterate_enclosing_tables(key) if table in optional), True)
            )
            completed[-1][key] = value
    return completed


def _iterate_enclosing_tables(key: str) -> Iterator[str]:
    """Yield the dotted names of the tables that contain a key, outermost first."""
    words = key.split(".")
    yield from (".".join(words[:count]) for count in range(1, len(words)))


def differing_settings(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys whose values differ between jobs, in order of first appearance.

    A key is compared only between jobs that have its table.
    """
    keys = dict.fromkeys(key for values in settings for key in values)
    # repr, because 1, 1.0 and True are equal.
    return [key for key in keys if len({repr(values.get(key)) for values in settings if _applies(key, values)}) > 1]


def _applies(key: str, settings: dict[str, Any]) -> bool:
    tables = _iterate_enclosing_tables(key)
    return belongs_to_selected_kind(key, settings) and all(settings.get(table, True) is not None for table in tables)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return each dotted key's shortest unambiguous name, which consists of the last few words of the key.

    The name of a key in a nested table includes the table, as in ``batch_norm.eps``.
    """
    keys = list(keys)
    names = {}
    for key in keys:
        words = key.split(".")
        fewest = 2 if len(words) > 2 and not words[-2].isdecimal() else 1  # noqa: PLR2004 - section, table, key
        endings = (".".join(words[-count:]) for count in range(fewest, len(words) + 1))
        unambiguous = (name for name in endings if sum(f".{other}".endswith(f".{name}") for other in keys) == 1)
        names[key] = next(unambiguous, key)
    return names


def setting_text(value: Any) -> str:
    """Return a setting as written in a job file, or a dash if it is None."""
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
