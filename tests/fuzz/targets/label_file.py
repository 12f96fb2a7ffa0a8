"""Tables of labels."""

from pathlib import Path

from cnnjob.data.prepare.folders.label_file import layout_of_labels
from tests.fuzz.targets import Target

_FILES = ("1.png", "train/2.png", "test/3.png")


def _seeds() -> list[bytes]:
    return [
        b"path,label\n1.png,a\n2.png,b\n",
        b'id\tclass\tsplit\n"1"\ta\ttrain\n2\tb\ttest\n3\t"a, b"\tval\n',
        b"\xef\xbb\xbfimage;breed\n1;a\n",
    ]


def _read(content: bytes, folder: Path) -> None:
    layout = layout_of_labels(content, str(folder / "labels.csv"), _FILES, str(folder))
    assert {path for classes in layout.splits.values() for files in classes for path in files} <= {*_FILES}
    assert all(len(classes) == len(layout.class_names) for classes in layout.splits.values())


TARGET = Target(_seeds, _read, text=True)
