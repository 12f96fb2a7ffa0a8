"""The commands ``cnnjob status``, ``logs`` and ``cancel``."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.screen import console, fitting, print_json, print_table, table_of, warn_of_clocks
from cnnjob.cli.train import RUNS_FOLDER
from cnnjob.errors import JobError, format_seconds, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from cnnjob.runs.run import Run
    from cnnjob.slurm.status import Answer, Status

WATCH_SECONDS, WATCH_SECONDS_AT_MOST = 30.0, 180.0
ASK_SECONDS = 30.0
"""Between two questions to SLURM about a run whose log is followed."""
REASON_LETTERS = 100
LIVELY = ("pending", "running")
HEADER = ("run", "state", "epoch", "loss", "accuracy", "time left", "job", "node", "restarts", "")
SPARE = ("loss", "restarts", "node", "accuracy", "time left")
"""Columns to leave out on a narrow terminal, the first to go first."""


def status(
    runs: opt.PLACES = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all facts, with causes, as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again; Ctrl-C ends it.")] = False,
) -> None:
    """Show how runs stand; of a single one also why.

    Beneath the cause is the command to type next. Loss and accuracy are of the validation images, else of the test or
    training images. The keys of --json: run, path, state, detail, epoch, epochs, split, loss, accuracy, seconds_left,
    job_id, node, restarts, slurm_state, slurm_reason, cause, evidence, command.

    Example: cnnjob status runs/
    """
    found = _runs(runs)
    single = bool(runs) and len(found) == 1 and found[0].path in (runs or [])
    if watch:
        _watch(runs)
    elif as_json:
        _print_json(found)
    elif single:
        _print_one(found[0])
    elif found:
        answer = _ask(found)
        print_table(HEADER, [_row(one) for one in answer.statuses], spare=SPARE)
        typer.echo(_summary(answer))
    else:
        typer.echo(f"{RUNS_FOLDER}/: no runs yet; `cnnjob submit JOB` makes one")


def _runs(places: "Sequence[Path] | None") -> "list[Run]":
    """Return the runs at some places; only the default place may have none."""
    from cnnjob.runs.summary import find_runs

    for place in places or []:
        if not find_runs(place):
            raise JobError(f"{place}: no run, and no folder of runs; name run folders, or the folder that holds them")
    return find_runs(*(places or [RUNS_FOLDER]))


def _ask(runs: "Sequence[Run]", *, thorough: bool = False) -> "Answer":
    from cnnjob.slurm.status import statuses

    answer = statuses(runs, thorough=thorough)
    if answer.remark:
        typer.echo(f"cnnjob: {answer.remark}", err=True)
    warn_of_clocks(one.summary.run for one in answer.statuses if one.state not in {"finished", "damaged"})
    return answer


def _row(one: "Status") -> list[str]:
    facts = one.as_json()
    numbers = (facts["job_id"] or "", facts["node"] or "", str(facts["restarts"] or ""))
    detail = facts["detail"] if one.state != "damaged" else _reason(one)
    detail = " ".join(detail.split())
    return [facts["run"], one.state, _epoch(facts), _loss(facts), _accuracy(facts), _time_left(one), *numbers, detail]


def _reason(one: "Status") -> str:
    """Return the first line of what is damaged, with paths relative to the run folder, cut to fit a table."""
    first = (
        one.summary.damage.replace(f"{one.summary.run.path}/", "")
        .replace(f"{one.summary.run.path}: ", "")
        .splitlines()[:1]
    )
    return "".join(first)[:REASON_LETTERS]


def _epoch(facts: dict[str, Any]) -> str:
    return f"{facts['epoch']}/{facts['epochs']}" if facts["epochs"] else ""


def _loss(facts: dict[str, Any]) -> str:
    from cnnjob.training.progress import format_loss

    return "" if facts["loss"] is None else format_loss(facts["loss"])


def _accuracy(facts: dict[str, Any]) -> str:
    return "" if facts["accuracy"] is None else f"{100 * facts['accuracy']:.2f} %"


def _time_left(one: "Status") -> str:

    if one.state not in {"pending", "running", "stopped"}:
        return ""
    return "unknown" if one.seconds_left is None else format_seconds(one.seconds_left)


def _summary(answer: "Answer") -> str:
    count = Counter(one.state for one in answer.statuses)
    total = len(answer.statuses)
    states = ", ".join(f"{number} {state}" for state, number in count.most_common())
    return f"{total} run{'s' * (total != 1)}: {states}"


def _print_json(runs: "Sequence[Run]") -> None:
    from cnnjob.slurm.diagnosis import diagnose

    answer = _ask(runs, thorough=True)
    rows = [{**one.as_json(), **diagnose(one).as_json()} for one in answer.statuses]
    print_json(rows)


def _print_one(run: "Run") -> None:
    """Print the state of one run, then its cause and the next command."""
    from cnnjob.slurm.diagnosis import diagnose
    from cnnjob.slurm.status import skew

    [one] = _ask([run], thorough=True).statuses
    cause = diagnose(one)
    for name, value in zip(HEADER, _row(one), strict=True):
        if name and value:
            whose = f" on the {one.summary.split} images" if name in {"loss", "accuracy"} else ""
            typer.echo(f"{name + ':':<11}{value}{whose}")
    typer.echo(f"{'cause:':<11}{cause.sentence}\n{'says:':<11}{cause.evidence}")
    for note in filter(None, ("; ".join(one.summary.notes), skew(one.summary))):
        typer.echo(f"{'note:':<11}{note}")
    if cause.command:
        typer.echo(f"{'next:':<11}{cause.command}")


def _watch(places: "Sequence[Path] | None") -> None:
    """Show the table repeatedly, less often while nothing changes; on a pipe print one table after the other."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    screen = console()

    def now() -> "RenderableType":
        answer = _ask(_runs(places))
        # A terminal with too few lines cuts off the end of the table: pending and running runs come first.
        shown = sorted(answer.statuses, key=lambda one: one.state not in LIVELY)
        rows = [list(map(printable, _row(one))) for one in shown]
        table = table_of(*fitting(HEADER, rows, SPARE, screen.width), narrow=True)
        return Group(Text(f"{_summary(answer)}, {time.strftime('%T')}; Ctrl-C ends it"), table)

    try:
        if screen.is_terminal:
            with Live(console=screen, auto_refresh=False) as live:
                _repeat(places, lambda: live.update(now(), refresh=True))
        else:
            _repeat(places, lambda: screen.print(now()))
    except KeyboardInterrupt:
        return


