"""What the scheduler says: asked by its own commands, few times, never trusted to answer."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from cnnjob.errors import SchedulerError

ANSWER_SECONDS = 60
_OURS = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC|SUBMITIT)_")
_KEPT = {"SLURM_CONF"}


def is_there() -> bool:
    """Whether this machine can submit to a SLURM."""
    return shutil.which("sbatch") is not None


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what an enclosing job left in it."""
    return {name: value for name, value in environment.items() if name in _KEPT or not _OURS.match(name)}


def ask(command: Sequence[str]) -> str:
    """Run a command of SLURM's and give its answer.

    Raises:
        SchedulerError: it is not there, did not answer in time, or refused.
    """
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS, check=True,
            env=clean(os.environ),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SchedulerError(f"{command[0]}: not found; this machine has no SLURM, log in to one that has") from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(f"{command[0]}: no answer in {ANSWER_SECONDS} s; try again") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip() or f"exit code {error.returncode}"
        raise SchedulerError(f"{' '.join(command)}: refused, {said}") from error
    return done.stdout


def facts(command: Sequence[str]) -> dict[str, str]:
    """The ``Name=value`` words of a ``scontrol show … --oneliner``; spaces in a value cut it short.

    Raises:
        SchedulerError: as :func:`ask`.
    """
    return dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)(?: += |=)(\S*)", ask(command)))


def job(job_id: str) -> dict[str, str]:
    """What SLURM knows of a job: ``JobState``, ``EndTime``, ``Requeue``, ….

    Raises:
        SchedulerError: as :func:`ask`; also when SLURM has forgotten the job.
    """
    return facts(["scontrol", "show", "job", "--oneliner", job_id])


def ended_by(job: Mapping[str, str], restarts: int) -> str:
    """Who is ending a job, as far as its own batch script can see.

    While the script still runs SLURM says ``COMPLETING`` for every cause, so the other facts tell.

    Args:
        job: what :func:`job` gave.
        restarts: ``SLURM_RESTART_COUNT`` of this life.

    Returns:
        ``requeued`` (it is in the queue again), ``preempted``, ``time limit``, ``cancelled``, or ``itself``.
    """
    state = job.get("JobState", "")
    if _number(job.get("Restarts", "")) > restarts or state.startswith(("PENDING", "REQUEUE", "CONFIGURING")):
        return "requeued"
    if job.get("PreemptTime", "None") not in {"None", "N/A"}:
        return "preempted"
    if state.startswith("TIMEOUT") or _seconds(job.get("RunTime", "")) >= _seconds(job.get("TimeLimit", "")) > 0:
        return "time limit"
    return "cancelled" if state.startswith(("COMPLETING", "CANCELLED")) else "itself"


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _seconds(clock: str) -> int:
    """``D-HH:MM:SS`` in seconds; 0 for a word such as ``UNLIMITED``."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", clock)
    if not found:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_partition(wanted: str | None) -> None:
    """Find a partition that does not exist before sbatch does.

    Raises:
        SchedulerError: there is no such partition; near names or all are said.
    """
    if wanted is None:
        return
    known = sorted({line.rstrip("*") for line in ask(["sinfo", "--noheader", "--all", "--format", "%P"]).split()})
    for name in wanted.split(","):
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
            raise SchedulerError(f"--partition {name}: no such partition, this site has {', '.join(known)}; {hint}")
