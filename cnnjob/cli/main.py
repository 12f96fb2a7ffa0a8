"""Command-line interface: parse the arguments, call one function and print the result.

Only ``cnnjob.cli`` prints or exits. A command's module and the module's dependencies are imported only when the command
is called, so that ``--help`` and shell completion stay fast.
"""

import atexit
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.completion import completion_init, install_callback, show_callback  # type: ignore[attr-defined]

from cnnjob import __version__
from cnnjob.cli.screen import print_error, printable_streams
from cnnjob.errors import EXIT_INTERRUPTED, CnnjobError, JobError, note_names

COMMANDS = {
    "prepare": ("data.prepare", "Prepare a dataset as one HDF5 file."),
    "new": ("data.new", "Write a dataset's built-in job to a file for editing."),
    "show": ("data.show", "List datasets and jobs, or show one of them."),
    "train": ("train", "Train a job on this machine, or resume it where it stopped."),
    "submit": ("submit", "Submit jobs to SLURM; stopped runs are resumed."),
    "status": ("status", "Show the status of runs; for one run, also the cause."),
    "logs": ("status", "Print the newest log of a run."),
    "cancel": ("status", "Cancel runs; saved work is kept."),
    "verify-resume": ("verify", "Test that a killed run resumes with bit-identical results."),
    "predict": ("train", "Print the most probable classes of each image."),
    "evaluate": ("train", "Evaluate a finished run on another prepared dataset."),
    "export": ("export", "Write a finished run's network as ONNX."),
    "report": ("report", "Write a report on runs: an HTML page, tables and figures."),
    "sync": ("sync", "Copy runs to TensorBoard or to Weights & Biases (W&B)."),
    "bench": ("bench", "Measure training steps on this machine."),
    "doctor": ("doctor", "Check this machine, the runs' file system and the cluster."),
    "clean": ("clean", "List and remove files that no run needs any more."),
    "demo": ("train", "Prepare a small dataset, train on it and write a report."),
}
"""All commands: for each, its module and the first line of the docstring of the command's function."""
GROUPS = {
    "Data": ("prepare", "show"),
    "Training": ("new", "train", "demo"),
    "Cluster and runs": ("submit", "status", "logs", "cancel"),
    "Results": ("predict", "evaluate", "report", "export", "sync"),
    "This machine": ("doctor", "bench", "verify-resume", "clean"),
}
"""The commands in the order and under the headings of the help."""
MANY_OPTIONS = 6
"""If a command has more options than this, its help groups them under headings."""
MAX_NAME = 28
"""Width of the column of option names in the help; the text for a longer name starts on the next line."""

UsageError: Any = typer.BadParameter.__base__
"""The error that typer raises for a missing or unknown command, option or argument."""
HELP_OPTIONS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_ONE_PROCESS = "A run is always one process on one node"
UNSUPPORTED_OPTIONS = {
    "--lr": "To set this key of the job file, pass\n  --set train.learning_rate=VALUE",
    "--learning-rate": "To set this key of the job file, pass\n  --set train.learning_rate=VALUE",
    "--epochs": "To set this key of the job file, pass\n  --set train.epochs=VALUE",
    "--batch-size": "To set this key of the job file, pass\n  --set train.batch_size=VALUE",
    "-n": f"{_ONE_PROCESS}; omit it",
    "--ntasks": f"{_ONE_PROCESS}; omit it",
    "-N": f"{_ONE_PROCESS}; omit it",
    "--nodes": f"{_ONE_PROCESS}; omit it",
    "-o": "The output is written to the run's folder; to read it, use cnnjob logs",
    "--output": "The output is written to the run's folder; to read it, use cnnjob logs",
}
"""Options of sbatch and of other training programs that users try, each with what to do instead."""


