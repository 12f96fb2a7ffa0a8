"""The command line: parse, call one function, print. The only place that prints or exits.

Commands are loaded when they are called, and load what they need then, so that ``--help`` and completion stay light.
"""

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.completion import completion_init, install_callback, show_callback  # type: ignore[attr-defined]

from cnnjob import __version__
from cnnjob.cli.screen import printable_streams
from cnnjob.errors import EXIT_INTERRUPTED, CnnjobError, note_names

COMMANDS = {
    "prepare": ("data", "Pack a dataset into one HDF5 file."),
    "show": ("data", "List datasets and jobs, or show one and verify it."),
    "train": ("train", "Train a job here, or go on where it was stopped."),
    "submit": ("submit", "Submit jobs to SLURM; those that are stopped go on."),
    "status": ("status", "Show how runs stand; of a single one also why."),
    "logs": ("status", "Print what a run's newest job has written."),
    "cancel": ("status", "Cancel the jobs of runs; what is saved stays."),
    "verify-resume": ("verify", "Run a job unbroken and killed, and compare the bits."),
    "predict": ("train", "Print the class and its probability for each image."),
    "export": ("export", "Write a finished run's network as ONNX."),
    "report": ("report", "Turn runs into one page, tables and figures."),
    "bench": ("bench", "Measure training steps on this machine."),
    "doctor": ("doctor", "Look at this machine, the runs' disk and the cluster."),
    "clean": ("clean", "List what no run needs any more, and remove it."),
    "demo": ("train", "Prepare, train and report a small dataset in seconds."),
}
"""Every command, in the order of the help: the module of its function, and the first line of its docstring."""


class _Light:
    """Part of a command: what would load pydantic or rich for nothing is left out."""

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``, which is False where it is not given: typer's is None, and converted by pydantic."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        option.default = False
        return option

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """What TAB offers, without the explanations that rich would write."""
        offered = super().shell_complete(ctx, incomplete)  # type: ignore[misc]
        for item in offered:
            item.help = None
        return offered


class Command(_Light, typer.core.TyperCommand):
    """A command; at TAB its words are told apart and not converted, for which most of the time would be needed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Tell the words apart."""
        if not ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        given, ctx.args, _ = self.make_parser(ctx).parse_args(args=args)
        for param in self.get_params(ctx):
            ctx.params[param.name], source = param.consume_value(ctx, given)
            ctx.set_parameter_source(param.name, source)
        return list(ctx.args)


class Listed(typer.core.TyperCommand):
    """A command in the list of all; its module is loaded when it is used."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **settings: Any) -> Any:
        """Load the command, and let it begin."""
        with suppress(OSError):  # a working folder that was removed has no name
            note_names(Path.cwd())
        for word in args:
            note_names(word)
        name = str(self.name)
        function = getattr(import_module(f"cnnjob.cli.{COMMANDS[name][0]}"), name.replace("-", "_"))
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name, cls=Command)(function)
        return typer.main.get_command(alone).make_context(info_name, args, parent, **settings)


class Commands(_Light, typer.core.TyperGroup):
    """The commands; a user's mistake is one message and an exit code, a bug keeps its traceback."""

    def __init__(self, **settings: Any) -> None:
        """List them."""
        super().__init__(**settings)
        self.commands.update({name: Listed(name, help=about) for name, (_, about) in COMMANDS.items()})

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            typer.Exit: with the exit code of what went wrong.
        """
        with printable_streams():
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
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
            typer.echo(f"cnnjob: interrupted{f'; {error}' if error.args else ''}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from error


app = typer.Typer(
    name="cnnjob",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,  # its options are below: typer's own would load pydantic
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the form of a typer callback
    if wanted:
        typer.echo(f"cnnjob {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    install_completion: Annotated[
        bool, typer.Option("--install-completion", callback=install_callback, help="Let this shell complete at TAB.")
    ] = False,
    show_completion: Annotated[
        bool, typer.Option("--show-completion", callback=show_callback, help="Print what does so, to put elsewhere.")
    ] = False,
) -> None:
    """Batch jobs for cluster GPUs: pack images, train a CNN written from scratch, report.

    Example: cnnjob demo
    """


def main() -> None:
    """The console script."""
    completion_init()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a class name may not fit LANG=C
    app()
