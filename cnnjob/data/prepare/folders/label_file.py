"""Read a table of labels, a CSV or TSV file with columns for the image, its label and, optionally, its split."""

import csv
import io
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from cnnjob.data.dataset import SPLITS
from cnnjob.data.prepare.folders.layout import FolderLayout, natural_order, split_of_name
from cnnjob.errors import DataError, plural
from cnnjob.files import A_GIT_LFS_POINTER, GIT_LFS_POINTER

_COLUMNS = {
    "path": ("path", "file", "filename", "filepath", "filenames", "image", "imagepath", "imagename", "imagefile", "img",
             "imgname", "imgpath", "imageindex", "imageid", "imgid", "id", "idcode", "name"),
    "label": ("label", "labels", "class", "classname", "classid", "category", "target", "species", "breed",
              "diagnosis", "findinglabels", "dx"),
    "split": ("split", "set", "subset", "partition", "datasplit", "usage"),
}  # fmt: skip
"""Accepted names for each column, in order of preference; case, spaces, hyphens and underscores are ignored."""
_ZERO_OR_ONE = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
"""Values that a cell may have in a table with one column per class, in lower case, and their meaning."""
_DELIMITERS = (",", "\t", ";")
_SEPARATORS = ("|", ";", ",", " ")
"""Characters that separate labels in a cell."""
_WORDS_PER_TAG = 3
"""If labels consist of several words, and there are more than this many labels per word, each word is a label."""
_SHOWN = 10


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str


def layout_of_labels(content: bytes, where: str, files: Sequence[str], root: str) -> FolderLayout:
    """Find the classes and splits in a table of labels.

    Args:
        content: the bytes of the table.
        where: path of the table, for messages.
        files: paths of the files that may be images, relative to the folder.
        root: the folder, for messages.

    Returns:
        The layout; its only split is ``train`` if the table has no split column.

    Raises:
        DataError: a column is missing, or a row has no image or the same image as another row; the message lists such
            rows.
    """
    rows, column = _parse_table(content, where)
    if not rows:
        raise DataError(f"{where}: no labels (found only a header). Add a row for each image")
    named = _named_files(rows, where, files, root)
    names = natural_order({row.label for row in rows})
    label_of = {name: label for label, name in enumerate(names)}
    _require_one_spelling(rows, where)
    splits: dict[str, list[list[str]]] = {}
    for row, path in zip(rows, named, strict=True):
        classes = splits.setdefault(_split_of_row(row, where), [[] for _ in names])
        classes[label_of[row.label]].append(path)
    for classes in splits.values():
        for members in classes:
            members.sort(key=lambda path: path.split("/"))
    if "train" not in splits:
        raise DataError(
            f"{where}: no training images (found the splits {', '.join(splits)}). Give one split the name train"
        )
    used = set(named)
    return FolderLayout(
        f"{plural(len(rows), 'label')} of {plural(len(names), 'class') if len(names) == 1 else f'{len(names)} classes'}"
        f" in {column} of {where}",
        tuple(names),
        {split: splits[split] for split in SPLITS if split in splits},
        (),
        tuple(path for path in files if path not in used),
        tuple(_several_labels(rows)),
    )


def _several_labels(rows: Sequence[_Row]) -> Iterator[str]:
    """Yield a description of rows whose label seems to consist of several labels.

    Yields:
        One line, if there are any such rows.
    """
    labels = {row.label for row in rows}
    for separator in _SEPARATORS:
        parts = {label: [part.strip() for part in label.split(separator)] for label in labels if separator in label}
        users = Counter(part for some in parts.values() for part in some)
        # Class names of several words, such as those of breeds, share words too, but these words are not labels.
        combined = {
            label
            for label, some in parts.items()
            if all(part in labels for part in some) or (separator in "|;" and any(users[part] > 1 for part in some))
        }
        combined |= parts.keys() if _WORDS_PER_TAG * len(users) < len(parts) else set()
        if combined:
            found = [row for row in rows if row.label in combined]
            yield (
                f"{plural(len(found), 'row')} may have several labels, and each of the {len(combined):,} combinations "
                f"is a class (found {found[0].label!r} on line {found[0].line}). Keep one label per image"
            )
            return


