"""Packed datasets that HDF5 itself has edited: whole files, with parts that our writer does not make.

An input is a list of edits, four bytes each; a byte chooses what is edited, the next how.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.fuzz.targets import Target
from tests.fuzz.targets.hdf5 import TARGET as HDF5

_NAMES = tuple(f"{split}/{array}" for split in ("train", "test", "val", "more") for array in ("images", "labels", ""))
_ATTRIBUTES = ("format", "complete", "name", "class_names", "mean", "std", "array_sha256", "source_sha256", "options",
               "sha256", "more")  # fmt: skip
_FEW = 5000
_SHAPES = (
    (3, 2, 2, 1),
    (3,),
    (),
    (0, 2, 2, 1),
    (3, 2, 2),
    (1 << 40, 2, 2, 1),
    (1 << 20, 1 << 12, 1 << 9, 1),
    (1,) * 32,
)
_DTYPES = (
    "u1", "<u2", ">u2", "i1", "f4", "S3", "V5", "u1,f4", (np.uint8, (2,)), h5py.string_dtype(), h5py.ref_dtype,
    h5py.regionref_dtype, h5py.vlen_dtype(np.uint8), h5py.enum_dtype({"a": 1}, np.uint8), bool, np.dtype("c8"),
)  # fmt: skip
_STORED: tuple[dict[str, Any], ...] = (
    {"fletcher32": True, "chunks": True},
    {"chunks": True},
    {},
    {"compression": "gzip", "shuffle": True},
    {"compression": "lzf", "fletcher32": True},
    {"scaleoffset": 0},
    {"maxshape": (None, 2, 2, 1), "fletcher32": True, "chunks": (1, 2, 2, 1)},
    {"external": [("pipe", 0, 12)]},
    {"external": [("pets.h5", 0, h5py.h5f.UNLIMITED)]},
    {"fillvalue": 7, "chunks": True, "fletcher32": True},
)
_VALUES: tuple[Any, ...] = (
    0, 1, 2**40, -1.5, float("nan"), [0.5], [[1]], "text", b"bytes", b"[" * 9000, b"{}", b"[]", b'["a","b"]',
    b'{"a":1}', b'["a","b","c"]', np.bytes_(b"\xff"), np.zeros(70_000, "u1"),
    [b"a", b"b"], b"9" * 5000, b'["\\ud800","\\n"]',
)  # fmt: skip


def _seeds() -> list[bytes]:
    random = np.random.default_rng(0)
    return [random.bytes(4 * count) for count in (1, 1, 1, 2, 3) * 20]


def _read(content: bytes, folder: Path) -> None:
    path = folder / "pets.h5"
    path.write_bytes(_WHOLE[len(content) % len(_WHOLE)])
    os.mkfifo(folder / "pipe")
    with suppress(Exception), h5py.File(path, "r+") as file:
        for start in range(0, min(len(content), 32), 4):
            with suppress(Exception):
                _edit(file, *content[start : start + 4].ljust(4, b"\0"))
    HDF5.read(path.read_bytes(), folder)


def _edit(file: h5py.File, kind: int, what: int, how: int, more: int) -> None:
    """Do one edit; HDF5 refuses many."""
    name, other = _NAMES[what % len(_NAMES)].rstrip("/"), _NAMES[how % len(_NAMES)].rstrip("/")
    match kind % 10:
        case 0:
            del file[name]
        case 1:
            _put(file, name, (h5py.SoftLink(f"/{other}"), h5py.ExternalLink("pets.h5", other))[more % 2])
        case 2:
            _put(file, name, file[other] if more % 2 else np.dtype("u1"))
        case 3 | 4:
            shape, dtype = _SHAPES[how % len(_SHAPES)], _DTYPES[more % len(_DTYPES)]
            file.pop(name, None)
            file.create_dataset(name, shape, dtype, **_STORED[(how + more) % len(_STORED)])
        case 5:
            file.attrs[_ATTRIBUTES[what % len(_ATTRIBUTES)]] = _VALUES[how % len(_VALUES)]
        case 6:
            dtype = _DTYPES[how % len(_DTYPES)]
            file.attrs.create(_ATTRIBUTES[what % len(_ATTRIBUTES)], None, _SHAPES[more % len(_SHAPES)], dtype)
        case 7 if len(file[name]) <= _FEW:  # HDF5 would look for the chunks of each row that is taken away
            file[name].resize((1, 4, _FEW, 1 << 40)[how % 4], axis=0)
        case 8 if file[name].chunks and file[name].size <= _FEW:  # it would wait for the pipe, or crash
            file[name][...] = more
        case 9:
            layout = h5py.VirtualLayout((3, 2, 2, 1), np.uint8)
            layout[...] = h5py.VirtualSource(("pets.h5", ".", "pipe")[more % 3], other, (3, 2, 2, 1))
            file.pop(name, None)
            file.create_virtual_dataset(name, layout)


def _put(file: h5py.File, name: str, value: object) -> None:
    file.pop(name, None)
    file[name] = value


_WHOLE = HDF5.seeds()
TARGET = Target(_seeds, _read)
