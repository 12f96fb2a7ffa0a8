"""Removal of files that are no longer needed: leftovers of killed processes, and runs that the user specifies.

Other runs are never removed, whatever their state, because someone may want to keep or resume them.
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnjob import files
from cnnjob.errors import BusyError, CnnjobError, DataError, SchedulerError
from cnnjob.runs import clock
from cnnjob.runs.process import HEARTBEAT_LIMIT_SECONDS
from cnnjob.runs.run import SYNC_FOLDERS, Run
from cnnjob.slurm.job_array import SWEEPS, JobArray
from cnnjob.slurm.run_state import Status
from cnnjob.slurm.status import Answer, query_statuses
from cnnjob.slurm.submit.code_snapshot import CODE, snapshot_folder

YOUNG_SECONDS = 3600.0
"""Age, in seconds, below which a file or folder may still be in use."""
FOREIGN_SECONDS = 86400.0
"""Age, in seconds, below which a file written on another host may still be in use.

It cannot be checked from here whether the process that wrote the file is alive.
"""
_SNAPSHOT_NAME = re.compile(rf"/{re.escape(CODE)}/([0-9a-f]+)")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can be removed."""

    path: Path
    reason: str
    """The reason why it can be removed, as a short phrase."""
    size: int
    """Size in bytes; for a folder, including everything inside it."""

    def remove(self) -> None:
        """Remove the file or folder.

        A folder is renamed before its files are removed, so that no process can start in a partly removed folder.

        Raises:
            DataError: it cannot be removed.
        """
        try:
            if not self.path.is_dir() or self.path.is_symlink():
                self.path.unlink(missing_ok=True)
                return
            temporary = files.temporary_name(self.path)
            self.path.rename(temporary)
            shutil.rmtree(temporary)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(
                f"{self.path}: cannot be removed ({reason}). Check the permissions of its parent folder"
            ) from error


def find_leftovers(runs: Path, data: Path) -> list[Leftover]:
    """Return the files and folders that killed processes and old submissions have left behind.

    Args:
        runs: the runs folder.
        data: the folder of prepared datasets.

    Returns:
        Temporary files of processes that have ended, code snapshots that no unfinished run uses, sweep folders whose
        runs have all been removed, and copies of removed runs that were made for other tools; sorted by path.
    """
    empty_sweeps = [path for path in _find_sweeps(runs) if not _runs_of(path)]
    items = [
        *(_leftover(path, "unfinished file of a process that has ended") for path in _find_abandoned(runs, data)),
        *(_leftover(path, "code that no unfinished run uses") for path in _find_unused_code(runs, Run.all(runs))),
        *(_leftover(path, "sweep whose runs have all been removed") for path in empty_sweeps),
        *(
            _leftover(path, f"copy for {tool} of a run that has been removed")
            for tool, name in SYNC_FOLDERS.items()
            for path in _folders(runs / name)
            if not os.path.lexists(runs / path.name)
        ),
    ]
    return sorted(items, key=lambda item: item.path)


def check_removable(runs: Sequence[Run]) -> list[Leftover]:
    """Return the given runs as leftovers after checking that none of them is in use.

    Finished runs may be among them.

    Args:
        runs: the runs to remove; duplicates are allowed.

    Raises:
        DataError: a folder is not a run folder.
        BusyError: a process is writing one of the runs, or a SLURM job is queued or running for it.
        SchedulerError: a SLURM job may be queued or running for one of the runs, and the queue could not be read.
    """
    by_path: dict[Path, Run] = {}
    for run in runs:
        path = run.path.resolve()
        # Messages show a run's path as the user typed it. A link or `.` is resolved, so that the run itself is removed.
        by_path[path] = run if run.path.name and not run.path.is_symlink() else Run(path)
    for run in by_path.values():
        if not (run.job_file.exists() or run.attempts_folder.exists()):
            raise DataError(f"{run.path}: not a run; only runs can be removed by name. Remove it yourself")
    answer = query_statuses(list(by_path.values()), thorough=True)
    for status in answer.statuses:
        _require_idle(status, answer)
    return [_leftover(status.summary.run.path, f"selected by name, {status.state}") for status in answer.statuses]


