"""Make a dataset from streams of labelled images, regardless of the file format that they come from.

The images are read twice: first to compute the digest of each image, then to write them. Only one block at a time is in
memory.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnjob.data.dataset import BLOCK_BYTES, SPLITS
from cnnjob.data.images import fit_pixels
from cnnjob.data.prepare.folders.folder import MAX_PIXELS, copies, cut_test_images, require_classes
from cnnjob.data.prepare.folders.layout import require_several_classes
from cnnjob.data.prepare.folders.options import VAL, FolderOptions
from cnnjob.data.prepare.folders.reading import ImageFile, Splits
from cnnjob.data.prepare.writer import Chunk, DatasetContents
from cnnjob.errors import DataError, JobError
from cnnjob.files import open_regular

_CHANNELS = (1, 3)
_MAX_CLASSES = 1 << 16
_SHOWN = 5


@dataclass(frozen=True)
class LabelledStream:
    """The images of one split with their labels; the images can be read any number of times.

    Attributes:
        where: location of the images, for messages.
        shape: shape (N, H, W, C) of the whole image array.
        blocks: function that starts reading from the beginning and yields the images in order, in blocks (n, H, W, C)
            uint8.
        labels: (N,) int64.
    """

    where: str
    shape: tuple[int, int, int, int]
    blocks: Callable[[], Iterator[np.ndarray]]
    labels: np.ndarray


@dataclass(frozen=True)
class ArraySet:
    """Labelled images stored as arrays.

    Attributes:
        description: detected type of the source, in one line.
        splits: the images of each split.
        files: the files that were read.
        class_names: class name of each label; defaults to the label itself.
        left_out: names of files that were not read.
        sha256: SHA-256 of each array that does not come from a file, by name.
    """

    description: str
    splits: Mapping[str, LabelledStream]
    files: Sequence[Path] = ()
    class_names: Mapping[int, str] | None = None
    left_out: Sequence[str] = ()
    sha256: Mapping[str, str] | None = None


def rows_per_block(row_bytes: int) -> int:
    """Return how many images to read at a time, given the size of one image in bytes."""
    return max(1, BLOCK_BYTES // row_bytes)


def read_array_set(found: ArraySet, options: FolderOptions) -> DatasetContents:
    """Check images stored as arrays and return them as the contents of a dataset.

    Args:
        found: the images.
        options: test fraction and size, as for a folder of images.

    Returns:
        The contents; the images are read again when they are written.

    Raises:
        DataError: a file is damaged, or images and labels do not match.
        JobError: the test fraction is missing, or an option does not apply.
    """
    if options.labels or options.skip_damaged:
        raise JobError(f"{options.source}: --labels and --skip-damaged do not apply to arrays (found "
                       f"{' '.join(options.as_typed())}). Omit them")  # fmt: skip
    streams = _with_test_split(found, options)
    values, names = _classes(found, streams)
    require_several_classes(names, options.source, "Add images of other classes")
    rows = {split: _survey(stream, values, split) for split, stream in streams.items()}
    splits: Splits = dict(rows)
    if "test" not in splits:
        splits = cut_test_images(rows["train"], names, float(options.test_fraction or 0), options.source) | {
            split: images for split, images in rows.items() if split != "train"
        }
    require_classes(splits, names, options.source)
    warnings = [f"{options.source}: {line}" for line in copies(splits, names)]
    if found.left_out:
        more = f" and {len(found.left_out) - _SHOWN:,} more" if len(found.left_out) > _SHOWN else ""
        warnings.insert(0, f"{options.source}: left out: {', '.join(found.left_out[:_SHOWN])}{more}")
    digests = dict(found.sha256 or {}) | {path.name: _digest(path) for path in found.files}
    blocks = _chunks(streams, rows, splits, options)
    return DatasetContents(names, digests, blocks, tuple(warnings), f"{found.description}, {len(names)} classes")


def _with_test_split(found: ArraySet, options: FolderOptions) -> dict[str, LabelledStream]:
    streams = {split: found.splits[split] for split in SPLITS if split in found.splits}
    if "train" not in streams:
        raise DataError(
            f"{options.source}: no training images (found {', '.join(streams) or 'none'}). Add a split named train"
        )
    fraction = options.test_fraction
    if "test" in streams and fraction is not None:
        raise JobError(f"--test-fraction {fraction}: {options.source} already has test images. Omit the option")
    if "test" not in streams and fraction is None:
        how = ", with test_fraction=0.2" if found.sha256 else f":\n  {options.command(test_fraction=0.2)}"
        raise JobError(
            f"{options.source}: no test images (found {found.description}). Split off some of the training images{how}"
        )
    if fraction == VAL:
        if VAL not in streams:
            raise JobError(
                f"--test-fraction {VAL}: {options.source} has no validation images. Specify a fraction, such as 0.2"
            )
        streams["test"] = streams.pop(VAL)
    shapes = {split: stream.shape[1:] for split, stream in streams.items()}
    if len({channels for _, _, channels in shapes.values()}) > 1:
        raise DataError(f"{options.source}: the splits differ in their number of channels (found {shapes}, as height, "
                        "width, channels). Convert them to the same number")  # fmt: skip
    if options.size is None and len(set(shapes.values())) > 1:
        raise DataError(f"{options.source}: the splits have images of different shapes (found {shapes}). "
                        "Specify --size HxW")  # fmt: skip
    for stream in streams.values():
        height, width, channels = stream.shape[1:]
        if channels not in _CHANNELS or not 0 < height * width <= MAX_PIXELS:
            raise DataError(
                f"{stream.where}: the images must have 1 or 3 channels and 1 to {MAX_PIXELS:,} pixels "
                f"(found {stream.shape[1:]}, as height, width, channels). Convert or scale them"
            )
        if stream.labels.shape != (stream.shape[0],):
            raise DataError(
                f"{stream.where}: the numbers of labels and images differ (found {stream.labels.size:,} labels "
                f"and {stream.shape[0]:,} images). Copy or download both again"
            )
    return streams


def _classes(found: ArraySet, streams: Mapping[str, LabelledStream]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels of all classes in ascending order, and the name of each class."""
    values = np.unique(np.concatenate([stream.labels for stream in streams.values()]))
    if len(values) > _MAX_CLASSES:
        where = next(iter(streams.values())).where
        raise DataError(f"{where}: too many classes (found {len(values):,} distinct labels). Check the labels")
    if found.class_names:
        if unknown := sorted(set(values.tolist()) - found.class_names.keys()):
            raise DataError(f"{next(iter(streams.values())).where}: some labels have no class name (found "
                            f"{unknown[:5]}). Copy or download the files again")  # fmt: skip
        values = np.array(sorted(found.class_names))
    names = found.class_names or {}
    return values, tuple(names.get(value, str(value)) for value in values.tolist())


