"""The ``.npz`` files of ``model.init_from``, of cnnjob and of NumPy."""

import io
from pathlib import Path

import numpy as np

from cnnjob.runs import npz
from cnnjob.runs.initial import find_initial, read_initial
from tests.fuzz.targets import Target
from tests.helpers.toy_jobs import job


def _seeds() -> list[bytes]:
    arrays = {"conv1/weights": np.ones((3, 3, 1, 4), np.float32), "conv1/bias": np.zeros(4, np.float32)}
    buffers = io.BytesIO(), io.BytesIO()
    np.savez(buffers[0], **arrays)  # type: ignore[arg-type]
    np.savez_compressed(buffers[1], **arrays)  # type: ignore[arg-type]
    return [bytes(npz.arrays_to_bytes(arrays)), *(buffer.getvalue() for buffer in buffers)]


def _read(content: bytes, folder: Path) -> None:
    path = folder / "weights.npz"
    path.write_bytes(content)
    resolved = find_initial(job(model__init_from=str(path)), folder)
    initial = read_initial(resolved)
    assert initial.sha256 == resolved.model.init_sha256
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in initial.arrays.values())


TARGET = Target(_seeds, _read)
