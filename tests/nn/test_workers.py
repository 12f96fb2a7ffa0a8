"""Tasks over processes: all run, each once, no failure is lost, and no process outlives its use."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from cnnjob import nn
from cnnjob.nn import Workers, available_cores
from cnnjob.nn.arena import Array, HostMemory
from cnnjob.nn.blocks import Block
from cnnjob.nn.tensors import Task
from cnnjob.nn.workers import FAULT_SIGNALS, SHARDS, SMALL_WORK, split_evenly
from tests.nn.bench import rig


@given(st.integers(0, 100), st.integers(1, 20))
def test_shares_cover_everything_once_in_order(count: int, parts: int) -> None:
    found = split_evenly(count, parts) if count else []
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop > part.start for part in found)


def marks(count: int, places: int) -> tuple[Workers, Array, list[Task]]:
    """Workers, a number for each place, and a task for each place that adds one to it."""
    workers = Workers(count)
    found = HostMemory(workers.count).zeros((places,), np.int64)
    mine = [found[place : place + 1] for place in range(places)]
    return workers, found, [partial(np.add, number, 1, out=number) for number in mine]


def who_runs(workers: Workers, tasks: int, work: int = SMALL_WORK) -> list[int]:
    """The processes of a list's tasks."""
    found = HostMemory(workers.count).zeros((tasks,), np.int64)
    places = [found[place : place + 1] for place in range(tasks)]
    workers.distribute([partial(lambda at: np.copyto(at, os.getpid()), place) for place in places], work)()
    return [int(number) for number in found]


@pytest.mark.parametrize("count", [1, 2, 4, 12])
def test_every_task_runs_once_a_time(count: int) -> None:
    for tasks in (10, 1, 0, 3):
        workers, found, adding = marks(count, tasks)
        add = workers.distribute(adding, SMALL_WORK)
        for times in range(1, 4):
            add()
            assert found.tolist() == [times] * tasks


def test_lists_planned_later_are_known_too_and_what_is_dropped_is_forgotten() -> None:
    workers, found, adding = marks(2, 6)
    first, dropped = workers.distribute(adding, SMALL_WORK), [workers.distribute(adding, SMALL_WORK)]
    first()
    dropped[0]()
    second = workers.distribute(adding[:4], SMALL_WORK)
    dropped.clear()
    for _ in range(2):
        second()
        first()
    assert found.tolist() == [6, 6, 6, 6, 4, 4]


def test_the_cores_have_a_process_each_and_more_than_tasks_are_left_alone() -> None:
    workers = Workers(2)
    mine, other, *rest = who_runs(workers, 4)
    assert mine == os.getpid() != other
    assert rest == [mine, other]
    assert len(set(who_runs(Workers(12), 3))) == 3
    assert len(set(who_runs(Workers(12), 50))) == SHARDS
    assert set(who_runs(workers, 4, work=SMALL_WORK - 1)) == {os.getpid()}


@pytest.mark.parametrize("place", [0, 1])
def test_a_failure_reaches_the_caller_and_the_workers_go_on(place: int) -> None:
    workers, found, adding = marks(2, 4)

    def fail() -> None:
        raise KeyError("in a task")

    with pytest.raises(KeyError, match="in a task") as failure:
        workers.distribute([*adding[:place], fail, *adding[place:]], SMALL_WORK)()
    assert place == 0 or "in fail" in failure.value.__notes__[0]
    before = found.sum()
    workers.distribute(adding, SMALL_WORK)()
    assert found.sum() == before + 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_who_kills_one_process_has_killed_them_all(number: signal.Signals) -> None:
    """A run whose process was killed goes on from its checkpoint; with one of its workers gone it must not fail."""
    code = "from tests.nn.test_workers import *; w = Workers(2); f = w.distribute([lambda: None] * 2, SMALL_WORK); "
    code += f"os.kill(who_runs(w, 2)[1], {int(number)}); f(); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-number, "")


def test_a_process_that_ends_by_itself_is_said_and_another_takes_its_place() -> None:
    workers, found, _ = marks(2, 2)
    leaves = [lambda: None, lambda: os._exit(3) if found[0] == 0 else None]
    leave = workers.distribute(leaves, SMALL_WORK)
    with pytest.raises(RuntimeError, match=r"ended unexpectedly \(exit status 3\)"):
        leave()
    found[0] = 1
    leave()


