"""The command ``cnnjob doctor``."""

from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import options as opt
from cnnjob.cli.screen import console, print_json
from cnnjob.cli.train import RUNS_FOLDER
from cnnjob.errors import printable, printable_lines

if TYPE_CHECKING:
    from cnnjob.doctor.examine import Finding

COLOURS = {"ok": "green", "note": "yellow", "bad": "red"}
INDENT, NARROWEST, LONGEST = 24, 20, 10_000
"""Column of the text; its least width on a terminal; its width elsewhere, where lines are not wrapped."""


def doctor(
    runs: opt.RUNS = RUNS_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    write_profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write slurm/NAME.toml from what SLURM tells.")
    ] = None,
    partition: opt.PARTITION = None,
) -> None:
    """Look at this machine, the runs' disk and the cluster.

    It says what to do. ok: good. note: it works, with less. bad: something will fail, and the exit code is 1.

    On a node of a cluster, where its GPU is seen: srun --partition gpu --gres gpu:1 cnnjob doctor

    Example: cnnjob doctor --write-profile mysite
    """
    from cnnjob.doctor import examine as doctors

    if as_json:
        found = list(doctors.examine(runs))
        print_json([one.as_json() for one in found])
    else:
        found = [_printed(one) for one in doctors.examine(runs)]
    if write_profile:
        path = doctors.write_profile(write_profile, partition)
        typer.echo(
            f"{path}: written; `cnnjob submit JOB --profile {write_profile} --dry-run` shows what it asks", err=True
        )
    if any(one.verdict == "bad" for one in found):
        raise typer.Exit(1)


def _printed(one: "Finding") -> "Finding":
    """Print a finding and its advice, wrapped to the width of a terminal, and return the finding."""
    from textwrap import wrap

    from rich.text import Text

    screen, indent = console(), " " * INDENT
    width = max(screen.width - INDENT, NARROWEST) if screen.is_terminal else LONGEST
    lines = [
        line for text in (one.found, one.advice and f"→ {one.advice}") for line in wrap(printable_lines(text), width)
    ]
    head = (f"{one.verdict:<6}", COLOURS[one.verdict]), f"{printable(one.what):<{INDENT - 6}}"
    screen.print(Text.assemble(*head, f"\n{indent}".join(lines)), soft_wrap=True)
    return one
