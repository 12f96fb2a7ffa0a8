"""Comparisons of groups: against scipy, simulations, numbers by hand, and common sense."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cnnjob.reporting.comparisons import compare_images, group_differences, holm, seeds_to_decide, t_test
from cnnjob.reporting.groups import Group, group_runs, interval
from cnnjob.reporting.record import Record
from tests.helpers.records import group, record


def sentences(*records: Record) -> list[str]:
    return [difference.sentence for difference in group_differences(group_runs(records))]


def test_a_difference_is_paired_by_seed() -> None:
    better, other = group(0.60, 0.70, 0.80, rate=0.1), group(0.591, 0.69, 0.789, rate=0.2)
    (difference,) = group_differences(group_runs([*better, *other]))
    assert difference.is_significant  # although each group spreads ten times as far
    assert difference.interval is not None
    expected = stats.ttest_rel([0.60, 0.70, 0.80], [0.591, 0.69, 0.789]).confidence_interval(0.95)
    assert difference.interval.mean - (difference.interval.half_width or 0) == pytest.approx(expected.low)
    assert difference.p_value == pytest.approx(stats.ttest_rel([0.60, 0.70, 0.80], [0.591, 0.69, 0.789]).pvalue)
    assert difference.sentence == "rate 0.1 is better than 0.2 by 1.00 ± 0.25 points, 3 shared seeds."


def test_what_the_data_cannot_tell_is_said() -> None:
    assert sentences(*group(0.60, 0.70, rate=0.1), *group(0.69, 0.59, rate=0.2)) == [
        "rate 0.1 and rate 0.2 are not significantly different: 1.00 ± 127.06 points, 2 shared seeds."
    ]
    assert sentences(*group(0.6, rate=0.1), *group(0.5, rate=0.2)) == [
        "rate 0.1 and rate 0.2 share one seed and differ by 10.00 points; there is no interval with one seed."
    ]
    assert sentences(record(0.6, 0, rate=0.1), record(0.5, 1, rate=0.2)) == [
        "rate 0.1 and rate 0.2 share no seeds, so they cannot be compared."
    ]


def test_the_shared_seeds_decide_against_the_means() -> None:
    unshared = record(0.99, 9, rate=0.1)
    found = sentences(*group(0.50, 0.60, rate=0.1), unshared, *group(0.52, 0.62, rate=0.2))
    assert found[0].startswith("rate 0.2 is better than 0.1 by 2.00 ± 0.00 points")


def test_many_groups_are_compared_with_the_best_and_other_data_with_none() -> None:
    def compared(count: int, **settings: Any) -> list[tuple[str, str]]:
        groups: list[Group] = group_runs([record(1 - one / 100, rate=one, **settings) for one in range(count)])
        return [(one.better.label, one.other.label) for one in group_differences(groups)]

    assert len(compared(5)) == 10
    assert compared(6) == [("rate 0", f"rate {one}") for one in range(1, 6)]
    assert not sentences(record(0.5), record(0.6, dataset="cifar10 1"))
    other = [record(0.5, dataset="cifar10 1"), record(0.4, dataset="cifar10 1", rate=9)]
    assert len(sentences(*(record(0.9, rate=one) for one in range(6)), *other)) == 5 + 1


def test_a_tie_says_how_many_seeds_would_decide() -> None:
    better = group(0.905, 0.902, 0.907, 0.904, rate=0.1)
    other = group(0.900, 0.903, 0.901, 0.902, rate=0.2)
    (difference,) = group_differences(group_runs([*better, *other]))
    paired = [0.005, -0.001, 0.006, 0.002]
    total = seeds_to_decide(float(np.mean(paired)), float(np.std(paired, ddof=1)), 0.05)
    assert total is not None
    assert difference.sentence == (
        "rate 0.1 and rate 0.2 are not significantly different: 0.30 ± 0.50 points, 4 shared seeds. "
        f"About {total - 4} more seeds would decide, if the true difference is as large as this."
    )


def test_equal_runs_need_no_more_seeds() -> None:
    assert sentences(*group(0.9, 0.8, rate=0.1), *group(0.9, 0.8, rate=0.2)) == [
        "rate 0.1 and rate 0.2 are not significantly different: 0.00 ± 0.00 points, 2 shared seeds."
    ]


def test_wins_come_first_and_are_corrected_for_their_number() -> None:
    noise = np.array([0.001, -0.001, 0.0005, -0.0005])
    levels = {0.1: 0.90 + noise, 0.2: 0.899 + 0 * noise, 0.3: 0.80 - noise, 0.4: 0.8995 + 2 * noise[::-1]}
    records = [one for rate, values in levels.items() for one in group(*map(float, values), rate=rate)]
    found = group_differences(group_runs(records))
    assert [one.is_significant for one in found] == [True] * 3 + [False] * 3
    sizes = [abs(one.interval.mean) for one in found[:3] if one.interval]
    assert sizes == sorted(sizes, reverse=True)
    assert {one.n_comparisons for one in found} == {6}
    pairs = {(one.better.label, one.other.label): one for one in found}
    for one in pairs.values():
        first, second = ([run.row["test_accuracy"] for run in group.records] for group in (one.better, one.other))
        assert one.p_value == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_a_difference_that_is_lost_to_the_correction_is_explained() -> None:
    slightly = [0.9000, 0.9012, 0.9003], [0.8980, 0.8985, 0.8988]
    pair = [*group(*slightly[0], rate=0.1), *group(*slightly[1], rate=0.2)]
    (alone,) = group_differences(group_runs(pair))
    assert alone.is_significant
    others = [*group(0.897, 0.903, 0.899, rate=0.3), *group(0.902, 0.8965, 0.899, rate=0.4)]
    said = next(one for one in sentences(*pair, *others) if one.startswith("rate 0.1 and rate 0.2 "))
    assert "3 shared seeds; this is not significant among 6 comparisons (Holm). About " in said


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_the_true_difference_in_95_of_100_cases(n: int) -> None:
    samples = np.random.default_rng(n).normal(0.3, 1, (20_000, n))
    found = [interval(sample) for sample in samples]
    covered = [abs(one.mean - 0.3) <= one.half_width for one in found if one and one.half_width is not None]
    assert 0.94 < np.mean(covered) < 0.96


@pytest.mark.parametrize(("size", "level"), [(0.5, 0.05), (1.0, 0.05), (0.8, 0.05 / 6), (2.5, 0.05)])
def test_so_many_seeds_find_the_difference_with_80_percent(size: float, level: float) -> None:
    """The number is within 20 % of the one that a simulation finds."""
    total = seeds_to_decide(size * 0.01, 0.01, level)
    assert total is not None
    random = np.random.default_rng(0)

    def power(n: int) -> float:
        return float(np.mean([t_test(sample) <= level for sample in random.normal(size, 1, (4000, n))]))

    simulated = next(n for n in range(2, 200) if power(n) >= 0.8)
    assert abs(simulated - total) <= max(1, 0.2 * total)
    assert seeds_to_decide(1e-9, 1.0, 0.05) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([None]) == [None]
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def with_images(one: Record, wrong: range, count: int = 1000) -> Record:
    one.correct = np.ones(count, bool)
    one.correct[wrong] = False
    one.row["test_accuracy"] = float(one.correct.mean())
    return one


def test_two_single_runs_are_compared_by_their_test_images() -> None:
    first, second = with_images(record(0, rate=0.1), range(20, 30)), with_images(record(0, rate=0.2), range(60))
    found = compare_images(first, second)
    assert found is not None
    difference, p_value = found
    assert difference.mean == pytest.approx(0.05)
    assert difference.n == 1000
    assert p_value == pytest.approx(stats.binomtest(0, 50).pvalue)
    errors = first.correct.astype(float) - second.correct  # type: ignore[union-attr]
    assert difference.half_width == pytest.approx(1.959964 * np.std(errors) / np.sqrt(1000), rel=1e-5)
    assert sentences(first, second) == [
        "rate 0.1 is better than 0.2 by 5.00 ± 1.35 points, on the same 1,000 test images, with one seed, so without "
        "an interval over seeds."
    ]
    second = with_images(record(0, 1, rate=0.2), range(22, 33))  # its seed differs
    assert sentences(first, second)[0].startswith("rate 0.1 and rate 0.2 are not significantly different: 0.10 ± 0.4")
    assert compare_images(first, with_images(record(0, rate=0.2), range(5), count=999)) is None
    assert compare_images(first, record(0.5, rate=0.2)) is None


def test_the_test_on_images_keeps_its_level() -> None:
    """Of pairs of equally good models, at most 5 % are found to differ; the exact test is a little conservative."""
    random, significant = np.random.default_rng(1), 0
    for _ in range(2000):
        first, second = record(0, rate=0.1), record(0, rate=0.2)
        hard = random.random(500) < 0.2  # images that either model gets wrong in half of the cases
        first.correct, second.correct = (~(hard & (random.random(500) < 0.5)) for _ in range(2))
        found = compare_images(first, second)
        assert found is not None
        significant += found[1] <= 0.05
    assert 0.02 < significant / 2000 <= 0.055
