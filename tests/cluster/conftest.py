"""What the tests on a real SLURM share."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import lab

Start = Callable[..., lab.Cluster]
ROWS = pytest.StashKey[list[list[str]]]()
HEADER = ["scenario", "times", "lives", "restarted by", "all bits equal"]


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table of the matrix."""
    config.stash[ROWS] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show it, in Markdown."""
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.section("matrix")
        for row in (HEADER, ["---"] * len(HEADER), *rows):
            terminalreporter.write_line(f"| {' | '.join(row)} |")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a SLURM where there is none."""
    reason = lab.missing()
    for item in items:
        if reason and (item.get_closest_marker("slurm") or item.get_closest_marker("slurm_matrix")):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def clusters() -> Iterator[Start]:
    """Start a cluster with these options, or give the one that was; all go down with the session."""
    with contextlib.ExitStack() as stack:
        known: dict[tuple[str, ...], lab.Cluster] = {}

        def start(*options: object) -> lab.Cluster:
            words = tuple(map(str, options))
            if words not in known:
                known[words] = stack.enter_context(lab.up(*words))
            return known[words]

        yield start


@pytest.fixture
def cluster(clusters: Start) -> Iterator[Start]:
    """The same, with an empty queue at the end of the test."""
    used: list[lab.Cluster] = []

    def start(*options: object) -> lab.Cluster:
        used.append(clusters(*options))
        return used[-1]

    yield start
    for one in used:
        one.clear()


@pytest.fixture(scope="session")
def user_python(clusters: Start) -> Iterator[Path]:
    """An interpreter that the ordinary user can execute, with cnnjob and all that it needs."""
    with lab.folder() as path:
        yield lab.python(clusters(), path)
