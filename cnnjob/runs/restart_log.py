"""Records of what was decided about a run outside of its attempts: after each of them, and by ``cnnjob cancel``."""

import os
from pathlib import Path
from typing import Any

from cnnjob.errors import DataError
from cnnjob.jobs import json_files
from cnnjob.runs import schemas
from cnnjob.runs.process import is_alive
from cnnjob.runs.run import Run

NO_STEP = 254
"""The batch script's exit code if srun could not start the step."""
UNDECIDED = "cannot decide about a restart, exit code"
"""What a batch script writes to its log if its Python interpreter, or a package that it needs, is missing."""

CANCELLED = "cancelled; submit the job again to go on"
PREDECESSOR = "CNNJOB_PREDECESSOR"
"""The environment variable with the id of the job whose batch script submitted this one."""


def try_read_restart_log(run: Run) -> list[dict[str, Any]]:
    """Return the restart log, one dict per decision, oldest first; empty if it cannot be read.

    Each has ``job_id`` and ``job_restarts``, ``ended_by``, the attempt's exit ``code``, the ``step`` of the newest
    checkpoint, how it was ``restarted`` (``requeued``, ``successor``, ``by SLURM``; empty if it was not), and ``said``,
    the decision as text.
    """
    try:
        return read_restart_log(run)
    except DataError:
        return []


def read_restart_log(run: Run) -> list[dict[str, Any]]:
    """Return the restart log as :func:`try_read_restart_log` does, but raise an error if it cannot be read.

    Raises:
        DataError: the record is damaged or cannot be read.
    """
    path = restart_log_file(run)
    # Before the first decision there is no record. A dangling link is not that: reading it raises.
    return json_files.read_list(path, schemas.RestartRecord) if os.path.lexists(path) else []


def restart_log_file(run: Run) -> Path:
    """Return the path of the restart log, which the batch scripts write."""
    return run.slurm_folder / "restarts.json"


def cancellation_file(run: Run) -> Path:
    """Return the path of ``cnnjob cancel``'s record: ``by``, ``jobs`` (their ids), ``attempt``, ``time``."""
    return run.slurm_folder / "cancelled.json"


def try_read_cancellation(run: Run) -> dict[str, Any]:
    """Return the record of the last ``cnnjob cancel``; empty if there is none that can be read."""
    try:
        return read_cancellation(run)
    except DataError:
        return {}


def read_cancellation(run: Run) -> dict[str, Any]:
    """Return the same as :func:`try_read_cancellation`, but raise an error if the record cannot be read.

    Raises:
        DataError: the record is damaged or cannot be read.
    """
    path = cancellation_file(run)
    return json_files.read(path, schemas.CancellationRecord) if os.path.lexists(path) else {}


def local_wait_file(run: Run) -> Path:
    """Return the path of the record by which ``submit --local`` announces that it will train a run."""
    return run.slurm_folder / "local.json"


def find_local_wait(run: Run) -> dict[str, Any]:
    """Return the process of a ``submit --local`` that will train a run; empty if there is none alive."""
    path = local_wait_file(run)
    try:
        holder = json_files.read(path, schemas.LocalWait) if os.path.lexists(path) else {}
        return holder if holder and run.owns(holder) and is_alive(holder, path) else {}
    except (DataError, OSError):
        return {}
