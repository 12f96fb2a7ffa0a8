"""``train``: one attempt at a run, from claiming the run to recording how the attempt ended.

The training itself is in :mod:`cnnjob.training.trainer`; this module claims the run, updates the heartbeat, and
records why the attempt ended.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Literal

from cnnjob import nn
from cnnjob.errors import BusyError, CnnjobError, DataError
from cnnjob.files import disk_errors_as_cnnjob_error
from cnnjob.runs import claims
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.claims import Claim
from cnnjob.runs.creation import open_run_dataset
from cnnjob.runs.initial import read_initial
from cnnjob.runs.process import HEARTBEAT_SECONDS
from cnnjob.runs.run import JobIsOver, Run
from cnnjob.training.backend import make_backend, select_backend, start_workers
from cnnjob.training.loading import CHECKED_AT_ONCE_BYTES
from cnnjob.training.memory import memory_errors_as_job_error, place_in_device_memory, place_in_host_memory
from cnnjob.training.progress import NoProgress, ProgressCallback
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.stopping import Deadline, StopRequest
from cnnjob.training.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """The outcome of a :func:`train` call."""

    run: Run
    state: Literal["finished", "stopped", "was finished"]
    why: str
    """As in the attempt's record: ``finished``, or ``stopped:`` followed by the source of the stop request."""


def train(
    run: Run,
    progress: ProgressCallback | None = None,
    *,
    setup: TrainingSetup | None = None,
    deadline: Deadline | None = None,
    cores: int | None = None,
    job_is_over: JobIsOver | None = None,
    checked_at_once_bytes: int = CHECKED_AT_ONCE_BYTES,
    in_memory_bytes: int | None = None,
) -> Outcome:
    """Train a run, from scratch or from its newest checkpoint.

    Args:
        run: a run from :meth:`TrainingSetup.create_run`.
        progress: receives progress events.
        setup: the setup that the run was created with; by default, it is built from the run folder.
        deadline: the time at which to save and stop; none by default.
        cores: the number of cores to use; all by default. The results' bits do not depend on this number.
        job_is_over: asks the scheduler about the SLURM job of another process that seems to own the run; see
            :func:`cnnjob.runs.claims.claim`.
        checked_at_once_bytes: datasets up to this size are checked against their digests before the first step; larger
            datasets are checked in a thread, and nothing is saved before that check is complete.
        in_memory_bytes: maximum size of a dataset whose images are loaded into memory; the images of a larger dataset
            are read from its file as they are needed. By default, images are loaded if they fit. The results'
            bits do not depend on this size.

    Returns:
        The outcome; its state is ``finished``, ``stopped`` (on request; the same call resumes the run) or
        ``was finished``.

    Raises:
        BusyError: another process is writing to the run; nothing was changed.
        DataError: the dataset, the initial weights or all checkpoints are damaged, or they do not belong to the run.
        JobError: the job needs more memory than is available, or it needs a GPU and none can be used.
        TrainingError: the loss is no longer finite.
    """
    if run.result_file.exists():
        return Outcome(run, "was finished", "finished")
    # Anything that can be refused without the GPU is refused before the claim, so that no attempt is recorded.
    run.require_current()
    setup = setup or TrainingSetup.of_run(run)
    open_run_dataset(run, setup.dataset)
    if setup.job.model.init_from and not newest_step(run.checkpoints_folder):
        read_initial(run.job())
    name = select_backend(setup.job, run)
    placement = place_in_host_memory(setup, name, in_memory_bytes)
    with disk_errors_as_cnnjob_error(run.path):
        claim = claims.claim(run, job_is_over)
    if run.result_file.exists():  # another process finished the run between the check above and the claim
        with disk_errors_as_cnnjob_error(run.path):
            claim.end("finished", newest_step(run.checkpoints_folder))
        return Outcome(run, "was finished", "finished")
    disk_errors = disk_errors_as_cnnjob_error(run.path)
    # StopRequest encloses _record_end: a signal that arrives while the end is being recorded only sets the flag.
    with start_workers(cores) as workers, StopRequest(deadline) as stop, _record_end(claim) as ending, disk_errors:
        with memory_errors_as_job_error(setup.job):
            backend = make_backend(name, workers, setup.job)
            if isinstance(backend, nn.CudaBackend):
                placement = place_in_device_memory(setup, backend, placement)
            ending.trainer = Trainer(claim, setup, backend, progress or NoProgress(), checked_at_once_bytes, placement)
            with closing(ending.trainer.data):
                finished = ending.trainer.train(stop)
        ending.why = "finished" if finished else f"stopped: {stop.requested_by}"
    return Outcome(run, "finished" if finished else "stopped", ending.why)


class _Ending:
    """The record of the end of an attempt: the reason, and the step that the trainer has reached."""

    trainer: Trainer | None = None
    why = ""


@contextmanager
def _record_end(claim: Claim) -> Iterator[_Ending]:
    """Update the heartbeat during an attempt, and record why the attempt ended, whatever the cause."""
    ending = _Ending()
    try:
        with _keep_heartbeat(claim):
            yield ending
    except BusyError:
        raise  # the run, including its records and log, now belongs to another process
    except KeyboardInterrupt:
        ending.why = "stopped: SIGINT twice, at once"
        raise
    except BaseException as error:
        ending.why = (
            f"failed: {error}" if isinstance(error, CnnjobError) else f"failed: {type(error).__name__}: {error}"
        )
        raise
    finally:
        if ending.why:
            with suppress(OSError, DataError):  # if this fails, the attempt counts as lost and can be resumed
                claim.end(ending.why, ending.trainer.progress.step if ending.trainer else 0)
            if ending.trainer and ending.why.startswith("failed"):
                ending.trainer.log(ending.why)


@contextmanager
def _keep_heartbeat(claim: Claim) -> Iterator[None]:
    """Update the heartbeat in a thread, so that other hosts see that this process is alive during long evaluations."""
    over = Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a file server may be unavailable for a while; the next heartbeat tries again
                claim.beat()

    Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()
