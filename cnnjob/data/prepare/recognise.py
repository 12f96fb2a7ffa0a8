"""Recognise the type of a user's folder or file from its content, and read it."""

import os
import shlex
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cnnjob.data.prepare.archives import TAR_BLOCK_BYTES, is_tar_header
from cnnjob.data.prepare.arrays.binary import find_binary_set
from cnnjob.data.prepare.arrays.idx_sets import choose_idx_set, find_idx_sets
from cnnjob.data.prepare.arrays.numpy_files import MAGIC as NUMPY_MAGIC
from cnnjob.data.prepare.arrays.numpy_files import array_files, find_numpy_set
from cnnjob.data.prepare.arrays.stream import ArraySet, read_array_set
from cnnjob.data.prepare.arrays.svhn import find_svhn_set
from cnnjob.data.prepare.folders.archive import TarTree, ZipTree
from cnnjob.data.prepare.folders.folder import read_folder
from cnnjob.data.prepare.folders.options import FolderOptions
from cnnjob.data.prepare.folders.tree import FolderTree, is_named_as_image, is_visible
from cnnjob.data.prepare.idx import peek_header
from cnnjob.data.prepare.writer import DatasetContents
from cnnjob.errors import DataError
from cnnjob.files import A_GIT_LFS_POINTER, GIT_LFS_POINTER, open_regular

