"""Find the classes and splits of a dataset from folder names, using pure functions of a list of paths.

Splits may have any common name (``train``, ``Training``, ``seg_train``, ``val2017``), and the folders inside them are
the classes. If a folder contains nothing but one subfolder, and the subfolder contains the splits or classes, the
search continues in the subfolder. An ambiguous tree is refused, since a wrong guess would silently produce wrong
labels.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cnnjob.data.dataset import SPLITS
from cnnjob.data.prepare.folders.tree import Listing
from cnnjob.errors import DataError, plural

_SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "traindata", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "valset", "valdata"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "testset", "testdata"), "test"),
}
_WORD = re.compile(r"[A-Z]*[a-z]+|[A-Z]+")
_IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "jpg", "jpeg", "png", "photos", "pictures"})
"""Names of folders that may contain the images of a class inside its class folder, as in Tiny ImageNet."""
_NO_CLASS_PARTS = frozenset({"mask", "masks", "annotations", "labels", "thumbnails", "thumbs", "segmentation"})
"""Names of folders that may be next to the images of a class, but do not contain images of that class."""
_UNLABELLED = frozenset({"unlabeled", "unlabelled", "unlabeled_data", "holdout"})
_PARTS = frozenset({*_IMAGE_FOLDERS, "part", "parts", "batch", "chunk", "fold", "shard", "archive", "vol", "volume"})
"""Words in the names of numbered folders into which a collection of images is divided, as in images_part_1."""
_MAX_CLASSES = 1 << 16  # labels have at most 16 bits
_SHOWN = 10
ANNOTATIONS = "val_annotations.txt"
"""Name of the file with the labels of Tiny ImageNet's validation images."""


@dataclass(frozen=True)
class FolderLayout:
    """The assignment of images to splits and classes.

    Attributes:
        description: one-line description of the layout.
        class_names: one name per class, in label order.
        splits: for each split, one list of paths per class.
        bases: the folders that contain the class folders, relative to the root; the root itself is an empty string.
        left_out: paths in the listing that do not belong to any class.
        remarks: remarks for the user on the labels.
    """

    description: str
    class_names: tuple[str, ...]
    splits: dict[str, list[list[str]]]
    bases: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass
class _Folder:
    """A folder and its direct contents."""

    path: str
    folders: dict[str, "_Folder"] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def all_files(self) -> Iterator[str]:
        yield from self.files
        for folder in self.folders.values():
            yield from folder.all_files()

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def has_files(self) -> bool:
        return next(self.all_files(), None) is not None

    def holds_images(self) -> bool:
        """Return whether the images are directly in the folder, or in its only subfolder, such as ``images``."""
        if self.files:
            return True
        inside = [folder for folder in self.folders.values() if folder.has_files()]
        return len(inside) == 1 and bool(inside[0].files) and inside[0].name.lower() in _IMAGE_FOLDERS


def split_of_name(name: str) -> tuple[str, str] | None:
    """Return the split that a name indicates, and the name with an asterisk in place of the word for the split.

    Args:
        name: a name such as ``seg_train`` or ``Testing``.

    Returns:
        A pair such as ``("train", "seg_*")``; None if the name contains no word for a split, or more than one.
    """
    words = [word for word in _WORD.finditer(name) if word[0].lower() in _SPLIT_OF_WORD]
    if len(words) != 1:
        return None
    word = words[0]
    # Without digits, since splits may be numbered: 1_train, 2_val, 3_test.
    rest = re.sub(r"\d+", "", f"{name[: word.start()]}*{name[word.end() :]}".lower())
    return _SPLIT_OF_WORD[word[0].lower()], rest


def natural_order(names: set[str]) -> list[str]:
    """Return the names sorted by value if all are numbers, and otherwise sorted as strings."""
    if all(name.isascii() and name.isdigit() for name in names):
        # Compare digits without leading zeros, since Python refuses to convert a string of thousands of digits to int.
        return sorted(names, key=lambda name: (len(digits := name.lstrip("0")), digits, name))
    return sorted(names)


