"""Who may write a run: one process at a time, and none that was taken for dead."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnjob import files, schemas
from cnnjob.errors import BusyError
from cnnjob.processes import now, process_identity
from cnnjob.runs import HasEnded, Run, is_held


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
        """Forbid a write when the run has passed to a later attempt.

        Raises:
            BusyError: it has.
        """
        if _attempt_file(self.run, self.number + 1).exists():
            raise BusyError(f"{self.run.path}: this process was taken for dead, attempt {self.number + 1} has the run")

    def beat(self) -> None:
        """Tell other hosts that this process is alive."""
        os.utime(self.path)

    def note(self, **facts: Any) -> None:
        """Add facts to the record of this life."""
        self.record.update(facts)
        files.write_json(self.path, self.record, fence=self.check)

    def end(self, why: str, step: int) -> None:
        """Say why and at which step this life ended; the run is free from here on."""
        self.note(ended=now(), why=why, step=step)


def claim(run: Run, has_ended: HasEnded | None = None) -> Claim:
    """Take a run for this process, or learn that another has it.

    It is free when its holder is gone from this host, is an earlier life of this very SLURM job, or has not
    been heard of for five minutes. A holder that still lives then cannot write any more.

    Args:
        run: its folder is made when there is none.
        has_ended: asked, once, about the holder's job before the run is left to it.

    Returns:
        The claim; it is this process's until :meth:`Claim.end` or its death.

    Raises:
        BusyError: another process is writing the run; nothing was changed.
    """
    held = run.attempt_files()
    if held:
        last = schemas.read(held[-1], schemas.Attempt)
        if last["ended"] is None and is_held(last, held[-1], has_ended):
            raise BusyError(_busy(run, last))
    for folder in (run.attempts_folder, run.checkpoints_folder):
        folder.mkdir(parents=True, exist_ok=True)
    number = int(held[-1].stem) + 1 if held else 1
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
        raise BusyError(_busy(run, schemas.read(_attempt_file(run, number), schemas.Attempt)))
    for folder in (run.path, run.attempts_folder, run.checkpoints_folder):
        files.remove_leftovers(folder)
    return Claim(run, number, record)


def _busy(run: Run, holder: dict[str, Any]) -> str:
    return (
        f"{run.path}: another process is writing this run, process {holder['pid']} on {holder['host']} "
        f"since {holder['started']}; wait for it, or stop it"
    )


def _attempt_file(run: Run, number: int) -> Path:
    return run.attempts_folder / f"{number:04d}.json"
