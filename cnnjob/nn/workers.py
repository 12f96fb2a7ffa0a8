"""Parallel execution on CPU cores: a fixed list of tasks, distributed over any number of processes.

The number of processes affects when a task runs, never what it computes, so a run produces the same bits on one core as
on many. Processes are used because threads would contend for the interpreter lock: every NumPy call releases and
reacquires it, and a step of a small network makes hundreds of calls.
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
MAX_BLOCKS_PER_SHARD = 64
"""Maximum number of cache blocks per shard, which keeps planning fast; larger shards have larger blocks."""
SMALL_WORK = 1 << 17
"""Number of values below which the caller runs a task list alone, since sending messages would take longer."""
POLL_SECONDS = 200e-6
"""Time for which a process polls for a message before sleeping: waking up takes about as long as a small task."""
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
"""Signals that a process causes itself. Workers block all others, which terminals and schedulers send to all
processes at once: only the caller receives and handles them."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    # Not os.cpu_count(): SLURM and containers restrict processes to some of a node's cores.
    return len(os.sched_getaffinity(0))


def split_evenly(count: int, parts: int) -> list[slice]:
    """Split ``count`` items into at most ``parts`` consecutive slices of nearly equal length, none of them empty."""
    parts = min(count, parts)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def split_shard(shard: slice, parts: int) -> list[slice]:
    """Split the images of a shard into about ``parts`` cache blocks of nearly equal length."""
    blocks = split_evenly(shard.stop - shard.start, min(MAX_BLOCKS_PER_SHARD, parts))
    return [slice(shard.start + block.start, shard.start + block.stop) for block in blocks]


def run_all(tasks: Sequence[Task]) -> None:
    """Run tasks in order, suppressing NumPy warnings: an overflow shows up in the loss, which the trainer checks."""
    with np.errstate(all="ignore"):
        for task in tasks:
            task()


