"""Finding and removing what is no longer needed: leftovers of killed processes, and runs that the user names.

A run that is not named is never removed, whatever its state: somebody may want it, or resume it.
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
from cnnjob.runs.run import Run
from cnnjob.slurm.job_array import SWEEPS, JobArray
from cnnjob.slurm.status import Answer, Status, statuses
from cnnjob.slurm.submit.code_snapshot import CODE, snapshot_folder

YOUNG_SECONDS = 3600.0
"""Age below which anything may still be in use."""
FOREIGN_SECONDS = 86400.0
"""The same age for files of processes of another host, which cannot be checked from here."""
_CODE = re.compile(rf"/{re.escape(CODE)}/([0-9a-f]+)")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can be removed."""

    path: Path
    why: str
    """The reason, in a few words."""
    size: int
    """Size in bytes, including everything inside."""

    def remove(self) -> None:
        """Remove the file or folder.

        A folder is renamed before its files are removed, so that nothing can start in half of it.

        Raises:
            DataError: it cannot be removed.
        """
        try:
            if not self.path.is_dir() or self.path.is_symlink():
                self.path.unlink(missing_ok=True)
                return
            going = files.temporary_name(self.path)
            self.path.rename(going)
            shutil.rmtree(going)
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"{self.path}: cannot be removed, {why}; see to the permissions of its folder") from error


def leftovers(runs: Path, data: Path) -> list[Leftover]:
    """Find what killed processes and old submissions have left behind.

    Args:
        runs: the folder of the runs.
        data: the folder of the prepared datasets.

    Returns:
        Temporary files of processes that are gone, snapshots of the code that no unfinished run was submitted with, and
        folders of sweeps whose runs have all been removed; sorted by path.
    """
    known = Run.all(runs)
    found = [
        *(_leftover(path, "half written, its process is gone") for path in _abandoned(runs, data)),
        *(_leftover(path, "code of no unfinished run") for path in _unused_code(runs, known)),
        *(_leftover(path, "a sweep of no run") for path in _sweeps(runs) if not _runs_of(path)),
    ]
    return sorted(found, key=lambda one: one.path)


def named(runs: Sequence[Run]) -> list[Leftover]:
    """Return named runs as leftovers, after checking that nothing is using them; finished runs too.

    Args:
        runs: the runs that the user names; the same run may be named more than once.

    Raises:
        DataError: a folder is not that of a run.
        BusyError: a process writes one of the runs, or a job carries it.
        SchedulerError: a job may carry one of the runs, and the queue could not be read.
    """
    runs = list({run.path.resolve(): _itself(run) for run in runs}.values())
    for run in runs:
        if not (run.job_file.exists() or run.attempts_folder.exists()):
            raise DataError(f"{run.path}: no run, and only runs are removed by name; remove it by hand if it can go")
    answer = statuses(runs, thorough=True)
    for one in answer.statuses:
        _require_idle(one, answer)
    return [_leftover(one.summary.run.path, f"named, {one.state}") for one in answer.statuses]


def _itself(run: Run) -> Run:
    """Return the run itself for one named by a link or ``.``; other runs as they were named."""
    return run if run.path.name and not run.path.is_symlink() else Run(run.path.resolve())


def _require_idle(one: Status, answer: Answer) -> None:
    where = one.summary.run.path
    if one.job or (one.state == "running" and one.node):
        holder = f"job {one.job_id} carries it" if one.job else f"it is running on {one.node}"
        raise BusyError(f"{where}: not removed, {holder}; `cnnjob cancel {where}` first")
    if one.state == "running" or (one.state == "damaged" and _may_be_written(one.summary.run)):
        raise BusyError(
            f"{where}: not removed, a process that cannot be named may write it; stop it, or try again "
            f"{HEARTBEAT_LIMIT_SECONDS:.0f} s after its last sign of life"
        )
    if one.is_elsewhere:
        raise BusyError(
            f"{where}: not removed, job {one.summary.job_id} of cluster {one.summary.other_cluster} may carry it, "
            f"and this one is {one.summary.here}. Cancel it, then wait until it has ended:\n"
            f"  scancel -M {shlex.quote(one.summary.other_cluster)} {one.summary.job_id}"
        )
    if not one.summary.job_ids or one.state in {"finished", "damaged"}:
        return
    if one.is_hidden:
        raise BusyError(
            f"{where}: not removed, job {one.job_id} of another user may carry it, and this site shows nobody the jobs "
            "of others. Ask that user"
        )
    if answer.silent:
        said = answer.remark.partition(";")[0]
        raise SchedulerError(f"{where}: not removed, its job may be in the queue ({said}). Run the same command again")


