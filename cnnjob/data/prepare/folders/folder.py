"""Turn a folder of images into a dataset: determine its splits, classes and image size, and collect warnings."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cnnjob.data.prepare.cut import cut
from cnnjob.data.prepare.folders.label_file import layout_of_labels
from cnnjob.data.prepare.folders.layout import ANNOTATIONS, FolderLayout, find_layout, require_several_classes
from cnnjob.data.prepare.folders.options import VAL, FolderOptions
from cnnjob.data.prepare.folders.reading import ImageFile, Splits, Survey, chunks, refuse_unusable, survey
from cnnjob.data.prepare.folders.tree import FolderTree, Listing, is_named_as_image
from cnnjob.data.prepare.writer import DatasetContents
from cnnjob.errors import DataError, JobError, plural
from cnnjob.files import read_bytes, sha256_of

MAX_PIXELS = 2_000_000  # per prepared image; a colour image of this size has 6 MB and must fit into one HDF5 chunk
_MAX_SUGGESTED_SIDE = 224
MAX_LABEL_BYTES = 256 << 20
_TABLES = (".csv", ".tsv")
_SHOWN = 5
_SHOWN_COPIES = 3


def cut_test_images(images: Sequence[ImageFile], class_names: Sequence[str], fraction: float, where: str) -> Splits:
    """Split off a fraction of each class, but at least one image, for testing; copies of an image stay together.

    Args:
        images: all images, class by class.
        class_names: the names of the classes.
        fraction: fraction of each class to use for testing, in (0, 1).
        where: the source, for messages.

    Returns:
        The images of the ``train`` and ``test`` splits, in their original order.

    Raises:
        DataError: a class has too few distinct images.
    """
    by_class: dict[int, list[ImageFile]] = defaultdict(list)
    for image in images:
        by_class[image.label].append(image)
    split_of: dict[bytes, str] = {}
    first_name: dict[bytes, str] = {}
    for label, members in sorted(by_class.items()):
        # A copy of an image from an earlier class stays in the split of that image.
        fresh = [digest for digest in dict.fromkeys(image.digest for image in members) if digest not in split_of]
        n_test = max(0, min(max(1, round(len(fresh) * fraction)), len(fresh) - 1))
        # With the label as seed, each class is split differently.
        rows = cut(len(fresh), n_test, seed=label)
        split_of |= {fresh[row]: split for split in rows for row in rows[split]}
        if len({split_of[image.digest] for image in members}) < len(rows):
            elsewhere = [image for image in members if image.digest in first_name]
            copied = ""
            if elsewhere:
                copied = f" and {len(elsewhere)} of them also in other classes, e.g. {elsewhere[0].name} = "
                copied += first_name[elsewhere[0].digest]
            raise DataError(
                f"{where}: class {class_names[label]} has too few images to split off test images (found "
                f"{len(members)}, {len({image.digest for image in members})} of them distinct{copied}). "
                "Every class needs at least 2 distinct images"
            )
        first_name = {image.digest: image.name for image in members} | first_name
    return {split: [image for image in images if split_of[image.digest] == split] for split in ("train", "test")}


def require_classes(splits: Splits, class_names: Sequence[str], where: str) -> None:
    """Require every split to have images of every class.

    Raises:
        DataError: a class has no images in one of the splits.
    """
    for split, images in splits.items():
        counts = Counter(image.label for image in images)
        if empty := [name for label, name in enumerate(class_names) if not counts[label]]:
            more = f" and {len(empty) - _SHOWN:,} more" if len(empty) > _SHOWN else ""
            raise DataError(
                f"{where}: no {split} images in some classes ({', '.join(empty[:_SHOWN])}{more}). "
                "Every class needs images in each split"
            )


def source_digest(found: Survey) -> str:
    """Return a SHA-256 that covers the digest and name of each usable image and the name of each unusable file."""
    digest = hashlib.sha256()
    lines = (f"{image.digest.hex()}  {image.name}\n" for images in found.splits.values() for image in images)
    for line in (*lines, *(f"unusable  {name}\n" for name in found.faults)):
        digest.update(line.encode(errors="surrogateescape"))  # restores the bytes of a name that is not UTF-8
    return digest.hexdigest()


def image_shape(found: Survey, options: FolderOptions, where: str) -> tuple[int, int, int]:
    """Return the shape (H, W, C) of the images to be written.

    Args:
        found: the survey.
        options: options of the source; ``size`` takes precedence over the size of the images.
        where: the folder, for messages.

    Raises:
        JobError: the images differ in size, or are too large, and no size is given.
    """
    # A coloured background behind transparent pixels turns a greyscale image into a colour image.
    is_grey = found.is_grey and not (found.has_alpha and len({*options.background}) > 1)
    channels = 1 if is_grey else 3
    if options.size is not None:
        return (*options.size, channels)
    height, width = max(found.sizes, key=lambda size: found.sizes[size][0])
    scale = min(1.0, _MAX_SUGGESTED_SIDE / max(height, width))
    command = options.command(size=(max(1, round(height * scale)), max(1, round(width * scale))))
    if len(found.sizes) > 1:
        listed = sorted(found.sizes.items(), key=lambda item: -item[1][0])
        lines = [f"  {plural(count, 'image')} of {h}x{w}, e.g. {name}" for (h, w), (count, name) in listed[:_SHOWN]]
        lines += [f"  and {len(listed) - _SHOWN:,} other sizes"] if len(listed) > _SHOWN else []
        raise JobError(
            f"{where}: the images differ in size (found, as height x width:\n" + "\n".join(lines) + ").\n"
            f"Scale them to the same size:\n  {command}"
        )
    if height * width > MAX_PIXELS:
        raise JobError(
            f"{where}: the images are too large (found {height}x{width}; the maximum is {MAX_PIXELS:,} pixels). "
            f"Scale them:\n  {command}"
        )
    return height, width, channels


def merged_subfolders(layout: FolderLayout) -> Iterator[str]:
    """Yield a description of subfolders whose images belong to the same class as the images in a folder above them.

    Yields:
        One line, if there are any such subfolders.
    """
    folders = {name.rpartition("/")[0] for classes in layout.splits.values() for names in classes for name in names}
    inner = sorted(folder for folder in folders if any(parent in folders for parent in _parents(folder) if parent))
    if inner and layout.bases:
        more = f" and {len(inner) - _SHOWN:,} more" if len(inner) > _SHOWN else ""
        yield f"images in subfolders belong to the class of their folder (found {', '.join(inner[:_SHOWN])}{more})"


def similar_classes(class_names: Sequence[str]) -> Iterator[str]:
    """Yield a description of classes whose names differ only in case, surrounding spaces or leading zeros.

    Yields:
        One line, if there are any such classes.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        plain = name.strip().casefold()
        by_name[plain.lstrip("0") if plain.isascii() and plain.isdigit() else plain].append(name)
    if alike := [" and ".join(map(repr, names)) for names in by_name.values() if len(names) > 1]:
        yield f"some class names differ only in case, spaces or leading zeros (found {'; '.join(alike[:_SHOWN])})"


