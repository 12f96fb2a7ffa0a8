"""The command ``cnnjob report``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cnnjob.cli import options as opt
from cnnjob.cli.screen import print_json, print_table, progress_bar
from cnnjob.errors import DataError, plural

HEADER = ("run", "group", "seed", "state", "test accuracy", "epochs", "reason")
SPARE = ("epochs", "group", "reason", "seed", "state")


def report(
    runs: opt.RUN_PATHS = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write to.")] = Path("report"),
    figures: Annotated[
        bool, typer.Option("--figures", help="Also draw figures for papers and slides, as PNG, SVG and PDF.")
    ] = False,
    figure_formats: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMATS", help="Formats in which figures are drawn, for example png,pdf."),
    ] = None,
    as_json: Annotated[bool, opt.json_option("Print the rows of metrics.csv as JSON.")] = False,
) -> None:
    """Write a report on runs: an HTML page, tables and figures.

    Open report/index.html in a browser; no network is needed. Figures from an earlier report are kept if they still
    show these runs; outdated figures are removed unless they are drawn again.

    Example: cnnjob report --format pdf
    """
    from cnnjob.reporting.figures import FORMATS, check_formats
    from cnnjob.reporting.report import report as write_report
    from cnnjob.reporting.tables import GROUP_HEADER, group_cells
    from cnnjob.runs.run import Run

    names = [name.strip().lower() for name in figure_formats.split(",")] if figure_formats is not None else []
    formats = check_formats(FORMATS if figures else names)
    runs = runs or [opt.RUNS_FOLDER]
    found = Run.all(*runs)
    if not found:
        raise DataError(f"{' '.join(map(str, runs))}: no runs found. To train one:\n  cnnjob train JOB")
    with progress_bar() as on_progress:
        result = write_report(found, out, formats=formats, on_progress=on_progress)
    if as_json:
        print_json(result.rows)
        return
    several = len(result.groups) > 1
    print_table(HEADER, [_run_cells(row, several=several) for row in result.rows], spare=SPARE)
    if several:
        typer.echo()
        print_table(GROUP_HEADER, [group_cells(group) for group in result.groups], spare=("test loss",))
        if any(len(group.by_seed) > 1 for group in result.groups):
            typer.echo("± is half the width of the 95 % interval of the mean over n seeds")
    changed = f"{len(result.written)} of {len(result.files)} files changed"
    typer.echo(f"{out / 'index.html'}: {plural(len(result.rows), 'run')}; {changed}; open the page in a browser")


def _run_cells(row: dict[str, Any], *, several: bool) -> list[str]:
    accuracy, epochs = row["test_accuracy"], row["epochs"]
    cells = "" if accuracy is None else f"{100 * accuracy:.2f} %", "" if epochs is None else str(epochs)
    group = (row["group"] or "") if several else ""
    seed = "" if row["seed"] is None else str(row["seed"])
    return [row["run"], group, seed, row["state"] or "", *cells, row["reason"] or ""]
