"""The command ``cnnjob clean``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.data import DATA_FOLDER
from cnnjob.cli.screen import gigabytes, print_json, print_table
from cnnjob.cli.train import RUNS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnnjob.slurm.cleanup import Leftover


def clean(
    named: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN", autocompletion=completion.runs, help="Runs to remove, finished ones too; no others."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove what is listed without asking.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the list as JSON; remove nothing without --yes.")
    ] = False,
    data: opt.DATA = DATA_FOLDER,
    runs: opt.RUNS = RUNS_FOLDER,
) -> None:
    """List what no run needs any more, and remove it.

    Nothing is removed without asking, or --yes. Temporary files of processes that are gone, copies of the code that
    no unfinished run was submitted with, sweeps none of whose runs is left. A run itself is removed only where it
    is named, and never while anything writes it.

    Example: cnnjob clean runs/mnist-1a2b3c4d --yes
    """
    from cnnjob.runs.run import Run
    from cnnjob.slurm import cleanup

    found = cleanup.named([Run(path) for path in named]) if named else cleanup.leftovers(runs, data)
    if as_json:
        rows = [{"path": str(one.path), "why": one.why, "bytes": one.size} for one in found]
        print_json(rows)
    elif found:
        print_table(["what", "why", "size"], [[str(one.path), one.why, gigabytes(one.size)] for one in found])
    # With --json only JSON goes to stdout.
    if not found:
        typer.echo("nothing is left over", err=as_json)
    elif yes or (not as_json and _agreed(found)):
        for one in found:
            one.remove()
        typer.echo(f"removed {_told(found)}", err=as_json)
    else:
        typer.echo("nothing was removed; --yes removes what is listed", err=as_json)


def _agreed(found: "Sequence[Leftover]") -> bool:
    """Ask for confirmation; return False without asking if stdin is not a terminal."""
    return sys.stdin.isatty() and typer.confirm(f"remove {_told(found)}?")


def _told(found: "Sequence[Leftover]") -> str:
    count = len(found)
    return f"{count} item{'s' * (count != 1)}, {gigabytes(sum(one.size for one in found))}"