def find_layout(listing: Listing, where: str, annotations: Mapping[str, str] | None = None) -> FolderLayout:
    """Find the classes and splits of a folder.

    Args:
        listing: files and folders in the folder.
        where: path of the folder, for messages.
        annotations: the classes of Tiny ImageNet's validation images, by file name; None if the folder has no
            annotations.

    Returns:
        The layout; if the folder is not divided into splits, all images are in the split ``train``.

    Raises:
        DataError: there are no class folders, or the meaning of the folders is ambiguous.
    """
    root = _unwrap(_build_tree(listing))
    split_folders = _find_splits(root, where)
    # The test images of competitions have no labels, so they are left out and reported.
    flat = {split: folder for split, folder in split_folders.items() if folder.has_files() and _is_flat(folder)}
    training = split_folders.get("train", root)
    if "train" in flat or (training is root and root.has_files() and _is_flat(root)):
        raise DataError(
            f"{f'{where}/{training.path}'.rstrip('/')}: the images are not in class folders (found "
            f"{plural(sum(1 for _ in training.all_files()), 'image')}). "
            "Put the images of each class in a separate folder, or specify a table of labels with --labels FILE"
        )
    bases = {split: folder for split, folder in split_folders.items() if split not in flat} or {"train": root}
    bases = {split: _unwrap(folder, inside_split=folder is not root) for split, folder in bases.items()}
    annotated = flat.get("val") if annotations else None
    classes = {split: _list_files_by_class(base, where) for split, base in bases.items()}
    names = natural_order(set(classes["train"]))
    _require_no_splits(names, where)
    _require_common(classes, bases, where)
    splits = {split: [found[name] for name in names] for split, found in classes.items()}
    if annotated and annotations:
        splits["val"] = _assign_annotated(annotated, annotations, names, where)
    used = {path for lists in splits.values() for files in lists for path in files}
    paths = {split: folder.path for split, folder in split_folders.items() if split in splits}
    return FolderLayout(
        _describe_layout(root, paths, len(names)),
        tuple(names),
        {split: splits[split] for split in SPLITS if split in splits},
        tuple(paths.values()) or (root.path,),
        tuple(path for path in listing.files if path not in used),
    )


def _describe_layout(root: _Folder, paths: Mapping[str, str], n_classes: int) -> str:
    classes = "1 class" if n_classes == 1 else f"{n_classes} classes"
    if not paths:
        return f"class folders in {root.path}/, {classes}" if root.path else f"class folders, {classes}"
    named = ", ".join(f"{paths[split]}/ ({split})" for split in SPLITS if split in paths)
    return f"class folders in {named}, {classes}"


def _build_tree(listing: Listing) -> _Folder:
    """Return the folder tree of a listing."""
    root = _Folder("")
    by_path = {"": root}

    def folder_at(path: str) -> _Folder:
        if path not in by_path:
            parent, _, name = path.rpartition("/")
            by_path[path] = folder_at(parent).folders[name] = _Folder(path)
        return by_path[path]

    for path in listing.folders:
        folder_at(path)
    for path in listing.files:
        folder_at(path.rpartition("/")[0]).files.append(path)
    return root


def _unwrap(folder: _Folder, *, inside_split: bool = False) -> _Folder:
    """Return the first folder, starting with ``folder``, that is not just a wrapper around a folder with subfolders."""
    while len(folder.folders) == 1 and not folder.files:
        child = next(iter(folder.folders.values()))
        if not child.folders or child.holds_images() or (not inside_split and _is_only_split(child)):
            break
        folder = child
    return folder


def _is_only_split(folder: _Folder) -> bool:
    """Return whether a folder without siblings is a split: it is named train or test and contains no splits itself.

    A folder such as ``my_test-main`` is more likely a wrapper whose name contains the word "test" by chance.
    """
    found = split_of_name(folder.name)
    inside = {split[0] for name in folder.folders if (split := split_of_name(name))}
    return found is not None and found[1] == "*" and not {"train"} < inside