class _Light:
    """Mix-in that keeps commands from importing pydantic and rich when they do not need them."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the ``--help`` option, with False as its default value.

        typer's own default is None; to convert None, typer would import pydantic, which is slow.
        """
        option = super().get_help_option(ctx)  # type: ignore[misc]
        option.default = False
        return option

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the completions without their help text, because rendering it would import rich, which takes time."""
        completions = super().shell_complete(ctx, incomplete)  # type: ignore[misc]
        for completion in completions:
            completion.help = None
        return completions

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options; many options are grouped under their ``rich_help_panel`` as headings.

        typer can write these headings only with rich, and importing rich takes longer than the rest of the help does.
        """
        params = self.get_params(ctx)  # type: ignore[attr-defined]
        has_groups = sum(param.param_type_name == "option" for param in params) > MANY_OPTIONS
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param, record in ((param, param.get_help_record(ctx)) for param in params):
            if record is None:  # hidden
                continue
            name, text = record
            text = text.replace("x>=", "at least ")
            if param.param_type_name == "argument":
                sections["Arguments"].append((name.partition(" <")[0], text))
            else:
                group = (param.rich_help_panel or "Other options") if has_groups else "Options"
                sections.setdefault(group, []).append((name, text))
        if others := sections.pop("Other options", []):
            sections["Other options"] = others  # last
        _write_sections(formatter, sections)


def _write_sections(formatter: Any, sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write lists of names and explanations, each under its heading, with all explanations in the same column."""
    filled = {heading: rows for heading, rows in sections.items() if rows}
    widths = {heading: min(MAX_NAME, max(len(name) for name, _ in rows)) for heading, rows in filled.items()}
    for heading, rows in filled.items():
        with formatter.section(heading):
            formatter.write_dl(rows, col_max=MAX_NAME, col_spacing=2 + max(widths.values()) - widths[heading])


class _PlainValue:
    """A conversion for strings and paths, which need no checks; typer's own imports pydantic, which takes 0.1 s."""

    def __init__(self, kind: type, full_conversion: Callable[[], Any]) -> None:
        self._kind, self._full_conversion = kind, full_conversion

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a parameter's value: strings and paths without any checks, other types as typer converts them."""
        if value is None or isinstance(value, self._kind):
            return value
        if self._kind is Path:
            return Path(value)
        return self._full_conversion().coerce(value, param=param, ctx=ctx)


class Command(_Light, typer.core.TyperCommand):
    """A command whose arguments are split but not converted during completion.

    Conversion would account for most of the time that completion takes.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Create the command, and replace the conversion of parameters that have a single, simple value."""
        super().__init__(*args, **settings)
        params: list[Any] = self.params
        for param in params:
            kind = param.type_descriptor.annotation
            if kind in {str, Path, int} and param.nargs == 1 and not param.multiple:
                conversion = _PlainValue(kind, param.get_runtime_param)
                param.get_runtime_param = lambda conversion=conversion: conversion

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; during completion, split them but do not convert them."""
        if not ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        given, ctx.args, _ = self.make_parser(ctx).parse_args(args=args)
        for param in self.get_params(ctx):
            ctx.params[param.name], source = param.consume_value(ctx, given)
            ctx.set_parameter_source(param.name, source)
        return list(ctx.args)


class Listed(typer.core.TyperCommand):
    """An entry in the list of commands; the command's module is imported only when the command is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **settings: Any) -> Any:
        """Import the command and create its context."""
        with suppress(OSError):  # a working folder that has been removed has no path
            note_names(Path.cwd())
        # A message can span several lines, so a line break in a name can be escaped only if the name is noted first.
        for word in args:
            note_names(word)
        name = str(self.name)
        if name in {"train", "submit", "verify-resume"} and not settings.get("resilient_parsing"):
            for word in args:
                option = word.split("=")[0] if word.startswith("--") else word[:2]
                if option in UNSUPPORTED_OPTIONS:
                    raise JobError(f"{name} {option}: no such option. {UNSUPPORTED_OPTIONS[option]}")
        function = getattr(import_module(f"cnnjob.cli.{COMMANDS[name][0]}"), name.replace("-", "_"))
        # typer builds commands only from functions registered with an app.
        app_of_one = typer.Typer(add_completion=False, rich_markup_mode=None)
        app_of_one.command(name, cls=Command, context_settings=HELP_OPTIONS)(function)
        return typer.main.get_command(app_of_one).make_context(info_name, args, parent, **settings)


class Commands(_Light, typer.core.TyperGroup):
    """The group of all commands.

    A user error is printed as a single message and determines the exit code; for a bug, the traceback is printed.
    """

    def __init__(self, **settings: Any) -> None:
        """Add all commands without importing them."""
        super().__init__(**settings)
        self.commands.update({name: Listed(name, help=about) for name, (_, about) in COMMANDS.items()})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        sections = {}
        for heading, names in GROUPS.items():
            sections[heading] = [(name, COMMANDS[name][1]) for name in names]
        _write_sections(formatter, sections)
        super().format_options(ctx, formatter)

    @printable_streams()
    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **settings: Any) -> Any:
        """Parse the options before the command; print a usage error as :meth:`invoke` does.

        Raises:
            typer.Exit: there is no such option.
        """
        is_empty = not args  # noted here, because parsing consumes them
        try:
            return super().make_context(info_name, args, parent, **settings)
        except UsageError as error:
            if is_empty:
                raise  # the help is printed
            raise _print_usage_error(error) from error

    @printable_streams()
    def invoke(self, ctx: Any) -> Any:
        """Run the command; if it fails, print the error and exit.

        Raises:
            typer.Exit: the command failed; the exception has the exit code of the error.
        """
        try:
            return super().invoke(ctx)
        except CnnjobError as error:
            print_error(f"{error}")
            raise typer.Exit(error.exit_code) from error
        except UsageError as error:
            raise _print_usage_error(error) from error
        except BrokenPipeError:
            raise  # the reader has closed the pipe; typer exits quietly
        except MemoryError as error:
            print_error(f"{str(error) or 'out of memory'}. Free some memory and run the command again")
            raise typer.Exit(1) from error
        except OSError as error:
            print_error(f"{error}. Check the file, its permissions and the free disk space")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            print_error(f"interrupted{f'; {error}' if error.args else ''}")
            raise typer.Exit(EXIT_INTERRUPTED) from error


