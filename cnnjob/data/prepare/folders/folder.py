"""Turn a folder of images into a dataset: its splits, classes, size, and what the user should know of it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cnnjob.data.prepare.cut import cut
from cnnjob.data.prepare.folders.label_file import layout_of_labels
from cnnjob.data.prepare.folders.layout import ANNOTATIONS, FolderLayout, find_layout
from cnnjob.data.prepare.folders.options import VAL, FolderOptions
from cnnjob.data.prepare.folders.reading import ImageFile, Splits, Survey, chunks, refuse_unusable, survey
from cnnjob.data.prepare.folders.tree import FolderTree, Listing
from cnnjob.data.prepare.writer import DatasetContents
from cnnjob.errors import DataError, JobError, plural
from cnnjob.files import read_bytes, sha256_of

MAX_PIXELS = 2_000_000  # of a prepared image; one in colour has 6 MB, and must fit in a chunk of HDF5
_MAX_SUGGESTED_SIDE = 224
MAX_LABEL_BYTES = 256 << 20
_SHOWN = 5
_SHOWN_COPIES = 3


def cut_test_images(images: Sequence[ImageFile], class_names: Sequence[str], fraction: float) -> Splits:
    """Cut a test split from images: a fraction of each class, at least one image, and copies of an image together.

    Args:
        images: all images, class by class.
        class_names: the names of the classes.
        fraction: the fraction, in (0, 1).

    Returns:
        The images of ``train`` and ``test``, in their order.

    Raises:
        DataError: a class has too few different images.
    """
    by_class: dict[int, list[ImageFile]] = defaultdict(list)
    for image in images:
        by_class[image.label].append(image)
    split_of: dict[bytes, str] = {}
    for label, members in sorted(by_class.items()):
        # A copy of an image of an earlier class stays in that one's split.
        fresh = [digest for digest in dict.fromkeys(image.digest for image in members) if digest not in split_of]
        n_test = max(0, min(max(1, round(len(fresh) * fraction)), len(fresh) - 1))
        # The label as seed gives each class a cut of its own.
        rows = cut(len(fresh), n_test, seed=label)
        split_of |= {fresh[row]: split for split in rows for row in rows[split]}
        if len({split_of[image.digest] for image in members}) < len(rows):
            raise DataError(
                f"{class_names[label]}: too few images to cut test images from "
                f"(found {len(members)}, {len({image.digest for image in members})} of them different). "
                "A class needs at least 2"
            )
    return {split: [image for image in images if split_of[image.digest] == split] for split in ("train", "test")}


def require_classes(splits: Splits, class_names: Sequence[str], where: str) -> None:
    """Refuse a split without images of a class.

    Raises:
        DataError: a class has no images.
    """
    for split, images in splits.items():
        counts = Counter(image.label for image in images)
        if empty := [name for label, name in enumerate(class_names) if not counts[label]]:
            more = f" and {len(empty) - _SHOWN:,} more" if len(empty) > _SHOWN else ""
            raise DataError(
                f"{where}: classes without {split} images (found {', '.join(empty[:_SHOWN])}{more}). "
                "Every class needs some in each split"
            )


def source_digest(found: Survey) -> str:
    """Return the SHA-256 over the digests and names of all images, and over the names of unusable ones."""
    digest = hashlib.sha256()
    lines = (f"{image.digest.hex()}  {image.name}\n" for images in found.splits.values() for image in images)
    for line in (*lines, *(f"unusable  {name}\n" for name in found.faults)):
        digest.update(line.encode(errors="surrogateescape"))  # a name need not be UTF-8: this restores its bytes
    return digest.hexdigest()


def image_shape(found: Survey, options: FolderOptions, where: str) -> tuple[int, int, int]:
    """Return the shape (H, W, C) of the images to be written.

    Args:
        found: the survey.
        options: their ``size`` decides.
        where: the folder, for messages.

    Raises:
        JobError: the images differ in size, or are too large, and no size is given.
    """
    # Below transparent pixels, a coloured background makes a grey image coloured.
    is_grey = found.is_grey and not (found.has_alpha and len({*options.background}) > 1)
    channels = 1 if is_grey else 3
    if options.size is not None:
        return (*options.size, channels)
    height, width = max(found.sizes, key=lambda size: found.sizes[size][0])
    scale = min(1.0, _MAX_SUGGESTED_SIDE / max(height, width))
    command = options.command(size=(max(1, round(height * scale)), max(1, round(width * scale))))
    if len(found.sizes) > 1:
        listed = sorted(found.sizes.items(), key=lambda item: -item[1][0])
        lines = [f"  {plural(count, 'image')} of {h}x{w}, as {name}" for (h, w), (count, name) in listed[:_SHOWN]]
        lines += [f"  and {len(listed) - _SHOWN:,} other sizes"] if len(listed) > _SHOWN else []
        raise JobError(
            f"{where}: the images differ in size (found, as height x width:\n" + "\n".join(lines) + ").\n"
            f"Scale them to one size:\n  {command}"
        )
    if height * width > MAX_PIXELS:
        raise JobError(
            f"{where}: the images are too large (found {height}x{width}; at most {MAX_PIXELS:,} pixels). "
            f"Scale them:\n  {command}"
        )
    return height, width, channels


def similar_classes(class_names: Sequence[str]) -> Iterator[str]:
    """Describe classes whose names differ only in capitals or in spaces around them.

    Yields:
        One line, if there are any.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        by_name[name.strip().casefold()].append(name)
    if alike := [" and ".join(map(repr, names)) for names in by_name.values() if len(names) > 1]:
        yield f"classes whose names differ only in capitals or spaces (found {'; '.join(alike[:_SHOWN])})"


