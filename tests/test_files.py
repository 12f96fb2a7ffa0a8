"""The durable writer: whole or absent, exclusive once, verified when read."""

import errno
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cnnjob import files
from cnnjob.cli.screen import print_json
from cnnjob.errors import BusyError, DataError


def test_what_is_written_is_read_and_nothing_else_stays(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"é": [1, None]})
    assert files.read_json(tmp_path / "a.json") == {"é": [1, None]}
    files.write_whole(tmp_path / "a.json", b"[]")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@given(st.dictionaries(st.text("abc/", min_size=1, max_size=5), arrays(np.float32, array_shapes()), max_size=3))
def test_arrays_come_back_as_they_were(found: dict[str, np.ndarray]) -> None:
    content = files.arrays_to_bytes(found)
    back = files.arrays_from_bytes(content, "here")
    assert back.keys() == found.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(back[name], array)
    assert content == files.arrays_to_bytes(found)


def test_plain_numpy_opens_them_without_pickles(tmp_path: Path) -> None:
    files.write_arrays(tmp_path / "a.npz", {"conv1/weights": np.eye(3), "names": np.array(["é", "b"])})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        np.testing.assert_array_equal(plain["conv1/weights"], np.eye(3))
        assert list(plain["names"]) == ["é", "b"]


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        files.write_arrays(tmp_path / "a.npz", {"a": np.array([object()])})
    assert not list(tmp_path.iterdir())


def test_every_flipped_bit_and_every_lost_tail_is_found() -> None:
    content = files.arrays_to_bytes({"a": np.arange(5)})
    for place in range(len(content)):
        for bit in (0, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(DataError, match="damaged"):
                files.arrays_from_bytes(bytes(damaged), "here")
        with pytest.raises(DataError, match="damaged"):
            files.arrays_from_bytes(content[:place], "here")


def test_a_fence_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    def fence() -> None:
        raise BusyError("lost")

    files.write_whole(tmp_path / "a", b"old")
    with pytest.raises(BusyError):
        files.write_whole(tmp_path / "a", b"new", fence=fence)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_exactly_one_creates(tmp_path: Path) -> None:
    start, wins = threading.Barrier(8), []

    def create(number: int) -> None:
        start.wait()
        if files.create_exclusive(tmp_path / "a", bytes([number])):
            wins.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert (tmp_path / "a").read_bytes() == bytes(wins)
    assert len(list(tmp_path.iterdir())) == 1


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"{")
    for read in (files.read_json, files.read_arrays):
        with pytest.raises(DataError, match="gone: no such file"):
            read(tmp_path / "gone")
        with pytest.raises(DataError, match=f"{tmp_path}: "):
            read(tmp_path)
    with pytest.raises(DataError, match="not readable as JSON"):
        files.read_json(tmp_path / "a")


def test_leftovers_of_killed_processes_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".a.npz.77-abc.tmp").write_bytes(b"half")
    (tmp_path / "a.npz").write_bytes(b"whole")
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_folder_that_cannot_be_flushed_is_an_error_unless_no_folder_can(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.flush_folder(tmp_path / "gone")
    files.flush_folder(Path("/proc/self"))  # answers EINVAL, as some network file systems do
    assert errno.EINVAL
    assert os.fspath(tmp_path)


def test_json_holds_no_nan_and_no_half_of_a_letter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"loss": math.nan})
    assert not (tmp_path / "a.json").exists()
    files.write_json(tmp_path / "a.json", {"file": "\udcff"})
    assert files.read_json(tmp_path / "a.json") == {"file": "\udcff"}
    print_json([{"loss": math.nan, "losses": (1.0, math.inf), "name": "\udcff"}])
    assert json.loads(capsys.readouterr().out) == [{"loss": None, "losses": [1.0, None], "name": "\udcff"}]
