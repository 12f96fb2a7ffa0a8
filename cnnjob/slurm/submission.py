"""Submitting runs through submitit: what is left of them, the exact script, the frozen code, the job's id."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

from cnnjob import files, schemas
from cnnjob.errors import JobError
from cnnjob.processes import now
from cnnjob.runs import Run
from cnnjob.slurm import batches, executors, frozen, queue, scheduler, site
from cnnjob.slurm.batches import Batch
from cnnjob.slurm.decisions import NO_STEP, UNDECIDED
from cnnjob.slurm.requests import Request

SIGNALS = "{1..16} {20..31} {34..64}"
"""All that a shell can trap, but SIGCHLD, by which it learns of its children's ends, and SIGCONT."""
LEFT_ALONE = {"finished", "running"}
ONCE = {"begin", "hold"}
"""What holds for the first job of a run, not for its successors."""


@dataclass(frozen=True)
class Submitted:
    """What became of one run."""

    run: Run
    job_id: str | None
    why: str
    """``submitted``, ``finished``, ``running``, ``queued as 17``."""
    warning: str = ""
    """Why its job will wait, where that is known."""


def submit(runs: Sequence[Run], request: Request, parallel: int | None = None) -> list[Submitted]:
    """Submit runs as one job, or as one job array; those that are finished, running or waiting are left alone.

    Args:
        runs: made by :func:`cnnjob.bindings.run_of`, in one folder.
        request: what each of them needs.
        parallel: at most so many of them at once.

    Returns:
        What became of each.

    Raises:
        JobError: the folder has a name that SLURM would read as something else.
        SchedulerError: SLURM refused, is not there, or did not answer.
    """
    _check_name(runs[0].path.resolve())
    states = {run.path: run.state(scheduler.has_ended) for run in runs}
    done = {run.path: Submitted(run, None, states[run.path]) for run in runs if states[run.path] in LEFT_ALONE}
    if len(done) < len(runs):
        here = site.look()
        here.check(request)
        waiting = batches.queued(queue.mine())
        for run in runs:
            if job_id := waiting.get(run.path.resolve()):
                done.setdefault(run.path, Submitted(run, None, f"queued as {job_id}"))
        code = frozen.freeze(runs[0])
        for batch in in_batches([run for run in runs if run.path not in done], here.max_array_size):
            job_id = _submit(batch, request, code, parallel)
            carriers = {run.path: element for run, element in _elements(batch, job_id)}
            left = [run for run in runs if run.path.resolve() in carriers]
            done |= {
                run.path: Submitted(run, carriers[run.path.resolve()], "submitted", here.waits(request)) for run in left
            }
            request = _after(request, job_id) if parallel else request  # the next array may not add to this one
    return [done[run.path] for run in runs]


def resubmit(run: Run) -> str:
    """Submit a run again as it was submitted, with the same code; give the job's id.

    Raises:
        SchedulerError: SLURM refused, or did not answer.
    """
    request = Request.model_validate(schemas.read(run.slurm_folder / "request.json", Request))
    sbatch = {key: value for key, value in request.sbatch.items() if key not in ONCE}
    return _submit(
        Batch.of([run]), request.model_copy(update={"dependency": None, "sbatch": sbatch}), Path(__file__).parents[2]
    )


def script(batch: Batch, request: Request, parallel: int | None = None) -> str:
    """The exact batch script, as it would be submitted now; needs no SLURM."""
    return executors.script(batch, _parameters(batch, request, frozen.code_folder(batch.runs[0]), parallel))


def in_batches(runs: Sequence[Run], size: int) -> list[Batch]:
    """Runs in as few jobs as possible, none with more than so many elements."""
    return [Batch.of(runs[first : first + size]) for first in range(0, len(runs), size)]


def _submit(batch: Batch, request: Request, code: Path, parallel: int | None = None) -> str:
    batch.write()
    for run in batch.runs:
        run.slurm_folder.mkdir(parents=True, exist_ok=True)
        files.write_json(run.slurm_folder / "request.json", request.model_dump(mode="json"))
    comment, job_id = batch.comment, executors.submit(batch, _parameters(batch, request, code, parallel))
    for run, element in _elements(batch, job_id):
        log = batch.files_folder / f"{element}_0_log.out"
        said = {"job_id": element, "comment": comment, "log": str(log), "attempt": batches.attempt_of(run)}
        files.write_json(run.submission_file, {**said, "submitted": now()})
    return job_id


def _elements(batch: Batch, job_id: str) -> list[tuple[Run, str]]:
    """Each run with the id of what carries it."""
    return [(run, f"{job_id}_{element}" if batch.is_array else job_id) for element, run in enumerate(batch.runs)]


def _after(request: Request, job_id: str) -> Request:
    waits = [*([request.dependency] if request.dependency else []), f"afterany:{job_id}"]
    return request.model_copy(update={"dependency": ",".join(waits)})


def _check_name(path: Path) -> None:
    """Find a folder whose name SLURM would change.

    Raises:
        JobError: it has a percent sign, or a line end or another control character.
    """
    if any(category(letter) == "Cc" for letter in str(path)):
        raise JobError(
            f"--runs {str(path.parent)!r}: a batch script cannot hold a control character. Rename the folder"
        )
    if "%" in str(path):
        raise JobError(f"--runs {path.parent}: SLURM reads the % as a pattern; give a folder without it")


def _parameters(batch: Batch, request: Request, code: Path, parallel: int | None) -> dict[str, Any]:
    """The request as submitit takes it, and what surrounds the job in its script."""
    code_path = f"PYTHONPATH={shlex.quote(str(code))}"
    again = f"{executors.python()} -m cnnjob.slurm.restart {shlex.quote(str(batch.folder))} $1"
    undecided = shlex.quote(f"cnnjob: {batch.folder}: {sys.executable} {UNDECIDED}")
    whatever = [
        "restart() {",
        f"    trap '' {SIGNALS}",
        f"    {code_path} {again} || echo {undecided} $?",
        "    exit $1",
        "}",
        "trap 'restart $?' EXIT  # whatever ends the job, and however early",
        f"trap : {SIGNALS}  # no signal ends this script before its step: only the step's exit code decides",
    ]
    setup = ["set -e", *request.setup, "set +e"] if request.setup else []
    lines = [
        f"export {code_path}",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it over by itself",
        f"export SLURM_EXIT_ERROR={NO_STEP}  # srun's own exit code where it could not run the step",
    ]
    count = len(batch.runs)
    return {
        **request.parameters(),
        **({"map_count": count, "array_parallelism": parallel or count} if batch.is_array else {}),
        "job_name": request.job_name or batch.name,
        "comment": batch.comment,
        "wckey": None,
        "stderr_to_stdout": True,
        "srun_args": ["--export=ALL"],  # of this script's environment, also where sbatch got --export=NONE
        "setup": [*whatever, *setup, *lines],
    }
