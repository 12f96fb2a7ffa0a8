"""``cnnjob report``."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("report"),
) -> None:
    """Turn runs into tables and figures.

    Example: cnnjob report runs/
    """
    from cnnjob.reports import report as write_report
    from cnnjob.runs import Run

    written = write_report(Run.all(*runs), out)
    for name, reason in written.skipped:
        typer.echo(f"{name}: {reason}")
    if written.without_figures:
        typer.echo(f"{len(written.without_figures)} runs have no figures of their own; name fewer runs to get them")
    changed = len(written.written)
    typer.echo(f"{out / 'metrics.md'}: {len(written.rows)} runs; {changed} of {len(written.files)} files changed")
