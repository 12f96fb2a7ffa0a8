"""The command ``cnnjob report``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.screen import print_json, print_table
from cnnjob.errors import DataError

HEADER = ("run", "group", "seed", "state", "test accuracy", "epochs", "reason")
SPARE = ("epochs", "group", "reason", "seed", "state")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS", autocompletion=completion.runs, help="Run folders, or folders of runs.", readable=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("report"),
    as_json: opt.JSON = False,
) -> None:
    """Turn runs into one page, tables and figures.

    Open report/index.html: it needs no network. More than 50 runs have figures of their own only where they are named.

    Example: cnnjob report runs/
    """
    from cnnjob.reporting.report import report as write_report
    from cnnjob.reporting.tables import GROUP_HEADER, group_cells
    from cnnjob.runs.run import Run

    for path in runs:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; name run folders, or the folder that holds them")
    named = [run for path in runs for run in Run.all(path) if run.path == path]
    found = Run.all(*runs)
    if not found:
        raise DataError(
            f"{' '.join(map(str, runs))}: no runs, found no folder in it; train one with `cnnjob train JOB`"
        )
    if sys.stderr.isatty():
        typer.echo(f"reading {len(found)} runs and drawing; a second or two for each that gets new figures", err=True)
    written = write_report(found, out, named=named)
    if as_json:
        print_json(written.rows)
        return
    several = len(written.groups) > 1
    print_table(HEADER, [_shown(row, several=several) for row in written.rows], spare=SPARE)
    if several:
        typer.echo()
        print_table(GROUP_HEADER, [group_cells(group) for group in written.groups], spare=("test loss",))
    if written.without_figures:
        typer.echo(f"{len(written.without_figures)} runs have no figures of their own; name some of them to get theirs")
    changed = len(written.written)
    count = f"{len(written.rows)} run{'s' * (len(written.rows) != 1)}"
    typer.echo(f"{out / 'index.html'}: {count}; {changed} of {len(written.files)} files changed; open it in a browser")


def _shown(row: dict[str, Any], *, several: bool) -> list[str]:
    accuracy, epochs = row["test_accuracy"], row["epochs"]
    cells = "" if accuracy is None else f"{100 * accuracy:.2f} %", "" if epochs is None else str(epochs)
    group = (row["group"] or "") if several else ""
    seed = "" if row["seed"] is None else str(row["seed"])
    return [row["run"], group, seed, row["state"] or "", *cells, row["reason"] or ""]
