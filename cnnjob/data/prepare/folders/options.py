"""Options for reading a folder of images, and the corresponding command line."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnnjob.data.images import FITS, WHITE, Fit
from cnnjob.data.prepare.catalogue import KNOWN

VAL = "val"
"""Value of ``test_fraction`` that makes the validation images the test images."""


_SUFFIXES = (".npz", ".npy", ".zip", ".gz", ".xz", ".bz2", ".tar", ".tgz", ".txz", ".tbz2")


def default_name(source: str) -> str:
    """Return the default name of a dataset whose source is a folder, an archive or an array file."""
    path = Path(source).resolve()
    name = path.name
    while os.path.isfile(path) and name.lower().endswith(_SUFFIXES):  # noqa: PTH113 - never an error
        name = name.rpartition(".")[0]
    return name or path.name


def typed_colour(colour: Sequence[int]) -> str:
    """Format a colour (R, G, B) for the command line, as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


@dataclass(frozen=True)
class FolderOptions:
    """The options that determine how the images in a folder are read.

    Attributes:
        source: the folder or archive, as specified by the user.
        out: the file to be written.
        size: (H, W) to which the images are scaled; None if they all have the same size.
        fit: how to fit images to the size, one of :data:`cnnjob.data.images.FITS`.
        test_fraction: fraction of each class that becomes the test split, or :data:`VAL`.
        labels: path of a table of labels; None if the folders indicate the labels.
        skip_damaged: maximum number of unusable files that may be skipped.
        background: colour (R, G, B) behind transparent pixels and around padded images.
        zip_encoding: encoding of names in a zip archive that are not in UTF-8; None for code page 437.
        repeated: other options, as typed, which do not affect the result but belong in suggested commands.
    """

    source: str
    out: Path
    size: tuple[int, int] | None = None
    fit: Fit = FITS[0]
    test_fraction: float | str | None = None
    labels: Path | None = None
    skip_damaged: int = 0
    background: tuple[int, int, int] = WHITE
    zip_encoding: str | None = None
    repeated: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the options that affect the result, as they are stored in the file."""
        # Options added later are omitted if they have their default value, as in files written before they existed.
        later: dict[str, Any] = {} if self.fit == FITS[0] else {"fit": self.fit}
        later |= {} if self.background == WHITE else {"background": list(self.background)}
        later |= {"zip_encoding": self.zip_encoding} if self.zip_encoding else {}
        return {"size": self.size and list(self.size), "test_fraction": self.test_fraction, **later}

    def as_typed(self) -> list[str]:
        """Return the options as command-line arguments."""
        words = ["--labels", str(self.labels)] if self.labels else []
        words += ["--size", "x".join(map(str, self.size))] if self.size else []
        words += ["--fit", self.fit] if self.fit != FITS[0] else []
        words += ["--background", typed_colour(self.background)] if self.background != WHITE else []
        words += ["--zip-encoding", self.zip_encoding] if self.zip_encoding else []
        words += ["--test-fraction", str(self.test_fraction)] if self.test_fraction is not None else []
        return words + (["--skip-damaged", str(self.skip_damaged)] if self.skip_damaged else [])

    def command(self, **changed: Any) -> str:
        """Return the command line for these options, with those in ``changed`` replaced."""
        # A name that begins with a hyphen would be parsed as an option, and one of the catalogue as that dataset.
        is_misread = self.source.startswith("-") or self.source in {"folder", *(entry.name for entry in KNOWN)}
        words = ["cnnjob", "prepare", f"./{self.source}" if is_misread else self.source]
        if self.out != Path("data", f"{default_name(self.source)}.h5"):
            words += ["--out", str(self.out)]
        return shlex.join([*words, *replace(self, **changed).as_typed(), *self.repeated])
