"""The identity of a process, unique across hosts and reboots, and a check that a process is alive."""

import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.files import boot_id, is_gone, pid_namespace
from cnnjob.runs import clock
from cnnjob.runs.clock import SKEW_SECONDS

HEARTBEAT_SECONDS = 30.0
RECENT_HEARTBEAT_SECONDS = 3 * HEARTBEAT_SECONDS
"""A process whose last heartbeat is more recent than this counts as alive, whatever SLURM reports about its job id."""
HEARTBEAT_LIMIT_SECONDS = 300.0
"""An owner on another host is presumed dead if it has had no heartbeat for this long."""


def process_identity() -> dict[str, Any]:
    """Return the facts that distinguish this process from all others, on any host and at any time.

    Pids are reused, so host, boot, pid namespace and start time are recorded with the pid; a SLURM job id is recorded
    with its cluster and restart count.
    """
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
        "job_step": job_step(),
    }


def job_id() -> str | None:
    """Return the id of the SLURM job that this process belongs to, such as ``17`` or ``17_3``; None outside SLURM.

    An array task is identified by the job id of the array and the index of the task. The task's job id would be
    ambiguous, since one of the tasks has the same job id as the array.
    """
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID")


def cluster() -> str | None:
    """Return the name of the SLURM cluster that this process's job runs on, in lower case; None outside SLURM."""
    name = os.environ.get("SLURM_CLUSTER_NAME", "").lower()
    return name if name and job_id() else None


def may_be_same_cluster(cluster: str | None, other: str | None) -> bool:
    """Return whether two names may refer to the same cluster; a missing name may refer to any cluster."""
    return not cluster or not other or cluster == other


def job_step() -> str | None:
    """Return this process's SLURM job step if the process is the step's only task; None if there may be other tasks."""
    step, tasks = os.environ.get("SLURM_STEP_ID", ""), os.environ.get("SLURM_STEP_NUM_TASKS")
    # Child processes inherit these variables, but only the task itself has slurmstepd as its parent.
    started_by = Path(f"/proc/{os.getppid()}/comm")
    if not step.isdecimal() or tasks != "1" or not started_by.exists():
        return None
    return step if started_by.read_text(encoding="utf-8").startswith("slurmstepd") else None


def job_restarts() -> int:
    """Return the number of times that SLURM has restarted this job; 0 outside SLURM."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)  # SLURM sets it from the first restart on


def is_same_job_start(owner: dict[str, Any]) -> bool:
    """Return whether a process belongs or belonged to this SLURM job and was started after the job's last restart."""
    return _is_of_this_job(owner) and (owner.get("job_restarts") or 0) == job_restarts()


def _is_of_this_job(owner: dict[str, Any]) -> bool:
    """Return whether a process belongs or belonged to this SLURM job, not to another cluster's job with the same id."""
    return owner.get("job_id") == job_id() and owner.get("cluster") == cluster()


def is_earlier_job_start(owner: dict[str, Any]) -> bool:
    """Return whether a process belongs to this SLURM job but was started before the job's last restart.

    Such a process may still be alive, on a node that SLURM presumed dead.
    """
    return job_id() is not None and _is_of_this_job(owner) and (owner.get("job_restarts") or 0) < job_restarts()


def is_alive(owner: dict[str, Any], record: Path) -> bool:
    """Return whether an attempt's process is still alive.

    If the attempt's process is in this process's pid namespace, its pid is looked up, which is reliable even right
    after a ``kill -9``. Otherwise, the age of its last heartbeat decides.

    Args:
        owner: the attempt's record.
        record: the path of that record, whose modification time is that of the last heartbeat.
    """
    if shares_processes(owner):
        started = _start_of(owner["pid"])
        if started != _HIDDEN:
            return started is not None and started == owner["pid_started"]
    limit = HEARTBEAT_LIMIT_SECONDS
    # A record with this host name but another boot: either this machine was rebooted, so the process is dead, or the
    # record is from another machine with the same name. A heartbeat since this machine's boot can only be from that
    # other machine.
    if owner["host"] == socket.gethostname() and owner["boot"] != boot_id():
        limit = min(limit, max(RECENT_HEARTBEAT_SECONDS, time.clock_gettime(time.CLOCK_BOOTTIME)))
    return heartbeat_age_seconds(record) < limit


def shares_processes(owner: dict[str, Any]) -> bool:
    """Return whether this process can look up an attempt's process by its pid and send it signals.

    Containers on one machine may have the same host name and boot id, but each has its own pids.
    """
    mine = pid_namespace()
    same_machine = owner["host"] == socket.gethostname() and owner["boot"] == boot_id()
    return same_machine and mine is not None and owner.get("pid_namespace", mine) == mine


def heartbeat_age_seconds(record: Path) -> float:
    """Return the seconds since an attempt's last heartbeat; 0 if a clock difference puts the heartbeat in the future.

    Args:
        record: the path of the attempt's record.
    """
    return max(0.0, _age_seconds(record))


def ahead_seconds(record: Path) -> float:
    """Return how many seconds in the future an attempt's last heartbeat is dated.

    The result is 0 if that is at most ``SKEW_SECONDS``, or if there is no record.

    Args:
        record: the path of the attempt's record.
    """
    try:
        ahead = -_age_seconds(record)
    except FileNotFoundError:
        return 0.0
    return ahead if ahead > SKEW_SECONDS else 0.0


def _age_seconds(record: Path) -> float:
    # The folder that contains all runs is tried first, so that its clock is read only once; then the run's folder.
    return clock.age_seconds(record, *[*record.parents][2:0:-1])


_HIDDEN = ""
"""Placeholder for the start time of a process visible only to its own user (``/proc`` mounted with ``hidepid``)."""


def _start_of(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if it no longer exists or is a zombie."""
    try:
        # pid (comm) state ppid …: comm may contain spaces and parentheses, so fields are counted after the last ")".
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return _HIDDEN
    except (FileNotFoundError, ProcessLookupError):
        return None if is_gone(pid) else _HIDDEN
    return None if fields[0] in "ZX" else fields[19]  # state (3) and starttime (22) of proc_pid_stat(5)


def name_ctrl_c(why: str) -> str:
    """Return the reason why an attempt ended, with SIGINT written as Ctrl-C, which sends it."""
    return why.replace("SIGINT", "Ctrl-C")


def now() -> str:
    """Return the current UTC time in ISO 8601 format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def python_path_for_children() -> dict[str, str]:
    """Return the ``PYTHONPATH`` variable with which child processes find this package; empty if it is not needed.

    The variable is needed if ``python -m cnnjob`` runs in a source folder and the package is not installed: child
    processes run with ``-P``, which leaves the current folder out of ``sys.path``.
    """
    root = str(files.PACKAGE.resolve().parent)
    if sys.flags.safe_path or str(Path(sys.path[0]).resolve()) != root:
        return {}
    return {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
