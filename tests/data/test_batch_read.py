"""Many rows are read from a file in one system call, or one by one where that is not possible."""

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from cnnjob.data.batch_read import MOST_READS, BatchRead
from cnnjob.data.stored import FileVersion, StoredArray
from cnnjob.errors import DataError
from tests.helpers.image_sources import random_bytes

ROWS = random_bytes((3000, 7, 5), 0)
OFFSET = 11


@pytest.fixture
def stored(tmp_path: Path) -> StoredArray:
    path = tmp_path / "rows"
    path.write_bytes(bytes(OFFSET) + ROWS.tobytes())
    return StoredArray(path, "train/images", OFFSET, ROWS.shape, ROWS.dtype, FileVersion.of(path))


def batch_of(stored: StoredArray, indices: np.ndarray) -> tuple[bool, np.ndarray]:
    """Whether rows could be read in one call, and the rows."""
    descriptor, rows = os.open(stored.path, os.O_RDONLY), np.empty((len(indices), 7, 5), np.uint8)
    try:
        return BatchRead(descriptor, 35).read(OFFSET + 35 * indices, rows), rows
    finally:
        os.close(descriptor)


@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="numbers of the system calls are unknown")
def test_one_call_reads_many_rows(stored: StoredArray) -> None:
    indices = np.random.default_rng(0).integers(0, len(ROWS), MOST_READS)
    is_complete, rows = batch_of(stored, indices)
    assert is_complete
    np.testing.assert_array_equal(rows, ROWS[indices])


@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="numbers of the system calls are unknown")
def test_rows_in_order_need_no_queue_of_the_kernel(stored: StoredArray) -> None:
    """Removing a queue takes 10 ms and more, each time that a file is read."""

    def count_queues() -> int:
        return Path("/proc/self/maps").read_text().count("/[aio]")

    before = count_queues()
    with stored.open() as reader:
        reader.read(3, np.empty((5, 7, 5), np.uint8))
        reader[np.arange(10, 20)]
        assert count_queues() == before
        reader[np.array([4, 2, 9])]
        assert count_queues() == before + 1
        reader[np.array([9, 1])]
        assert count_queues() == before + 1


def test_a_part_beyond_the_end_and_a_closed_file_are_not_read(stored: StoredArray) -> None:
    indices = np.array([5, len(ROWS) - 1, 2])
    os.truncate(stored.path, OFFSET + ROWS.nbytes - 1)
    assert not batch_of(stored, indices)[0]
    assert not BatchRead(2**20, 35).read(OFFSET + 35 * indices, np.empty((3, 7, 5), np.uint8))
    short = StoredArray(stored.path, stored.name, OFFSET, ROWS.shape, ROWS.dtype, FileVersion.of(stored.path))
    with short.open() as reader, pytest.raises(DataError, match=r"truncated \(the file ends within train/images\)"):
        reader[indices]


def test_more_rows_than_one_call_can_read(stored: StoredArray) -> None:
    indices = np.random.default_rng(1).integers(0, len(ROWS), 2 * MOST_READS + 3)
    with stored.open() as reader:
        for _ in range(2):  # the first call also asks the disk to read ahead
            np.testing.assert_array_equal(reader[indices], ROWS[indices])


def test_a_forked_process_reads_the_same_rows(stored: StoredArray) -> None:
    indices = np.array([7, 3, 2999, 3])
    with stored.open() as reader:
        np.testing.assert_array_equal(reader[indices], ROWS[indices])
        pid = os.fork()
        if not pid:  # the queue of requests belongs to the parent
            os._exit(0 if np.array_equal(reader[indices], ROWS[indices]) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        np.testing.assert_array_equal(reader[indices], ROWS[indices])
