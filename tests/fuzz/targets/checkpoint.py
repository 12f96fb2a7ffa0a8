"""Checkpoints whose checksum fits: mutated as a whole, and with one mutated part, their header or an array."""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cnnjob.runs import checkpoints
from cnnjob.runs.checkpoints import ExpectedArrays, TrainingProgress
from tests.fuzz.targets import Target

_DIGEST = "0" * 64
_SHAPES = {"weights/a": (2, 3), "best/a": (2, 3)}
_LOCAL = struct.Struct("<4s5H3I2H")


def _heads() -> list[bytes]:
    """The headers of the start, of the middle of an epoch and of the end."""
    epochs = [{"epoch": n, "step": 4 * n, "train_loss": 0.5, "train_accuracy": 0.5, "seconds": 1.0} for n in (1, 2)]
    middle = TrainingProgress(epoch=1, epoch_step=2, step=6, best_epoch=1, best_accuracy=0.5, history=epochs[:1])
    end = TrainingProgress(epoch=2, step=8, done=True, best_epoch=2, best_accuracy=0.5, history=epochs)
    common = {"format": checkpoints.FORMAT, "digest": _DIGEST, "attempt": 1}
    return [json.dumps({**common, "progress": asdict(one)}).encode() for one in (middle, TrainingProgress(), end)]


def _seeds() -> list[bytes]:
    """Whole checkpoints; headers, and arrays in NumPy's format, each to stand in an otherwise good checkpoint."""
    whole = [_archive(_parts(head)) for head in _heads()]
    return [*whole, *_heads(), _array(np.ones((2, 3), np.float32)), _array(np.asfortranarray(np.eye(3)[:2], "f4"))]


def _parts(head: bytes) -> dict[str, bytes]:
    """The members of a checkpoint by name."""
    try:
        count = json.loads(head)["progress"]["epoch_step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        count = 0
    count = count if type(count) is int and 0 <= count < 10 else 0
    arrays = {name: np.arange(6, dtype=np.float32).reshape(shape) for name, shape in _SHAPES.items()}
    open_epoch = {"losses": np.ones(count), "hits": np.ones(count, np.int64)}
    text = np.array(head.decode(errors="replace").rstrip("\0") or " ")
    return {name: _array(array) for name, array in {"header": text, **arrays, **open_epoch}.items()}


def _array(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def _archive(members: dict[str, bytes]) -> bytes:
    """An archive as cnnjob writes it, of whatever members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = b"sha256:" + b"0" * 64
        for name, content in members.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as entry:
                entry.write(content)
    return buffer.getvalue()


def _finished(content: bytes) -> bytes:
    """Put a part into its checkpoint, and let the checksums fit."""
    if content.startswith(b"\x93"):
        content = _archive({**_parts(_heads()[0]), "weights/a": content})
    elif not content.startswith(b"PK"):
        content = _archive(_parts(content))
    return _fitting(content)


def _fitting(content: bytes) -> bytes:
    """Let the checksums fit again: those of the members as far as they are found, then that of the file."""
    changed = bytearray(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except Exception:  # noqa: BLE001 - whatever zipfile does not read has no members
        members = []
    for member in members:
        place = member.header_offset
        if changed[place : place + 4] == b"PK\3\4" and len(changed) >= place + _LOCAL.size:
            start = place + _LOCAL.size + len(member.filename.encode(errors="replace"))
            crc = struct.pack("<I", zlib.crc32(changed[start : start + member.file_size]))
            changed[place + 14 : place + 18] = crc
            if (entry := changed.find(struct.pack("<I", member.CRC), place + 18)) >= 0:
                changed[entry : entry + 4] = crc
    body = bytes(changed[:-64])
    return body + hashlib.sha256(body).hexdigest().encode()


def _read(content: bytes, folder: Path) -> None:
    (folder / "step-000000006.npz").write_bytes(content)
    found, _ = checkpoints.load_newest(folder, _DIGEST, ExpectedArrays(_SHAPES, steps=4))
    assert found
    assert found.progress.epoch == len(found.progress.history)


TARGET = Target(_seeds, _read, text=True, finish=_finished)
