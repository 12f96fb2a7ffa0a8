"""Comparisons of two groups of runs: over the seeds that they share or, for single runs, over the same test images.

Comparisons are paired, so that the effect of a seed or an image on both groups cancels out. The p-values of all
comparisons on a dataset are corrected together by Holm's method.

References:
    Student, "The probable error of a mean" (1908).
    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages" (1947).
    Holm, "A simple sequentially rejective multiple test procedure" (1979).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from cnnjob.reporting.groups import CONFIDENCE, Group, Interval, interval
from cnnjob.reporting.record import Record

MAX_PAIRWISE_GROUPS = 5
"""Up to this many groups on a dataset are compared pairwise; with more, each is compared with the best one."""
_POWER = 0.8
"""Probability with which the suggested number of seeds makes a difference of the observed size significant."""
_MAX_SEEDS = 1000


@dataclass(frozen=True)
class GroupDifference:
    """The comparison of two groups."""

    better: Group
    """The group with the higher mean test accuracy over all of its own seeds."""
    other: Group
    by_seed: Interval | None
    """Mean of ``better`` minus ``other`` in test accuracy (0..1), over the shared seeds; None if there are none."""
    by_image: Interval | None
    """The same for one run of each group, over their test images; None if several seeds can be compared instead."""
    p_value: float | None
    """Two-sided p-value, not corrected; None if there is nothing to compare."""
    corrected_p_value: float | None = None
    """The same, corrected by Holm's method for all comparisons on the dataset."""
    n_comparisons: int = 1
    """Number of comparisons for which it is corrected."""
    n_more_seeds: int | None = None
    """Approximate number of further shared seeds that would make the difference significant; None if unknown."""

    @property
    def interval(self) -> Interval | None:
        """The interval on which the comparison is based."""
        return self.by_image or self.by_seed

    @property
    def is_significant(self) -> bool:
        """Return whether the groups differ significantly, at the level of 5 %."""
        return self.corrected_p_value is not None and self.corrected_p_value <= 1 - CONFIDENCE

    @property
    def sentence(self) -> str:
        """The comparison as a sentence, in percentage points of test accuracy."""
        better, other = self.better.label, self.other.label
        shown = self.interval
        if shown is None:
            return f"{_quote(better)} and {_quote(other)} share no seeds, so they cannot be compared."
        # `better` has the higher mean over all of its seeds, but over the shared seeds it can be the worse one.
        if shown.mean < 0:
            better, other = other, better
        mean = f"{100 * abs(shown.mean):.2f}"
        if shown.half_width is None:
            return (
                f"{_quote(better)} and {_quote(other)} share one seed and differ by {mean} points; there is no "
                "interval with one seed."
            )
        points = f"{mean} ± {100 * shown.half_width:.2f} points"
        if self.by_image:
            basis = f"on the same {shown.n:,} test images, with one seed, so without an interval over seeds"
        else:
            basis = f"{shown.n} shared seeds"
        if self.is_significant:
            return f"{_quote(better)} is better than {_quote(_drop_key(other, better))} by {points}, {basis}."
        if self.p_value is not None and self.p_value <= 1 - CONFIDENCE:
            basis += f"; this is not significant among {self.n_comparisons} comparisons (Holm)"
        hint = ""
        if self.n_more_seeds is not None:
            count = "1 more seed" if self.n_more_seeds == 1 else f"{self.n_more_seeds:,} more seeds"
            hint = f" About {count} would decide, if the true difference is as large as this."
        return f"{_quote(better)} and {_quote(other)} are not significantly different: {points}, {basis}.{hint}"


def _quote(label: str) -> str:
    """Return a label as used in a sentence: in quotation marks if it contains a comma."""
    return f"“{label}”" if ", " in label else label


def _drop_key(label: str, other: str) -> str:
    """Shorten a label such as ``learning_rate 0.1`` to its value if ``other`` also consists of that key and a value."""
    key, _, value = label.partition(" ")
    return value if value and ", " not in label + other and other.startswith(f"{key} ") else label


def group_differences(groups: Sequence[Group]) -> list[GroupDifference]:
    """Compare the groups on each dataset: all pairs if there are few groups, otherwise each group with the best group.

    Args:
        groups: groups in the order returned by :func:`cnnjob.reporting.groups.group_runs`, best first.

    Returns:
        One difference per compared pair, dataset by dataset. On each dataset, significant differences come first, in
        descending order of size; the others follow, in ascending order of p-value. Groups without finished runs are not
        compared.
    """
    by_dataset: defaultdict[Any, list[Group]] = defaultdict(list)
    for group in groups:
        if group.by_seed:
            by_dataset[group.dataset].append(group)
    differences: list[GroupDifference] = []
    for measured in by_dataset.values():
        best, *others = measured
        few = len(measured) <= MAX_PAIRWISE_GROUPS
        pairs = combinations(measured, 2) if few else ((best, other) for other in others)
        differences += sorted(_correct_p_values([_compare_pair(*pair) for pair in pairs]), key=_significance_order)
    return differences


