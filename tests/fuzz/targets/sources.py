"""Files that ``prepare`` recognises by their content: archives of images, arrays, MATLAB files."""

import io
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy.io import savemat

from cnnjob.data.prepare.folders.options import FolderOptions
from cnnjob.data.prepare.recognise import read_source
from cnnjob.errors import DataError, JobError
from tests.fuzz.targets import Target
from tests.helpers.image_sources import png16, random_bytes

_FILES = {f"a/{split}/{label}/1.png": png16(1, (2, 2)) for split in ("train", "test") for label in "ab"}


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in _FILES.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in _FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    images, labels = random_bytes((3, 2, 2), 1), np.array([0, 1, 1])
    np.savez(buffer, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return buffer.getvalue()


def _mat(*, compressed: bool) -> bytes:
    buffer = io.BytesIO()
    arrays = {"X": random_bytes((2, 2, 3, 6), 1), "y": np.arange(1, 7, dtype=np.uint8)[:, None]}
    savemat(buffer, arrays, do_compression=compressed)  # type: ignore[arg-type] # a stream will do too
    return buffer.getvalue()


def _seeds() -> list[bytes]:
    return [_zip(), _tar(), _npz(), _mat(compressed=True), _mat(compressed=False)]


def _read(content: bytes, folder: Path) -> None:
    path = folder / "source.npz"
    if content.startswith(b"MATLAB"):
        path = folder / "train_32x32.mat"
        (folder / "test_32x32.mat").write_bytes(_mat(compressed=False))
    elif b".npy" not in content:
        path = folder / "source.zip"
    path.write_bytes(content)
    with suppress(JobError):  # such as one that asks for a test fraction
        source = folder if path.suffix == ".mat" else path
        for chunk in read_source(source, FolderOptions(str(source), folder / "out.h5")).blocks:
            assert len(chunk.images) == len(chunk.labels)


TARGET = Target(_seeds, _read, errors=(DataError,))
