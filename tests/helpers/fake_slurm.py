"""Commands of SLURM for tests without one: small shell scripts that answer as SLURM does, or as it should not."""

from datetime import datetime, timedelta
from pathlib import Path

from tests.helpers.cli import JOB

JOB_OF_NUMPY = f'{JOB}[resources]\nbackend = "numpy"\n'
QUEUED = 'printf "%s\\n" "16|RUNNING|None|n1|N/A|N/A|other" "" "17"'
ANSWERS = {
    "srun": 'shift 4; exec "$@"',
    "sbatch": 'export -p > environment; echo "Submitted batch job 17"',
    "squeue": QUEUED,
    "scontrol": """case "$*" in
*"show partition"*) for name in debug gpu gpu-long; do echo "PartitionName=$name MaxTime=1-00:00:00 State=UP"; done;;
*"show config"*) echo "JobRequeue = 1"; echo "MaxArraySize = 1001";;
*"show job"*) echo "JobId=17 JobState=RUNNING Restarts=0";;
esac""",
}


class FakeSlurm:
    """Commands of SLURM on an otherwise empty PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def install(self, **answers: str | None) -> None:
        """Make commands that run these lines of shell; None removes a command."""
        for name, lines in answers.items():
            (self.folder / name).unlink(missing_ok=True)
            if lines is not None:
                (self.folder / name).write_text(f"#!/bin/sh\n{lines}\n")
                (self.folder / name).chmod(0o755)


def set_answers(slurm: FakeSlurm, squeue: str = "", sacct: str = "", **others: str | None) -> None:
    """Let squeue and sacct print these lines, and record each call."""
    answers = {"squeue": squeue, "sacct": sacct}
    for name, lines in answers.items():
        (slurm.folder.parent / f"{name}.txt").write_text(f"{lines}\n")
    played = {
        name: f'echo "{name}" >> ../asked; while read -r l; do echo "$l"; done < ../{name}.txt' for name in answers
    }
    slurm.install(**{**played, "scancel": 'echo "scancel $*" >> ../asked', **others})


def recorded_calls(slurm: FakeSlurm) -> list[str]:
    path = slurm.folder.parent / "asked"
    return path.read_text().splitlines() if path.exists() else []


def queue_row(state: str, reason: str = "None", node: str = "", job: str = "17", comment: str = "") -> str:
    return f"{job}|{state}|{reason}|{node}|N/A|N/A|{comment}\n"


SILENCE = "exec /bin/sleep 60"
PENDING_FIELDS = "|PENDING|Resources||N/A|N/A|"


NO_ANSWER = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'


def slurm_time(seconds: float) -> str:
    """Return a time from now as SLURM writes it."""
    return f"{datetime.now() + timedelta(seconds=seconds):%FT%T}"  # noqa: DTZ005 - as SLURM reports it
