"""Many reads from a file in one system call, using Linux's asynchronous I/O (io_submit).

Python's interpreter lock is released once for all reads. A loop over ``preadv`` would acquire the lock after every
read, and each time, the training thread might have to wait for it.
"""

import ctypes
import platform
import weakref

import numpy as np

MOST_READS = 1024
"""Maximum number of reads per system call."""
_SYSCALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""Numbers of io_setup, io_destroy, io_getevents and io_submit."""
# As in linux/aio_abi.h, little-endian; the operation 0 is IOCB_CMD_PREAD.
_REQUEST = np.dtype({
    "names": ("call", "operation", "descriptor", "address", "n_bytes", "position"),
    "formats": ("u8", "u2", "u4", "u8", "u8", "i8"),
    "offsets": (0, 16, 20, 24, 32, 40),
    "itemsize": 64,
})  # fmt: skip
_EVENT = np.dtype([("call", "u8"), ("request", "u8"), ("result", "i8"), ("unused", "i8")])


class BatchRead:
    """A reader of many parts of a file at once, all of the same size, if the system supports it."""

    def __init__(self, descriptor: int, n_bytes: int) -> None:
        """Set up the kernel's queue of requests.

        Args:
            descriptor: the open file.
            n_bytes: size of each part, in bytes.
        """
        numbers = _SYSCALLS.get(platform.machine(), (-1, -1, -1, -1))
        self._setup, self._destroy, self._get_events, self._submit = map(ctypes.c_long, numbers)
        self._syscall = ctypes.CDLL(None).syscall
        self._syscall.restype = ctypes.c_long
        self._queue = ctypes.c_ulong(0)
        self._is_supported = not self._syscall(self._setup, ctypes.c_long(MOST_READS), ctypes.byref(self._queue))
        self.close = weakref.finalize(self, self._syscall, self._destroy, self._queue)
        self._n_bytes, self._call = n_bytes, 0
        self._starts = np.arange(MOST_READS, dtype=np.uint64) * np.uint64(n_bytes)
        self._events = np.empty(MOST_READS, _EVENT)
        self._requests = np.zeros(MOST_READS, _REQUEST)
        self._requests["descriptor"], self._requests["n_bytes"] = descriptor, n_bytes
        first = np.uint64(self._requests.ctypes.data)
        self._pointers = first + np.arange(MOST_READS, dtype=np.uint64) * np.uint64(_REQUEST.itemsize)

    def read(self, positions: np.ndarray, content: np.ndarray) -> bool:
        """Read parts of the file.

        Args:
            positions: position of each part in the file, int64 (n,), where n is at most :data:`MOST_READS`.
            content: contiguous array that receives the parts, one after another.

        Returns:
            True if all parts were read; False if they must be read in another way, which then raises any error.
        """
        if not self._is_supported:
            return False
        count, self._call = len(positions), self._call + 1
        self._requests["call"][:count] = self._call
        self._requests["position"][:count] = positions
        np.add(self._starts[:count], np.uint64(content.ctypes.data), out=self._requests["address"][:count])
        pointers = ctypes.c_void_p(self._pointers.ctypes.data)
        n_submitted = self._syscall(self._submit, self._queue, ctypes.c_long(count), pointers)
        n_done = 0
        while n_done < n_submitted:  # usually once, since buffered reads are complete when io_submit returns
            n_missing = ctypes.c_long(n_submitted - n_done)
            events = ctypes.c_void_p(self._events[n_done:].ctypes.data)
            n_done += max(0, self._syscall(self._get_events, self._queue, n_missing, n_missing, events, None))
        events_read = self._events[:count]
        # If an earlier call was interrupted, some of these events may belong to it.
        is_whole = (events_read["result"] == self._n_bytes) & (events_read["call"] == self._call)
        return n_submitted == count and bool(is_whole.all())
