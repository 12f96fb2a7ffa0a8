"""The command ``cnnjob clean``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.screen import gigabytes, print_json, print_table
from cnnjob.errors import plural


def clean(
    named: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.runs,
            help="Folders or names of runs to remove, even if they are finished.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking for confirmation.")] = False,
    as_json: Annotated[bool, opt.json_option("Print the list as JSON; --yes also removes the files.")] = False,
    data: opt.DATA = opt.DATA_FOLDER,
    runs: opt.RUNS = opt.RUNS_FOLDER,
) -> None:
    """List and remove files that no run needs any more.

    These are temporary files left by processes that have ended, copies of the code that no unfinished run needs, and
    sweeps whose runs have all been removed. A run is removed only if you pass its folder, and never while a process is
    writing to it. Nothing is removed without confirmation or --yes.

    Example: cnnjob clean runs/mnist-1a2b3c4d --yes
    """
    from cnnjob.runs.run import Run
    from cnnjob.runs.summary import resolve_run
    from cnnjob.slurm import cleanup

    chosen = [Run(resolve_run(path, runs)) for path in named or ()]
    items = cleanup.check_removable(chosen) if chosen else cleanup.find_leftovers(runs, data)
    total = f"{plural(len(items), 'item')}, {gigabytes(sum(item.size for item in items))}"
    if as_json:
        print_json([{"path": str(item.path), "reason": item.reason, "bytes": item.size} for item in items])
    elif items:
        print_table(["path", "reason", "size"], [[str(item.path), item.reason, gigabytes(item.size)] for item in items])
    # With --json, only JSON goes to stdout.
    if not items:
        typer.echo("nothing to remove", err=as_json)
    # Without a terminal, nobody can confirm, so the files are kept.
    elif yes or (not as_json and sys.stdin.isatty() and typer.confirm(f"remove {total}?")):
        for item in items:
            item.remove()
        typer.echo(f"removed {total}", err=as_json)
    else:
        typer.echo("nothing was removed; use --yes to remove these items", err=as_json)