def _find_splits(root: _Folder, where: str) -> dict[str, _Folder]:
    """Return the folder of each split; an empty dict if the folders in the root are classes and not splits."""
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in root.folders:
        if found := split_of_name(name):
            split, rest = found
            groups[rest][split].append(name)
    with_train = {rest: splits for rest, splits in groups.items() if "train" in splits}
    if not with_train:
        if "*" in groups:  # a folder that is named exactly test or val
            names = ", ".join(sorted(name for found in groups["*"].values() for name in found))
            raise DataError(
                f"{where}: no train folder (found {names}). "
                "Rename the folder that contains the training images to 'train'"
            )
        return {}
    if len(with_train) > 1 and "*" not in with_train:
        names = ", ".join(name for splits in with_train.values() for name in splits["train"])
        raise DataError(
            f"{where}: several folders of training images (found {names}). Specify the folder of one dataset"
        )
    group = with_train.get("*") or next(iter(with_train.values()))
    if _are_classes(root, group):
        return {}
    for split, folders in group.items():
        if len(folders) > 1:
            raise DataError(
                f"{where}: several folders for the {split} split (found {', '.join(folders)}). Keep only one"
            )
    return {split: root.folders[group[split][0]] for split in SPLITS if split in group}


def _are_classes(root: _Folder, group: Mapping[str, list[str]]) -> bool:
    """Return whether the folder named train is not the training split but a class, such as images of trains.

    This is assumed if there are no other splits, the folder contains images but no class folders, and another folder
    next to it also contains images.
    """
    if set(group) != {"train"}:
        return False
    train = root.folders[group["train"][0]]
    others = [folder for folder in root.folders.values() if folder is not train]
    has_classes = any(folder.has_files() for folder in train.folders.values())
    return bool(train.files) and not has_classes and any(folder.files for folder in others)


def _is_flat(folder: _Folder) -> bool:
    """Return whether a folder has no class folders, so that its images have no labels."""
    folder = _unwrap(folder, inside_split=True)
    inside = [child for child in folder.folders.values() if child.has_files()]
    return not inside or (len(inside) == 1 and inside[0].name.lower() in {*_IMAGE_FOLDERS, folder.name.lower()})


def _list_files_by_class(base: _Folder, where: str) -> dict[str, list[str]]:
    """Return the files of each class folder by class name; names are converted to NFC, since macOS writes NFD."""
    place = f"{where}/{base.path}" if base.path else where
    if not 0 < len(base.folders) <= _MAX_CLASSES:
        raise DataError(
            f"{place}: the number of class folders must be from 1 to {_MAX_CLASSES:,} (found {len(base.folders):,}). "
            "Create one folder per class"
        )
    classes: dict[str, list[str]] = {}
    original: dict[str, str] = {}
    for name, folder in base.folders.items():
        _require_name(name, place)
        key = unicodedata.normalize("NFC", name)
        if key in classes:
            raise DataError(
                f"{place}: two classes have the same name (found {original[key]!a} and {name!a}). Rename one folder"
            )
        _require_images(folder, base, place)
        original[key] = name
        classes[key] = sorted(folder.all_files(), key=lambda path: path.split("/"))
    return classes


def _require_name(name: str, place: str) -> None:
    if name != name.encode(errors="replace").decode():  # a lone surrogate represents a byte that is not UTF-8
        raise DataError(f"{place}: a class name is not UTF-8 (found {name!a}). Rename its folder")
    if not name.strip():
        raise DataError(f"{place}: the name of a class is blank (found {name!r}). Rename its folder")


