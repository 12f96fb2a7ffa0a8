"""The command ``cnnjob doctor``."""

from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import options as opt
from cnnjob.cli.screen import console, print_json
from cnnjob.errors import printable, printable_lines

if TYPE_CHECKING:
    from cnnjob.doctor.findings import Finding

COLOURS = {"ok": "green", "note": "yellow", "bad": "red"}
INDENT, NARROWEST, LONGEST = 24, 20, 10_000
"""Column where the text starts, minimum text width on a terminal, and text width if stdout is not a terminal."""


def doctor(
    runs: opt.RUNS = opt.RUNS_FOLDER,
    as_json: Annotated[bool, opt.json_option("Print the findings as JSON.")] = False,
    write_profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write a profile of this cluster to slurm/NAME.toml.")
    ] = None,
    partition: opt.PARTITION = None,
) -> None:
    """Check this machine, the runs' file system and the cluster.

    Each finding is marked ok, note (it works, with limitations) or bad (something will fail), and comes with advice if
    there is something to do. If any finding is bad, the exit code is 1.

    To check a GPU on a cluster: srun --partition gpu --gres gpu:1 cnnjob doctor

    Example: cnnjob doctor --write-profile mysite
    """
    from dataclasses import asdict

    from cnnjob.doctor.examine import examine
    from cnnjob.doctor.profile import write_profile as write

    findings = []
    for finding in examine(runs):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)  # as soon as it is known: some checks take seconds
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if write_profile:
        # After the findings, and on stderr: with --json, only JSON goes to stdout.
        path = write(write_profile, partition)
        command = f"cnnjob submit JOB --profile {write_profile} --dry-run"
        typer.echo(f"{path}: written. To see what it requests:\n  {command}", err=True)
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def _print_finding(finding: "Finding") -> None:
    """Print a finding and its advice, wrapped to the terminal width."""
    from textwrap import wrap

    from rich.text import Text

    screen, indent = console(), " " * INDENT
    width = max(screen.width - INDENT, NARROWEST) if screen.is_terminal else LONGEST
    lines = [
        line
        for text in (finding.message, finding.advice and f"→ {finding.advice}")
        for line in wrap(printable_lines(text), width)
    ]
    head = (f"{finding.level:<6}", COLOURS[finding.level]), f"{printable(finding.check):<{INDENT - 6}}"
    # The lines are wrapped above; without soft_wrap rich would also cut long paths and commands, which users copy.
    screen.print(Text.assemble(*head, f"\n{indent}".join(lines)), soft_wrap=True)
