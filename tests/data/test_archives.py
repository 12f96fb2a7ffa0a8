"""Archives are read in little memory, and refused in one message, whatever they say of themselves."""

import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnjob.data.prepare import cifar
from cnnjob.data.prepare.archives import read_members
from cnnjob.data.prepare.catalogue import CIFAR10
from cnnjob.errors import DataError
from tests.helpers.hostile_archives import hostile_archives, usual_archives
from tests.helpers.image_sources import write_tar

HOSTILE = {name: (message, content) for name, message, content in hostile_archives()}

BOMBS = {
    "sets": b"\x80\x04(" + b"\x8f" * 600_000 + b"l.",
    "characters": b"\x80\x04\x8d" + (120 << 20).to_bytes(8, "little") + "🐈".encode() + b"a" * ((120 << 20) - 4) + b".",
    "memo": b"\x80\x02(" + b"N" * 20 + b"r" + (100 << 20).to_bytes(4, "little") + b"l." + bytes(110 << 20),
    "tuples": b"\x80\x02}K\x01" + b"\x85" * 200_000 + b"K\x01s.",
    "a line": b"I" + b"1" * (100 << 20) + b"\n.",
}


@pytest.mark.parametrize("number", range(len(usual_archives())))
def test_members_are_read_in_every_form(tmp_path: Path, number: int) -> None:
    path = tmp_path / "own"
    path.write_bytes(usual_archives()[number])
    assert dict(read_members(path, ["b", "a", "c"])) == {"a": b"a" * 700, "b": b"b" * 700}
    assert dict(read_members(path, ["b"])) == {"b": b"b" * 700}


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"one/a": b"1", "a": b"2", "b": b"3"}, "w")
    assert dict(read_members(path, ["b"])) == {"b": b"3"}
    with pytest.raises(DataError, match="it contains a twice"):
        list(read_members(path, ["a", "b"]))


def test_streams_of_xz_follow_each_other_after_zeros(tmp_path: Path) -> None:
    import lzma

    content = usual_archives()[0]
    path = tmp_path / "own.tar.xz"
    path.write_bytes(lzma.compress(content[:1000]) + bytes(2 << 20) + lzma.compress(content[1000:]) + bytes(8))
    assert [name for name, _ in read_members(path, ["a", "b"])] == ["a", "b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str) -> None:
    message, content = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(cifar.read(CIFAR10, {name: tmp_path / name}))
    assert str(error.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_would_grow_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="not a readable pickle"):
        cifar.parse_batch(BOMBS[name], "x")


READ = """
import re, sys
from pathlib import Path
from contextlib import suppress
from cnnjob.errors import DataError
from cnnjob.data.prepare import cifar; from cnnjob.data.prepare.prepare import prepare
from cnnjob.data.prepare.catalogue import CIFAR10

for path in sorted(Path(sys.argv[1]).iterdir()):
    with suppress(DataError):
        if path.name.count("."):
            list(cifar.read(CIFAR10, {path.name: path}))
        else:
            cifar.parse_batch(path.read_bytes(), "x")
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1000)
"""


def test_hostile_sources_take_little_memory(tmp_path: Path) -> None:
    for name, (_, content) in HOSTILE.items():
        (tmp_path / name).write_bytes(content)
    for name, content in BOMBS.items():
        (tmp_path / name).write_bytes(content)
    assert megabytes_of(READ, tmp_path) < 512


@pytest.mark.fuzz
def test_the_largest_batch_takes_less_than_512_megabytes(tmp_path: Path) -> None:
    rows = np.zeros((50_000, 3072), np.uint8)
    names = [f"image_of_something_s_{number:06}.png".encode() for number in range(50_000)]
    batch = {b"data": rows, b"fine_labels": [7] * 50_000, b"coarse_labels": [7] * 50_000, b"filenames": names}
    (tmp_path / "train").write_bytes(pickle.dumps(batch, 4))
    assert (tmp_path / "train").stat().st_size > 155_000_000
    assert cifar.parse_batch((tmp_path / "train").read_bytes(), "x")[0].shape == (50_000, 3, 32, 32)
    assert megabytes_of(READ, tmp_path) < 512


def megabytes_of(script: str, folder: Path) -> int:
    """The most memory that a process had which read all of a folder; ru_maxrss would count its parent's too."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # the machine's memory is not at stake

    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=limit)
    return int(done.stdout)