def copies(splits: Splits, class_names: Sequence[str]) -> Iterator[str]:
    """Describe exact copies of an image that are in several splits, or have several labels.

    Yields:
        A line for each of the two cases that occurs.
    """
    members: dict[bytes, list[tuple[str, ImageFile]]] = {}
    first: dict[bytes, tuple[str, ImageFile]] = {}
    for split, images in splits.items():
        for image in images:
            if (before := first.setdefault(image.digest, (split, image))) != (split, image):
                members.setdefault(image.digest, [before]).append((split, image))
    crossing = [group for group in members.values() if len({split for split, _ in group}) > 1]
    ambiguous = [group for group in members.values() if len({image.label for _, image in group}) > 1]
    if crossing:
        shown = "; ".join(_two(group, [split for split, _ in group]) for group in crossing[:_SHOWN_COPIES])
        yield f"{plural(len(crossing), 'image')} found in more than one split, byte for byte: {shown}"
    if ambiguous:
        labels = [[class_names[image.label] for _, image in group] for group in ambiguous[:_SHOWN_COPIES]]
        shown = "; ".join(_two(group, named) for group, named in zip(ambiguous, labels, strict=False))
        yield f"{plural(len(ambiguous), 'image')} found with more than one label, byte for byte: {shown}"


def _two(group: Sequence[tuple[str, ImageFile]], kinds: Sequence[str]) -> str:
    """Name the first two copies that differ in their split or label."""
    other = next(row for row, kind in enumerate(kinds) if kind != kinds[0])
    return f"{group[0][1].name} ({kinds[0]}) = {group[other][1].name} ({kinds[other]})"


def left_out_lines(layout: FolderLayout, hidden: Sequence[str], where: str) -> Iterator[str]:
    """Describe what of a folder is not read, folder by folder.

    Yields:
        One line, if anything is left out.
    """
    used = {
        parent for lists in layout.splits.values() for names in lists for name in names for parent in _parents(name)
    }
    counts: Counter[str] = Counter()
    for path in (*layout.left_out, *hidden):
        # The highest folder that holds nothing that is read stands for all that is in it.
        highest = next((parent for parent in reversed(_parents(path)) if parent and parent not in used), None)
        counts[f"{highest}/" if highest else path] += 1
    if counts:
        shown = [name if count == 1 and not name.endswith("/") else f"{name} with {plural(count, 'file')}"
                 for name, count in sorted(counts.items())[:_SHOWN]]  # fmt: skip
        more = len(counts) - _SHOWN
        yield (
            f"{where}: left out: {', '.join(shown)}{f' and {more:,} more' if more > 0 else ''} "
            "(hidden, not an image, or in no class folder)"
        )


