"""The durable writer: whole or absent, exclusive once, verified when read."""

import errno
import hashlib
import io
import json
import math
import os
import socket
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cnnjob import files
from cnnjob.cli.screen import print_json
from cnnjob.errors import BusyError, DataError
from cnnjob.runs import npz


def test_what_is_written_is_read_and_nothing_else_stays(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"é": [1, None]})
    assert files.read_json(tmp_path / "a.json") == {"é": [1, None]}
    files.write_whole(tmp_path / "a.json", b"[]")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@given(st.dictionaries(st.text("abc/", min_size=1, max_size=5), arrays(np.float32, array_shapes()), max_size=3))
def test_arrays_come_back_as_they_were(found: dict[str, np.ndarray]) -> None:
    content = npz.arrays_to_bytes(found)
    back = npz.arrays_from_bytes(content, "here")
    assert back.keys() == found.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(back[name], array)
    assert content == npz.arrays_to_bytes(found)


def test_plain_numpy_opens_them_without_pickles(tmp_path: Path) -> None:
    npz.write_arrays(tmp_path / "a.npz", {"conv1/weights": np.eye(3), "names": np.array(["é", "b"])})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        np.testing.assert_array_equal(plain["conv1/weights"], np.eye(3))
        assert list(plain["names"]) == ["é", "b"]


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        npz.write_arrays(tmp_path / "a.npz", {"a": np.array([object()])})
    assert not list(tmp_path.iterdir())


def test_every_flipped_bit_and_every_lost_tail_is_found() -> None:
    content = npz.arrays_to_bytes({"a": np.arange(5)})
    for place in range(len(content)):
        for bit in (0, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(DataError, match="damaged"):
                npz.arrays_from_bytes(bytes(damaged), "here")
        with pytest.raises(DataError, match="damaged"):
            npz.arrays_from_bytes(content[:place], "here")


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
    for read in (files.read_json, npz.read_arrays):
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


# --- what is no regular file


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


ODD_FILES = {
    "a pipe": pipe,
    "a socket": listening,
    "a device": to("/dev/zero"),
    "a folder": Path.mkdir,
    "no such file": to("nowhere"),
    "cannot be read": to("a"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("read", [files.read_bytes, files.read_text, files.read_json, npz.read_arrays])
def test_only_regular_files_are_opened(tmp_path: Path, read: Callable[[Path], Any], kind: str) -> None:
    ODD_FILES[kind](path := tmp_path / "a")
    with pytest.raises(DataError, match=f"a: .*{kind}"):
        read(path)
    assert files.read_tail(path, 9) == ""


def test_a_link_to_a_pipe_is_not_opened_and_one_to_a_file_is(tmp_path: Path) -> None:
    to_a_pipe(tmp_path / "a")
    with pytest.raises(DataError, match=r"a: not a regular file \(found a pipe\). Remove it"):
        files.read_bytes(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"\xef\xbb\xbfx")
    (tmp_path / "c").symlink_to("b")
    assert files.read_text(tmp_path / "c") == "x"
    with pytest.raises(DataError, match="cannot be read"):
        files.read_bytes(tmp_path / "a\0")


def test_a_file_of_any_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)
    for read in (files.read_bytes, files.read_json):
        with pytest.raises(DataError, match=r"too large .found 1,099,511,627,776 bytes"):
            read(tmp_path / "a")
    with pytest.raises(DataError, match="its checksum does not match its 1,099,511,627,776 bytes"):
        npz.read_arrays(tmp_path / "a")


# --- JSON


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NaN", "not a finite number"),
        ("[-Infinity]", "not a finite number"),
        ("1e999", "not a finite number"),
        ("9" * 400, "more than 64 bits"),
        ("9" * 5000, "more than 64 bits"),
        ("18446744073709551616", "more than 64 bits"),
        ("-9223372036854775809", "more than 64 bits"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 900 + "1" + "}" * 900, "more than 64 levels"),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ('{"a": 1, "a": 2}', "duplicate key"),
        ('["\\ud800"]', "surrogates not allowed"),
        ('{"\\uD83D": 1}', "surrogates not allowed"),
    ],
)
def test_json_that_readers_take_differently_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=rf"a.json: not readable as JSON \(.*{why}"):
        files.read_json(tmp_path / "a.json")


