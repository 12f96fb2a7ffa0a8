"""The command ``cnnjob prepare``."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.data.show import dataset_as_json, print_dataset
from cnnjob.cli.screen import MEGABYTE, print_json, print_warning
from cnnjob.errors import JobError, format_seconds
from cnnjob.jobs.lookup import named_toml_files
from cnnjob.training.stopping import handled_signals

if TYPE_CHECKING:
    from cnnjob.data.dataset import Dataset
    from cnnjob.data.images import Fit
    from cnnjob.data.prepare.prepare import Prepared

SOURCE_GROUP, LABELS_GROUP, IMAGES_GROUP = "Source", "Labels and splits", "Scaling of images"
AGAIN_SECONDS = 0.01


def prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=completion.datasets,
            help="A known dataset; a folder, archive or array file of images; or, with --source, any name.",
        ),
    ],
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", hidden=True, help="The image folder, if NAME is 'folder'.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_URL",
            rich_help_panel=SOURCE_GROUP,
            help="Folder, file or URL to read instead of the published source.",
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(
            metavar="HEX",
            rich_help_panel=SOURCE_GROUP,
            help="SHA-256 of the source, if not the published one.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", rich_help_panel=SOURCE_GROUP, help="Hash all source files, even if they seem unchanged."
        ),
    ] = False,
    zip_encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SOURCE_GROUP,
            help="Encoding of names in a zip archive that are not in UTF-8, such as gbk.",
        ),
    ] = None,
    skip_damaged: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=SOURCE_GROUP, min=0, help="Skip up to N unusable images.")
    ] = 0,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=LABELS_GROUP,
            help="Table of labels: CSV or TSV with columns path, label and, optionally, split.",
        ),
    ] = None,
    test_fraction: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION",
            rich_help_panel=LABELS_GROUP,
            help="If there are no test images: fraction of each class to test on, or 'val' to use the val folder.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            rich_help_panel=IMAGES_GROUP,
            help="Height and width to which a folder's images are scaled.",
        ),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            rich_help_panel=IMAGES_GROUP,
            help="How to scale: crop the excess, pad with the background, or stretch.",
        ),
    ] = "crop",
    background: Annotated[
        str,
        typer.Option(
            metavar="COLOUR",
            rich_help_panel=IMAGES_GROUP,
            help="Colour behind transparent pixels, such as black or #c0c0c0.",
        ),
    ] = "white",
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=opt.OUTPUT_GROUP,
            help="File to write; data/NAME.h5 by default.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", rich_help_panel=opt.OUTPUT_GROUP, help="Prepare the dataset again, replacing an existing file."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        opt.json_option("Print shapes, class counts and checksums as JSON."),
    ] = False,
) -> None:
    """Prepare a dataset as one HDF5 file.

    Example: cnnjob prepare mnist --source ~/downloads/mnist
    """
    from cnnjob.data.prepare.folders.options import default_name
    from cnnjob.data.prepare.prepare import KNOWN, prepare

    # A known name refers to that dataset, even if a folder has the same name.
    known = {entry.name for entry in KNOWN}
    is_path = bool(name) and name not in known and name != "folder" and Path(name).exists() and source is None
    if path is not None and (name != "folder" or source is not None):
        raise JobError(f"prepare {name} {path}: too many arguments. Specify the source with --source")
    if is_path:
        name, path = "folder", Path(name)
    if name == "folder":
        source = str(path) if path is not None else source
    name = name if is_path else name.removesuffix(".h5")  # as in the name of the file, photos.h5
    stem = default_name(source) if name == "folder" and source else name
    with ending_as_interrupted():
        prepared = prepare(
            name,
            opt.DATA_FOLDER / f"{stem}.h5" if out is None else _named_file(out),
            source=source,
            sha256=sha256,
            size=_height_and_width(size),
            fit=_fit(fit),
            test_fraction=_fraction(test_fraction),
            labels=labels,
            skip_damaged=skip_damaged,
            background=_colour(background),
            zip_encoding=zip_encoding,
            force=force,
            verify=verify,
            progress=True,
        )
    if prepared.description:
        typer.echo(f"cnnjob: read as {prepared.description}", err=True)
    for warning in prepared.warnings:
        print_warning(warning)
    if as_json:
        print_json({**dataset_as_json(prepared.dataset), "prepared_now": prepared.created})
    else:
        _print_prepared(prepared)


@contextmanager
def ending_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt inside the ``with`` block on any stop signal, so that unfinished files are removed.

    Python ignores exceptions in some places, such as weak reference callbacks. If a KeyboardInterrupt is ignored there,
    it is raised again a moment later.
    """
    # SIGALRM is the timer signal of _interrupt_again; SIGINT already has this handler.
    numbers = (*(number for number in handled_signals() if number != signal.SIGINT), signal.SIGALRM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    kept, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        yield
    finally:
        sys.unraisablehook = kept
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm after the handlers are restored would end the process
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_again(ignored: "sys.UnraisableHookArgs") -> None:
    # An exception raised in this hook would be ignored too, so a timer signal raises it again later.
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
    else:
        sys.__unraisablehook__(ignored)


def _named_file(out: str) -> Path:
    """Return the value of ``--out`` as a path; raise JobError if it is not a file name."""
    if not out or out.endswith("/"):
        raise JobError(f"--out {out or repr(out)}: not a file name. For example: --out data/mnist.h5")
    return Path(out)


def _height_and_width(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise JobError(f"--size {text}: not of the form HxW. For example: --size 32x32")
    return int(height), int(width)


def _fit(text: str) -> "Fit":
    from cnnjob.data.images import FITS

    # A loop instead of "in", so that the returned value has the type Fit, not str.
    for fit in FITS:
        if text == fit:
            return fit
    raise JobError(f"--fit {text}: unknown. Choose from {', '.join(FITS)}")


def _colour(text: str) -> tuple[int, int, int]:
    if text == "white":  # the default does not need Pillow
        return 255, 255, 255
    from PIL import ImageColor

    try:
        colour = ImageColor.getrgb(text)
    except ValueError:
        raise JobError(f"--background {text}: not a colour. Use a name, such as black, or #rrggbb") from None
    return colour[0], colour[1], colour[2]


def _fraction(text: str | None) -> float | str | None:
    try:
        return text if text is None else float(text)
    except ValueError:  # "val", or an invalid value that prepare() rejects
        return text


def _print_prepared(prepared: "Prepared") -> None:
    dataset = prepared.dataset
    print_dataset(dataset)
    for fault in dataset.options.get("skipped", {}).values():
        typer.echo(f"skipped: {fault}")
    if prepared.created:
        rate = dataset.size_bytes / prepared.seconds / MEGABYTE
        typer.echo(f"{dataset.path}: prepared in {format_seconds(prepared.seconds)}, {rate:.1f} MB/s")
    else:
        typer.echo(f"{dataset.path}: already prepared from this source; use --force to prepare it again")
    typer.echo(f"To train on it:\n    {shlex.join(['cnnjob', 'train', _job_name(dataset)])}")


def _job_name(dataset: "Dataset") -> str:
    """Return the argument with which ``cnnjob train`` trains on a dataset.

    The argument is the dataset's name if ``cnnjob train`` would find this dataset and a suitable job by that name.
    Otherwise, it is the path of the dataset's file; ``cnnjob train`` then uses the dataset's built-in job.
    """
    from cnnjob.data.prepare.prepare import KNOWN

    name, path = dataset.path.stem, str(dataset.path)
    path = f"./{path}" if path.startswith("-") else path  # not an option
    if dataset.path.parent != opt.DATA_FOLDER or dataset.path.suffix != ".h5" or name.startswith("-"):
        return path
    # The job for a published dataset does not fit a user's images with the same name.
    if any(entry.name == name and entry.shapes != dataset.shapes for entry in KNOWN):
        return path
    if name not in named_toml_files("jobs"):
        return name
    from cnnjob.jobs.job import Job  # takes as long to import as preparing thousands of small images

    # A user's job with this name may use another dataset.
    try:
        return name if Job.load(name).dataset == name else path
    except JobError:  # the job file is not valid
        return path