def _parents(path: str) -> list[str]:
    """Return the folders of a path, the nearest first; the last is the root, an empty string."""
    parents = []
    while path:
        path = path.rpartition("/")[0]
        parents.append(path)
    return parents


def read_folder(
    tree: FolderTree, listing: Listing, options: FolderOptions, *, progress: bool = False
) -> DatasetContents:
    """Survey the images of a folder.

    Args:
        tree: the folder.
        listing: its files.
        options: how they are to be read.
        progress: whether to show progress bars on stderr.

    Returns:
        The contents, with one digest over the digests and names of all images; pixels are read later.

    Raises:
        DataError: the folder is missing, or a class or an image is not usable.
        JobError: a size or a test fraction is missing, or does not apply to this folder.
    """
    sources: dict[str, str] = {}
    if options.labels:
        content = read_bytes(options.labels, MAX_LABEL_BYTES)
        layout = layout_of_labels(content, str(options.labels), listing.files, str(tree.root))
        sources["labels"] = sha256_of(content)
    else:
        layout = find_layout(listing, str(tree.root), _annotations(tree, listing))
    layout = _with_test_split(layout, options, tree)
    found = survey(tree, layout, options, progress=progress)
    if len(found.faults) > options.skip_damaged:
        refuse_unusable(found.faults, options)
    if "test" not in found.splits:
        train = found.splits.pop("train")
        found.splits = cut_test_images(train, layout.class_names, float(options.test_fraction or 0)) | found.splits
    require_classes(found.splits, layout.class_names, str(tree.root))
    shape = image_shape(found, options, str(tree.root))
    warnings = (
        *left_out_lines(layout, listing.left_out, str(tree.root)),
        *(f"{tree.root}: {line}" for line in similar_classes(layout.class_names)),
        *(f"{tree.root}: {line}" for line in copies(found.splits, layout.class_names)),
    )
    blocks = chunks(tree, found, shape, options, listing.files)
    return DatasetContents(
        layout.class_names,
        {"folder": source_digest(found)} | sources,
        blocks,
        warnings,
        layout.description,
        found.faults,
        tuple(tree.root / base for base in layout.bases),
        found.remarks,
        sum(map(len, found.splits.values())),
    )


def _annotations(tree: FolderTree, listing: Listing) -> dict[str, str] | None:
    """Read Tiny ImageNet's table of the validation images, if there is one: file and class, separated by a tab."""
    name = next((path for path in listing.left_out if path.rpartition("/")[2] == ANNOTATIONS), None)
    if name is None:
        return None
    lines = (tree.read(name)[0] or b"").decode(errors="replace").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _with_test_split(layout: FolderLayout, options: FolderOptions, tree: FolderTree) -> FolderLayout:
    """Check ``--test-fraction`` against the splits of a folder; make a test split of ``val`` if that was asked."""
    if "test" in layout.splits:
        if options.test_fraction is not None:
            raise JobError(
                f"{tree.root}: it has test images, and a test fraction is given (found {options.test_fraction}). "
                "Leave --test-fraction out"
            )
        return layout
    has_val = "val" in layout.splits
    if options.test_fraction == VAL:
        if not has_val:
            raise JobError(f"{tree.root}: no validation images to test on (found {layout.description}). "
                           "Give a fraction, such as --test-fraction 0.2")  # fmt: skip
        splits = {("test" if split == VAL else split): classes for split, classes in layout.splits.items()}
        return replace(layout, splits=splits, description=layout.description.replace("(val)", "(test)"))
    if options.test_fraction is None:
        of_val = f"\nTest on the validation images:\n  {options.command(test_fraction=VAL)}" if has_val else ""
        raise JobError(
            f"{tree.root}: no test images (found {layout.description}). Cut them from the training images:\n"
            f"  {options.command(test_fraction=0.2)}{of_val}"
        )
    return layout