def _may_be_written(run: Run) -> bool:
    """Return whether a process may still write a run that has a damaged file."""
    try:
        return run.state() == "running"
    except DataError:  # the record of the last attempt itself is damaged, so only its age tells
        return any(_age(path) < HEARTBEAT_LIMIT_SECONDS for path in run.attempt_files()[-1:])


def _leftover(path: Path, why: str) -> Leftover:
    return Leftover(path, why, _size(path))


def _size(path: Path) -> int:
    """Return the size in bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.lstat().st_size
    inside = (Path(place, name) for place, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in inside)


def _abandoned(runs: Path, data: Path) -> Iterator[Path]:
    """Yield temporary files and folders of processes that are gone, or of other hosts and a day old."""
    for place in (runs, data):
        for folder, folders, names in os.walk(place):
            for name in (*names, *folders):
                path = Path(folder, name)
                if name.endswith(files.TEMPORARY_SUFFIX) and name.startswith(".") and _is_abandoned(path):
                    yield path
            # in place, so that os.walk skips the snapshots and the insides of temporary folders
            folders[:] = [name for name in folders if name != CODE and not name.endswith(files.TEMPORARY_SUFFIX)]
    yield from (path for path in _folders(runs / CODE) if path.name.startswith(".") and _age(path) > FOREIGN_SECONDS)


def _is_abandoned(path: Path) -> bool:
    gone = files.writer_is_gone(path)
    return _age(path) > FOREIGN_SECONDS if gone is None else gone


def _age(path: Path) -> float:
    """Return the seconds since a path was last changed; 0 if it has been removed meanwhile."""
    try:
        return clock.age_seconds(path, *[*path.parents][2::-1])
    except OSError:
        return 0.0


def _unused_code(runs: Path, known: Iterable[Run]) -> Iterator[Path]:
    """Yield the snapshots of the code that no unfinished run was submitted with."""
    copies = [path for path in _folders(runs / CODE) if not path.name.startswith(".") and _age(path) > YOUNG_SECONDS]
    if not copies:
        return
    places = [run.slurm_folder for run in known if _may_go_on(run)]
    places += [sweep for sweep in _sweeps(runs) if any(map(_may_go_on, _runs_of(sweep)))]
    if not all(os.access(place, os.R_OK | os.X_OK) for place in places if os.path.lexists(place)):
        return  # what another user's run needs is not known
    # the batch scripts name the snapshot that their job runs
    used = {name for place in places for script in place.glob("*.sh") for name in _CODE.findall(_text(script))}
    used.add(snapshot_folder(Run(runs / "any")).name)  # a submission may be about to use it
    yield from (path for path in copies if path.name not in used)


def _may_go_on(run: Run) -> bool:
    """Return whether a job of a run may still need its code, which its batch script does for a while after the end."""
    is_finished = os.path.exists(run.result_file)  # noqa: PTH110 - Path's raises where it may not look
    return run.path.is_dir() and not (is_finished and _age(run.result_file) > YOUNG_SECONDS)


def _sweeps(runs: Path) -> list[Path]:
    return [path for path in _folders(runs / SWEEPS) if (path / "runs.json").exists() and _age(path) > YOUNG_SECONDS]


def _runs_of(sweep: Path) -> list[Run]:
    """Return the runs of a sweep that still exist; for a damaged list its own folder, so that it is kept."""
    try:
        return [run for run in JobArray.read(sweep).runs if run.path.is_dir()]
    except CnnjobError:
        return [Run(sweep)]


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _text(path: Path) -> str:
    return files.read_tail(path, files.TEXT_BYTES)
