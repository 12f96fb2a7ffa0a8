"""Read image files in several processes: survey every file, then read the pixels in dataset order.

The survey reads each file to determine its digest, size and colours. The second pass decodes each image and checks that
nothing has changed: a file that has been changed, added or removed since the survey is an error. Images with few pixels
are already decoded during the survey, because opening such a file takes longer than decoding it.
"""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn, TypeVar

import numpy as np

from cnnjob.data.dataset import BLOCK_BYTES
from cnnjob.data.image_limits import decoding_limits
from cnnjob.data.images import Header, Picture, fit_pixels, header, inspect_image, read_picture
from cnnjob.data.prepare.folders.layout import FolderLayout
from cnnjob.data.prepare.folders.options import FolderOptions
from cnnjob.data.prepare.folders.parallel import SharedMemory, worker_processes
from cnnjob.data.prepare.folders.tree import FolderTree, Stamp
from cnnjob.data.prepare.writer import Chunk
from cnnjob.errors import DataError, plural

_JPEG = b"\xff\xd8\xff"
_FEW_PIXELS = 64 * 64
"""Maximum height times width of an image that is decoded during the survey."""
_N_COLOURS = 3
_MAX_KEPT_BYTES = 128 << 20
"""Maximum total size of the pixels that the survey keeps in memory, in bytes."""
_SURVEY_TASK, _DECODE_TASK = 128, 16
"""Number of files per task, in the survey and in the second pass."""
_CHANGED = "changed while the folder was being read"
_MAX_LISTED = 1000
"""Maximum number of unusable files that an error lists."""
_FILES_PER_PROCESS = 32
"""Minimum number of files per process; with fewer, starting another process is not worthwhile."""


@dataclass(slots=True)
class ImageFile:
    """An image file with its label.

    Attributes:
        name: path of the file, relative to the root.
        label: index of the image's class.
        digest: SHA-256 of the file, 32 bytes.
        stamp: device, inode, size and time of the last inode change.
        pixels: the decoded image, uint8 (H, W, C), if it was decoded during the survey.
        remarks: remarks for the user on how the pixels were read.
    """

    name: str
    label: int
    digest: bytes = b""
    stamp: Stamp = (0, 0, 0, 0)
    pixels: np.ndarray | None = None
    remarks: tuple[str, ...] = ()


Splits = dict[str, list[ImageFile]]


@dataclass
class Survey:
    """The results of the survey, the first pass over the files.

    Attributes:
        splits: the usable images of each split, in dataset order.
        sizes: for each image size (H, W), the number of images and the name of the first one.
        is_grey: whether all images are greyscale.
        faults: the reason why each unusable file was rejected, by file name.
        has_alpha: whether any image can store transparency.
        remarks: remarks for the user on how images were read, each with the number of images to which it applies;
            complete after the second pass.
    """

    splits: Splits = field(default_factory=dict)
    sizes: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    is_grey: bool = True
    faults: dict[str, str] = field(default_factory=dict)
    has_alpha: bool = False
    remarks: Counter[str] = field(default_factory=Counter)

    def add(self, found: Header, name: str) -> None:
        """Record the size and colours of an image."""
        size = (found.height, found.width)
        count, first = self.sizes.get(size, (0, name))
        self.sizes[size] = (count + 1, first)
        self.has_alpha = self.has_alpha or found.has_alpha
        self.is_grey = self.is_grey and found.is_grey  # a single colour image makes all of them RGB


_T = TypeVar("_T")
_Shape = tuple[int, ...]


_Examined = tuple[bytes, Stamp, Header, tuple[str, ...], _Shape | None]
"""Survey result for a usable file: digest, stamp, header, remarks, and the shape (H, W, C) of its decoded pixels."""
_Read = tuple[np.ndarray, tuple[str, ...]]
"""Pixels of an image, uint8 (H, W, C), and remarks for the user on how they were read."""