def copies(splits: Splits, class_names: Sequence[str]) -> Iterator[str]:
    """Yield descriptions of images that have exact copies in another split or with another label.

    Yields:
        At most one line for each of the two cases.
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
        shown = "; ".join(_describe_pair(group, [split for split, _ in group]) for group in crossing[:_SHOWN_COPIES])
        yield f"exact copies of {plural(len(crossing), 'image')} found in more than one split: {shown}"
    if ambiguous:
        labels = [[class_names[image.label] for _, image in group] for group in ambiguous[:_SHOWN_COPIES]]
        shown = "; ".join(_describe_pair(group, named) for group, named in zip(ambiguous, labels, strict=False))
        yield f"exact copies of {plural(len(ambiguous), 'image')} found with more than one label: {shown}"


def _describe_pair(group: Sequence[tuple[str, ImageFile]], kinds: Sequence[str]) -> str:
    """Return a description of two copies of an image: the first, and the next one in another split or class."""
    other = next(row for row, kind in enumerate(kinds) if kind != kinds[0])
    return f"{group[0][1].name} ({kinds[0]}) = {group[other][1].name} ({kinds[other]})"


def left_out_lines(layout: FolderLayout, hidden: Sequence[str], where: str, *, by_table: bool) -> Iterator[str]:
    """Yield a description of the files in a folder that are not read, grouped by subfolder.

    Yields:
        One line, if anything is left out.
    """
    if counts := _left_out(layout, hidden):
        shown = [name if count == 1 and not name.endswith("/") else f"{name} with {plural(count, 'file')}"
                 for name, count in sorted(counts.items())[:_SHOWN]]  # fmt: skip
        more = len(counts) - _SHOWN
        yield (
            f"{where}: left out: {', '.join(shown)}{f' and {more:,} more' if more > 0 else ''} "
            f"(hidden, not images, or not in {'the table' if by_table else 'a class folder'})"
        )


def _left_out(layout: FolderLayout, hidden: Sequence[str]) -> Counter[str]:
    """Return the files that are not read and the folders in which nothing is read, each with its number of files."""
    used = {
        parent for lists in layout.splits.values() for names in lists for name in names for parent in _parents(name)
    }
    counts: Counter[str] = Counter()
    for path in (*layout.left_out, *hidden):
        # Files are counted under the topmost folder in which nothing is read.
        highest = next((parent for parent in reversed(_parents(path)) if parent and parent not in used), None)
        counts[f"{highest}/" if highest else path] += 1
    return counts


def _parents(path: str) -> list[str]:
    """Return the parent folders of a path, nearest first; the last is the root, an empty string."""
    parents = []
    while path:
        path = path.rpartition("/")[0]
        parents.append(path)
    return parents


def read_folder(
    tree: FolderTree, listing: Listing, options: FolderOptions, *, progress: bool = False
) -> DatasetContents:
    """Survey the images in a folder and return them as the contents of a dataset.

    Args:
        tree: the folder.
        listing: files in the folder.
        options: how to read the images.
        progress: whether to show progress bars on stderr.

    Returns:
        The contents of the dataset; the pixels are read later. A single digest covers the digests and names of all
        images.

    Raises:
        DataError: the folder is missing, or a class or an image is not usable.
        JobError: a size or a test fraction is missing, or does not apply to this folder.
    """
    sources: dict[str, str] = {}
    if options.labels:
        content = read_bytes(options.labels, MAX_LABEL_BYTES)
        layout = layout_of_labels(content, str(options.labels), listing.files, str(tree.root))
        sources["labels"] = sha256_of(content)
        require_several_classes(layout.class_names, str(options.labels), "Add images of other classes")
    else:
        layout = _layout_of_folders(tree, listing, options)
    layout = _with_test_split(layout, options, tree)
    found = survey(tree, layout, options, progress=progress)
    if len(found.faults) > options.skip_damaged:
        refuse_unusable(found.faults, options, can_skip=any(found.splits.values()))
    if "test" not in found.splits:
        train = found.splits.pop("train")
        fraction = float(options.test_fraction or 0)
        found.splits = cut_test_images(train, layout.class_names, fraction, str(tree.root)) | found.splits
    require_classes(found.splits, layout.class_names, str(tree.root))
    shape = image_shape(found, options, str(tree.root))
    warnings = (
        *left_out_lines(layout, listing.left_out, str(tree.root), by_table=bool(options.labels)),
        *(f"{tree.root}: {line}" for line in listing.remarks),
        *(f"{options.labels}: {line}" for line in layout.remarks),
        *(f"{tree.root}: {line}" for line in merged_subfolders(layout)),
        *(f"{tree.root}: {line}" for line in similar_classes(layout.class_names)),
        *(f"{tree.root}: {line}" for line in copies(found.splits, layout.class_names)),
    )
    listing.stamps |= {image.name: image.stamp for images in found.splits.values() for image in images}
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
        listing,
    )


def _layout_of_folders(tree: FolderTree, listing: Listing, options: FolderOptions) -> FolderLayout:
    """Return the layout of a folder.

    Raises:
        DataError: the layout is not clear. If the folder contains a table, the message suggests it for the labels.
    """
    try:
        layout = find_layout(listing, str(tree.root), _annotations(tree, listing))
        advice = "Specify the folder that contains the class folders, or a table of labels with --labels FILE"
        require_several_classes(layout.class_names, str(tree.root), advice)
    except DataError as error:
        tables = [path for path in listing.left_out if path.lower().endswith(_TABLES)]
        if not tables or not tree.root.is_dir():
            raise
        table = next((path for path in tables if "train" in path.lower()), tables[0])
        command = options.command(labels=tree.root / table)
        raise DataError(f"{error}.\nIf {table} contains the labels:\n  {command}") from error
    return layout


def _annotations(tree: FolderTree, listing: Listing) -> dict[str, str] | None:
    """Return the classes of Tiny ImageNet's validation images by file name; None if the folder has no annotations."""
    name = next((path for path in listing.left_out if path.rpartition("/")[2] == ANNOTATIONS), None)
    if name is None:
        return None
    lines = (tree.read(name)[0] or b"").decode(errors="replace").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _hint_at_left_out(layout: FolderLayout) -> str:
    """Return advice on how to use images in folders from which nothing is read; empty if there are no such images."""
    images = [path for path in layout.left_out if is_named_as_image(path)]
    folders = [name for name in _left_out(replace(layout, left_out=tuple(images)), ()) if name.endswith("/")]
    if not folders:
        return ""
    # The images of a split are in class folders, of which there are at least two.
    parents = {path.rpartition("/")[0] for path in images}
    labelled = [name for name in folders if sum(parent.startswith(name) for parent in parents) > 1]
    if labelled:
        return (
            f"\nNothing is read from {', '.join(labelled[:_SHOWN])}. If this folder contains the test images, rename "
            "it to test"
        )
    return (
        f"\nThe images in {', '.join(folders[:_SHOWN])} have no labels, because they are not in class folders. To use "
        "them, specify a table of labels with a column split, with --labels FILE"
    )


def _with_test_split(layout: FolderLayout, options: FolderOptions, tree: FolderTree) -> FolderLayout:
    """Check ``--test-fraction`` against the folder's splits; turn ``val`` into the test split if requested."""
    if "test" in layout.splits:
        if options.test_fraction is not None:
            raise JobError(
                f"--test-fraction {options.test_fraction}: {tree.root} already has test images. Omit the option"
            )
        return layout
    has_val = "val" in layout.splits
    if options.test_fraction == VAL:
        if not has_val:
            raise JobError(f"--test-fraction {VAL}: {tree.root} has no validation images (found {layout.description}). "
                           "Specify a fraction, such as 0.2")  # fmt: skip
        splits = {("test" if split == VAL else split): classes for split, classes in layout.splits.items()}
        return replace(layout, splits=splits, description=layout.description.replace("(val)", "(test)"))
    if options.test_fraction is None:
        hints = f"\nOr test on the validation images:\n  {options.command(test_fraction=VAL)}" if has_val else ""
        hints += _hint_at_left_out(layout)
        raise JobError(
            f"{tree.root}: no test images (found {layout.description}). Split off some of the training images:\n"
            f"  {options.command(test_fraction=0.2)}{hints}"
        )
    return layout
