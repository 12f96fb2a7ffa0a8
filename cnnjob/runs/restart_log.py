"""What was decided about a run outside of its lives: after each of them, and by ``cnnjob cancel``."""

import os
from pathlib import Path
from typing import Any

from cnnjob.errors import DataError
from cnnjob.jobs import json_files
from cnnjob.runs import schemas
from cnnjob.runs.process import is_alive
from cnnjob.runs.run import Run

NO_STEP = 254
"""The batch script's exit code where srun could not run its step."""
UNDECIDED = "cannot decide about a restart, exit code"
"""What a batch script writes into its log when its interpreter or a package of it is missing."""

CANCELLED = "cancelled; submit the job again to go on"
PREDECESSOR = "CNNJOB_PREDECESSOR"
"""The variable that names the job whose batch script submitted this one."""


def restarts_of(run: Run) -> list[dict[str, Any]]:
    """What was decided after each life, oldest first.

    Each says ``job_id`` and ``job_restarts``, ``ended_by``, the life's ``code``, the newest checkpoint's ``step``,
    whether it was ``restarted`` (``requeued``, ``successor``, ``by SLURM``, or not: empty), and what was ``said``.
    """
    try:
        return read_restarts(run)
    except DataError:
        return []


def read_restarts(run: Run) -> list[dict[str, Any]]:
    """Return the same, or raise where it cannot be known.

    Raises:
        DataError: the record is damaged or cannot be read.
    """
    path = restart_record(run)
    return json_files.read_list(path, schemas.RestartRecord) if os.path.lexists(path) else []


def restart_record(run: Run) -> Path:
    """Where the batch scripts write it down."""
    return run.slurm_folder / "restarts.json"


def cancel_record(run: Run) -> Path:
    """What ``cnnjob cancel`` leaves: ``by``, ``jobs`` (their ids), ``attempt``, ``time``."""
    return run.slurm_folder / "cancelled.json"


def cancel_of(run: Run) -> dict[str, Any]:
    """What ``cnnjob cancel`` left; empty where it left nothing that can be read."""
    try:
        return read_cancel(run)
    except DataError:
        return {}


def read_cancel(run: Run) -> dict[str, Any]:
    """Return the same, or raise where it cannot be known.

    Raises:
        DataError: the record is damaged or cannot be read.
    """
    path = cancel_record(run)
    return json_files.read(path, schemas.CancellationRecord) if os.path.lexists(path) else {}


def local_record(run: Run) -> Path:
    """Return where ``submit --local`` writes down that it is going to train a run."""
    return run.slurm_folder / "local.json"


def local_wait(run: Run) -> dict[str, Any]:
    """Return the process of a ``submit --local`` that is going to train a run; empty where none is."""
    path = local_record(run)
    try:
        holder = json_files.read(path, schemas.LocalWait) if os.path.lexists(path) else {}
        return holder if holder and run.owns(holder) and is_alive(holder, path) else {}
    except (DataError, OSError):
        return {}