def _repeat(places: "Sequence[Path] | None", show: "Callable[[], None]") -> None:
    pause, before = WATCH_SECONDS, ""
    while True:
        show()
        sys.stdout.flush()  # on a pipe the reader would wait for a full buffer
        seen = _fingerprint(places)
        pause, before = next_pause(pause, changed=seen != before), seen
        time.sleep(pause)


def next_pause(pause: float, *, changed: bool) -> float:
    """Return the seconds to wait after a pause: twice as long up to a limit, or the shortest after a change."""
    return WATCH_SECONDS if changed else min(2 * pause, WATCH_SECONDS_AT_MOST)


def _fingerprint(places: "Sequence[Path] | None") -> str:
    from cnnjob.runs.summary import read_summary

    return repr([(one.run.path, one.state, one.epoch) for one in map(read_summary, _runs(places))])


def logs(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", autocompletion=completion.runs, help="A run folder.", readable=False)
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, over restarts, until the run ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines of before.")] = 50,
) -> None:
    """Print what a run's newest job has written.

    Tracebacks and SLURM's words are in it too.

    Example: cnnjob logs runs/mnist-1a2b3c4d -f
    """
    from cnnjob.runs.logs import follow as follow_log
    from cnnjob.runs.logs import last_lines, newest_log

    found = _one_run(run)
    try:
        if follow:
            for text in follow_log(found, lines, _End(found).has_come):
                _write(text)
        elif newest_log(found).exists():
            _write(last_lines(newest_log(found), lines))
        else:
            typer.echo(f"cnnjob: {run}: nothing is written yet; `cnnjob status {run}` tells how it stands", err=True)
    except KeyboardInterrupt:
        return


def _write(text: str) -> None:
    if text:
        # A progress bar redraws its line with \r: print each of its states on a line, as \r would be escaped.
        sys.stdout.write(text.replace("\r\n", "\n").replace("\r", "\n"))
        sys.stdout.flush()


def _one_run(path: Path) -> "Run":
    found = _runs([path])
    if [run.path for run in found] != [path]:
        raise JobError(f"{path}: no run folder, it holds {len(found)}; name one of them, as {found[0].path}")
    return found[0]


class _End:
    """Watches whether a run whose log is followed is over: reads its folder often, asks SLURM rarely."""

    def __init__(self, run: "Run") -> None:
        self._run, self._asked = run, -ASK_SECONDS  # the first question is asked at once

    def has_come(self) -> bool:
        """Return whether nothing more will be written to the log."""
        from cnnjob.runs.summary import read_summary
        from cnnjob.slurm.status import is_settled, statuses

        seen = read_summary(self._run)
        if is_settled(seen):
            return True
        # SLURM is asked only about a run whose folder does not settle it: one that waits, or may have been lost.
        if seen.state == "running" or time.monotonic() - self._asked < ASK_SECONDS:
            return False
        self._asked = time.monotonic()
        answer = statuses([self._run])
        [now] = answer.statuses
        return not answer.remark and now.job is None and now.state not in {"pending", "running"}


def cancel(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS", autocompletion=completion.runs, help="Run folders, or folders of runs.", readable=False
        ),
    ],
) -> None:
    """Cancel the jobs of runs; what is saved stays.

    They may wait or run; submitting again goes on. A run that a process of this machine trains without SLURM saves
    and stops.

    Example: cnnjob cancel runs/mnist-1a2b3c4d
    """
    from cnnjob.slurm.cancel import cancel as cancel_runs

    told = cancel_runs(_runs(runs))
    for done in told:
        typer.echo(f"{done.run.path}: {done.said}")
    if code := max((done.exit_code for done in told), default=0):
        raise typer.Exit(code)