def _parse_table(content: bytes, where: str) -> tuple[list[_Row], str]:
    """Return the rows of the table, and a description of the column or columns that contain the labels.

    Raises:
        DataError: the table is not valid, or a row has no path or no label.
    """
    if content.startswith(GIT_LFS_POINTER):
        raise DataError(f"{where}: {A_GIT_LFS_POINTER}")
    if content.startswith(b"PK"):
        raise DataError(f"{where}: an Excel workbook or a zip archive, not a text file. Save the table as CSV")
    if content.lstrip().startswith((b"{", b"[")):
        raise DataError(f"{where}: JSON, not a table. Save it as CSV, for example with pandas.read_json and to_csv")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (found an invalid byte at offset {error.start}). Save it as UTF-8"
        ) from error
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[_Row] = []
    try:
        header = next(reader, [])
        columns = _columns(header, where)
        class_columns = {} if "label" in columns else _class_columns(header, columns, where)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise DataError(
                    f"{where}:{reader.line_num}: more cells than columns (found {cells}). If a cell contains the "
                    "delimiter, enclose it in quotation marks"
                )
            values = {kind: cells[column].strip() if column < len(cells) else "" for kind, column in columns.items()}
            if class_columns:
                values["label"] = _one_hot_label(cells, class_columns, header, f"{where}:{reader.line_num}")
            if not all(values.values()):
                missing = next(kind for kind, value in values.items() if not value)
                raise DataError(f"{where}:{reader.line_num}: no {missing} (found {cells}). Complete or remove the row")
            label = unicodedata.normalize("NFC", values["label"])  # macOS writes NFD
            rows.append(_Row(reader.line_num, values["path"], label, values.get("split", "")))
    except csv.Error as error:
        raise DataError(f"{where}:{reader.line_num}: not a valid table row ({error}). Correct the row") from error
    return rows, f"column {header[columns['label']].strip()}" if "label" in columns else "one column per class"


def _columns(header: Sequence[str], where: str) -> dict[str, int]:
    """Return the index of each recognised column."""
    plain = ["".join(letter for letter in cell.lower() if letter not in " -_") for cell in header]
    columns = {
        kind: plain.index(next(name for name in names if name in plain))
        for kind, names in _COLUMNS.items()
        if any(name in plain for name in names)
    }
    candidates = [cell for cell, name in zip(header, plain, strict=True) if name in _COLUMNS["label"]]
    if len(candidates) > 1 and plain.count("label") != 1:
        raise DataError(
            f"{where}: several columns may contain the labels (found {', '.join(map(repr, candidates))}). "
            "Rename the right one to label, and rename or remove the others"
        )
    # Without a label column, the other columns may be one per class.
    is_one_hot = "path" in columns and sum(map(bool, plain)) >= len(columns) + 2
    missing = [kind for kind in ("path", "label") if kind not in columns and not (kind == "label" and is_one_hot)]
    if missing:
        raise DataError(_no_column(missing, header, where))
    return columns


def _class_columns(header: Sequence[str], columns: Mapping[str, int], where: str) -> dict[str, int]:
    """Return the index of each column that may be a class; a column without a name contains row numbers.

    Raises:
        DataError: two columns have the same name.
    """
    found: dict[str, int] = {}
    for index, cell in enumerate(header):
        name = cell.strip()
        if name in found:
            raise DataError(f"{where}: two columns have the same name (found {name!r}). Rename or remove one of them")
        if name and index not in columns.values():
            found[name] = index
    return found


def _no_column(missing: Sequence[str], header: Sequence[str], where: str) -> str:
    shown = ", ".join(map(repr, header[:_SHOWN])) + (", …" if len(header) > _SHOWN else "")
    return (
        f"{where}: no {' and no '.join(missing)} column (found {shown or 'no columns'}). Use the column names path "
        "(image file), label (class; or one column per class, with 1 for the image's class and 0 otherwise) and, "
        "optionally, split (train, val or test), and separate the columns by commas, tabs or semicolons"
    )


def _one_hot_label(cells: Sequence[str], columns: Mapping[str, int], header: Sequence[str], where: str) -> str:
    """Return the class whose column contains 1.

    Raises:
        DataError: a cell is neither 0 nor 1, so the columns are not classes; or not exactly one cell is 1.
    """
    values = {
        name: _ZERO_OR_ONE.get(cells[column].strip().lower() if column < len(cells) else "")
        for name, column in columns.items()
    }
    if None in values.values():
        raise DataError(_no_column(["label"], header, where.rpartition(":")[0]))
    classes = [name for name, value in values.items() if value]
    if len(classes) != 1:
        raise DataError(
            f"{where}: not exactly one class (found {', '.join(classes) or 'none'}). Correct or remove the row"
        )
    return classes[0]