def _survey(stream: LabelledStream, values: np.ndarray, split: str) -> list[ImageFile]:
    """Return each image of a split with its label and the digest of its pixels."""
    labels = np.searchsorted(values, stream.labels).tolist()
    digests = [hashlib.sha256(image).digest() for block in stream.blocks() for image in np.ascontiguousarray(block)]
    if len(digests) != len(labels):
        raise DataError(f"{stream.where}: ends too early (found {len(digests):,} of {len(labels):,} images)")
    pairs = enumerate(zip(digests, labels, strict=True))
    return [ImageFile(f"{split}[{row}]", label, digest) for row, (digest, label) in pairs]


def _chunks(
    streams: Mapping[str, LabelledStream], rows: Mapping[str, list[ImageFile]], splits: Splits, options: FolderOptions
) -> Iterator[Chunk]:
    """Read all images again and yield them in chunks, each belonging to one split."""
    split_of = {image.name: split for split, images in splits.items() for image in images}
    counts = {split: len(images) for split, images in splits.items()}
    written: Counter[str] = Counter()
    for source, stream in streams.items():
        start = 0
        for block in stream.blocks():
            images = rows[source][start : start + len(block)]
            digests = [hashlib.sha256(image).digest() for image in np.ascontiguousarray(block)]
            if digests != [image.digest for image in images]:
                raise DataError(f"{stream.where}: changed while being read. Leave it unchanged and prepare it again")
            shape = (*options.size, block.shape[3]) if options.size else None
            fitted = block
            if shape:
                fitted = np.stack([fit_pixels(image, shape, options.fit, options.background) for image in block])
            for split in dict.fromkeys(split_of[image.name] for image in images):
                chosen = np.array([split_of[image.name] == split for image in images])
                labels = np.array([image.label for image in images])[chosen]
                yield Chunk(stream.where, split, written[split], fitted[chosen], labels, counts[split])
                written[split] += int(chosen.sum())
            start += len(block)


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