class Workers:
    """The calling process and worker processes forked from it, which run task lists together.

    The workers are forked when they are first needed. They see the caller's objects as of that moment, and share the
    arrays of a :class:`cnnjob.nn.arena.HostMemory`: anything that a task writes, or reads after it has changed, must be
    in such memory. They exit when the caller ends, for whatever reason.
    """

    def __init__(self, cores: int) -> None:
        """Use ``cores`` cores, or one core per shard if there are fewer shards than cores."""
        self.count = min(cores, SHARDS)
        # Lists are numbered as they are planned; workers have those with a number below `_first_unknown`. References
        # are weak, so that the lists of a plan that no longer exists are not passed on to the next workers.
        self._numbers, self._first_unknown = count(), 0
        self._lists: weakref.WeakValueDictionary[int, _TaskList] = weakref.WeakValueDictionary()
        self._processes: list[_Worker] = []
        self._ended_cpu_seconds = 0.0
        # The finaliser references the list and not `self`, which it would keep alive.
        weakref.finalize(self, _stop_all, self._processes)

    def __enter__(self) -> Self:
        """Return the workers, which are stopped at the end of the ``with`` block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the worker processes."""
        self.stop()

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time of the caller and of all workers so far, in seconds."""
        running = sum(process.cpu_seconds for process in self._processes)
        return time.process_time() + self._ended_cpu_seconds + running

    def distribute(self, tasks: Sequence[Task], work: int) -> Task:
        """Return a task that runs a list of independent tasks on all cores and waits for them.

        If one of the tasks fails, the returned task raises its exception. If a worker is killed by a signal, the caller
        kills itself with the same signal.

        Args:
            tasks: the tasks; no two of them write to the same array.
            work: approximate number of values that they compute, or an eighth of the number of multiplications in a
                matrix product; the caller does small amounts of work itself.
        """
        if self.count == 1 or len(tasks) == 1 or work < SMALL_WORK:
            return partial(run_all, tasks)
        # Task n goes to lane n mod count: Arena.scratch assigns memory by the same rule, so that no two concurrent
        # tasks share any.
        lanes = [tasks[lane :: self.count] for lane in range(self.count)]
        task_list = _TaskList(self, next(self._numbers), lanes)
        self._lists[task_list.number] = task_list
        return task_list

    def stop(self) -> None:
        """Stop the workers, for example after a change to objects that tasks use; new workers are forked on demand."""
        self._ended_cpu_seconds += sum(process.cpu_seconds for process in self._processes)
        self._first_unknown = 0
        _stop_all(self._processes)

    def run(self, task_list: "_TaskList") -> None:
        """Run a list of tasks on the caller and the workers; used by the tasks that :meth:`distribute` returns."""
        # The workers do not have lists that were planned after the last fork.
        if task_list.number >= self._first_unknown:
            self._fork()
        busy = [process for process, lane in zip(self._processes, task_list.lanes[1:], strict=False) if lane]
        try:
            failures = self._run_lanes(task_list, busy)
        except BaseException:
            self.stop()  # a worker whose reply was not received would send it in reply to the next list
            raise
        if failures:
            self.stop()
            raise failures[0]

    def _run_lanes(self, task_list: "_TaskList", busy: "Sequence[_Worker]") -> list[BaseException]:
        """Run a task list and return the exceptions raised in the workers."""
        for process in busy:
            process.start(task_list.number)
        try:
            # If not all workers could be forked, the caller runs the remaining lanes.
            for lane in (task_list.lanes[0], *task_list.lanes[1 + len(self._processes) :]):
                run_all(lane)
        finally:
            results = [process.wait() for process in busy]
        return [failure for failure in results if failure is not None]

    def _fork(self) -> None:
        """Fork one worker for each lane except the caller's; each worker gets its lane of every task list.

        If the system's limits allow fewer workers, warn and use as many as possible.
        """
        self.stop()
        try:
            for lane in range(1, self.count):
                self._processes.append(_Worker({number: known.lanes[lane] for number, known in self._lists.items()}))
        except OSError as error:  # a limit on processes or open files; the caller runs the remaining lanes
            warnings.warn(
                f"using {1 + len(self._processes)} of {self.count} cores: could not start a worker process ({error}). "
                "Raise the limits on processes and open files to use all cores.",
                stacklevel=2,
            )
        self._first_unknown = next(self._numbers)


def distribute_shards(workers: Workers, shards: Sequence[ForwardBackward], work: int) -> ForwardBackward:
    """Return a block's forward and backward tasks, which run the tasks of all its shards on all cores."""
    forwards, backwards = [shard.forward for shard in shards], [shard.backward for shard in shards]
    return ForwardBackward(workers.distribute(forwards, work), workers.distribute(backwards, work))


class _TaskList:
    """A list of tasks, divided into one lane per process."""

    def __init__(self, workers: Workers, number: int, lanes: Sequence[Sequence[Task]]) -> None:
        self._workers, self.number, self.lanes = workers, number, lanes

    def __call__(self) -> None:
        self._workers.run(self)