def _named_files(rows: Sequence[_Row], where: str, files: Sequence[str], root: str) -> list[str]:
    """Return the file to which each row refers.

    A row contains the file's path, or only the end of the path, with or without the suffix. Leading folders that all
    rows share are ignored if no image is found with them, as in a table that was written for another location.

    Raises:
        DataError: a row matches no file or several files, or two rows refer to the same file.
    """
    by_end: dict[str, set[str]] = defaultdict(set)
    for path in files:
        for end in _ends(unicodedata.normalize("NFC", path)):
            by_end[end].add(path)
    known = set(files)
    by_lower = {end.lower(): next(iter(paths)) for end, paths in by_end.items() if len(paths) == 1}
    named, problems = [], []
    first: dict[str, _Row] = {}
    keys = [unicodedata.normalize("NFC", row.path.replace("\\", "/").removeprefix("./").strip("/")) for row in rows]
    for row, key in zip(rows, _without_shared_folders(keys, by_end), strict=True):
        matches = {key} if key in known else by_end.get(key, set())
        if len(matches) == 1:
            (path,) = matches
            before = first.setdefault(path, row)
            if before is not row:
                problems.append(
                    f"{row.path} on line {row.line}: already on line {before.line}, with label {before.label!r}"
                )
            named.append(path)
        elif matches:
            problems.append(
                f"{row.path} on line {row.line}: several files match, such as {' and '.join(sorted(matches)[:2])}"
            )
        else:
            other = by_lower.get(key.lower())
            hint = f" (but {other}, which differs in upper and lower case)" if other else ""
            problems.append(f"{row.path} on line {row.line}: no such file{hint}")
    if problems:
        more = f"\n  and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        # In some competitions, training and test images have the same names.
        subfolders = sorted({path.partition("/")[0] for path in files if "/" in path})
        is_ambiguous = any("several files match" in problem for problem in problems) and subfolders
        narrower = f", or specify a subfolder such as {root}/{subfolders[-1]}" if is_ambiguous else ""
        raise DataError(
            f"{where}: could not match {plural(len(problems), 'row')} to images in {root} (found:\n  "
            + "\n  ".join(problems[:_SHOWN])
            + f"{more}).\nCorrect or remove them{narrower}. Paths are relative to {root}"
        )
    return named


def _without_shared_folders(paths: list[str], known: Collection[str]) -> list[str]:
    """Remove the leading folders that all paths share, as few as are needed for all paths to be in ``known``.

    The paths are returned unchanged if any of them is already in ``known``, or if removing all shared folders is
    not enough.
    """
    if any(path in known for path in paths):
        return paths
    n_shared = len(posixpath.commonpath([posixpath.dirname(path) for path in paths]).split("/"))
    shortened = ([path.split("/", n)[-1] for path in paths] for n in range(1, n_shared + 1))
    return next((shorter for shorter in shortened if all(path in known for path in shorter)), paths)


def _ends(path: str) -> Iterator[str]:
    """Yield the names by which a table may refer to a file: each trailing part of its path, with and without suffix."""
    while path:
        yield path
        stem, dot, _ = path.rpartition(".")
        if dot and not stem.endswith("/") and stem:
            yield stem
        path = path.partition("/")[2]


def _require_one_spelling(rows: Sequence[_Row], where: str) -> None:
    """Refuse several names for the same split, such as PublicTest and PrivateTest, which may mean different splits."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        spellings[_split_of_row(row, where)].add(row.split.lower())
    for split, names in spellings.items():
        if len(names) > 1:
            found = ", ".join(repr(name) for name in sorted(names))
            raise DataError(
                f"{where}: several names for the {split} split (found {found}). Use only train, val and test"
            )


def _split_of_row(row: _Row, where: str) -> str:
    if not row.split:
        return "train"
    found = split_of_name(row.split)
    if found is None:
        raise DataError(f"{where}:{row.line}: unknown split (found {row.split!r}). Use train, val or test")
    return found[0]