def test_json_at_its_limits_is_read() -> None:
    assert files.parse_json("[" * 64 + "]" * 64)
    assert files.parse_json("[18446744073709551615, -9223372036854775808, 1e308]")
    assert files.parse_json(b'["\\ud83d\\ude00", "\\udcff", "\xc3\xa9"]') == ["\U0001f600", "\udcff", "é"]


# --- arrays with a fitting checksum


def fitting(content: bytes) -> bytes:
    """The content with its checksum made right."""
    return content[:-64] + hashlib.sha256(content[:-64]).hexdigest().encode()


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as it is written by hand, with a fitting checksum."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.comment = b"sha256:" + b"0" * 64
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return fitting(buffer.getvalue())


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def header(shape: str) -> bytes:
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (" + shape
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


GOOD = npy(np.arange(3))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (zipped(("a.npy", npy(np.array([{}, []], object)))), "not an array of numbers or text"),
        (zipped(("a.npy", npy(np.zeros(2, "f4,i4")))), "not an array of numbers or text"),
        (zipped(("a.npy", npy(np.array([b"x"])))), "not an array of numbers or text"),
        (zipped(("a.npy", npy(np.zeros(2, ">f4")))), "not an array of numbers or text"),
        (zipped(("a.npy", bytes(10**6)), method=zipfile.ZIP_DEFLATED), "not a plain array: 'a.npy'"),
        (
            fitting(zipped(("a.npy", GOOD), ("b.npy", GOOD)).replace(b"b.npy", b"a.npy")),
            "two of its arrays have the same name",
        ),
        (zipped(("../a", GOOD)), "not a plain array"),
        (zipped(("a b.npy", GOOD)), "not a plain array"),
        (zipped(("a.npy", GOOD + b"x")), "25 bytes do not match an array of int64 with shape .3,."),
        (zipped(("a.npy", GOOD[:-1])), "23 bytes do not match an array of int64 with shape .3,."),
        (zipped(("a.npy", b"")), "not an array"),
        (zipped(("a.npy", header("999999999999,), }\n"))), "0 bytes do not match an array of float64"),
        (zipped(("a.npy", header("(" * 9999 + "\n"))), "not an array"),
        (zipped(("a.npy", npy(np.array(["x"]))[:-4] + b"\xff" * 4)), "invalid code points"),
        (fitting(b"sha256:" + b"0" * 64), "although its checksum matches"),
    ],
)
def test_nothing_but_plain_arrays_is_read_whoever_made_the_checksum(content: bytes, why: str) -> None:
    with pytest.raises(DataError, match=rf"here: not a file that cnnjob wrote.*{why}"):
        npz.arrays_from_bytes(content, "here")


def test_what_lies_before_between_and_after_the_arrays_is_found() -> None:
    content = bytes(npz.arrays_to_bytes({"a": np.arange(3), "b": np.eye(2)}))
    assert npz.arrays_from_bytes(fitting(content), "here").keys() == {"a", "b"}
    second, directory = content.index(b"PK\3\4", 4), content.index(b"PK\1\2")
    for place in (0, second, directory, content.rindex(b"PK\5\6")):
        with pytest.raises(DataError, match="not a file that cnnjob wrote"):
            npz.arrays_from_bytes(fitting(content[:place] + b"hidden" + content[place:]), "here")
    for changed in (content.replace(b"a.npy", b"c.npy", 1), content.replace(b"\0\0\x21\0", b"\1\0\x21\0", 1)):
        with pytest.raises(DataError, match="not a file that cnnjob wrote"):
            npz.arrays_from_bytes(fitting(changed), "here")


def test_arrays_beyond_the_size_that_32_bits_hold_are_saved_and_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # a real one needs 2 GiB per array
    arrays: dict[str, np.ndarray] = {
        "a": np.eye(20),
        "at/the/limit": np.zeros(872, np.uint8),
        "above": np.zeros(873, np.uint8),
    }
    arrays["last"] = np.arange(3)  # its place is beyond the limit, its size is not
    npz.write_arrays(tmp_path / "a.npz", arrays)
    content = (tmp_path / "a.npz").read_bytes()
    found = npz.arrays_from_bytes(content, "here")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            np.testing.assert_array_equal(plain[name], array)
    for place in range(content.index(npy(arrays["a"]))):
        damaged = bytearray(content)
        damaged[place] ^= 1
        with pytest.raises(DataError, match=r"here: not a file that cnnjob wrote, although its checksum matches"):
            npz.arrays_from_bytes(fitting(bytes(damaged)), "here")
