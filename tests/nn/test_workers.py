"""Tasks over threads: all run, each once, and a failure is not lost."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from cnnjob import nn
from cnnjob.nn import Workers, available_cores
from cnnjob.nn.blocks import Block
from cnnjob.nn.workers import shares
from tests.nn.bench import rig


@given(st.integers(0, 100), st.integers(1, 20))
def test_shares_cover_everything_once_in_order(count: int, parts: int) -> None:
    found = shares(count, parts) if count else []
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop > part.start for part in found)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_task_runs_once(count: int) -> None:
    workers, done, lock = Workers(count), [], threading.Lock()

    def task(number: int) -> None:
        with lock:
            done.append(number)

    for tasks in (10, 1, 0, 3):
        done.clear()
        workers.run([lambda number=number: task(number) for number in range(tasks)])  # type: ignore[misc]
        assert sorted(done) == list(range(tasks))


@pytest.mark.parametrize("place", [0, 1])
def test_a_failure_reaches_the_caller_and_the_workers_go_on(place: int) -> None:
    workers, done = Workers(2), []

    def fail() -> None:
        raise RuntimeError("in a task")

    tasks = [lambda: done.append(1), lambda: done.append(1)]
    with pytest.raises(RuntimeError, match="in a task"):
        workers.run([*tasks[:place], fail, *tasks[place:]])
    workers.run(tasks)
    assert len(done) >= 3


def test_there_is_a_core() -> None:
    assert available_cores() >= 1


def trained(workers: int) -> bytes:
    """The parameters after steps with scratch memory of many shapes: convolutions, norms, and updates in 60 pieces."""
    blocks: list[Block] = [nn.Conv(filters=9, norm=nn.BatchNorm(), pool=2), nn.Conv(filters=16), nn.Dense(units=4000)]
    adamw = nn.AdamW(weight_decay=0.01, lookahead=nn.Lookahead(every=2))
    bench = rig(blocks, (16, 16, 3), count=20, dtype="float32", optimiser=adamw, learning_rate=0.01, workers=workers)
    bench.feed.lookahead[:] = 0.5
    with threadpool_limits(1):  # as a training has it
        for _ in range(3):
            bench.step()
    return bench.state.parameters.tobytes()


def test_a_step_gives_the_same_bits_on_any_number_of_cores() -> None:
    """Also on one that does not divide the number of shards, and on more than there are shards."""
    expected = trained(1)
    assert [workers for workers in (2, 3, 5, 8, 16) if trained(workers) != expected] == []
