"""The command line: parse, call one function, print. The only place that prints or exits.

Commands load what they need when they are called, so that ``--help`` and completion stay light.
"""

import sys
from typing import Annotated, Any

import typer

from cnnjob import __version__
from cnnjob.cli import bench, clean, data, doctor, report, status, submit, train, verify
from cnnjob.errors import EXIT_INTERRUPTED, CnnjobError


class Commands(typer.core.TyperGroup):
    """The commands; a user's mistake is one message and an exit code, a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            typer.Exit: with the exit code of what went wrong.
        """
        try:
            return super().invoke(ctx)
        except CnnjobError as error:
            typer.echo(f"cnnjob: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except (OSError, MemoryError) as error:
            if isinstance(error, BrokenPipeError):
                raise  # typer ends quietly when the reader has gone
            typer.echo(f"cnnjob: {str(error) or 'out of memory'}; see to the file, its disk or the memory", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            typer.echo("cnnjob: interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from error


app = typer.Typer(
    name="cnnjob",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Batch jobs for cluster GPUs: pack images, train a CNN written from scratch, report.",
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the form of a typer callback
    if wanted:
        typer.echo(f"cnnjob {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Batch jobs for cluster GPUs: pack images, train a CNN written from scratch, report."""


for command in (
    data.prepare,
    data.show,
    train.train,
    submit.submit,
    *(status.status, status.logs, status.cancel),
    verify.verify_resume,
    train.predict,
    report.report,
    bench.bench,
    doctor.doctor,
    clean.clean,
    train.demo,
):
    app.command()(command)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a class name may not fit LANG=C
    app()
