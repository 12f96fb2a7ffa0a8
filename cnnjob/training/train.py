"""``train``: one life of a run, claimed, lived and told.

What a life is, is in :mod:`cnnjob.training.trainer`; here is who may live it and what is written down at its end.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Literal

from cnnjob import nn
from cnnjob.errors import BusyError, CnnjobError, DataError
from cnnjob.files import disk_errors_as_cnnjob_error
from cnnjob.runs import claims
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.claims import Claim
from cnnjob.runs.creation import dataset_of_run
from cnnjob.runs.process import HEARTBEAT_SECONDS
from cnnjob.runs.run import JobIsOver, Run
from cnnjob.training.backend import make_backend, select_backend
from cnnjob.training.evaluation import CHECKED_AT_ONCE_BYTES
from cnnjob.training.memory import memory_errors_as_job_error, require_memory
from cnnjob.training.progress import NoProgress, ProgressCallback
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.stopping import Deadline, StopRequest
from cnnjob.training.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended."""

    run: Run
    state: Literal["finished", "stopped", "was finished"]
    why: str


def train(
    run: Run,
    listener: ProgressCallback | None = None,
    *,
    setup: TrainingSetup | None = None,
    deadline: Deadline | None = None,
    cores: int | None = None,
    has_ended: JobIsOver | None = None,
    checked_at_once_bytes: int = CHECKED_AT_ONCE_BYTES,
) -> Outcome:
    """Train a run from where it stands.

    Args:
        run: made by :meth:`TrainingSetup.create_run`.
        listener: hears how it goes.
        setup: what it was made from; as the run's folder has it by default.
        deadline: when to stop and save; never by default.
        cores: how many to use; all by default. The bits do not depend on it.
        has_ended: what a scheduler says of another's job that seems to hold the run, see
            :func:`cnnjob.runs.claims.claim`.
        checked_at_once_bytes: images of at most so many bytes are compared with their digests before the first step;
            more of them in a thread, and nothing is saved before it is done.

    Returns:
        ``finished``, ``stopped`` (asked to; the same call goes on), or ``was finished``.

    Raises:
        BusyError: another process is writing the run; nothing was changed.
        DataError: the dataset or all checkpoints are damaged, or not those the run was made with.
        JobError: it needs more memory than there is, or a GPU where none can be used.
        TrainingError: the loss is no longer a number.
    """
    if run.result_file.exists():
        return Outcome(run, "was finished", "finished")
    run.require_current()
    setup = setup or TrainingSetup.of_run(run)
    dataset_of_run(run, setup.dataset)
    name = select_backend(setup.job, run)
    require_memory(setup, name)
    with disk_errors_as_cnnjob_error(run.path):
        claim = claims.claim(run, has_ended)
    if run.result_file.exists():  # finished by another process between the look and the claim
        claim.end("finished", newest_step(run.checkpoints_folder))
        return Outcome(run, "was finished", "finished")
    disk_errors = disk_errors_as_cnnjob_error(run.path)
    with _cores(cores) as workers, StopRequest(deadline) as stop, _attempt(claim) as attempt, disk_errors:
        with memory_errors_as_job_error(setup.job):
            backend = make_backend(name, workers, setup)
            attempt.loop = Trainer(claim, setup, backend, listener or NoProgress(), checked_at_once_bytes)
            finished = attempt.loop.go_on(stop)
        attempt.why = "finished" if finished else f"stopped: {stop.asked_by}"
    return Outcome(run, "finished" if finished else "stopped", attempt.why)


class _Attempt:
    """What is known at the end of one: how far it came, and why it ended."""

    loop: Trainer | None = None
    why = ""


@contextmanager
def _attempt(claim: Claim) -> Iterator[_Attempt]:
    """Give signs of life, and write down why an attempt ended, whatever ended it."""
    attempt = _Attempt()
    try:
        with _beating(claim):
            yield attempt
    except BusyError:
        raise  # the run is another's now, its log too
    except KeyboardInterrupt:
        attempt.why = "stopped: SIGINT twice, at once"
        raise
    except BaseException as error:
        attempt.why = (
            f"failed: {error}" if isinstance(error, CnnjobError) else f"failed: {type(error).__name__}: {error}"
        )
        raise
    finally:
        if attempt.why:
            with suppress(OSError, DataError):  # it then counts as lost, which can go on too
                claim.end(attempt.why, attempt.loop.progress.step if attempt.loop else 0)
            if attempt.loop and attempt.why.startswith("failed"):
                attempt.loop.log(attempt.why)


@contextmanager
def _beating(claim: Claim) -> Iterator[None]:
    """Tell other hosts that this process lives, through long evaluations too."""
    over = Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                claim.beat()

    Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _cores(count: int | None) -> Iterator[nn.Workers]:
    """Workers on so many cores, or on all, and BLAS at one thread: its sums would depend on the number of threads."""
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it looks at every loaded library

    with threadpool_limits(1), nn.Workers(count or nn.available_cores()) as workers:
        yield workers