def _require_idle(status: Status, answer: Answer) -> None:
    """Check that no process is writing a run and no SLURM job is queued or running for it.

    Raises:
        BusyError: a process may be writing the run, or a SLURM job may be queued or running for it.
        SchedulerError: the queue could not be read, so a SLURM job for the run may be queued or running.
    """
    summary = status.summary
    path = summary.run.path
    if status.job or (status.state == "running" and status.node):
        user = f"job {status.job_id} belongs to it" if status.job else f"it is running on {status.node}"
        command = f"cnnjob cancel {shlex.quote(str(path))}"
        raise BusyError(f"{path}: not removed because {user}. Cancel the run first:\n  {command}")
    if status.state == "running" or (status.state == "damaged" and _may_be_written(summary.run)):
        raise BusyError(
            f"{path}: not removed because an unknown process may be writing to it. Stop that process, or try again "
            f"{HEARTBEAT_LIMIT_SECONDS:.0f} s after its last heartbeat"
        )
    if status.is_elsewhere:
        raise BusyError(
            f"{path}: not removed because job {summary.job_id} on cluster {summary.other_cluster} may belong to this "
            f"run; this cluster is {summary.here}. Cancel the job, then wait until it has ended:\n"
            f"  scancel -M {shlex.quote(summary.other_cluster)} {summary.job_id}"
        )
    if not summary.job_ids or status.state in {"finished", "damaged"}:
        return
    if status.is_hidden:
        raise BusyError(
            f"{path}: not removed because another user's job {status.job_id} may belong to this run, and this "
            "site hides the jobs of other users. Ask that user to cancel the job"
        )
    if answer.silent:
        remark = answer.remark.partition(";")[0]
        raise SchedulerError(
            f"{path}: not removed because its job may be in the queue ({remark}). Run the same command again"
        )


def _may_be_written(run: Run) -> bool:
    """Return whether a process may still be writing to a run, given that one of the run's files is damaged."""
    try:
        return run.state() == "running"
    except DataError:  # the record of the last attempt itself is damaged, so only its age can be checked
        return any(_age(path) < HEARTBEAT_LIMIT_SECONDS for path in run.attempt_files()[-1:])


def _leftover(path: Path, reason: str) -> Leftover:
    """Return a :class:`Leftover` for a file or folder, with its total size."""
    if not path.is_dir():
        return Leftover(path, reason, path.lstat().st_size)
    inside = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return Leftover(path, reason, sum(file.lstat().st_size for file in inside))


def _find_abandoned(runs: Path, data: Path) -> Iterator[Path]:
    """Yield temporary files and folders of processes that have ended.

    A process on another host is assumed to have ended if its file or folder has not been changed for a day.
    """
    for root in (runs, data):
        for folder, subfolders, names in os.walk(root):
            for name in (*names, *subfolders):
                path = Path(folder, name)
                if name.endswith(files.TEMPORARY_SUFFIX) and name.startswith(".") and _is_abandoned(path):
                    yield path
            # changed in place, so that os.walk skips the snapshots and the contents of temporary folders
            subfolders[:] = [name for name in subfolders if name != CODE and not name.endswith(files.TEMPORARY_SUFFIX)]
    # a submission that was killed leaves an unfinished snapshot, whose name does not identify the process
    yield from (path for path in _folders(runs / CODE) if path.name.startswith(".") and _age(path) > FOREIGN_SECONDS)


def _is_abandoned(path: Path) -> bool:
    gone = files.writer_is_gone(path)
    if gone is None:  # written on another host, whose processes cannot be looked up from here
        return _age(path) > FOREIGN_SECONDS
    return gone


def _age(path: Path) -> float:
    """Return the seconds since a file or folder was last modified; 0 if it no longer exists."""
    try:
        return clock.age_seconds(path, *[*path.parents][2::-1])
    except OSError:
        return 0.0


def _find_unused_code(runs: Path, known: Iterable[Run]) -> Iterator[Path]:
    """Yield the code snapshots that no unfinished run uses."""
    copies = [path for path in _folders(runs / CODE) if not path.name.startswith(".") and _age(path) > YOUNG_SECONDS]
    if not copies:
        return
    folders = [run.slurm_folder for run in known if _may_need_code(run)]
    folders += [sweep for sweep in _find_sweeps(runs) if any(map(_may_need_code, _runs_of(sweep)))]
    if not all(os.access(folder, os.R_OK | os.X_OK) for folder in folders if os.path.lexists(folder)):
        return  # another user's run may need any of the snapshots
    # a batch script contains the path of the snapshot that its job runs
    scripts = (files.read_tail(path, files.TEXT_BYTES) for folder in folders for path in folder.glob("*.sh"))
    used = {name for script in scripts for name in _SNAPSHOT_NAME.findall(script)}
    used.add(snapshot_folder(Run(runs / "any")).name)  # a submission may be about to use it
    yield from (path for path in copies if path.name not in used)


def _may_need_code(run: Run) -> bool:
    """Return whether a run's SLURM job may still need its code snapshot.

    The job's batch script needs the snapshot for a short time after the run has finished.
    """
    is_finished = os.path.exists(run.result_file)  # noqa: PTH110 - Path.exists raises if access is denied
    return run.path.is_dir() and not (is_finished and _age(run.result_file) > YOUNG_SECONDS)


def _find_sweeps(runs: Path) -> list[Path]:
    return [path for path in _folders(runs / SWEEPS) if (path / "runs.json").exists() and _age(path) > YOUNG_SECONDS]


def _runs_of(sweep: Path) -> list[Run]:
    """Return the runs of a sweep that still exist.

    If the sweep's list of runs is damaged, return the sweep folder itself as a run, so that the folder is kept.
    """
    try:
        return [run for run in JobArray.read(sweep).runs if run.path.is_dir()]
    except CnnjobError:
        return [Run(sweep)]


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