def _significance_order(difference: GroupDifference) -> tuple[bool, float]:
    if difference.is_significant and difference.interval:
        return False, -abs(difference.interval.mean)
    return True, math.inf if difference.p_value is None else difference.p_value


def _compare_pair(better: Group, other: Group) -> GroupDifference:
    shared = [seed for seed in better.by_seed if seed in other.by_seed]
    rows = [(better.by_seed[seed].row, other.by_seed[seed].row) for seed in shared]
    paired = [row["test_accuracy"] - other_row["test_accuracy"] for row, other_row in rows]
    by_seed = interval(paired)
    if len(shared) > 1:
        return GroupDifference(better, other, by_seed, None, t_test(paired))
    # With one shared seed, or one seed in each group, the test images of two runs can be compared.
    one = shared[0] if shared else None
    runs = [
        group.by_seed[one] if shared else next(iter(group.by_seed.values()))
        for group in (better, other)
        if shared or len(group.by_seed) == 1
    ]
    images = compare_images(*runs) if len(runs) == 2 else None  # noqa: PLR2004 - a pair
    return GroupDifference(better, other, by_seed, *(images or (None, None)))


def _correct_p_values(differences: Sequence[GroupDifference]) -> list[GroupDifference]:
    """Return the comparisons on one dataset with p-values corrected by Holm's method.

    Each comparison also states how many more seeds would make a difference of the observed size significant.
    """
    corrected = holm([difference.p_value for difference in differences])
    count = sum(value is not None for value in corrected)
    return [
        replace(
            difference,
            corrected_p_value=p_value,
            n_comparisons=count,
            n_more_seeds=_estimate_more_seeds(difference.by_seed, (1 - CONFIDENCE) / count)
            if p_value is not None
            else None,
        )
        for difference, p_value in zip(differences, corrected, strict=True)
    ]


def t_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired t-test (1908), given at least two paired differences."""
    from scipy.special import stdtr  # noqa: PLC0415 - takes half a second to import

    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    if error == 0:
        return float(mean == 0)
    return 2 * float(stdtr(len(differences) - 1, -abs(mean) / error))


def compare_images(first: Record, second: Record) -> tuple[Interval, float] | None:
    """Compare two runs over the same test images.

    Returns:
        The difference in accuracy with its 95 % interval (Wald), and the p-value of McNemar's exact test (1947); None
        if the predictions are missing or the numbers of images differ.
    """
    from scipy.special import bdtr, ndtri  # noqa: PLC0415 - takes half a second to import

    if first.correct is None or second.correct is None or len(first.correct) != len(second.correct):
        return None
    n = len(first.correct)
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    n_different = only_first + only_second
    mean = (only_first - only_second) / n
    half_width = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(max(0.0, n_different / n - mean**2) / n)
    # Under the null hypothesis, each image on which the runs differ is equally likely to favour either.
    p_value = min(1.0, 2 * float(bdtr(min(only_first, only_second), n_different, 0.5)))
    return Interval(mean, half_width, n), p_value


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm's method (1979); None stays None and is not counted."""
    order = sorted((value, row) for row, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, row) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        corrected[row] = largest
    return corrected


def seeds_to_decide(mean: float, deviation: float, level: float) -> int | None:
    """Return the smallest number of shared seeds at which a paired t-test has an 80 % chance of finding a difference.

    Args:
        mean: true mean of the differences.
        deviation: their standard deviation, greater than 0.
        level: level of significance, in (0, 1).

    Returns:
        The number of seeds, at least 2; None if more than 1,000 are needed.
    """
    from scipy.special import nctdtr, stdtrit  # noqa: PLC0415 - takes half a second to import

    n = np.arange(2, _MAX_SEEDS + 1)
    # The statistic has a noncentral t-distribution; the probability of the wrong sign is negligible.
    shift = abs(mean) / deviation * np.sqrt(n)
    enough = np.flatnonzero(nctdtr(n - 1, shift, stdtrit(n - 1, 1 - level / 2)) <= 1 - _POWER)
    return int(n[enough[0]]) if enough.size else None


def _estimate_more_seeds(shown: Interval | None, level: float) -> int | None:
    """Return how many more seeds would be needed to find a difference of the observed size; None if unknown."""
    from scipy.special import stdtrit  # noqa: PLC0415 - takes half a second to import

    if shown is None or not shown.half_width or not shown.mean:
        return None
    deviation = shown.half_width * math.sqrt(shown.n) / float(stdtrit(shown.n - 1, (1 + CONFIDENCE) / 2))
    needed = seeds_to_decide(shown.mean, deviation, level)
    return None if needed is None else max(1, needed - shown.n)