class AwkwardError(Exception):
    """It cannot be made of what it says."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


AWKWARD = {
    "its class": AwkwardError("a", "b"),
    "its length": ValueError("a" * 200_000),
    "its word": ValueError(len, lambda: 1),
}


@pytest.mark.parametrize("error", AWKWARD.values(), ids=AWKWARD)
def test_what_cannot_be_sent_is_told(error: Exception) -> None:
    workers, found, adding = marks(3, 3)

    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError, match=r"in fail|aaaa"):
        workers.distribute([adding[0], fail, adding[2]], SMALL_WORK)()
    assert found.tolist() == [1, 0, 1]


def test_an_interrupted_list_leaves_no_answer_for_the_next() -> None:
    workers, found, adding = marks(3, 3)

    def slow() -> None:
        time.sleep(0.3)
        adding[1]()

    def interrupt() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # while it waits for the other

    interrupted, add = (
        workers.distribute([interrupt, slow, adding[2]], SMALL_WORK),
        workers.distribute(adding, SMALL_WORK),
    )
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGALRM, before)
    found.fill(0)
    add()
    assert found.tolist() == [1, 1, 1]


def test_where_no_process_can_be_forked_the_caller_does_it_all() -> None:
    code = (
        "import resource; from tests.nn.test_workers import *; resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4));"
        "print(len(set(who_runs(Workers(4), 8))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert "using 1 of 4 cores: could not start a worker process ([Errno 24] Too many open files)" in done.stderr


def test_signals_are_the_callers() -> None:
    workers, found, adding = marks(2, 4)
    add, other = workers.distribute(adding, SMALL_WORK), who_runs(workers, 2)[1]
    for number in signal.valid_signals() - FAULT_SIGNALS - {signal.SIGKILL, signal.SIGSTOP}:
        os.kill(other, number)
    add()
    assert found.tolist() == [1] * 4


def test_a_process_holds_no_file_of_the_callers(tmp_path: Path) -> None:
    workers = Workers(2)
    with (tmp_path / "held").open("w"):
        other = who_runs(workers, 2)[1]
        held = [path.readlink() for path in Path(f"/proc/{other}/fd").iterdir()]
    assert len(held) == 1
    assert str(held[0]).startswith("socket:")


def test_processes_end_with_the_workers_and_with_the_caller() -> None:
    with Workers(3) as workers:
        others = set(who_runs(workers, 3)) - {os.getpid()}
        assert len(others) == 2
    assert not [other for other in others if Path(f"/proc/{other}").exists()]

    code = "from tests.nn.test_workers import *; w = Workers(2); print(who_runs(w, 2)[1], flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        other = Path(f"/proc/{int(caller.stdout.readline())}/stat")
        assert other.exists()
        caller.kill()
        deadline = time.monotonic() + 60
        while other.exists() and time.monotonic() < deadline:  # whoever adopts it sees to it
            time.sleep(0.01)
            with suppress(OSError):
                if other.read_text().rpartition(")")[2].split()[0] == "Z":
                    break
        else:
            assert not other.exists()


def test_processor_time_of_all_processes_counts() -> None:
    with Workers(2) as workers:
        busy = workers.distribute([lambda: burn(0.0), lambda: burn(0.2)], SMALL_WORK)
        before, own = workers.cpu_seconds, time.process_time()
        busy()
        assert workers.cpu_seconds - before - (time.process_time() - own) >= 0.2
    assert workers.cpu_seconds - before >= 0.2


def burn(seconds: float) -> None:
    """Use so much processor time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_other_images_are_seen_by_all_processes() -> None:
    """An evaluation takes one set of images after the other, and those lie where only the caller wrote them."""
    shape, random = (8, 8, 3), np.random.default_rng(0)
    network = nn.Network.build([nn.Conv(filters=4, pool=2), nn.Dense(units=10, activation="none")], shape)
    sets = [random.integers(0, 256, (count, *shape), np.uint8) for count in (900, 800, 850)]

    def probabilities(cores: int) -> list[bytes]:
        with nn.Workers(cores) as workers:
            backend = nn.NumPyBackend(workers)
            state = nn.State(network, nn.Sgd(), backend)
            state.initialise(network, 0)
            plan = nn.EvaluationPlan(backend, network, state, nn.PixelNormalisation.unit(3), 800)
            return [plan.probabilities(images, np.arange(800)).tobytes() for images in (*sets, sets[0])]

    with threadpool_limits(1):
        assert probabilities(1) == probabilities(3)


def test_there_is_a_core() -> None:
    assert available_cores() >= 1


def trained(workers: int) -> bytes:
    """The parameters after steps of a network of all blocks, large enough to be shared."""
    norm, inner = nn.BatchNorm(), nn.Conv(filters=12, batch_norm=nn.BatchNorm(), bias=False)
    blocks: list[Block] = [
        nn.Conv(filters=9, batch_norm=norm, bias=True, pool=2, order=("norm", "pool", "activation"), activation="gelu"),
        nn.Dropout(0.2),
        nn.Residual((inner, replace(inner, activation="none"))),
        nn.Residual((nn.Conv(filters=16, stride=2), nn.Conv(filters=16, activation="none"))),
        nn.Conv(filters=200, kernel=1, pad=0),
        nn.GlobalPool("max"),
        nn.Dense(units=800),
    ]
    adamw = nn.AdamW(weight_decay=0.01, lookahead=nn.Lookahead(every=2), clip_norm=0.1)
    options = nn.TrainingOptions(nn.Augmentation("random", crop=2, cutout=9, mixup=0.5), label_smoothing=0.1)
    with threadpool_limits(1):  # as a training has it
        bench = rig(
            blocks, (32, 32, 3), count=120, dtype="float32", optimiser=adamw, learning_rate=0.01, workers=workers,
            options=options,
        )  # fmt: skip
        bench.inputs.lookahead[:] = 0.5
        for _ in range(3):
            bench.step()
    assert (bench.backend.workers.cpu_seconds > time.process_time() + 0.01) == (workers > 1)
    return bench.state.parameters.tobytes()


def test_a_step_gives_the_same_bits_on_any_number_of_cores() -> None:
    """Also on one that does not divide the number of shards, and on more than there are shards."""
    expected = trained(1)
    assert [workers for workers in (2, 3, 5, 8, 16) if trained(workers) != expected] == []
