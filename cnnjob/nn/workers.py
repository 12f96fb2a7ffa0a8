"""Parallel execution on CPU cores: a fixed list of tasks, distributed over any number of processes.

The number of processes decides when a task runs, never what it computes, so a run gives the same bits on one core as on
many. They are processes because threads would contend for the interpreter lock: every NumPy call releases and takes it,
and a step of a small network makes hundreds of calls.
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
"""Number of shards of a batch, independent of the number of cores, so that the order of every sum is fixed."""
SMALL_WORK = 1 << 17
"""Number of values below which the caller computes a list alone, since messages would take longer."""
POLL_SECONDS = 200e-6
"""Time a process polls for a message before it sleeps: waking up takes about as long as a small task."""
MAX_MESSAGE_BYTES = 1 << 16
"""Maximum size of a message."""
FAULT_SIGNALS = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""Signals that a process causes itself. Workers block all others, which terminals and schedulers send to every process
of a job: only the caller receives them and decides what to do."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    # Not os.cpu_count(): SLURM and containers restrict a job to some of a node's cores.
    return len(os.sched_getaffinity(0))


def split_evenly(count: int, parts: int) -> list[slice]:
    """Split ``count`` items into at most ``parts`` consecutive slices of nearly equal length, none of them empty."""
    parts = min(count, parts)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def run_all(tasks: Sequence[Task]) -> None:
    """Run tasks in order, without NumPy's warnings: an overflow shows in the loss, which the trainer checks."""
    with np.errstate(all="ignore"):
        for task in tasks:
            task()


class Workers:
    """The caller and processes forked from it, which run lists of tasks together.

    The processes are forked when they are first needed. They see the caller's objects as of that moment, and share the
    arrays of a :class:`cnnjob.nn.arena.HostMemory`: whatever a task writes, or reads after a change, must lie in such
    memory. They end with the caller, however it ends.
    """

    def __init__(self, cores: int) -> None:
        """Use this many cores, but no more than there are shards."""
        self.count = min(cores, SHARDS)
        # Lists are numbered as they are planned; workers know those with a number below `_first_unknown`. Weak
        # references, so that the lists of a plan that no longer exists are not passed on to the next workers.
        self._numbers, self._first_unknown = count(), 0
        self._lists: weakref.WeakValueDictionary[int, _TaskList] = weakref.WeakValueDictionary()
        self._processes: list[_Worker] = []
        self._ended_cpu_seconds = 0.0
        # The finaliser holds the list, not `self`, which it would keep alive.
        weakref.finalize(self, _stop_all, self._processes)

    def __enter__(self) -> Self:
        """Return the workers, which end with the ``with`` block."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes."""
        self.stop()

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time of the caller and of all workers so far, in seconds."""
        running = sum(process.cpu_seconds for process in self._processes)
        return time.process_time() + self._ended_cpu_seconds + running

    def distribute(self, tasks: Sequence[Task], work: int) -> Task:
        """Return a task that runs a list of independent tasks on all cores and waits for them.

        It raises an exception that one of them raised. If a worker was killed by a signal, the caller kills itself with
        the same signal.

        Args:
            tasks: the tasks; no two of them write to the same array.
            work: rough number of values that they compute, or an eighth of the multiplications of a matrix product;
                the caller runs small work alone.
        """
        if self.count == 1 or len(tasks) == 1 or work < SMALL_WORK:
            return partial(run_all, tasks)
        # Task n goes to lane n mod count: the rule by which Arena.scratch gives out memory, so that no two tasks that
        # run at once share any.
        lanes = [tasks[lane :: self.count] for lane in range(self.count)]
        task_list = _TaskList(self, next(self._numbers), lanes)
        self._lists[task_list.number] = task_list
        return task_list

    def stop(self) -> None:
        """End the workers, also because objects that tasks use have changed; the next list to run forks new ones."""
        self._ended_cpu_seconds += sum(process.cpu_seconds for process in self._processes)
        self._first_unknown = 0
        _stop_all(self._processes)

    def run(self, task_list: "_TaskList") -> None:
        """Run a list of tasks on the caller and the workers; used by the tasks that :meth:`distribute` returns."""
        # A list that was planned after the last fork is unknown to the workers.
        if task_list.number >= self._first_unknown:
            self._fork()
        busy = [process for process, lane in zip(self._processes, task_list.lanes[1:], strict=False) if lane]
        try:
            failures = self._run_lanes(task_list, busy)
        except BaseException:
            self.stop()  # a worker whose answer was not received would answer the next list with it
            raise
        if failures:
            self.stop()
            raise failures[0]

    def _run_lanes(self, task_list: "_TaskList", busy: "Sequence[_Worker]") -> list[BaseException]:
        """Run a list and return the exceptions of the workers."""
        for process in busy:
            process.start(task_list.number)
        try:
            # Fewer workers than lanes, where not all could be forked: the caller runs the lanes that remain.
            for lane in (task_list.lanes[0], *task_list.lanes[1 + len(self._processes) :]):
                run_all(lane)
        finally:
            results = [process.wait() for process in busy]
        return [failure for failure in results if failure is not None]

    def _fork(self) -> None:
        """Fork a worker for each lane but the caller's, or as many as possible; they know all lists planned so far."""
        self.stop()
        try:
            for lane in range(1, self.count):
                self._processes.append(_Worker({number: known.lanes[lane] for number, known in self._lists.items()}))
        except OSError as error:  # a limit on processes or open files; the caller runs the remaining lanes
            warnings.warn(
                f"using {1 + len(self._processes)} of {self.count} cores: could not start a worker process ({error}). "
                "Raise the limits on processes and open files to use all.",
                stacklevel=2,
            )
        self._first_unknown = next(self._numbers)


