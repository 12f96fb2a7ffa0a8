"""The commands ``cnnjob status``, ``logs`` and ``cancel``."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.screen import (
    STATE_COLOURS,
    build_table,
    console,
    fit_columns,
    print_json,
    print_table,
    warn_of_clocks,
)  # fmt: skip
from cnnjob.errors import DataError, JobError, format_seconds, plural, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from cnnjob.runs.run import Run
    from cnnjob.slurm.run_state import Status
    from cnnjob.slurm.status import Answer

WATCH_SECONDS, MAX_WATCH_SECONDS = 30.0, 180.0
QUERY_SECONDS = 30.0
"""Seconds between two SLURM queries about a run whose log is followed."""
MAX_DAMAGE_LETTERS = 100
UNFINISHED_STATES = ("pending", "running")
FAILED_STATES = ("failed", "lost", "damaged")
ACCURACIES = {"validation": "val acc", "test": "test acc", "train": "train acc"}
"""Titles of the accuracy columns, by split."""
HEADER = ("run", "state", "epoch", "loss", *ACCURACIES.values(), "time left", "job", "node", "restarts", "")
SPARE = ("loss", "restarts", "node", "time left", "job", "epoch", "train acc", "val acc", "test acc")
"""Columns to omit on a narrow terminal, in the order in which they are dropped."""


def status(
    runs: opt.RUN_PATHS = None,
    as_json: Annotated[bool, opt.json_option("Print all fields, including causes, as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh the table until you press Ctrl-C.")] = False,
    wide: Annotated[bool, typer.Option("--wide", help="Show all columns, even on a narrow terminal.")] = False,
) -> None:
    """Show the status of runs; for one run, also the cause.

    Below the cause is the command to run next. Loss and validation accuracy (val acc) are those of the last epoch;
    test accuracy (test acc) is the result of a finished run. Without validation images, loss and accuracy are measured
    on the test or training images. Keys with --json: run, path, state, detail, epoch, epochs, split, loss, accuracy,
    test_accuracy, seconds_left, job_id, node, restarts, slurm_state, slurm_reason, cause, evidence, command.

    Example: cnnjob status runs/
    """
    from cnnjob.slurm.diagnosis import diagnose

    selected = _find_runs(runs)
    if watch:
        _watch_table(runs)
    elif as_json:
        statuses = _query(selected, thorough=True).statuses
        print_json([{**status.as_json(), **diagnose(status).as_json()} for status in statuses])
    # If a folder of runs contains only one run, it is still shown as a table.
    elif len(selected) == 1 and selected[0].path in (runs or []):
        _print_status(selected[0])
    elif selected:
        answer = _query(selected)
        rows = [_row(status) for status in answer.statuses]
        print_table(HEADER, rows, spare=SPARE, wide=wide, advice="--wide or --json shows all of them")
        typer.echo(_count_states(answer))
        if failed := [status.summary.run.path for status in answer.statuses if status.state in FAILED_STATES]:
            typer.echo(f"For the cause of a failure, name the run:\n  cnnjob status {failed[0]}")
    else:
        typer.echo(f"{opt.RUNS_FOLDER}/: no runs yet. To start one:\n  cnnjob submit JOB")


def _find_runs(paths: "Sequence[Path] | None") -> "list[Run]":
    """Return the runs in the given folders; refuse a folder without runs, unless it is the default folder."""
    from cnnjob.runs.summary import find_runs

    for path in paths or []:
        if not find_runs(path):
            raise DataError(f"{path}: neither a run nor a folder of runs. Specify run folders, or a folder of them")
    return find_runs(*(paths or [opt.RUNS_FOLDER]))


def _query(runs: "Sequence[Run]", *, thorough: bool = False) -> "Answer":
    from cnnjob.slurm.status import query_statuses

    answer = query_statuses(runs, thorough=thorough)
    if answer.remark:
        typer.echo(f"cnnjob: {answer.remark}", err=True)
    # A wrong clock distorts the age of heartbeats, but finished and damaged runs do not depend on heartbeats.
    warn_of_clocks(status.summary.run for status in answer.statuses if status.state not in {"finished", "damaged"})
    return answer


def _row(status: "Status") -> list[str]:
    from cnnjob.training.progress import format_loss

    facts = status.as_json()
    epoch = f"{facts['epoch']}/{facts['epochs']}" if facts["epochs"] else ""
    loss = "" if facts["loss"] is None else format_loss(facts["loss"])
    measured = {facts["split"]: facts["accuracy"]} | (
        {"test": facts["test_accuracy"]} if facts["test_accuracy"] else {}
    )
    accuracies = ["" if (value := measured.get(split)) is None else f"{100 * value:.2f} %" for split in ACCURACIES]
    time_left = "unknown" if status.seconds_left is None else format_seconds(status.seconds_left)
    if status.state not in {"pending", "running", "stopped"}:
        time_left = ""
    numbers = (facts["job_id"] or "", facts["node"] or "", str(facts["restarts"] or ""))
    detail = _damage(status) if status.state == "damaged" else facts["detail"]
    return [facts["run"], status.state, epoch, loss, *accuracies, time_left, *numbers, " ".join(detail.split())]


def _damage(status: "Status") -> str:
    """Return the first line of the run's ``damage``, with paths relative to the run folder, cut to fit a table."""
    path = status.summary.run.path
    text = status.summary.damage.replace(f"{path}/", "").replace(f"{path}: ", "")
    return "".join(text.splitlines()[:1])[:MAX_DAMAGE_LETTERS]


