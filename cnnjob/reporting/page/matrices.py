"""Confusion matrices of a dataset's groups and runs; the page's script shows two of them side by side."""

from collections.abc import Sequence
from typing import Any

from cnnjob.reporting.groups import Group

MAX_CELLS = 200_000
"""Maximum number of cells on the page, over all matrices of a dataset; the runs of the best groups come first."""


def comparable_matrices(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return the confusion matrices of the runs that have the same classes as the best run.

    Args:
        groups: the groups on a dataset, best first.

    Returns:
        None if there are fewer than two matrices. Otherwise, ``classes``, the names of the classes; ``runs`` and
        ``counts``, the name of each run and the cells of its matrix, row by row, separated by commas, with zeros left
        out; ``groups``, for each group of several runs its label and the positions of its runs in ``runs``; and
        ``chosen``, the two groups or runs that are shown first.
    """
    with_counts = [(group, record) for group in groups for record in group.records if record.counts is not None]
    if not with_counts:
        return None
    classes = with_counts[0][1].class_names
    shown = [(group, record) for group, record in with_counts if record.class_names == classes]
    shown = shown[: MAX_CELLS // len(classes) ** 2]
    members = {group.label: [n for n, (other, _) in enumerate(shown) if other is group] for group, _ in shown}
    of_several = {label: runs for label, runs in members.items() if len(runs) > 1}
    if len(shown) < 2:  # noqa: PLR2004 - one cannot be compared
        return None
    # Of the two best groups, the matrices over all runs; a group of one run is that run.
    best = [("groups", list(of_several).index(label)) if label in of_several else ("runs", runs[0])
            for label, runs in list(members.items())[:2]]  # fmt: skip
    cells = [record.counts.ravel().tolist() for _, record in shown if record.counts is not None]
    return {
        "classes": list(classes),
        "runs": [record.name for _, record in shown],
        "counts": [",".join(str(count or "") for count in counts) for counts in cells],
        "groups": list(of_several.items()),
        "chosen": best if len(best) > 1 else [("runs", 0), ("runs", 1)],
    }