def survey(tree: FolderTree, layout: FolderLayout, options: FolderOptions, *, progress: bool = False) -> Survey:
    """Determine the digest and header of every file in a layout.

    Args:
        tree: the files.
        layout: splits and classes of the files.
        options: how to read the images. If files may be skipped, every image is decoded to find all unusable files,
            because their number must be known before the arrays are created.
        progress: whether to show a progress bar on stderr.

    Returns:
        The usable images, and the reason why each unusable file was rejected.
    """
    result = Survey()
    files = [
        (split, label, name)
        for split, classes in layout.splits.items()
        for label, names in enumerate(classes)
        for name in names
    ]
    tasks = [*_tasks(files, _SURVEY_TASK)]
    memory = SharedMemory(min(_MAX_KEPT_BYTES, len(files) * _FEW_PIXELS * _N_COLOURS))
    result.splits = {split: [] for split in layout.splits}
    with (
        worker_processes(_n_processes(len(files)), (tree, memory)) as work,
        _survey_bar(len(files), shown=progress) as advance,
    ):
        results = work(_examine_files, (([name for _, _, name in task], options) for task in tasks))
        for task, (examined, stored) in zip(tasks, results, strict=True):
            rows = {shape: iter(memory.at(start, (count, *shape))) for shape, (start, count) in stored.items()}
            for (split, label, name), found in zip(task, examined, strict=True):
                if isinstance(found, str):
                    result.faults[name] = found
                    continue
                digest, stamp, head, remarks, shape = found
                image = ImageFile(name, label, digest, stamp)
                if shape in rows:
                    image.pixels, image.remarks = next(rows[shape]), remarks
                result.splits[split].append(image)
                result.add(head, name)
            advance(len(task))
    return result


def _survey_bar(n_files: int, *, shown: bool) -> AbstractContextManager[Callable[[int], object]]:
    if not shown:
        return nullcontext(lambda _count: None)
    from cnnjob.data.prepare.progress import image_bar  # noqa: PLC0415

    return image_bar("survey", n_files)