def distribute_shards(workers: Workers, shards: Sequence[ForwardBackward], work: int) -> ForwardBackward:
    """Return the two tasks of a block, which run those of its shards on all cores."""
    forwards, backwards = [shard.forward for shard in shards], [shard.backward for shard in shards]
    return ForwardBackward(workers.distribute(forwards, work), workers.distribute(backwards, work))


class _TaskList:
    """List of tasks, divided into the lanes that each process runs."""

    def __init__(self, workers: Workers, number: int, lanes: Sequence[Sequence[Task]]) -> None:
        self._workers, self.number, self.lanes = workers, number, lanes

    def __call__(self) -> None:
        self._workers.run(self)


class _Worker:
    """Worker process, as seen by the caller."""

    def __init__(self, lists: Mapping[int, Sequence[Task]]) -> None:
        """Fork a process that knows these lists by their numbers."""
        # A sequenced-packet socket keeps the bounds of messages and reports the end of either process.
        self._socket, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.cpu_seconds = 0.0
        # Blocked before the fork, so that no signal reaches a handler of the caller in the new process; there they stay
        # blocked, since _serve never returns. Python warns (3.12 on) that a thread may hold a lock at the fork, which
        # the new process would wait for forever; _serve takes none.
        with _signals_blocked(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
            if not self._pid:
                _serve(worker_end, lists)
        # The caller must not hold the worker's end, or it would not see end of file when the worker dies.
        worker_end.close()
        self._socket.settimeout(0)

    def start(self, number: int) -> None:
        """Tell the worker to run its tasks of a list."""
        with suppress(ConnectionError):  # it has died, which wait() will report
            self._socket.send(number.to_bytes(8))

    def wait(self) -> BaseException | None:
        """Wait until the tasks are done; return the exception of one that failed."""
        message = _receive(self._socket)
        if not message:
            return self._error_of_dead_worker()
        [self.cpu_seconds] = struct.unpack_from("d", message)
        failure: BaseException | None = pickle.loads(message[8:]) if message[8:] else None  # noqa: S301 - our own
        return failure

    def _error_of_dead_worker(self) -> RuntimeError:
        """Return the error of a worker that ended, or kill this process with the signal that killed the worker.

        Whatever kills a worker, such as the out-of-memory killer, has then killed the run as a whole, which is resumed
        as a whole.
        """
        code = None
        with suppress(ChildProcessError):  # no exit status where SIGCHLD is ignored
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if code is not None and code < 0:
            # A handler of the caller must not catch it; SIGKILL has none, and signal.signal refuses it.
            if -code != signal.SIGKILL:
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        return RuntimeError(f"worker process {self._pid} ended unexpectedly (exit status {code})")

    def stop(self) -> None:
        """End the worker and wait for its end."""
        self._socket.close()
        with suppress(ChildProcessError):  # already waited for, or not a child of this process
            os.waitpid(self._pid, 0)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block all signals but those that a process causes itself."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - FAULT_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _stop_all(processes: list[_Worker]) -> None:
    """End all workers and empty the list."""
    while processes:
        processes.pop().stop()


def _serve(connection: socket.socket, lists: Mapping[int, Sequence[Task]]) -> NoReturn:
    """Run the lists that the caller asks for, and exit when the caller closes the socket or ends."""
    try:
        gc.disable()
        # Close all inherited files. Among them are the caller's sockets to earlier workers: with a copy here, those
        # workers would not see end of file when the caller dies.
        for entry in Path("/proc/self/fd").iterdir():
            descriptor = int(entry.name)
            if descriptor != connection.fileno():
                with suppress(OSError):  # the descriptor of the listing itself, closed by now
                    os.close(descriptor)
        connection.settimeout(0)
        while message := _receive(connection):
            failure = _run_and_pickle_failure(lists[int.from_bytes(message)])
            connection.send(struct.pack("d", time.process_time()) + failure)
    finally:
        # Not sys.exit(), which would run the caller's exception handlers and atexit functions, and flush its buffers.
        os._exit(0)


def _run_and_pickle_failure(tasks: Sequence[Task]) -> bytes:
    """Run tasks; return nothing, or the pickled exception of one with its traceback as a note."""
    try:
        run_all(tasks)
    except BaseException as error:  # noqa: BLE001 - raised again in the caller
        error.add_note(traceback.format_exc())  # pickle drops the traceback
        # Cut to a size that surely fits into a message, in whatever way its characters are encoded.
        text = traceback.format_exc()[-MAX_MESSAGE_BYTES // 16 :]
        return _pickle_exception(error) or _pickle_exception(RuntimeError(text))
    return b""


def _pickle_exception(error: BaseException) -> bytes:
    """Return the pickled exception, or nothing if it cannot be sent."""
    try:
        message = pickle.dumps(error)
        # Exceptions with arguments of their own can often be pickled but not unpickled.
        pickle.loads(message)  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - its class may raise anything
        return b""
    return message if len(message) < MAX_MESSAGE_BYTES // 2 else b""


def _receive(connection: socket.socket) -> bytes:
    """Return the next message, or nothing if the other process has ended."""
    poll_until = time.perf_counter() + POLL_SECONDS
    try:
        while time.perf_counter() < poll_until:
            try:
                return connection.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                os.sched_yield()  # to the other process, if both share a core
        connection.settimeout(None)
        message = connection.recv(MAX_MESSAGE_BYTES)
        connection.settimeout(0)
    except ConnectionError:
        return b""
    return message
