"""Who a process is, for ever and on every host, and whether it lives."""

import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cnnjob.files import boot_id, is_gone, pid_namespace
from cnnjob.runs import clock
from cnnjob.runs.clock import SKEW_SECONDS

HEARTBEAT_SECONDS = 30.0
HEARD_SECONDS = 3 * HEARTBEAT_SECONDS
"""A process that was heard of since then is alive, whatever a scheduler says of its job's number."""
HEARTBEAT_LIMIT_SECONDS = 300.0
"""A holder on another host that has not been heard of for so long is taken for dead."""


def process_identity() -> dict[str, Any]:
    """What tells this process from every other, on this host and any other, for ever."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": pid,
        "pid_started": _start_of(pid),
        "pid_namespace": pid_namespace(),
        "uid": os.getuid(),
        "cluster": cluster(),
        "job_id": job_id(),
        "job_restarts": job_restarts(),
        "job_step": own_step(),
    }


def job_id() -> str | None:
    """The SLURM job that this process is part of: ``17``, or ``17_3`` of an array; None outside of one.

    An array's element is named by both numbers: the number of its own can be that of the whole array.
    """
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID")


def cluster() -> str | None:
    """Return the name of the cluster whose SLURM job this process is part of; None outside of one."""
    name = os.environ.get("SLURM_CLUSTER_NAME", "").lower()
    return name if name and job_id() else None


def may_be_one(cluster: str | None, other: str | None) -> bool:
    """Return whether two names may be those of one cluster; an older version wrote none down."""
    return not cluster or not other or cluster == other


def own_step() -> str | None:
    """Return the step of the SLURM job that this process is the only task of; None where others may be in it too."""
    step, tasks = os.environ.get("SLURM_STEP_ID", ""), os.environ.get("SLURM_STEP_NUM_TASKS")
    started_by = Path(f"/proc/{os.getppid()}/comm")
    if not step.isdecimal() or tasks != "1" or not started_by.exists():
        return None
    return step if started_by.read_text(encoding="utf-8").startswith("slurmstepd") else None


def job_restarts() -> int:
    """How often SLURM has started this job again; 0 outside of one."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def is_same_job_start(holder: dict[str, Any]) -> bool:
    """Whether a process is, or was, of this very life of this very SLURM job."""
    return _is_of_this_job(holder) and holder.get("job_restarts", 0) == job_restarts()


def _is_of_this_job(holder: dict[str, Any]) -> bool:
    """Return whether a process is, or was, of this SLURM job, and not of one with its number on another cluster."""
    return holder.get("job_id") == job_id() and holder.get("cluster") == cluster()


def is_earlier_job_start(holder: dict[str, Any]) -> bool:
    """Whether a process is of this very SLURM job, from before SLURM started it again.

    It may still be alive, on a node that was taken for dead.
    """
    return job_id() is not None and _is_of_this_job(holder) and holder.get("job_restarts", 0) < job_restarts()


def is_alive(holder: dict[str, Any], record: Path) -> bool:
    """Return whether the process of an attempt still lives.

    Where its number is one of this process's table, that answers, at once after a ``kill -9``; from elsewhere the
    record's age does. So it does for another machine of the same name, which cannot be told from this one before it
    was booted again: what was heard of since this boot is the other.
    """
    if shares_processes(holder):
        started = _start_of(holder["pid"])
        if started != _HIDDEN:
            return started is not None and started == holder["pid_started"]
    limit = HEARTBEAT_LIMIT_SECONDS
    if holder["host"] == socket.gethostname() and holder["boot"] != boot_id():
        limit = min(limit, max(HEARD_SECONDS, time.clock_gettime(time.CLOCK_BOOTTIME)))
    return silent_seconds(record) < limit


def shares_processes(holder: dict[str, Any]) -> bool:
    """Return whether this process can look an attempt's process up by its number, and send it signals.

    Containers of one machine may have one host name, and each its own numbers.
    """
    mine = pid_namespace()
    same_machine = holder["host"] == socket.gethostname() and holder["boot"] == boot_id()
    return same_machine and mine is not None and holder.get("pid_namespace", mine) == mine


def silent_seconds(record: Path) -> float:
    """Return how long an attempt has given no sign of life; one from the future, by another clock, counts as now."""
    return max(0.0, _age_seconds(record))


def ahead_seconds(record: Path) -> float:
    """Return how far an attempt's last sign of life is in the future; 0 for what clocks usually differ by, or none."""
    ahead = -_age_seconds(record) if record.exists() else 0.0
    return ahead if ahead > SKEW_SECONDS else 0.0


def _age_seconds(record: Path) -> float:
    return clock.age_seconds(record, *[*record.parents][2:0:-1])  # the folder of all runs first: it is read once


_HIDDEN = ""
"""The start of a process that is there and shown to its own user alone (``hidepid``)."""


def _start_of(pid: int) -> str | None:
    """Return when a process started, in clock ticks since the boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return _HIDDEN
    except (FileNotFoundError, ProcessLookupError):
        return None if is_gone(pid) else _HIDDEN
    return None if fields[0] in "ZX" else fields[19]


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
