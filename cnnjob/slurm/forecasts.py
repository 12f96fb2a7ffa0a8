"""What would become of a request: what SLURM says of it, and what happens when it ends too early."""

import tempfile
from pathlib import Path

from cnnjob.slurm import scheduler
from cnnjob.slurm.requests import Request, duration
from cnnjob.slurm.restart import RESTARTS_WITHOUT_PROGRESS
from cnnjob.slurm.site import Partition, Site


def test_only(script: str) -> str:
    """What ``sbatch --test-only`` says: when and where the job would start, or why it would not.

    Raises:
        SchedulerError: SLURM is not there, refused, or did not answer.
    """
    with tempfile.TemporaryDirectory(prefix="cnnjob-") as folder:
        path = Path(folder) / "submission.sh"
        path.write_text(script)
        said = scheduler.tell(["sbatch", "--test-only", str(path)])
    return said.strip().removeprefix("sbatch: ")


def at_the_time_limit(request: Request, site: Site | None) -> str:
    """What happens when the time limit comes before the training's end."""
    partition = site.partition_of(request) if site else None
    minutes = request.time_minutes or (partition.default_minutes or partition.max_minutes if partition else None)
    when = f"after {duration(minutes)}" if minutes else "at the site's time limit"
    return (
        f"{when}: asked {request.signal_seconds} s before it by SLURM, or by its own clock, the job saves and stops; "
        f"{_comes_back(request, site)}, as often as it gets on "
        f"(it ends after {RESTARTS_WITHOUT_PROGRESS} restarts without progress)"
    )


def at_preemption(request: Request, site: Site | None) -> str:
    """What happens when a job of more weight takes its place."""
    partition = site.partition_of(request) if site else None
    if site is None or partition is None:
        return "not known without SLURM; wherever a job is ended, it goes on from its last checkpoint"
    if partition.preempt_mode in {"OFF", "GANG"}:
        return f"jobs of {partition.name} are not preempted by partition"
    return f"{_warning(partition, site)}; {_after(partition, request, site)}"


def _warning(partition: Partition, site: Site) -> str:
    seconds = partition.grace_seconds or site.kill_wait_seconds
    signal = "its signal" if site.signals_preempted and partition.grace_seconds else "SIGTERM"
    return f"in {partition.name} a preempted job gets {signal} and {seconds} s, in which it saves and stops"


def _after(partition: Partition, request: Request, site: Site) -> str:
    if partition.preempt_mode == "REQUEUE" and request.requeue is not False and (request.requeue or site.requeues):
        return "SLURM requeues it, and it goes on from there"
    return f"SLURM does not requeue it ({partition.preempt_mode}), so {_comes_back(request, None)}"


def _comes_back(request: Request, site: Site | None) -> str:
    allowed = request.requeue if request.requeue is not None else site.requeues if site else None
    successor = "its batch script submits a successor that goes on"
    if allowed is None:
        return f"its batch script requeues it, or, where that is refused, {successor.removeprefix('its batch script ')}"
    return "its batch script requeues it, and it goes on" if allowed else successor
