"""The batch script of a submission: submitit's script plus shell lines that decide whether to restart a run.

Until its job step has ended, the script survives every signal that can be trapped. Its EXIT trap then decides whether
to restart the run, and exits with the exit code of the job step.
"""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from cnnjob.runs.restart_log import NO_STEP, UNDECIDED
from cnnjob.runs.run import Run
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.submit import code_snapshot
from cnnjob.slurm.submit.request import Request
from cnnjob.training.staging import STAGE

SIGNALS = "{1..16} {20..31} {34..64}"
"""All signals that a shell can trap, except SIGCHLD (17), which reports that a child ended, and SIGCONT (18)."""


def split_into_arrays(runs: Sequence[Run], size: int) -> list[JobArray]:
    """Split runs into as few SLURM jobs as possible, each with at most ``size`` array tasks."""
    return [JobArray.of(runs[first : first + size]) for first in range(0, len(runs), size)]


def preview_script(array: JobArray, request: Request, parallel: int | None = None) -> str:
    """Return the exact batch script that would be submitted now; this does not require SLURM."""
    code = code_snapshot.snapshot_folder(array.runs[0])
    return build_script(array, script_parameters(array, request, code, parallel))


def build_script(array: JobArray, parameters: Mapping[str, Any]) -> str:
    """Return the exact batch script of a SLURM job.

    Args:
        array: the runs.
        parameters: the return value of :func:`script_parameters`.
    """
    folder = array.files_folder
    # not the submission folder: the files are moved here once SLURM has accepted the job
    command = f"{python_command()} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command, folder, **parameters))


def python_command() -> str:
    """Return the shell command for this Python interpreter; ``-P`` prevents imports from the current folder."""
    return f"{shlex.quote(sys.executable)} -P"


def script_parameters(array: JobArray, request: Request, code: Path, parallel: int | None) -> dict[str, Any]:
    """Return submitit's parameters for a batch script, including the shell lines that precede its job step.

    Args:
        array: the runs.
        request: the runs' resources.
        code: folder of the code snapshot.
        parallel: maximum number of array tasks that run at once; None for no limit.
    """
    restart = f"{python_command()} -m cnnjob.slurm.node.restart {shlex.quote(str(array.folder))} $1"
    undecided = shlex.quote(f"cnnjob: {array.folder}: {sys.executable} {UNDECIDED}")
    traps = [
        *_path_lines(request),
        *_own_code_lines(code),
        "restart() {",
        f"    trap '' {SIGNALS}",
        f"    own_code; {restart} || echo {undecided} $?",
        "    exit $1",
        "}",
        "trap 'restart $?' EXIT  # whatever ends the job, however early",
        f"trap : {SIGNALS}  # no signal ends this script before its job step: only the step's exit code decides",
    ]
    # own_code is called twice: setup lines may change the environment, and the EXIT trap also runs if they fail
    setup = ["set -e", *request.setup, "set +e"] if request.setup else []
    if request.stage:
        setup.append(f"export {STAGE}=1")
    step = [
        "own_code",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not inherit it",
        f"export SLURM_EXIT_ERROR={NO_STEP}  # srun's own exit code if it could not run the job step",
    ]
    count = len(array.runs)
    return {
        **request.parameters(),
        **({"map_count": count, "array_parallelism": parallel or count} if array.is_array else {}),
        "job_name": request.job_name or array.name,
        "comment": array.comment,
        "wckey": None,  # submitit would set its own
        "stderr_to_stdout": True,
        "srun_args": ["--export=ALL"],  # export this script's environment, even if sbatch got --export=NONE
        "setup": [*traps, *setup, *step],
    }


def _path_lines(request: Request) -> list[str]:
    """Return the script's line that adds SLURM's commands to PATH; empty if sbatch's ``export`` option is not set."""
    srun = shutil.which("srun")
    if not srun or not any(key.lstrip("-") == "export" for key in request.sbatch):
        return []
    return [f"export PATH={shlex.quote(str(Path(srun).parent))}:$PATH"]


def _own_code_lines(code: Path) -> list[str]:
    """Return the lines of a shell function that sets the environment so that Python runs a code snapshot."""
    variables = code_snapshot.python_environment(code)
    values = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value is not None]
    unset = [name for name, value in variables.items() if value is None]
    return ["own_code() {", f"    unset {' '.join(unset)}", f"    export {' '.join(values)}", "}"]
