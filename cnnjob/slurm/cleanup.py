"""What no run needs any more, and how it is removed: the leftovers of what was killed, and runs that are named.

A run that nobody names is never one of them, whatever its state: it may be wanted, or go on.
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
"""What was made since then may still be in use."""
FOREIGN_SECONDS = 86400.0
"""The same, where only another host could tell whether its process lives."""
_CODE = re.compile(rf"/{re.escape(CODE)}/([0-9a-f]+)")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can go."""

    path: Path
    why: str
    size: int
    """In bytes, with all that is in it."""

    def remove(self) -> None:
        """Remove it; a folder disappears under its name at once, so that nothing starts in half of it.

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
    """Find what killed processes and old submissions left.

    Args:
        runs: the folder of the runs.
        data: the folder of the packed datasets.

    Returns:
        Temporary files whose process is gone, copies of the code that no unfinished run was submitted with, and
        folders of sweeps none of whose runs is there; in order of path.
    """
    known = Run.all(runs)
    found = [
        *(_leftover(path, "half written, its process is gone") for path in _abandoned(runs, data)),
        *(_leftover(path, "code of no unfinished run") for path in _unused_code(runs, known)),
        *(_leftover(path, "a sweep of no run") for path in _sweeps(runs) if not _runs_of(path)),
    ]
    return sorted(found, key=lambda one: one.path)


def named(runs: Sequence[Run]) -> list[Leftover]:
    """Runs as what can go, finished ones too.

    Raises:
        DataError: a folder is none of a run.
        BusyError: a process writes one, or a job carries it.
        SchedulerError: a job may carry one, and the queue could not be read.
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
    """The run that a link or ``.`` names; others as they were named."""
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
            f"{where}: not removed, job {one.summary.job_id} of cluster {one.summary.elsewhere} may carry it, and this "
            f"one is {one.summary.here}. Cancel it, then wait until it has ended:\n"
            f"  scancel -M {shlex.quote(one.summary.elsewhere)} {one.summary.job_id}"
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
    """Return whether a process may still write a run of which a file is damaged."""
    try:
        return run.state() == "running"
    except DataError:  # the record of its last attempt
        return any(_age(path) < HEARTBEAT_LIMIT_SECONDS for path in run.attempt_files()[-1:])


def _leftover(path: Path, why: str) -> Leftover:
    return Leftover(path, why, _size(path))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.lstat().st_size
    inside = (Path(place, name) for place, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in inside)


def _abandoned(runs: Path, data: Path) -> Iterator[Path]:
    """Temporary files and folders whose process is gone, or of another host and a day old."""
    for place in (runs, data):
        for folder, folders, names in os.walk(place):
            for name in (*names, *folders):
                path = Path(folder, name)
                if name.endswith(files.TEMPORARY_SUFFIX) and name.startswith(".") and _is_abandoned(path):
                    yield path
            folders[:] = [name for name in folders if name != CODE and not name.endswith(files.TEMPORARY_SUFFIX)]
    yield from (path for path in _folders(runs / CODE) if path.name.startswith(".") and _age(path) > FOREIGN_SECONDS)


def _is_abandoned(path: Path) -> bool:
    gone = files.writer_is_gone(path)
    return _age(path) > FOREIGN_SECONDS if gone is None else gone


def _age(path: Path) -> float:
    """Seconds since a path was last changed; 0 if it is gone meanwhile."""
    try:
        return clock.age_seconds(path, *[*path.parents][2::-1])
    except OSError:
        return 0.0


def _unused_code(runs: Path, known: Iterable[Run]) -> Iterator[Path]:
    """Copies of the code that no unfinished run was submitted with."""
    copies = [path for path in _folders(runs / CODE) if not path.name.startswith(".") and _age(path) > YOUNG_SECONDS]
    if not copies:
        return
    places = [run.slurm_folder for run in known if _may_go_on(run)]
    places += [sweep for sweep in _sweeps(runs) if any(map(_may_go_on, _runs_of(sweep)))]
    if not all(os.access(place, os.R_OK | os.X_OK) for place in places if os.path.lexists(place)):
        return  # another user's run may need any of them
    used = {name for place in places for script in place.glob("*.sh") for name in _CODE.findall(_text(script))}
    used.add(snapshot_folder(Run(runs / "any")).name)  # a submission may be about to use it
    yield from (path for path in copies if path.name not in used)


def _may_go_on(run: Run) -> bool:
    """Whether a job of this run may still need its code; the batch script does for a moment after the end."""
    is_finished = os.path.exists(run.result_file)  # noqa: PTH110 - Path's raises where it may not look
    return run.path.is_dir() and not (is_finished and _age(run.result_file) > YOUNG_SECONDS)


def _sweeps(runs: Path) -> list[Path]:
    return [path for path in _folders(runs / SWEEPS) if (path / "runs.json").exists() and _age(path) > YOUNG_SECONDS]


def _runs_of(sweep: Path) -> list[Run]:
    """The runs of a sweep that are there; one whose list is damaged has its own folder, so that it stays."""
    try:
        return [run for run in JobArray.read(sweep).runs if run.path.is_dir()]
    except CnnjobError:
        return [Run(sweep)]


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _text(path: Path) -> str:
    return files.read_tail(path, files.TEXT_BYTES)
