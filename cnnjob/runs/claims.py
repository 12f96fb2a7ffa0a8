"""Who may write a run: one process at a time, and none that was taken for dead."""

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
"""What tells the record of one process from that of another."""


@dataclass(frozen=True)
class Claim:
    """The right to write a run, from an attempt's start to its end.

    Attempt N+1 is created exclusively: it is claim, restart counter and fence in one. Whoever
    holds attempt N learns from its presence, before each rename, that the run is no longer theirs.
    """

    run: Run
    number: int
    record: dict[str, Any]

    @property
    def path(self) -> Path:
        """The record of this life."""
        return _attempt_file(self.run, self.number)

    def check(self) -> None:
        """Forbid a write when the run has passed to another attempt, or nobody can see any more that it has an owner.

        Raises:
            BusyError: another attempt has the run.
            DataError: the record of this one was removed, or a link leads out of the run folder.
        """
        records, successor = self.run.attempt_files(), self.number + 1
        newest = successor if _attempt_file(self.run, successor).exists() else max(map(_number_of, records), default=0)
        if newest > self.number:
            raise BusyError(f"{self.run.path}: this process was taken for dead, attempt {newest} has the run")
        if not self.path.exists():
            others = ", ".join(path.name for path in records) or "no record"
            raise DataError(
                f"{self.path}: the record of this training was removed (found {others}). It stops and writes nothing "
                "more, since another may start beside it. Run the same command to resume from the newest checkpoint"
            )
        record = json_files.read(self.path, schemas.AttemptRecord)
        if any(record.get(key) != self.record[key] for key in _IDENTITY):
            raise BusyError(f"{self.path}: the record of this training was replaced by that of process {record['pid']}")
        self.run.require_no_links()

    def beat(self) -> None:
        """Tell other hosts that this process is alive, also where its record was removed."""
        try:
            os.utime(self.run.heartbeat_file, follow_symlinks=False)
        except FileNotFoundError:
            files.append_text(self.run.heartbeat_file, "")
        os.utime(self.path, follow_symlinks=False)

    def note(self, **facts: Any) -> None:
        """Add facts to the record of this life."""
        files.write_json(self.path, {**self.record, **facts}, fence=self.check)
        self.record.update(facts)

    def end(self, why: str, step: int) -> None:
        """Say why and at which step this life ended; the run is free from here on."""
        self.note(ended=now(), why=why, step=step)


def claim(run: Run, has_ended: JobIsOver | None = None) -> Claim:
    """Take a run for this process, or learn that another has it.

    It is free when its holder is gone from this host, is an earlier life of this very SLURM job, or has not
    been heard of for five minutes. A holder that still lives then cannot write any more.

    Args:
        run: its folder is made when there is none.
        has_ended: asked, once, about the holder's job before the run is left to it.

    Returns:
        The claim; it is this process's until :meth:`Claim.end` or its death.

    Raises:
        BusyError: another process is writing the run; nothing was changed, but that a sign of life from the future
            counts from now on.
        DataError: a record is damaged, or a link leads out of the run folder.
    """
    run.require_no_links()
    held = run.attempt_files()
    if (seconds := run.unrecorded_seconds()) is not None:
        raise BusyError(
            f"{run.path}: a process that has no record in attempts/ wrote here {seconds:.0f} s ago; the record of a "
            f"training was removed while it runs. Stop it, or wait until {HEARTBEAT_LIMIT_SECONDS:.0f} s have passed"
            f"{_from_the_future(run.heartbeat_file)}"
        )
    if held:
        last = json_files.read(held[-1], schemas.AttemptRecord)
        if last["ended"] is None and owner_is_alive(last, held[-1], has_ended):
            raise BusyError(f"{_busy(run, last)}{_from_the_future(held[-1], run.heartbeat_file)}")
    for folder in (run.attempts_folder, run.checkpoints_folder):
        folder.mkdir(parents=True, exist_ok=True)
    number = _number_of(held[-1]) + 1 if held else 1
    with suppress(OSError):
        if run.heartbeat_file.lstat().st_nlink > 1:  # of a copy by hard links: it would be the original's too
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
    if not files.create_exclusive(_attempt_file(run, number), files.readable_json(record).encode()):
        raise BusyError(_busy(run, json_files.read(_attempt_file(run, number), schemas.AttemptRecord)))
    for folder in (run.path, run.attempts_folder, run.checkpoints_folder):
        files.remove_leftovers(folder)
    held_now = Claim(run, number, record)
    with suppress(OSError):  # a disk may be full; training says so
        held_now.beat()
    return held_now


def _busy(run: Run, holder: dict[str, Any]) -> str:
    return (
        f"{run.path}: another process is writing this run, process {holder['pid']} on {holder['host']} "
        f"since {holder['started']}; wait for it, or stop it"
    )


def _from_the_future(*signs: Path) -> str:
    """Let a sign of life from the future count from now on, and say so; a dead owner's would hold the run for long."""
    ahead = max(ahead_seconds(sign) for sign in signs)
    if not ahead:
        return ""
    for sign in signs:
        with suppress(OSError):
            os.utime(sign)
    minutes, limit = f"{ahead / 60:,.0f} min", f"{HEARTBEAT_LIMIT_SECONDS / 60:.0f} min"
    return (
        f". Its last sign of life is {minutes} in the future: the clock of that machine or of this one is wrong. "
        f"If that process is dead, run the same command again in {limit}"
    )


def _number_of(record: Path) -> int:
    return int(record.stem)


def _attempt_file(run: Run, number: int) -> Path:
    return run.attempts_folder / f"{number:04d}.json"
