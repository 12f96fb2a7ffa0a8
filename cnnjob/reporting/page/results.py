"""The page's results: states and dates of the runs, and one table per dataset, with the best group first.

Each group with a test accuracy has an entry, with the runs of the group beneath it. Below these entries are the runs of
groups without a test accuracy; runs in the same state for the same reason share a row.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from cnnjob.errors import plural
from cnnjob.reporting import comparisons, groups
from cnnjob.reporting.groups import Group
from cnnjob.reporting.record import Record

STATES = ("finished", "running", "pending", "stopped", "cancelled", "failed", "lost", "damaged", "foreign")
"""States of runs, in the order in which they are counted."""
MIN_FOLDED = 4
"""Minimum number of runs in the same state for the same reason that share a row."""
_STRIP = (4.0, 116.0)
"""Positions of the lowest and the highest accuracy on the scale, in SVG units."""


class Fold(NamedTuple):
    """One run, or several runs without a test accuracy that are in the same state for the same reason."""

    records: list[Record]
    state: str
    reason: str
    """The reason for the state; empty if there is none."""


class Strip(NamedTuple):
    """A group's accuracies as SVG paths: a dot per run, and a line for the interval of their mean."""

    dots: str
    interval: str
    mean: float


@dataclass(frozen=True)
class GroupEntry:
    """One group in the results table."""

    group: Group
    name: str
    """The group's label or, if columns show the settings in the label, the name of its only run or of its job."""
    folds: list[Fold]
    states: list[tuple[str, int]]
    strip: Strip


@dataclass(frozen=True)
class DatasetResults:
    """The results on one dataset."""

    dataset: str
    groups: list[Group]
    settings: list[str]
    """Names of the settings that differ between the groups."""
    columns: list[str]
    """Names of the settings that have a column; empty if the groups' names already contain the only setting."""
    entries: list[GroupEntry]
    """Groups with a test accuracy, best first."""
    others: list[Fold]
    """Runs of the groups without a test accuracy."""
    differences: list[comparisons.GroupDifference]

    @cached_property
    def settings_of(self) -> dict[str, dict[str, Any]]:
        """The settings of each group, by the group's label."""
        return {group.label: group.settings for group in self.groups}

    @property
    def basis(self) -> str:
        """How the best accuracy was obtained, such as ``mean of 3 seeds``; empty if there is no result."""
        if not self.entries:
            return ""
        group = self.entries[0].group
        seeds = [*group.by_seed]
        basis = f"mean of {plural(len(seeds), 'seed')}" if len(seeds) > 1 else f"one run, seed {seeds[0]}"
        return "; ".join([basis, *group.remarks])

    @property
    def lead(self) -> str:
        """The comparison of the two best groups as a sentence; empty if there is only one group."""
        ahead = [entry.group for entry in self.entries[:2]]
        pairs = (each.sentence for each in self.differences if [each.better, each.other] == ahead)
        return next(pairs, "")


def build_results(run_groups: Sequence[Group]) -> list[DatasetResults]:
    """Return the results on each dataset, in the order of their best groups.

    If several datasets have the same name, their titles include digests.
    """
    datasets = dict.fromkeys(group.dataset for group in run_groups)
    names = [dataset.partition(" ")[0] for dataset in datasets]
    titles = [name if names.count(name) == 1 else dataset for name, dataset in zip(names, datasets, strict=True)]
    return [
        _build_dataset(title, [group for group in run_groups if group.dataset == dataset])
        for title, dataset in zip(titles, datasets, strict=True)
    ]


def _build_dataset(title: str, run_groups: list[Group]) -> DatasetResults:
    measured = [group for group in run_groups if group.by_seed]
    accuracies = [record.row["test_accuracy"] for group in measured for record in group.by_seed.values()]
    span = (min(accuracies), max(accuracies)) if accuracies else (0.0, 1.0)
    settings = groups.differing_settings([group.settings for group in run_groups])
    # A label may also begin with the name of the job.
    named = len(settings) == 1 and all(
        group.label.endswith(f"{settings[0]} {groups.setting_text(group.settings[settings[0]])}")
        for group in run_groups
    )
    return DatasetResults(
        dataset=title,
        groups=run_groups,
        settings=settings,
        columns=[] if named else settings,
        entries=[
            GroupEntry(
                group=group,
                name=group.label if named or ", " not in group.label else _row_name(group),
                folds=fold_runs(group.records),
                states=count_states(group.records),
                strip=_strip(group, *span),
            )
            for group in measured
        ],
        others=fold_runs(record for group in run_groups if not group.by_seed for record in group.records),
        differences=comparisons.group_differences(run_groups),
    )


def _row_name(group: Group) -> str:
    first, *others = group.records
    return str(first.row["job"]) if others else first.name


def fold_runs(records: Iterable[Record]) -> list[Fold]:
    """Fold unfinished runs that are in the same state for the same reason, if there are at least ``MIN_FOLDED``.

    Args:
        records: the runs, in any order.

    Returns:
        The folds in the order of their first runs; finished runs are never folded.
    """
    equal: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        state = str(record.row["state"])
        reason = "" if state == "running" else str(record.row["reason"] or "")  # each has its own host and start
        equal[state, reason].append(record)
    folds = []
    for (state, reason), members in equal.items():
        if len(members) >= MIN_FOLDED and state != "finished":
            folds.append(Fold(members, state, reason))
        else:
            folds += [Fold([record], state, str(record.row["reason"] or "")) for record in members]
    return folds


def count_states(records: Iterable[Record]) -> list[tuple[str, int]]:
    """Return the states of the runs, each with the number of runs."""
    counts = Counter(str(record.row["state"]) for record in records)
    return [(state, counts[state]) for state in STATES if counts[state]]


def describe_period(records: Sequence[Record]) -> str:
    """Return when the runs were trained, such as ``30 Nov 2026, 11:05–11:06 UTC``; empty if no run has started.

    While a run is running, the period has no end; otherwise, it ends with the last recorded end of an attempt.
    """
    attempts = [attempt for record in records for attempt in record.attempts]
    if not attempts:
        return ""
    first = min(attempt.started for attempt in attempts).astimezone(UTC)
    if any(record.row["state"] == "running" for record in records):
        return f"since {_day(first)}, {first:%H:%M} UTC"
    last = max(attempt.ended or attempt.started for attempt in attempts).astimezone(UTC)
    if first.date() != last.date():
        return f"{_day(first)}, {first:%H:%M} – {_day(last)}, {last:%H:%M} UTC"
    until = f"–{last:%H:%M}" if f"{first:%H:%M}" != f"{last:%H:%M}" else ""
    return f"{_day(first)}, {first:%H:%M}{until} UTC"


def _day(time: datetime) -> str:
    return f"{time.day} {time:%b %Y}"


def _strip(group: Group, low: float, high: float) -> Strip:
    """Draw a group's accuracies on a scale from ``low`` to ``high``, the range of the accuracies on its dataset."""
    first, last = _STRIP

    def at(accuracy: float) -> float:
        share = (accuracy - low) / (high - low) if high > low else 0.5
        return round(first + min(max(share, 0.0), 1.0) * (last - first), 1)

    dots = "".join(f"M{at(record.row['test_accuracy']):g} 8h0" for record in group.by_seed.values())
    mean = group.interval("test_accuracy")
    if mean is None or mean.half_width is None:
        return Strip(dots, "", at(mean.mean) if mean else first)
    ends = at(mean.mean - mean.half_width), at(mean.mean + mean.half_width)
    return Strip(dots, f"M{ends[0]:g} 8H{ends[1]:g}", at(mean.mean))
