"""Dry runs: how SLURM would answer a request, and what would happen at the time limit and on preemption."""

import tempfile
from pathlib import Path

from cnnjob.errors import SchedulerError, format_seconds
from cnnjob.slurm.node.restart import RESTARTS_WITHOUT_PROGRESS
from cnnjob.slurm.scheduler import client, site
from cnnjob.slurm.scheduler.site import Site
from cnnjob.slurm.submit.request import Request


def try_query_site() -> tuple[Site | None, str]:
    """Return the site's settings and an empty string, or None and the reason why they are not available."""
    if not client.has_slurm():
        return None, "not on this machine"
    try:
        return site.query_site(), ""
    except SchedulerError as error:
        return None, str(error)


def query_start(script: str) -> tuple[str, bool]:
    """Return the output of ``sbatch --test-only`` and whether sbatch refused the job.

    The output states when and where the job would start, or why it would not.
    """
    with tempfile.TemporaryDirectory(prefix="cnnjob-") as folder:
        path = Path(folder) / "submission.sh"
        path.write_text(script)
        try:
            return client.ask_stderr(["sbatch", "--test-only", str(path)]).removeprefix("sbatch: "), False
        except SchedulerError as error:
            return str(error).replace(f" {path}", ""), True  # a temporary file, removed before the message is read


def describe_time_limit(request: Request, current_site: Site | None) -> str:
    """Return a sentence that describes what happens if the time limit is reached before training ends."""
    partition = current_site.partition_of(request) if current_site else None
    minutes = request.time_minutes or (partition.default_minutes or partition.max_minutes if partition else None)
    when = f"after {format_seconds(60 * minutes)}" if minutes else "at the site's time limit"
    return (
        f"{when}: {request.signal_seconds} s before that, on SLURM's signal or by its own clock, the job saves and "
        f"stops; {_how_it_resumes(request, current_site)}. This repeats as long as the run makes progress; after "
        f"{RESTARTS_WITHOUT_PROGRESS} restarts without a new checkpoint, it is no longer restarted"
    )


def describe_preemption(request: Request, current_site: Site | None) -> str:
    """Return a sentence that describes what happens if a higher-priority job preempts the submitted job."""
    partition = current_site.partition_of(request) if current_site else None
    if current_site is None or partition is None:
        return "unknown without SLURM; in any case, the run can be resumed from its last checkpoint"
    if partition.preempt_mode in {"OFF", "GANG"}:
        return f"jobs in {partition.name} are not preempted by jobs in other partitions"
    seconds = partition.grace_seconds or current_site.kill_wait_seconds
    signal = "its signal" if current_site.signals_preempted and partition.grace_seconds else "SIGTERM"
    warning = f"a job preempted in {partition.name} receives {signal} and has {seconds} s to save and stop"
    mode = partition.preempt_mode
    if mode == "REQUEUE" and request.requeue is not False and (request.requeue or current_site.requeues):
        return f"{warning}; SLURM requeues it, and it resumes"
    return f"{warning}; SLURM does not requeue it ({mode}), so {_how_it_resumes(request, None)}"


def _how_it_resumes(request: Request, current_site: Site | None) -> str:
    """Return a clause on how a job is restarted after it has saved and stopped: by a requeue or by a successor.

    If neither the request nor the site's settings determine which of the two applies, the clause names both.
    """
    allowed = request.requeue
    if allowed is None and current_site:
        allowed = current_site.requeues
    if allowed is None:
        return "its batch script requeues it or, if that is refused, submits a successor; then it resumes"
    how = "requeues it" if allowed else "submits a successor"
    return f"its batch script {how}, and it resumes"