def _count_states(answer: "Answer") -> str:
    counts = Counter(status.state for status in answer.statuses)
    states = ", ".join(f"{number} {state}" for state, number in counts.most_common())
    return f"{plural(len(answer.statuses), 'run')}: {states}"


def _print_status(run: "Run") -> None:
    """Print the state of one run, then its cause and the next command."""
    from rich.text import Text

    from cnnjob.slurm.diagnosis import diagnose
    from cnnjob.slurm.run_state import describe_heartbeat_skew

    [status] = _query([run], thorough=True).statuses
    diagnosis = diagnose(status)
    images = {"loss": status.summary.split, **{title: split for split, title in ACCURACIES.items()}}
    for name, value in zip(HEADER, _row(status), strict=True):
        if name == "state":
            colour = STATE_COLOURS.get(value, "")
            console().print(Text.assemble(f"{'state:':<11}", (value, colour)))
        elif name and value:
            typer.echo(f"{name + ':':<11}{value}{f' on the {images[name]} images' if name in images else ''}")
    typer.echo(f"{'cause:':<11}{diagnosis.sentence}\n{'evidence:':<11}{diagnosis.evidence}")
    for note in filter(None, ("; ".join(status.summary.notes), describe_heartbeat_skew(status.summary))):
        typer.echo(f"{'note:':<11}{note}")
    if diagnosis.command:
        typer.echo(f"{'next:':<11}{diagnosis.command}")


