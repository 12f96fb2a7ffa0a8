"""Work in several processes: results in order, errors as raised, no process left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from cnnjob.data.prepare.folders.parallel import SharedMemory, worker_processes
from cnnjob.errors import DataError


def slow_square(_: None, number: int) -> int:
    time.sleep(0.01 * (number % 3))  # later tasks are often done first
    return number**2


def refuse(_: None, number: int) -> int:
    if number == 5:
        raise DataError("five: is refused")
    return number


def kill_own_process(_: None, number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def processes_below(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_are_in_the_order_of_the_tasks(count: int) -> None:
    with worker_processes(count, None) as work:
        assert [*work(slow_square, range(40))] == [number**2 for number in range(40)]


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_is_raised_where_its_result_would_be(count: int) -> None:
    before, results = processes_below(os.getpid()), []
    with worker_processes(count, None) as work, pytest.raises(DataError, match="five: is refused"):  # noqa: PT012
        for number in work(refuse, range(40)):
            results.append(number)  # noqa: PERF402 - extend may lose what comes before the error
    assert results == [0, 1, 2, 3, 4]
    assert processes_below(os.getpid()) == before


def test_only_few_tasks_are_begun_before_their_results_are_used() -> None:
    begun = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            begun.append(number)
            yield number

    with worker_processes(2, 7) as work:
        results = work(slow_square, tasks())
        next(results)
        assert len(begun) < 10


def test_a_killed_process_is_an_error_of_the_user() -> None:
    with worker_processes(2, 7) as work, pytest.raises(DataError, match="was killed, possibly because memory ran out"):
        [*work(kill_own_process, range(40))]


def test_killed_callers_leave_no_process_behind() -> None:
    code = (
        "import time\nfrom cnnjob.data.prepare.folders.parallel import worker_processes\n"
        "with worker_processes(2, 7) as work:\n    print(*work(max, range(9)), flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        assert caller.stdout.readline() == "7 7 7 7 7 7 7 7 8\n"
        workers = processes_below(caller.pid)
        assert len(workers) == 2
        caller.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not [pid for pid in alive if "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()]


def store(memory: SharedMemory, number: int) -> int | None:
    return memory.store([np.full((2, 5), number, np.uint8)] * 3)


@pytest.mark.parametrize("count", [1, 3])
def test_arrays_of_all_processes_are_stored_until_the_memory_is_full(count: int) -> None:
    memory = SharedMemory(20 * 30 + 29)
    with worker_processes(count, memory) as work:
        starts = [*work(store, range(25))]
    stored = {number: start for number, start in enumerate(starts) if start is not None}
    assert sorted(stored.values()) == [*range(0, 600, 30)]
    for number, start in stored.items():
        np.testing.assert_array_equal(memory.at(start, (3, 2, 5)), np.full((3, 2, 5), number))


def return_much(size: int, _: int) -> bytes:
    return bytes(size)


INTERRUPTED = """
import signal
from cnnjob.data.prepare.folders.parallel import worker_processes
from tests.data.test_parallel import return_much

for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler)
try:
    with worker_processes(2, 1 << 20) as work:
        for number, _ in enumerate(work(return_much, range(10**6))):
            if number == 3:
                print("working", flush=True)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_ends_them_at_any_moment(number: signal.Signals) -> None:
    for attempt in range(6):  # where handlers may raise in a worker, about every second one hangs
        command = [sys.executable, "-c", INTERRUPTED]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as caller:
            assert caller.stdout
            assert caller.stdout.readline() == "working\n"
            time.sleep(0.003 * attempt)
            os.killpg(caller.pid, number)
            try:
                said, errors = caller.communicate(timeout=20)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(caller.pid, signal.SIGKILL)
        assert (said, errors) == ("interrupted\n", "")
