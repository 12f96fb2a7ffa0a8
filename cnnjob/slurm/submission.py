"""Submitting runs through submitit: the exact script, the frozen code, the job's id."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import SchedulerError
from cnnjob.runs import Run
from cnnjob.slurm import queue, scheduler
from cnnjob.slurm.life import Life
from cnnjob.slurm.requests import Request

MARGIN_SECONDS = 30.0
"""The job stops itself so long before its end, should no signal have come."""


@dataclass(frozen=True)
class Submitted:
    """What became of one run."""

    run: Run
    job_id: str | None
    why: str
    """``submitted``, ``finished``, ``running``, ``queued as 17``."""


def submit(run: Run, request: Request) -> Submitted:
    """Submit a run, unless it is finished, running or waiting.

    Args:
        run: made by :func:`cnnjob.bindings.run_of`.
        request: what it needs.

    Returns:
        What became of it.

    Raises:
        SchedulerError: SLURM refused, or is not there.
    """
    state = run.state()
    if state in {"finished", "running"}:
        return Submitted(run, None, state)
    scheduler.check_partition(request.partition)
    if waiting := [job.job_id for job in queue.mine() if job.comment == _comment(run)]:
        return Submitted(run, None, f"queued as {', '.join(waiting)}")
    _folder(run).mkdir(parents=True, exist_ok=True)
    files.write_json(_folder(run) / "request.json", request.model_dump(mode="json"))
    return Submitted(run, _sbatch(run, request, _freeze_code(run)), "submitted")


def resubmit(run: Run) -> str:
    """Submit a run again as it was submitted, with the same code; give the job's id.

    Raises:
        SchedulerError: SLURM refused.
    """
    request = Request.model_validate(files.read_json(_folder(run) / "request.json"))
    return _sbatch(run, request, Path(__file__).parents[2])


def script(run: Run, request: Request) -> str:
    """The exact batch script of a run, as it would be submitted now; needs no SLURM."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = _folder(run).resolve()
    command = f"{_python()} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command, folder, **_parameters(run, request, _code_folder(run))))


def _comment(run: Run) -> str:
    """What names a run in the queue, whatever other runs are called."""
    return f"cnnjob {run.path.resolve()}"


def _folder(run: Run) -> Path:
    return run.path / "slurm"


def _sbatch(run: Run, request: Request, code: Path) -> str:
    import submitit

    executor = _executor(run, request, code)
    with _clean_environment(), redirect_stderr(StringIO()):  # submitit shows there what its error says
        try:
            job = executor.submit(Life(str(run.path.resolve()), MARGIN_SECONDS))
        except submitit.core.utils.FailedJobError as error:
            raise SchedulerError(f"{run.name}: sbatch refused, {_last_line(str(error))}") from error
        except submitit.core.utils.FailedSubmissionError as error:
            raise SchedulerError(
                f"{run.name}: sbatch gave no job's id; submit again, which finds the job should it have been queued"
            ) from error
    return str(job.job_id)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "without a word")


def _executor(run: Run, request: Request, code: Path) -> Any:
    import submitit

    if not scheduler.is_there():
        raise SchedulerError("sbatch: not found; this machine has no SLURM, log in to one that has")
    try:
        executor = submitit.SlurmExecutor(folder=_folder(run).resolve(), python=_python())
    except RuntimeError as error:
        raise SchedulerError("srun: not found; this machine has no SLURM, log in to one that has") from error
    executor.update_parameters(**_parameters(run, request, code))
    return executor


def _python() -> str:
    return shlex.quote(sys.executable)


def _parameters(run: Run, request: Request, code: Path) -> dict[str, Any]:
    """The request as submitit takes it, and what surrounds the job in its script."""
    setup = ["set -e", *request.setup, "set +e"] if request.setup else []
    frozen = [
        f"export PYTHONPATH={shlex.quote(str(code))}",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it over by itself",
        "trap : TERM USR2  # the lines below the job must run",
    ]
    again = f"{_python()} -m cnnjob.slurm.restart {shlex.quote(str(run.path.resolve()))} $code"
    return {
        **request.parameters(),
        "job_name": run.name,
        "comment": _comment(run),
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": [*setup, *frozen],
        "teardown": ["code=$?", again, "exit $code"],
    }


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Keep what an enclosing job left in the environment away from sbatch."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(scheduler.clean(kept))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _code_folder(run: Run) -> Path:
    """Where the package's code of this moment is kept for the runs of a folder."""
    package = Path(__file__).parents[1]
    sources = sorted(path for path in package.rglob("*") if path.suffix in {".py", ".cu"})
    digest = files.sha256_of(
        *(part for path in sources for part in (str(path.relative_to(package)).encode(), path.read_bytes()))
    )
    return run.path.resolve().parent / ".code" / digest[:8]


def _freeze_code(run: Run) -> Path:
    """Copy the package once, so that a requeued job runs what was submitted."""
    folder = _code_folder(run)
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}{files.TEMPORARY_SUFFIX}")
        shutil.copytree(Path(__file__).parents[1], temporary / "cnnjob", ignore=shutil.ignore_patterns("__pycache__"))
        try:
            temporary.rename(folder)
        except OSError:  # another submission was faster
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