def _tasks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _n_processes(n_files: int) -> int:
    return min(len(os.sched_getaffinity(0)), max(1, n_files // _FILES_PER_PROCESS))


def _examine_files(
    state: tuple[FolderTree, SharedMemory], task: tuple[Iterable[str], FolderOptions]
) -> tuple[list[_Examined | str], dict[_Shape, tuple[int, int]]]:
    """Examine files in a worker process.

    Returns:
        For each file, the survey result, or a string that describes why the file is unusable; and for each shape
        (H, W, C), the position of its decoded images in the shared memory and their number. The images are in the order
        of the files; a shape for which there was no room is missing.
    """
    (tree, memory), (names, options) = state, task
    results: list[_Examined | str] = []
    pixels: dict[_Shape, list[np.ndarray]] = defaultdict(list)
    headers: dict[Header, Header] = {}
    with decoding_limits():
        for name in names:
            try:
                digest, stamp, head, picture = _examine_file(tree, name, options)
            except DataError as error:
                results.append(str(error))
                continue
            head = headers.setdefault(head, head)  # the same object is pickled only once
            if picture is None:
                results.append((digest, stamp, head, (), None))
            else:
                results.append((digest, stamp, head, tuple(picture.remarks()), picture.pixels.shape))
                pixels[picture.pixels.shape].append(picture.pixels)
    starts = {shape: memory.store(some) for shape, some in pixels.items()}
    return results, {shape: (start, len(pixels[shape])) for shape, start in starts.items() if start is not None}


def _examine_file(tree: FolderTree, name: str, options: FolderOptions) -> tuple[bytes, Stamp, Header, Picture | None]:
    path = f"{tree.root}/{name}"
    content, stamp = tree.read(name)
    if content is None:
        head, picture = header(path), None
        digest = tree.digest(name)
    else:
        digest = hashlib.sha256(content).digest()
        head, picture = inspect_image(path, content, _FEW_PIXELS, options.background)
    if picture and options.size not in {None, picture.pixels.shape[:2]} and content and content.startswith(_JPEG):
        picture = None  # like `predict`, the second pass decodes it at a fraction of its full size
    if options.skip_damaged and picture is None:
        read_picture(path, None, content=content)
    return digest, stamp, head, picture


def refuse_unusable(faults: Mapping[str, str], options: FolderOptions, *, can_skip: bool = True) -> NoReturn:
    """Raise an error that lists all unusable files and the command to skip them.

    Args:
        faults: the message for each unusable file, by file name.
        options: options from which to build the command.
        can_skip: whether any images are left if these files are skipped.

    Raises:
        DataError: always.
    """
    lines = [f"  {message}" for message in islice(faults.values(), _MAX_LISTED)]
    lines += [f"  and {len(faults) - _MAX_LISTED:,} more"] if len(faults) > _MAX_LISTED else []
    listed, them = "\n".join(lines), "it" if len(faults) == 1 else "them"
    advice = f"Repair or remove {them}"
    if can_skip:
        advice += f", or skip {them}:\n  {options.command(skip_damaged=len(faults))}"
    raise DataError(f"{options.source}: {plural(len(faults), 'file')} cannot be used (found:\n{listed}).\n{advice}")


def chunks(
    tree: FolderTree, found: Survey, shape: tuple[int, int, int], options: FolderOptions, listed: Sequence[str]
) -> Iterator[Chunk]:
    """Yield the pixels of all images, in dataset order.

    Args:
        tree: the files.
        found: the survey; remarks on images are added to it.
        shape: (H, W, C) to which the images are fitted.
        options: how to fit the images.
        listed: names of all files that the folder contained before the survey.

    Yields:
        Chunks of consecutive images of one split.

    Raises:
        DataError: images cannot be decoded, or a file was changed, added or removed since the survey.
    """
    rows = max(1, BLOCK_BYTES // math.prod(shape))
    faults: dict[str, str] = {}
    n_unread = sum(image.pixels is None for images in found.splits.values() for image in images)
    with worker_processes(_n_processes(n_unread), tree) as work:
        unread = ([image for image in images if image.pixels is None] for images in found.splits.values())
        tasks = ((some, shape, options) for images in unread for some in _tasks(images, _DECODE_TASK))
        decoded = (image for some in work(_read_images, tasks) for image in some)
        for split, images in found.splits.items():
            for start in range(0, len(images), rows):
                some = images[start : start + rows]
                pixels = np.zeros((len(some), *shape), np.uint8)  # (N, H, W, C)
                for row, image in enumerate(some):
                    image_read = next(decoded) if image.pixels is None else _fitted(tree, image, shape, options)
                    if isinstance(image_read, str):
                        faults[image.name] = image_read  # reported after the last image, together with all other faults
                        continue
                    pixels[row], remarks = image_read
                    for remark in remarks:
                        found.remarks[remark] += 1
                labels = np.array([image.label for image in some])
                yield Chunk(str(tree.root), split, start, pixels, labels, len(images))
    if added_or_removed := sorted(set(listed) ^ set(tree.list().files)):
        raise DataError(
            f"{tree.path(added_or_removed[0])}: added or removed while the folder was being read "
            f"(found {plural(len(added_or_removed), 'such file')}). Prepare the folder again, and do not change it in "
            "the meantime"
        )
    if faults:
        # A file that has changed is not damaged.
        has_changed = any(_CHANGED in fault for fault in faults.values())
        refuse_unusable(found.faults | faults, options, can_skip=not has_changed)


def _fitted(tree: FolderTree, image: ImageFile, shape: tuple[int, int, int], options: FolderOptions) -> _Read | str:
    """Return an image that was decoded during the survey, fitted to a shape, or a string that describes its fault."""
    if tree.stamp(image.name) != image.stamp or image.pixels is None:
        try:
            return _read_image(tree, image, shape, options)
        except DataError as error:
            return str(error)
    return fit_pixels(image.pixels, shape, options.fit, options.background), image.remarks


def _read_images(
    tree: FolderTree, task: tuple[Sequence[ImageFile], tuple[int, int, int], FolderOptions]
) -> list[_Read | str]:
    """Read images in a worker process; for an unusable file, the result is a string that describes the fault."""
    images, shape, options = task
    results: list[_Read | str] = []
    with decoding_limits():
        for image in images:
            try:
                results.append(_read_image(tree, image, shape, options))
            except DataError as error:
                results.append(str(error))
    return results


def _read_image(tree: FolderTree, image: ImageFile, shape: tuple[int, int, int], options: FolderOptions) -> _Read:
    """Read the pixels of one image in the second pass, after checking that the file has not changed since the survey.

    Raises:
        DataError: the file was changed or removed, or cannot be decoded.
    """
    path = tree.path(image.name)
    content, stamp = tree.read(image.name)
    if stamp != image.stamp:
        # Adding a hard link or changing the mode also changes the stamp, so compare the digests.
        digest = tree.digest(image.name) if content is None else hashlib.sha256(content).digest()
        if digest != image.digest:
            raise DataError(f"{path}: {_CHANGED}. Prepare the folder again, and do not change it in the meantime")
    picture = read_picture(path, shape, fit=options.fit, background=options.background, content=content)
    return picture.pixels, tuple(picture.remarks())
