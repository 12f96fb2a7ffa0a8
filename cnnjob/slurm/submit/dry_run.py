"""Dry runs: SLURM's answer to a request, and what would happen at the time limit and at a preemption."""

import tempfile
from pathlib import Path

from cnnjob.errors import SchedulerError, format_seconds
from cnnjob.slurm.node.restart import RESTARTS_WITHOUT_PROGRESS
from cnnjob.slurm.scheduler import client, site
from cnnjob.slurm.scheduler.site import Partition, Site
from cnnjob.slurm.submit.request import Request


def ask_site() -> tuple[Site | None, str]:
    """Return what the site allows and an empty string, or None and the reason; a dry run needs no SLURM."""
    if not client.is_there():
        return None, "not on this machine"
    try:
        return site.query_site(), ""
    except SchedulerError as error:
        return None, str(error)


def test_only(script: str) -> tuple[str, bool]:
    """Return the answer of ``sbatch --test-only`` and whether it refused.

    The answer says when and where the job would start, or why it would not.
    """
    with tempfile.TemporaryDirectory(prefix="cnnjob-") as folder:
        path = Path(folder) / "submission.sh"
        path.write_text(script)
        try:
            # sbatch prints this answer to stderr
            return client.tell(["sbatch", "--test-only", str(path)]).removeprefix("sbatch: "), False
        except SchedulerError as error:
            return str(error).replace(f" {path}", ""), True  # a temporary file, gone when the message is read


def at_the_time_limit(request: Request, here: Site | None) -> str:
    """Return a sentence on what happens if the time limit comes before the end of the training."""
    partition = here.partition_of(request) if here else None
    minutes = request.time_minutes or (partition.default_minutes or partition.max_minutes if partition else None)
    when = f"after {format_seconds(60 * minutes)}" if minutes else "at the site's time limit"
    return (
        f"{when}: asked {request.signal_seconds} s before it by SLURM, or by its own clock, the job saves and stops; "
        f"{_comes_back(request, here)}, as often as it gets on "
        f"(it ends after {RESTARTS_WITHOUT_PROGRESS} restarts without progress)"
    )


def at_preemption(request: Request, here: Site | None) -> str:
    """Return a sentence on what happens if a job of higher priority preempts this one."""
    partition = here.partition_of(request) if here else None
    if here is None or partition is None:
        return "not known without SLURM; wherever a job is ended, it goes on from its last checkpoint"
    if partition.preempt_mode in {"OFF", "GANG"}:
        return f"jobs of {partition.name} are not preempted by partition"
    return f"{_warning(partition, here)}; {_after(partition, request, here)}"


def _warning(partition: Partition, here: Site) -> str:
    seconds = partition.grace_seconds or here.kill_wait_seconds
    signal = "its signal" if here.signals_preempted and partition.grace_seconds else "SIGTERM"
    return f"in {partition.name} a preempted job gets {signal} and {seconds} s, in which it saves and stops"


def _after(partition: Partition, request: Request, here: Site) -> str:
    if partition.preempt_mode == "REQUEUE" and request.requeue is not False and (request.requeue or here.requeues):
        return "SLURM requeues it, and it goes on from there"
    return f"SLURM does not requeue it ({partition.preempt_mode}), so {_comes_back(request, None)}"


def _comes_back(request: Request, here: Site | None) -> str:
    allowed = request.requeue if request.requeue is not None else here.requeues if here else None
    successor = "its batch script submits a successor that goes on"
    if allowed is None:
        return f"its batch script requeues it, or, where that is refused, {successor.removeprefix('its batch script ')}"
    return "its batch script requeues it, and it goes on" if allowed else successor
