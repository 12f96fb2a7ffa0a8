"""The command ``cnnjob new``."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.screen import print_warning

JOBS_FOLDER = Path("jobs")


def new(
    name: Annotated[
        str, typer.Argument(metavar="DATASET", autocompletion=completion.shown, help="Name of a prepared dataset.")
    ],
    data: opt.DATA = opt.DATA_FOLDER,
) -> None:
    """Write a dataset's built-in job to a file for editing.

    The file is jobs/DATASET.toml. An existing file is left unchanged.

    Example: cnnjob new photos
    """
    from cnnjob.errors import DataError, JobError
    from cnnjob.files import create_exclusive
    from cnnjob.jobs.job import Job, list_jobs
    from cnnjob.jobs.toml import format_toml
    from cnnjob.training.default_job import DefaultJobs

    content = DefaultJobs(data)(name)
    if content is None:
        raise DataError(f"{data / name}.h5: no such dataset. Prepare it first with cnnjob prepare")
    path = JOBS_FOLDER / f"{content.pop('name')}.toml"
    is_included = path.stem in list_jobs()
    # Checked before anything is written, so that an invalid job leaves no file.
    Job.checked({"name": path.stem, **content}, str(path))
    comment = f"# A job for {name}, based on the size and number of its images. For an explanation of every key:\n"
    text = f"{comment}# cnnjob show --keys\n\n{format_toml(content)}\n"
    path.parent.mkdir(exist_ok=True)
    # exists() followed by a write could replace a file created in between.
    if not create_exclusive(path, text.encode()):
        raise JobError(f"{path}: already exists. Edit it, or remove it first")
    if is_included:
        print_warning(
            f"{path}: takes precedence in this folder over the included job {path.stem}, whose settings differ. To "
            "use both, rename the file",
        )
    typer.echo(f"{path}: written. Edit it, then train:\n    {shlex.join(['cnnjob', 'train', path.stem])}")