_OTHER_SUFFIXES = (
    *(".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".txz", ".tbz2", ".rar", ".7z", ".zst"),
    *(".npy", ".npz", ".mat", ".h5", ".hdf5", "-ubyte", ".pkl", ".pickle", ".bin", ".csv", ".parquet"),
)
"""Suffixes of archives and arrays."""
_PICKLED = {"data_batch_1": "cifar10", "test_batch": "cifar10", "meta": "cifar100"}
"""File names in CIFAR's Python versions, each with the name of the dataset to prepare instead."""
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
_OTHER_FILES = (
    (b"Rar!\x1a\x07", "a RAR archive, which is not supported", "Unpack it with unrar, and specify the folder"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive, which is not supported", "Unpack it with 7z x, and specify the folder"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard, which is not supported", "Decompress it with unzstd first"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4, which is not supported", "Decompress it with unlz4 first"),
    (b"\x1f\x9d", "compressed with compress, which is not supported", "Decompress it with gzip -d first"),
    (b"PAR1", "a Parquet file, which is not supported", "Read it in Python, and pass its images to cnnjob.prepare()"),
    (_HDF5_MAGIC, "an HDF5 file from another program",
     "Read its arrays with h5py, and prepare them in Python with cnnjob.prepare(images=…, labels=…, name=…)"),
    (b"MATLAB", "a MATLAB file",
     "Save its arrays with numpy.savez; or for SVHN, specify the folder of train_32x32.mat and test_32x32.mat"),
)  # fmt: skip
"""First bytes of each file type that is not supported, its description, and advice."""


def read_source(source: Path, options: FolderOptions, *, progress: bool = False) -> DatasetContents:
    """Recognise the type of a folder or file and read it.

    Args:
        source: a folder with images, IDX files, NumPy arrays or a known binary version of a dataset; an archive; or an
            array file.
        options: how to read the source.
        progress: whether to show progress bars on stderr.

    Returns:
        The contents; the files have been hashed, but no pixels have been read yet.

    Raises:
        DataError: the source is not recognised, damaged or missing.
        JobError: an option is missing or does not apply.
    """
    if os.path.isfile(source):  # noqa: PTH113 - a folder without permission is reported by the listing
        return _read_source_file(source, options, progress=progress)
    tree = FolderTree(source)
    listing = tree.list()
    images = [name for name in listing.files if is_named_as_image(name)]
    # If there are images in several folders, all other files are left out and reported.
    if options.labels or len({name.rpartition("/")[0] for name in images}) > 1:
        return read_folder(tree, listing, options, progress=progress)
    others = [*listing.files, *(name for name in listing.left_out if all(map(is_visible, name.split("/"))))]
    others = [name for name in others if (source / name).is_file()]
    # The same applies to images in a single folder, unless there are arrays: such images are likely to be plots.
    if images and not any(name.lower().endswith((".npy", ".npz")) for name in others):
        return read_folder(tree, listing, options, progress=progress)
    if found := _find_arrays(source, others, options):
        return read_array_set(found, options)
    if not images and (inside := [name for name in others if name.lower().endswith(_OTHER_SUFFIXES)]):
        raise DataError(f"{source}: no images, only other files (found {', '.join(inside[:3])}). Specify one of them, "
                        "or unpack archives first")  # fmt: skip
    return read_folder(tree, listing, options, progress=progress)


def _find_arrays(source: Path, names: Sequence[str], options: FolderOptions) -> ArraySet | None:
    """Return the arrays in a folder that contains no images; None if it contains no arrays either."""
    for name in names:
        entry = _PICKLED.get(name.rpartition("/")[2])
        if entry and _starts_with(source / name, b"\x80"):
            command = shlex.join(["cnnjob", "prepare", entry, "--source", str((source / name).parent)])
            raise DataError(
                f"{source}: contains the Python version of CIFAR (found {name}). Prepare it by name:\n  {command}"
            )
    readers: list[Callable[[Path, Sequence[str]], ArraySet | None]] = [find_binary_set, find_svhn_set]
    for reader in readers:
        if found := reader(source, names):
            return found
    if sets := find_idx_sets(source, list(names)):
        return choose_idx_set(source, sets, options.out.stem)
    files = [source / name for name in names if name.lower().endswith((".npy", ".npz"))]
    if not files:
        return None
    found = find_numpy_set([array for path in files for array in array_files(path)], str(source))
    unused = [name for name in names if source / name not in files]
    return replace(found, left_out=[*found.left_out, *unused])


def _read_source_file(source: Path, options: FolderOptions, *, progress: bool) -> DatasetContents:
    with open_regular(source) as file:
        start = file.read(TAR_BLOCK_BYTES)
    if start.startswith(GIT_LFS_POINTER):
        raise DataError(f"{source}: {A_GIT_LFS_POINTER}")
    if start.startswith(NUMPY_MAGIC):
        siblings = [path.name for path in sorted(source.parent.glob("*.npy")) if path.name != source.name]
        if siblings:
            raise DataError(
                f"{source}: only one array of a pair (found {siblings[0]} next to it). Specify the folder of both"
            )
        return read_array_set(find_numpy_set(array_files(source), str(source)), options)
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(source):
            raise DataError(f"{source}: an incomplete or damaged zip archive. Copy or download it again")
        if source.suffix == ".npz":
            return read_array_set(find_numpy_set(array_files(source), str(source)), options)
        return _read_tree(ZipTree(source, options.zip_encoding), options, progress=progress)
    if peek_header(source):
        raise DataError(
            f"{source}: a single IDX file (found {source.name}). Specify the folder that contains all files"
        )
    if is_tar_header(start) or start.startswith(_COMPRESSED):
        return _read_tree(TarTree(source), options, progress=progress)
    for signature, description, advice in _OTHER_FILES:
        if start.startswith(signature):
            raise DataError(f"{source}: {description}. {advice}")
    if source.suffix.lower() in {".csv", ".tsv", ".txt", ".json", ".jsonl"}:
        raise DataError(
            f"{source}: text, not images (found {start[:20]!r}). If it contains labels of image files, specify their "
            f"folder, and --labels {shlex.quote(str(source))}. If it contains pixels, read it in Python, and pass the "
            "arrays to cnnjob.prepare(images=…, labels=…, name=…)"
        )
    raise DataError(
        f"{source}: not a folder, an archive or an array file (found {start[:8]!r}). Specify the image folder"
    )


def _read_tree(tree: FolderTree, options: FolderOptions, *, progress: bool) -> DatasetContents:
    listing = tree.list()
    # An archive that contains only archives or arrays has no images to read in place.
    names = [*listing.files, *listing.left_out]
    inside = [name for name in names if name.lower().endswith(_OTHER_SUFFIXES)]
    if not options.labels and inside and not any(map(is_named_as_image, listing.files)):
        raise DataError(f"{tree.root}: no images, only other files (found {', '.join(inside[:3])}). Unpack the "
                        "archive, and specify the unpacked folder or one of these files")  # fmt: skip
    return read_folder(tree, listing, options, progress=progress)


def _starts_with(path: Path, start: bytes) -> bool:
    with open_regular(path) as file:
        return file.read(len(start)) == start
