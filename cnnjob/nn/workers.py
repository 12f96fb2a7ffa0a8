"""The cores: tasks of fixed number and content, shared over however many processes there are.

What is computed never depends on the number of processes, only when: so a run gives the same bits
on one core as on many. They are processes because threads would wait for each other: every call of
NumPy's gives the interpreter back and asks for it again, and a small network's step has hundreds.
"""

import gc
import os
import pickle
import signal
import socket
import struct
import time
import traceback
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import NoReturn, Self

import numpy as np

from cnnjob.nn.tensors import ForwardBackward, Task

SHARDS = 8
"""Work over a batch is cut into so many parts, whatever the cores: the order of every sum is fixed."""
SMALL_WORK = 1 << 17
"""Values that are computed sooner than others could be asked for them."""
LOOK_SECONDS = 200e-6
"""So long a process looks for a message before it sleeps: to be woken takes about as long as a small task."""
MOST_BYTES = 1 << 16
"""Of a message."""
FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}
"""Signals of what a process does itself. All others reach the caller alone, which decides about them: terminals and
schedulers send them to all processes of a job."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def split_evenly(count: int, parts: int) -> list[slice]:
    """Cut ``count`` things into at most ``parts`` runs of nearly equal length, none empty."""
    parts = min(count, parts)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def run_all(tasks: Sequence[Task]) -> None:
    """Run tasks one after the other; an overflow shows in the loss, which is looked at, so it is not warned of."""
    with np.errstate(all="ignore"):
        for task in tasks:
            task()


class Workers:
    """The caller, and processes that are forked from it when they are first needed.

    They see the caller's objects as they were then, and share the arrays of a :class:`cnnjob.nn.memory.HostMemory`:
    whatever a task writes, or reads after it changed, must lie in one. They end with the caller, however it ends.
    """

    def __init__(self, cores: int) -> None:
        """Workers on so many cores, though no more than there are shards."""
        self.count = min(cores, SHARDS)
        self._numbers, self._known = count(), 0
        self._lists: weakref.WeakValueDictionary[int, _Shared] = weakref.WeakValueDictionary()
        self._crew: list[_Worker] = []
        self._seconds_before = 0.0
        weakref.finalize(self, _dismiss, self._crew)

    def __enter__(self) -> Self:
        """The workers, until they are no longer needed."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes."""
        self.renew()

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the caller and of the others."""
        return time.process_time() + self._seconds_before + sum(worker.cpu_seconds for worker in self._crew)

    def share(self, tasks: Sequence[Task], work: int) -> Task:
        """Plan a list of independent tasks: a task that runs them all and waits for them.

        It raises what one of them raised; where a process was killed, the caller dies of the same signal.

        Args:
            tasks: no two of them write to one array.
            work: about how many values they compute, or eighths of a product's multiplications; the caller does
                small work alone.
        """
        if self.count == 1 or len(tasks) == 1 or work < SMALL_WORK:
            return partial(run_all, tasks)
        shared = _Shared(self, next(self._numbers), [tasks[lane :: self.count] for lane in range(self.count)])
        self._lists[shared.number] = shared
        return shared

    def renew(self) -> None:
        """Objects of tasks were changed, not only arrays: fork anew when there is a list to run."""
        self._seconds_before += sum(worker.cpu_seconds for worker in self._crew)
        self._known = 0
        _dismiss(self._crew)

    def run(self, shared: "_Shared") -> None:
        """Run a list."""
        if shared.number >= self._known:
            self._fork()
        called = [worker for worker, lane in zip(self._crew, shared.lanes[1:], strict=False) if lane]
        try:
            failures = self._run(shared, called)
        except BaseException:
            self.renew()  # who was not heard out would answer the next list with this one's end
            raise
        if failures:
            self.renew()
            raise failures[0]

    def _run(self, shared: "_Shared", called: "Sequence[_Worker]") -> list[BaseException]:
        """Run a list; what went wrong elsewhere."""
        for worker in called:
            worker.begin(shared.number)
        try:
            for lane in (shared.lanes[0], *shared.lanes[1 + len(self._crew) :]):
                run_all(lane)
        finally:
            ends = [worker.end() for worker in called]
        return [failure for failure in ends if failure is not None]

    def _fork(self) -> None:
        self.renew()
        try:
            for lane in range(1, self.count):
                self._crew.append(_Worker({number: shared.lanes[lane] for number, shared in self._lists.items()}))
        except OSError as error:  # as many as are allowed; the caller runs what is left
            warnings.warn(f"{1 + len(self._crew)} processes instead of {self.count}, slower: {error}", stacklevel=2)
        self._known = next(self._numbers)


def shared(workers: Workers, steps: Sequence[ForwardBackward], work: int) -> ForwardBackward:
    """Plan the halves of a block's shards as those of the block."""
    forwards, backwards = [step.forward for step in steps], [step.backward for step in steps]
    return ForwardBackward(workers.share(forwards, work), workers.share(backwards, work))


