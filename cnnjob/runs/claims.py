"""Claims: exclusive rights to write to runs. A process loses its claim when it is presumed dead."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import BusyError, DataError
from cnnjob.jobs import json_files
from cnnjob.runs import schemas
from cnnjob.runs.process import HEARTBEAT_LIMIT_SECONDS, ahead_seconds, now, process_identity
from cnnjob.runs.run import JobIsOver, Run, owner_is_alive

_IDENTITY = ("pid", "pid_started", "started")
"""Fields that distinguish the records of different processes."""


@dataclass(frozen=True)
class Claim:
    """The exclusive right to write to a run, from an attempt's start to its end.

    Each attempt's record is created exclusively, and serves as claim, restart counter and fence. Before each rename,
    the owner of attempt N checks whether a record of attempt N+1 exists. If so, another process owns the run, and the
    write is refused.
    """

    run: Run
    number: int
    """The attempt's number, from 1."""
    record: dict[str, Any]
    """Content of the attempt's record, as described by :class:`cnnjob.runs.schemas.AttemptRecord`."""

    @property
    def path(self) -> Path:
        """Path of this attempt's record."""
        return _attempt_file(self.run, self.number)

    def check(self) -> None:
        """Raise an error if another attempt owns the run or this attempt's record was removed.

        This method is called before each write.

        Raises:
            BusyError: another attempt owns the run.
            DataError: this attempt's record was removed, or there is a symbolic link inside the run folder.
        """
        # A successor usually has the next number, or a higher one if the record in between was removed. The next number
        # is looked up after the folder is listed, so a successor that appears in the meantime is noticed too.
        records, successor = self.run.attempt_files(), self.number + 1
        newest = successor if _attempt_file(self.run, successor).exists() else max(map(_number_of, records), default=0)
        if newest > self.number:
            raise BusyError(f"{self.run.path}: this process was presumed dead, and attempt {newest} now owns the run")
        if not self.path.exists():
            others = ", ".join(path.name for path in records) or "no record"
            raise DataError(
                f"{self.path}: the record of this attempt was removed (found {others}), so training stops: another "
                "attempt could start at the same time. Run the same command to resume from the newest checkpoint"
            )
        record = json_files.read_checked(self.path, schemas.AttemptRecord)
        if any(record.get(key) != self.record[key] for key in _IDENTITY):
            raise BusyError(f"{self.path}: the record of this attempt was replaced by that of process {record['pid']}")
        self.run.require_no_links()

    def beat(self) -> None:
        """Show other hosts that this process is alive, even if its record was removed."""
        try:
            # Without a time, utime lets a file server date the file by its own clock, by which ages are measured.
            os.utime(self.run.heartbeat_file, follow_symlinks=False)
        except FileNotFoundError:
            files.append_text(self.run.heartbeat_file, "")
        os.utime(self.path, follow_symlinks=False)

    def note(self, **facts: Any) -> None:
        """Add facts to this attempt's record."""
        files.write_json(self.path, {**self.record, **facts}, fence=self.check)
        self.record.update(facts)

    def end(self, why: str, step: int) -> None:
        """Record why and at which step this attempt ended; the run can then be claimed again."""
        self.note(ended=now(), why=why, step=step)


def claim(run: Run, job_is_over: JobIsOver | None = None) -> Claim:
    """Claim a run for this process.

    A run can be claimed if its owner no longer exists on this host, was started before the last restart of this SLURM
    job, or has had no heartbeat for five minutes. If the previous owner is in fact still alive, the claim prevents it
    from writing.

    Args:
        run: the run; missing folders inside its folder are created.
        job_is_over: called at most once, with the owner's record, before the claim is refused.

    Returns:
        The claim, valid until :meth:`Claim.end` is called or this process dies.

    Raises:
        BusyError: another process owns the run; nothing was changed, except that heartbeats dated in the future
            were set to the current time.
        DataError: an attempt record is damaged, there is a symbolic link inside the run folder, or the folder was
            removed.
    """
    run.require_no_links()
    records = run.attempt_files()
    if (seconds := run.unrecorded_seconds()) is not None:
        raise BusyError(
            f"{run.path}: a process without a record in attempts/ is training this run (its record was removed; its "
            f"last heartbeat was {seconds:.0f} s ago). Stop the process, or wait until its last heartbeat is more than "
            f"{HEARTBEAT_LIMIT_SECONDS:.0f} s old{_reset_future_heartbeats(run.heartbeat_file)}"
        )
    if records:
        last = json_files.read_checked(records[-1], schemas.AttemptRecord)
        if last["ended"] is None and owner_is_alive(last, records[-1], job_is_over):
            raise BusyError(f"{_describe_owner(run, last)}{_reset_future_heartbeats(records[-1], run.heartbeat_file)}")
    try:
        for folder in (run.attempts_folder, run.checkpoints_folder):
            folder.mkdir(exist_ok=True)  # without parents: a submission that was refused may have removed the run
    except FileNotFoundError as error:
        raise DataError(f"{run.path}: the run's folder was removed. Run the same command again") from error
    number = _number_of(records[-1]) + 1 if records else 1
    with suppress(OSError):
        if run.heartbeat_file.lstat().st_nlink > 1:  # in a copy made of hard links, it is also the original's
            run.heartbeat_file.unlink()
    record = {
        "attempt": number,
        **process_identity(),
        **run.identity(),
        "started": now(),
        "ended": None,
        "why": None,
        "step": None,
    }
    # Any number of processes may get this far; one of them creates the record, and the others are refused.
    if not files.create_exclusive(_attempt_file(run, number), files.readable_json(record).encode()):
        raise BusyError(
            _describe_owner(run, json_files.read_checked(_attempt_file(run, number), schemas.AttemptRecord))
        )
    for folder in (run.path, run.attempts_folder, run.checkpoints_folder):
        files.remove_leftovers(folder)  # only after the claim: before it, a live owner may be writing one
    new_claim = Claim(run, number, record)
    with suppress(OSError):  # the disk may be full; training reports that
        new_claim.beat()
    return new_claim


def _describe_owner(run: Run, owner: dict[str, Any]) -> str:
    return (
        f"{run.path}: another process is writing this run: process {owner['pid']} on {owner['host']}, "
        f"since {owner['started']}. Wait for it, or stop it"
    )


def _reset_future_heartbeats(*paths: Path) -> str:
    """If a heartbeat is dated in the future, set the heartbeats to the current time and return a message.

    Otherwise, return an empty string. Without the reset, a heartbeat left by a dead owner would block the run until
    ``HEARTBEAT_LIMIT_SECONDS`` after the date of the heartbeat.
    """
    ahead = max(ahead_seconds(path) for path in paths)
    if not ahead:
        return ""
    for path in paths:
        with suppress(OSError):
            os.utime(path)
    minutes, limit = f"{ahead / 60:,.0f} min", f"{HEARTBEAT_LIMIT_SECONDS / 60:.0f} min"
    return (
        f". Its last heartbeat is {minutes} in the future: the clock of that machine or of this one is wrong. If that "
        f"process is dead, run the same command again in {limit}"
    )


def _number_of(record: Path) -> int:
    return int(record.stem)


def _attempt_file(run: Run, number: int) -> Path:
    return run.attempts_folder / f"{number:04d}.json"
