"""The command ``cnnjob report``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnjob.cli import options as opt
from cnnjob.cli.screen import print_json, print_table
from cnnjob.errors import DataError, plural

HEADER = ("run", "group", "seed", "state", "test accuracy", "epochs", "reason")
SPARE = ("epochs", "group", "reason", "seed", "state")


def report(
    runs: opt.RUN_PATHS = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write to.")] = Path("report"),
    as_json: Annotated[bool, opt.json_option("Print the rows of metrics.csv as JSON.")] = False,
) -> None:
    """Write a report on runs: an HTML page, tables and figures.

    Open report/index.html in a browser; no network is needed. With more than 50 runs, a run gets its own
    figures only if the path of its folder is passed.

    Example: cnnjob report
    """
    from cnnjob.reporting.report import report as write_report
    from cnnjob.reporting.tables import GROUP_HEADER, group_cells
    from cnnjob.runs.run import Run

    runs = runs or [opt.RUNS_FOLDER]
    # A run passed by its own path always gets figures; runs found in a folder get them only up to a limit.
    named = [run for path in runs for run in Run.all(path) if run.path == path]
    found = Run.all(*runs)
    if not found:
        raise DataError(f"{' '.join(map(str, runs))}: no runs found. To train one:\n  cnnjob train JOB")
    if sys.stderr.isatty():
        typer.echo(f"reading {plural(len(found), 'run')}; new figures take a second or two per run", err=True)
    result = write_report(found, out, named=named)
    if as_json:
        print_json(result.rows)
        return
    several = len(result.groups) > 1
    print_table(HEADER, [_run_cells(row, several=several) for row in result.rows], spare=SPARE)
    if several:
        typer.echo()
        print_table(GROUP_HEADER, [group_cells(group) for group in result.groups], spare=("test loss",))
    if result.without_figures:
        count = plural(len(result.without_figures), "run")
        typer.echo(f"no figures were drawn for {count}; to get figures of a run, pass the path of its folder")
    changed = f"{len(result.written)} of {len(result.files)} files changed"
    typer.echo(f"{out / 'index.html'}: {plural(len(result.rows), 'run')}; {changed}; open it in a browser")


def _run_cells(row: dict[str, Any], *, several: bool) -> list[str]:
    accuracy, epochs = row["test_accuracy"], row["epochs"]
    cells = "" if accuracy is None else f"{100 * accuracy:.2f} %", "" if epochs is None else str(epochs)
    group = (row["group"] or "") if several else ""
    seed = "" if row["seed"] is None else str(row["seed"])
    return [row["run"], group, seed, row["state"] or "", *cells, row["reason"] or ""]