class _Shared:
    """A list of tasks: which of them each process runs."""

    def __init__(self, workers: Workers, number: int, lanes: Sequence[Sequence[Task]]) -> None:
        self._workers, self.number, self.lanes = workers, number, lanes

    def __call__(self) -> None:
        self._workers.run(self)


class _Worker:
    """A process as its caller sees it."""

    def __init__(self, lists: Mapping[int, Sequence[Task]]) -> None:
        """Fork it: it knows these lists, by their numbers."""
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.cpu_seconds = 0.0
        with _signals_blocked(), warnings.catch_warnings():  # for good in the new process, which never leaves
            warnings.simplefilter("ignore", DeprecationWarning)  # of locks that threads hold: _serve takes none
            self._pid = os.fork()
            if not self._pid:
                _serve(theirs, lists)
        theirs.close()
        self._line.settimeout(0)

    def begin(self, number: int) -> None:
        """Ask for a list's tasks."""
        with suppress(ConnectionError):  # it is gone, as end() will say
            self._line.send(number.to_bytes(8))

    def end(self) -> BaseException | None:
        """Wait until they are done; what went wrong."""
        message = _receive(self._line)
        if not message:
            return self._gone()
        [self.cpu_seconds] = struct.unpack_from("d", message)
        failure: BaseException | None = pickle.loads(message[8:]) if message[8:] else None  # noqa: S301 - our own
        return failure

    def _gone(self) -> RuntimeError:
        """It has ended: who kills one of the processes, for its memory or at a node's end, has killed them all."""
        code = None
        with suppress(ChildProcessError):  # where nobody keeps how children end
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if code is not None and code < 0:
            if -code != signal.SIGKILL:
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        return RuntimeError(f"process {self._pid}, which shared the work, has ended with {code}")

    def dismiss(self) -> None:
        """Let it end, and see that it did."""
        self._line.close()
        with suppress(ChildProcessError):  # it was found gone, or is another's
            os.waitpid(self._pid, 0)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - FAULTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _dismiss(crew: list[_Worker]) -> None:
    while crew:
        crew.pop().dismiss()


def _serve(line: socket.socket, lists: Mapping[int, Sequence[Task]]) -> NoReturn:
    """A process's life: it holds no file but its line, and ends when that is cut."""
    try:
        gc.disable()
        for held in Path("/proc/self/fd").iterdir():
            if int(held.name) != line.fileno():
                with suppress(OSError):  # the listing's own is closed by now
                    os.close(int(held.name))
        line.settimeout(0)
        while order := _receive(line):
            failure = _failure_of(lists[int.from_bytes(order)])
            line.send(struct.pack("d", time.process_time()) + failure)
    finally:
        os._exit(0)


def _failure_of(tasks: Sequence[Task]) -> bytes:
    """Run tasks: nothing, or the pickled exception, with its traceback as a note."""
    try:
        run_all(tasks)
    except BaseException as error:  # noqa: BLE001 - it is raised again where the tasks came from
        error.add_note(traceback.format_exc())
        return _sent(error) or _sent(RuntimeError(traceback.format_exc()[-MOST_BYTES // 16 :]))
    return b""


def _sent(error: BaseException) -> bytes:
    """The pickled exception; nothing where it cannot be sent."""
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever its class does
        return b""
    return sent if len(sent) < MOST_BYTES // 2 else b""


def _receive(line: socket.socket) -> bytes:
    """The next message; nothing where the other side is gone."""
    until = time.perf_counter() + LOOK_SECONDS
    try:
        while time.perf_counter() < until:
            try:
                return line.recv(MOST_BYTES)
            except BlockingIOError:
                os.sched_yield()
        line.settimeout(None)
        message = line.recv(MOST_BYTES)
        line.settimeout(0)
    except ConnectionError:
        return b""
    return message