def _require_images(folder: _Folder, base: _Folder, place: str) -> None:
    """Refuse a class folder that contains other folders with images: the classes may be one level deeper."""
    inside = [name for name, child in folder.folders.items() if child.has_files()]
    # A single subfolder of images belongs to the class, unless other classes have one with the same name, or its name
    # is that of a split or of a folder such as masks.
    siblings = [other for other in base.folders.values() if other is not folder]
    is_shared = not siblings or any(name in other.folders for other in siblings for name in inside)
    is_other = any(split_of_name(name) or name.lower() in _NO_CLASS_PARTS for name in inside)
    if folder.files and inside and (len(inside) > 1 or is_shared or is_other):
        raise DataError(
            f"{place}: the class folder {folder.name} contains both images and folders of images (found "
            f"{folder.files[0].rpartition('/')[2]} and {_join_names(sorted(inside))}). Remove the folders that are not "
            "part of the class; or, if the folders are the classes or splits, remove the images next to them"
        )
    if inside and not folder.holds_images():
        raise DataError(
            f"{place}: the class folder {folder.name} contains only folders, no images (found "
            f"{_join_names(sorted(inside))}). Specify the folder that contains the class folders (unpack an archive "
            "first), or a table of labels with --labels FILE"
        )


def require_several_classes(names: Sequence[str], where: str, advice: str) -> None:
    """Refuse a dataset with only one class.

    Raises:
        DataError: there is only one class.
    """
    if len(names) == 1:
        raise DataError(f"{where}: only one class, so there is nothing to learn (found {names[0]!r}). {advice}")


def _require_no_splits(names: list[str], where: str) -> None:
    """Refuse class folders whose names indicate splits, such as train and test1, or annotations, such as masks."""
    split_of = {name: found[0] for name in names if (found := split_of_name(name))}
    train = [name for name in names if split_of.get(name) == "train"]
    test = [name for name in names if split_of.get(name, "train") != "train" or name.lower() in _UNLABELLED]
    if train and test:
        raise DataError(
            f"{where}: some folders look like splits without class folders (found {_join_names(train + test)}). "
            "Put the images of each class in a separate folder, or specify a table of labels with --labels FILE"
        )
    lower = {name.lower() for name in names}
    if lower <= _NO_CLASS_PARTS | _IMAGE_FOLDERS and lower & _NO_CLASS_PARTS:
        raise DataError(
            f"{where}: the folders seem to contain images and annotations, not classes (found {_join_names(names)}). "
            "Specify a table of the images' labels, with --labels FILE"
        )
    stem, *others = {re.sub(r"\d+", "#", name) for name in lower}
    if len(names) > 1 and not others and _PARTS.intersection(re.findall("[a-z]+", stem)):
        raise DataError(
            f"{where}: the folders look like parts of a collection, not like classes (found {_join_names(names)}). Put "
            "the images of each class in a separate folder, or specify a table of labels with --labels FILE"
        )


def _require_common(classes: Mapping[str, Mapping[str, list[str]]], bases: Mapping[str, _Folder], where: str) -> None:
    """Require all splits to have the same classes; the error lists every difference."""
    train = set(classes["train"])
    differences = []
    for split, found in classes.items():
        for folder, only in (("train", train - set(found)), (split, set(found) - train)):
            if only:
                path = bases[folder].path
                differences.append(f"only in {path}/: {_join_names(natural_order(only))}")
    if differences:
        raise DataError(
            f"{where}: the splits have different classes (found {'; '.join(differences)}). "
            "Every class needs a folder in each split"
        )


def _assign_annotated(folder: _Folder, annotations: Mapping[str, str], names: list[str], where: str) -> list[list[str]]:
    """Return the paths of Tiny ImageNet's validation images, as one list per class."""
    by_class: dict[str, list[str]] = {name: [] for name in names}
    for path in sorted(folder.all_files(), key=lambda path: path.split("/")):
        label = annotations.get(path.rpartition("/")[2])
        if label not in by_class:
            raise DataError(
                f"{where}/{path}: its class has no training images (found {label!r} in {ANNOTATIONS}). "
                "Copy or download the dataset again"
            )
        by_class[label].append(path)
    return list(by_class.values())


def _join_names(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