class _Worker:
    """A worker process, as seen by the caller."""

    def __init__(self, lists: Mapping[int, Sequence[Task]]) -> None:
        """Fork a process that can run the given task lists, each of which is identified by a number."""
        # A sequenced-packet socket preserves message boundaries and reports the end of either process.
        self._socket, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.cpu_seconds = 0.0
        # Signals are blocked before the fork, so that none reaches one of the caller's handlers in the new process;
        # they stay blocked there, since _serve never returns. Python 3.12 and later warn that a thread may hold a lock
        # at the fork, on which the new process would wait forever; _serve takes no locks.
        with _signals_blocked(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
            if not self._pid:
                _serve(worker_end, lists)
        # The caller must not hold the worker's end, or it would not see end of file when the worker dies.
        worker_end.close()
        self._socket.settimeout(0)

    def start(self, number: int) -> None:
        """Tell the worker to run its lane of a task list."""
        with suppress(ConnectionError):  # it has died, which wait() will report
            self._socket.send(number.to_bytes(8))

    def wait(self) -> BaseException | None:
        """Wait until the tasks are done; return the exception if a task failed, otherwise None."""
        message = _receive(self._socket)
        if not message:
            return self._error_of_dead_worker()
        [self.cpu_seconds] = struct.unpack_from("d", message)
        failure: BaseException | None = pickle.loads(message[8:]) if message[8:] else None  # noqa: S301 - our own
        return failure

    def _error_of_dead_worker(self) -> RuntimeError:
        """Return an error for a worker that ended, or kill this process with the signal that killed the worker.

        Anything that kills a worker, such as the out-of-memory killer, thus ends the whole run, which
        can then be resumed.
        """
        code = None
        with suppress(ChildProcessError):  # no exit status if SIGCHLD is ignored
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if code is not None and code < 0:
            # No handler of the caller may catch it; SIGKILL cannot have one, and signal.signal rejects it.
            if -code != signal.SIGKILL:
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        return RuntimeError(f"worker process {self._pid} ended unexpectedly (exit status {code})")

    def stop(self) -> None:
        """Stop the worker and wait for it to exit."""
        self._socket.close()
        with suppress(ChildProcessError):  # already waited for, or not a child of this process
            os.waitpid(self._pid, 0)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block all signals except those that report a fault in the process itself, such as SIGSEGV."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - FAULT_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _stop_all(processes: list[_Worker]) -> None:
    """Stop all workers and empty the list."""
    while processes:
        processes.pop().stop()


def _serve(connection: socket.socket, lists: Mapping[int, Sequence[Task]]) -> NoReturn:
    """Run the task lists that the caller requests, and exit when the caller closes the socket or ends."""
    try:
        gc.disable()
        # Close all inherited files. Among them are the caller's sockets to earlier workers: with a copy here, those
        # workers would not see end of file when the caller dies.
        for entry in Path("/proc/self/fd").iterdir():
            descriptor = int(entry.name)
            if descriptor != connection.fileno():
                with suppress(OSError):  # the descriptor of the directory listing, already closed
                    os.close(descriptor)
        connection.settimeout(0)
        while message := _receive(connection):
            failure = _run_and_pickle_failure(lists[int.from_bytes(message)])
            connection.send(struct.pack("d", time.process_time()) + failure)
    finally:
        # Not sys.exit(), which would run the caller's exception handlers and atexit functions, and flush its buffers.
        os._exit(0)


def _run_and_pickle_failure(tasks: Sequence[Task]) -> bytes:
    """Run tasks; return empty bytes or, if a task fails, its pickled exception, with the traceback as a note."""
    try:
        run_all(tasks)
    except BaseException as error:  # noqa: BLE001 - raised again in the caller
        error.add_note(traceback.format_exc())  # pickle drops the traceback
        # Cut to a size that is certain to fit in a message, however its characters are encoded.
        text = traceback.format_exc()[-MAX_MESSAGE_BYTES // 16 :]
        return _pickle_exception(error) or _pickle_exception(RuntimeError(text))
    return b""


def _pickle_exception(error: BaseException) -> bytes:
    """Return the pickled exception, or empty bytes if it cannot be sent."""
    try:
        message = pickle.dumps(error)
        # Exceptions with custom arguments can often be pickled but not unpickled.
        pickle.loads(message)  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - its class may raise anything
        return b""
    return message if len(message) < MAX_MESSAGE_BYTES // 2 else b""


def _receive(connection: socket.socket) -> bytes:
    """Return the next message, or empty bytes if the other process has ended."""
    poll_until = time.perf_counter() + POLL_SECONDS
    try:
        while time.perf_counter() < poll_until:
            try:
                return connection.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                os.sched_yield()  # yields to the other process if both share a core
        connection.settimeout(None)
        message = connection.recv(MAX_MESSAGE_BYTES)
        connection.settimeout(0)
    except ConnectionError:
        return b""
    return message