def _print_usage_error(error: Any) -> typer.Exit:
    """Print what is wrong with a command line, and how to get help; return the exception that ends the process."""
    if error.ctx:
        typer.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.", err=True)
    print_error(error.format_message())
    return typer.Exit(error.exit_code)


app = typer.Typer(
    name="cnnjob",
    cls=Commands,
    no_args_is_help=True,
    context_settings=HELP_OPTIONS,
    add_completion=False,  # the options are defined below: typer's own would load pydantic
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the signature of a typer callback
    if wanted:
        from cnnjob.files import short_digest
        from cnnjob.runs.commit import find_commit

        found = find_commit()
        commit = short_digest(found["commit"]) if found["commit"] else "unknown"
        typer.echo(f"cnnjob {__version__} (commit {commit}{'+dirty' if found['dirty'] else ''})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version and commit."),
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option("--install-completion", callback=install_callback, help="Install TAB completion for this shell."),
    ] = False,
    show_completion: Annotated[
        bool, typer.Option("--show-completion", callback=show_callback, help="Print the completion script.")
    ] = False,
) -> None:
    """Prepare image datasets, train CNNs written from scratch, and report the results, locally or through SLURM.

    Example: cnnjob demo
    """


def main() -> None:
    """Run the command line. This is the entry point of the console script ``cnnjob``."""
    # Otherwise, the garbage collector would take a tenth of the time of a short command to examine objects that live
    # until the command ends.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    completion_init()  # typer calls this only if its own completion options are enabled
    for stream in (sys.stdout, sys.stderr):
        # With LANG=C, non-ASCII letters of a class name cannot be encoded; they are printed as question marks.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app()
