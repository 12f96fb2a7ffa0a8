"""Find IDX sets with any name, such as KMNIST, EMNIST and QMNIST, in a folder or in a torchvision root folder.

References:
    Cohen et al., "EMNIST: an extension of MNIST to handwritten letters" (2017).
    Yadav and Bottou, "Cold case: the lost MNIST digits" (2019).
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cnnjob.data.prepare.arrays.stream import ArraySet, LabelledStream, rows_per_block
from cnnjob.data.prepare.folders.layout import split_of_name
from cnnjob.data.prepare.idx import open_idx, peek_header
from cnnjob.errors import DataError, JobError
from cnnjob.files import read_text

_IMAGES_NDIM = 3
_LABELS_NDIM = (1, 2)

Roles = dict[tuple[str, str], Path]
"""The files of a set, by split and kind (``images`` or ``labels``)."""

_EMNIST = re.compile(r"(?i)(?<![a-z])emnist")
"""Matches the path of an EMNIST set; FEMNIST is a different dataset, with upright images."""


def find_idx_sets(root: Path, names: list[str]) -> dict[str, Roles]:
    """Find the IDX sets among the files in a folder.

    Args:
        root: the folder.
        names: paths of the files in the folder that are not images.

    Returns:
        The files of each set by split and type (images or labels), keyed by the set's name, which may be empty.

    Raises:
        DataError: a set has two files of images, or two files of labels, for the same split.
    """
    sets: dict[str, Roles] = defaultdict(dict)
    # An unpacked file is listed before its archive, which is then not read.
    for name in sorted(names, key=lambda name: (name.endswith(".gz"), name)):
        path = root / name
        split_and_pattern = split_of_name(path.name.replace("t10k", "test"))
        dimensions = peek_header(path) if split_and_pattern else None
        if split_and_pattern is None or dimensions is None:
            continue
        split, pattern = split_and_pattern
        key = _set_key(root, path, pattern)
        kind = "labels" if dimensions in _LABELS_NDIM else "images"
        other = sets[key].get((split, kind))
        if other and other.name != path.name.removesuffix(".gz"):
            raise DataError(f"{root}: two files contain {split} {kind} (found {other.relative_to(root)} and {name}). "
                            "Remove one")  # fmt: skip
        sets[key].setdefault((split, kind), path)
    return {key: roles for key, roles in sets.items() if ("train", "images") in roles}


def _set_key(root: Path, path: Path, pattern: str) -> str:
    """Return the name of a file's set: the folder, and what precedes the split in the name of the file."""
    folder = path.parent
    if folder.name == path.name and folder != root:  # Kaggle archives keep each file in a folder of the same name
        folder = folder.parent
    prefix = pattern.partition("*")[0].strip("-_. ")
    return "/".join(filter(None, (str(folder.relative_to(root)).strip("."), prefix)))


def choose_idx_set(root: Path, sets: Mapping[str, Roles], name: str) -> ArraySet:
    """Return the images of the IDX set in a folder; if there are several sets, use the one with the given name.

    Args:
        root: the folder.
        sets: the sets in the folder.
        name: the dataset's name.

    Raises:
        DataError: a file is damaged, or there are images without labels or labels without images.
        JobError: there are several sets, and none has the given name.
    """
    # Hyphens and spaces in a dataset's name may differ from those in the name of its folder.
    plain = str.maketrans("", "", "-_ ")
    matching = [key for key in sets if _name_of(key).translate(plain) == name.lower().translate(plain)]
    keys = matching if len(matching) == 1 else list(sets)
    if len(keys) > 1:
        commands = "\n".join(
            f"  {shlex.join(['cnnjob', 'prepare', _name_of(key), '--source', str(root)])}" for key in sorted(keys)
        )
        raise JobError(f"{root}: several IDX sets (found {len(keys)}). Choose one:\n{commands}")
    roles = sets[keys[0]]
    for split, kind in roles:
        other = "labels" if kind == "images" else "images"
        if (split, other) not in roles:
            raise DataError(
                f"{root}: no {split} {other} (found only {roles[split, kind].relative_to(root)}). Copy them to this "
                "folder"
            )
    is_emnist = bool(_EMNIST.search(keys[0]))
    splits = {split: _stream(roles[split, "images"], roles[split, "labels"], turned=is_emnist)
              for split, kind in roles if kind == "images"}  # fmt: skip
    title = " of EMNIST, turned upright" if is_emnist else ""
    return ArraySet(
        f"IDX files{title} {', '.join(path.name for path in roles.values())}",
        splits,
        list(roles.values()),
        _read_class_names(roles["train", "images"]) if is_emnist else None,
    )


def _name_of(key: str) -> str:
    """Return a name for a set: the last meaningful part of its folder's path, or the prefix of its file names."""
    parts = [part for part in key.split("/") if part not in {"raw", "gzip", ""}]
    return (parts[-1] if parts else "idx").lower()


def _stream(images_path: Path, labels_path: Path, *, turned: bool) -> LabelledStream:
    """Return images with their labels; if ``turned``, swap rows and columns, since EMNIST's images are transposed."""
    with open_idx(labels_path, _LABELS_NDIM) as file:
        rows = file.read(file.shape[0])
        file.require_end()
    labels = rows if rows.ndim == 1 else rows[:, 0]  # QMNIST's other columns describe the writer
    with open_idx(images_path, (_IMAGES_NDIM,)) as file:
        count, height, width = file.shape
    shape = (count, width, height, 1) if turned else (count, height, width, 1)
    step = rows_per_block(height * width)

    def blocks() -> Iterator[np.ndarray]:
        with open_idx(images_path, (_IMAGES_NDIM,)) as file:
            for start in range(0, count, step):
                block = file.read(min(step, count - start))
                yield (block.transpose(0, 2, 1) if turned else block)[..., None]
            file.require_end()

    return LabelledStream(str(images_path), shape, blocks, labels.astype(np.int64))


def _read_class_names(images: Path) -> dict[int, str] | None:
    """Return EMNIST's class names, read from the table of ASCII codes next to the images; None if there is no table.

    The names are keyed by label, since the labels of EMNIST Letters start at 1.

    Raises:
        DataError: the file is not a table of labels and ASCII codes.
    """
    prefix = images.name.partition("train")[0]
    path = images.parent / f"{prefix}mapping.txt"
    if not path.is_file():
        return None
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if not all(len(row) > 1 and all(cell.isdecimal() for cell in row) for row in rows):
        raise DataError(f"{path}: not a table of labels and ASCII codes. Copy or download it again")
    return {int(label): "".join(chr(int(code)) for code in codes) for label, *codes in rows}