def _watch_table(paths: "Sequence[Path] | None") -> None:
    """Update the table at intervals, which grow while nothing changes; on a pipe, print a new table each time."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from cnnjob.slurm.status import query_statuses

    screen = console()
    warn_of_clocks(_find_runs(paths))

    def current_table() -> "RenderableType":
        answer = query_statuses(_find_runs(paths))  # searched every time, as runs may be added
        # A terminal with too few lines cuts off the end of the table, so pending and running runs come first.
        statuses = sorted(answer.statuses, key=lambda status: status.state not in UNFINISHED_STATES)
        everything = [list(map(printable, _row(status))) for status in statuses]
        header, rows = fit_columns(HEADER, everything, SPARE, screen.width)
        filled = [title for title, *cells in zip(HEADER, *everything, strict=True) if title and any(cells)]
        hidden = ", ".join(title for title in filled if title not in header)
        notes = [
            f"{_count_states(answer)}, {time.strftime('%T')}; Ctrl-C to stop",
            answer.remark,
            f"hidden on this narrow terminal: {hidden}" if hidden else "",
        ]
        return Group(Text("\n".join(filter(None, notes))), build_table(header, rows, narrow=True))

    try:
        if screen.is_terminal:
            with Live(console=screen, auto_refresh=False) as live:
                _repeat(paths, lambda: live.update(current_table(), refresh=True))
        else:
            _repeat(paths, lambda: screen.print(current_table()))
    except KeyboardInterrupt:
        return


def _repeat(paths: "Sequence[Path] | None", show: "Callable[[], None]") -> None:
    from cnnjob.runs.summary import read_summary

    pause, previous = WATCH_SECONDS, list[object]()
    while True:
        show()
        sys.stdout.flush()  # on a pipe the reader would wait for a full buffer
        # Read from the folders, without querying SLURM again.
        summaries = map(read_summary, _find_runs(paths))
        current: list[object] = [(summary.run.path, summary.state, summary.epoch) for summary in summaries]
        pause = next_pause(pause, changed=current != previous)
        previous = current
        time.sleep(pause)


def next_pause(pause: float, *, changed: bool) -> float:
    """Return the next pause in seconds: the minimum after a change; otherwise twice the last pause, up to a maximum."""
    return WATCH_SECONDS if changed else min(2 * pause, MAX_WATCH_SECONDS)


def logs(
    run: opt.RUN,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new lines, across restarts, until the run ends.")
    ] = False,
    lines: Annotated[
        int,
        typer.Option(
            "--lines", "-n", metavar="N", min=0, help="Number of lines to print from the end of the existing log."
        ),
    ] = 50,
) -> None:
    """Print the newest log of a run.

    The log includes tracebacks and SLURM messages. With --follow, the command ends when the run ends: with exit code 0
    if the run has finished, 75 if it was stopped or lost and can be resumed, and 1 if it failed or was cancelled. A run
    that waits for a restart by SLURM has not ended.

    Example: cnnjob logs runs/mnist-1a2b3c4d -f
    """
    from cnnjob.runs.logs import follow as follow_log
    from cnnjob.runs.logs import last_lines, newest_log

    found = _find_runs([run])
    if [other.path for other in found] != [run]:
        names = f"found {plural(len(found), 'run')}, such as {found[0].path}"
        raise JobError(f"{run}: not a run but a folder of runs ({names}). Specify one run")
    try:
        if follow:
            end = _LogEnd(found[0])
            for text in follow_log(found[0], lines, end.is_reached):
                _write(text)
            end.report()
        elif newest_log(found[0]).exists():
            _write(last_lines(newest_log(found[0]), lines))
        else:
            typer.echo(
                f"cnnjob: {run}: the log is still empty. To see the run's state:\n  cnnjob status {run}", err=True
            )
    except KeyboardInterrupt:
        return


def _write(text: str) -> None:
    if text:
        # A progress bar redraws its line with \r, which would be escaped, so each redrawn line is printed separately.
        sys.stdout.write(text.replace("\r\n", "\n").replace("\r", "\n"))
        sys.stdout.flush()


class _LogEnd:
    """Detects when nothing more will be written to a followed log.

    Every check reads the run folder, but SLURM is queried at most once per ``QUERY_SECONDS``. While the run waits for
    its SLURM job, the reason why the job waits is printed to stderr.
    """

    def __init__(self, run: "Run") -> None:
        self._run, self._last_query = run, -QUERY_SECONDS  # the first query is made at once
        self._reason = ""

    def is_reached(self) -> bool:
        """Return whether nothing more will be written to the log."""
        from cnnjob.runs.summary import read_summary
        from cnnjob.slurm.run_state import is_settled, may_be_restarted
        from cnnjob.slurm.status import query_statuses

        summary = read_summary(self._run)
        if is_settled(summary):
            return True
        # SLURM is queried only if the folder is not conclusive: the run is pending, or may be lost.
        if summary.state == "running" or time.monotonic() - self._last_query < QUERY_SECONDS:
            return False
        self._last_query = time.monotonic()
        answer = query_statuses([self._run])
        [status] = answer.statuses
        reason = answer.remark if answer.silent else status.detail if status.state == "pending" else ""
        if (answer.silent and may_be_restarted(summary) and summary.job_id) or status.job:
            if reason != self._reason:
                typer.echo(f"cnnjob: {self._run.path}: waiting for job {status.job_id}: {reason}", err=True)
            self._reason = reason
            return False
        return status.state != "running"

    def report(self) -> None:
        """Print to stderr how the run ended, and exit with the code that :func:`cnnjob.cli.submit.exit_as` chooses."""
        from cnnjob.cli.submit import describe_end, exit_as
        from cnnjob.slurm.status import query_statuses

        [status] = query_statuses([self._run], thorough=True).statuses
        typer.echo(f"cnnjob: {describe_end(status)}", err=True)
        exit_as([status])


def cancel(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS",
            autocompletion=completion.runs,
            callback=opt.named_runs,
            help="Folders or names of runs, latest, or folders of runs.",
            readable=False,
        ),
    ],
) -> None:
    """Cancel runs; saved work is kept.

    SLURM jobs are cancelled whether they are pending or running. A run that is being trained on this machine without
    SLURM saves its work and stops. To resume a cancelled run, submit it again.

    Example: cnnjob cancel runs/mnist-1a2b3c4d
    """
    from cnnjob.slurm.cancel import cancel as cancel_runs

    results = cancel_runs(_find_runs(runs))
    for result in results:
        typer.echo(f"{result.run.path}: {result.message}")
    if code := max((result.exit_code for result in results), default=0):
        raise typer.Exit(code)
