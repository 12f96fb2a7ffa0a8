"""The command ``cnnjob sync``."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnjob.cli import options as opt
from cnnjob.cli.screen import print_json, print_table, print_warning
from cnnjob.cli.status import UNFINISHED_STATES, WATCH_SECONDS
from cnnjob.errors import CnnjobError, DataError, JobError, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnnjob.reporting.sync.sync import Synced, Tool
    from cnnjob.runs.run import Run

HEADER = ("run", "state", "epochs", "new epochs", "result", "problem")


def sync(
    runs: opt.RUN_PATHS = None,
    to: Annotated[str, typer.Option("--to", metavar="TOOL", help="Destination: tensorboard or wandb.")] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER",
            help="Folder for the copies; by default, .tensorboard/ or .wandb/ in the runs folder.",
        ),
    ] = None,
    project: Annotated[
        str | None, typer.Option(metavar="NAME", help="W&B project; by default, WANDB_PROJECT or cnnjob.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Repeat every 30 seconds until all runs have ended.")
    ] = False,
    as_json: Annotated[bool, opt.json_option("Print what was sent for each run as JSON.")] = False,
) -> None:  # fmt: skip
    """Copy runs to TensorBoard or to Weights & Biases (W&B).

    Histories, settings, results and figures are copied, during training or afterwards. Only new data is sent, so the
    command can be repeated at any time. It needs a network to reach W&B; the jobs need none. The run folders are not
    changed. The package of the tool must be installed: pip install 'cnnjob[tensorboard]' or 'cnnjob[wandb]'.

    Example: cnnjob sync --to tensorboard
    """
    from cnnjob.reporting.sync.sync import sync as sync_runs
    from cnnjob.runs.summary import find_runs

    _require_tool(to, project)
    tool = None
    try:
        while True:
            found = find_runs(*(runs or [opt.RUNS_FOLDER]))
            if not found:
                names = " ".join(map(str, runs or [opt.RUNS_FOLDER]))
                raise DataError(f"{names}: no runs found. To train one:\n  cnnjob train JOB")
            tool = tool or _tool(to, project)
            # Before the runs are read, so that the end of a run that ends in the meantime is not missed.
            is_over = not watch or _have_ended(found)
            try:
                synced = list(sync_runs(found, tool, out))
                _print(synced, to, as_json=as_json, only_new=watch and not is_over)
            except CnnjobError as error:
                # A network that is down for a while does not end the watching.
                if is_over or isinstance(error, JobError):
                    raise
                print_warning(f"{error}")
            if is_over:
                return
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        if not watch:
            raise


def _require_tool(name: str, project: str | None) -> None:
    """Check ``--to`` and ``--project``.

    Raises:
        JobError: there is no such tool, or a project is specified for a tool that has no projects.
    """
    from cnnjob.runs.run import SYNC_FOLDERS

    if name not in SYNC_FOLDERS:
        found = f"unknown tool (found {name})" if name else "no tool specified"
        raise JobError(f"sync --to: {found}. Choose from {', '.join(SYNC_FOLDERS)}")
    if project and name == "tensorboard":
        raise JobError("sync --project: TensorBoard has no projects. Omit --project, or use --to wandb")


def _tool(name: str, project: str | None) -> "Tool":
    """Return the tool that ``--to`` names; its package is imported."""
    if name == "tensorboard":
        from cnnjob.reporting.sync.tensorboard_log import TensorBoard

        return TensorBoard()
    from cnnjob.reporting.sync.wandb_run import WeightsAndBiases

    return WeightsAndBiases(project)


def _have_ended(runs: "Sequence[Run]") -> bool:
    """Return whether no run is pending or being trained."""
    from cnnjob.runs.summary import read_summary
    from cnnjob.slurm.run_state import is_settled
    from cnnjob.slurm.status import query_statuses

    unsettled = [summary for summary in map(read_summary, runs) if not is_settled(summary)]
    # SLURM is queried only if the folders are not conclusive.
    if any(summary.state == "running" for summary in unsettled):
        return False
    answer = query_statuses([summary.run for summary in unsettled])
    if answer.remark:
        typer.echo(f"cnnjob: {answer.remark}", err=True)
    return not answer.remark and all(
        status.job is None and status.state not in UNFINISHED_STATES for status in answer.statuses
    )


def _print(synced: "Sequence[Synced]", to: str, *, as_json: bool, only_new: bool) -> None:
    """Print what was sent for each run, and where to view it.

    With ``only_new``, print only a table of the runs that have new data or a problem.
    """
    shown = [each for each in synced if each.new_epochs or each.new_result or each.problem or not only_new]
    if as_json:
        print_json([asdict(each) for each in synced])
        return
    if shown:
        rows = [
            [each.run, each.state, str(each.epochs), str(each.new_epochs), "new" * each.new_result, each.problem]
            for each in shown
        ]
        print_table(HEADER, rows, spare=["state", "result"])
    if only_new:
        return
    new = sum(each.new_epochs for each in synced)
    sent = "nothing new"
    if new or any(each.new_result for each in synced):
        sent = f"{plural(new, 'new epoch')} sent to {to}"
    typer.echo(f"{plural(len(synced), 'run')}: {sent}")
    if urls := sorted({each.url.rpartition("/runs/")[0] for each in synced if each.url}):
        typer.echo("\n".join(urls))
        return
    for folder in sorted({str(Path(each.folder).parent) for each in synced}):
        if to == "tensorboard":
            typer.echo(f"To see them:\n    tensorboard --logdir {folder}")
        else:
            typer.echo(f"W&B is offline. To send the runs later:\n    wandb sync {folder}/*/wandb/offline-run-*")
