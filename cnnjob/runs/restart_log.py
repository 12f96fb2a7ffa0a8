"""Records in a run's ``slurm/`` folder.

They describe the newest submission, the restarts, a cancellation, and a waiting ``submit --local`` process. The restart
log has one entry per attempt after which a batch script decided whether to restart the run.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnjob.errors import DataError
from cnnjob.jobs import json_files
from cnnjob.runs import schemas
from cnnjob.runs.process import is_alive
from cnnjob.runs.run import Run

NO_STEP = 254
"""The batch script's exit code if srun could not start the job step."""
UNDECIDED = "cannot decide about a restart, exit code"
"""Logged by a batch script if its Python interpreter, or a package that cnnjob needs, is missing."""

CANCELLED = "cancelled; submit the job again to resume it"
TO_RESUME = "; to resume: "
"""Text before the command to type in an entry of the restart log. Older versions wrote ``; to go on:``."""
PREDECESSOR = "CNNJOB_PREDECESSOR"
"""Environment variable with the id of the SLURM job whose batch script submitted this job."""


@dataclass(frozen=True)
class SlurmRecords:
    """The records in ``slurm/``; a run can be shown without them, so damaged ones count as missing."""

    submission: dict[str, Any]
    """The result of :func:`read_submission`."""
    restart_log: list[dict[str, Any]]
    """The result of :func:`read_restart_log`."""
    cancellation: dict[str, Any]
    """The result of :func:`read_cancellation`."""
    damage: tuple[str, ...]
    """One message per damaged record."""


def read_slurm_records(run: Run) -> SlurmRecords:
    """Return the records in a run's ``slurm/``; a damaged one raises no error but is reported in ``damage``."""
    damage: list[str] = []

    def read_intact(read: Callable[[Run], Any], missing: Any) -> Any:
        try:
            return read(run)
        except DataError as error:
            damage.append(str(error))
            return missing

    submission, restart_log = read_intact(read_submission, {}), read_intact(read_restart_log, [])
    cancellation = read_intact(read_cancellation, {})
    return SlurmRecords(submission, restart_log, cancellation, tuple(damage))


def read_submission(run: Run) -> dict[str, Any]:
    """Return the record of a run's newest submission; empty if the run was never submitted.

    Raises:
        DataError: the record is damaged or cannot be read.
    """
    path = run.submission_file
    # lexists here and below: a dangling link is not a missing record, and reading it raises.
    return json_files.read_checked(path, schemas.SubmissionRecord) if os.path.lexists(path) else {}


def try_read_restart_log(run: Run) -> list[dict[str, Any]]:
    """Return the result of :func:`read_restart_log`, or an empty list if the log cannot be read."""
    return read_slurm_records(run).restart_log


def read_restart_log(run: Run) -> list[dict[str, Any]]:
    """Return the restart log, one dict per decision, oldest first; empty if there are no decisions yet.

    Each dict has ``job_id`` and ``job_restarts``, ``ended_by``, the attempt's exit ``code``, the ``step`` of the newest
    checkpoint, how the run was ``restarted`` (``requeued``, ``successor``, ``by SLURM``; empty if it was not), and
    ``said``, the decision as text.

    Raises:
        DataError: the log is damaged or cannot be read.
    """
    path = restart_log_file(run)
    return json_files.read_list(path, schemas.RestartRecord) if os.path.lexists(path) else []


def restart_log_file(run: Run) -> Path:
    """Return the path of the restart log, which the batch scripts write."""
    return run.slurm_folder / "restarts.json"


def cancellation_file(run: Run) -> Path:
    """Return the path of the record that ``cnnjob cancel`` writes: ``by``, ``jobs`` (ids), ``attempt`` and ``time``."""
    return run.slurm_folder / "cancelled.json"


def try_read_cancellation(run: Run) -> dict[str, Any]:
    """Return the result of :func:`read_cancellation`, or an empty dict if the record cannot be read."""
    return read_slurm_records(run).cancellation


def read_cancellation(run: Run) -> dict[str, Any]:
    """Return the record of the last ``cnnjob cancel``; empty if there is none.

    Raises:
        DataError: the record is damaged or cannot be read.
    """
    path = cancellation_file(run)
    return json_files.read_checked(path, schemas.CancellationRecord) if os.path.lexists(path) else {}


def local_wait_file(run: Run) -> Path:
    """Return the path of the record by which ``submit --local`` announces that it will train a run."""
    return run.slurm_folder / "local.json"


def find_local_wait(run: Run) -> dict[str, Any]:
    """Return the record of a live ``submit --local`` process that will train a run; empty if there is none."""
    path = local_wait_file(run)
    try:
        process = json_files.read_checked(path, schemas.LocalWait) if os.path.lexists(path) else {}
        return process if process and run.owns(process) and is_alive(process, path) else {}
    except (DataError, OSError):
        return {}
