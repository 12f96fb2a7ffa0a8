"""``train``: one life of a run, claimed, lived and told.

What a life is, is in :mod:`cnnjob.loops`; here is who may live it and what is written down at its end.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from cnnjob import nn, runs
from cnnjob.bindings import written_or_said
from cnnjob.errors import BusyError, CnnjobError
from cnnjob.loops import Listener, Loop, Silent
from cnnjob.runs import Claim, Run
from cnnjob.stopping import StopRequest


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended."""

    run: Run
    state: Literal["finished", "stopped", "was finished"]
    why: str


def train(
    run: Run, listener: Listener | None = None, *, deadline: float = math.inf, cores: int | None = None
) -> Outcome:
    """Train a run from where it stands.

    Args:
        run: made by :func:`cnnjob.bindings.run_of`.
        listener: hears how it goes.
        deadline: when to stop and save, in ``time.time()``'s seconds.
        cores: how many to use; all by default. The bits do not depend on it.

    Returns:
        ``finished``, ``stopped`` (asked to; the same call goes on), or ``was finished``.

    Raises:
        BusyError: another process is writing the run; nothing was changed.
        DataError: the dataset or all checkpoints are damaged, or not those the run was made with.
        TrainingError: the loss is no longer a number.
    """
    if run.result_file.exists():
        return Outcome(run, "was finished", "finished")
    with written_or_said(run.path):
        claim = runs.claim(run)
    if run.result_file.exists():  # finished by another process between the look and the claim
        claim.end("finished", run.result()["steps"])
        return Outcome(run, "was finished", "finished")
    with _cores(cores) as workers, StopRequest(deadline) as stop, _told_apart(claim) as life, written_or_said(run.path):
        loop = Loop(run, claim, workers, listener or Silent())
        life.loop = loop
        finished = loop.go_on(stop)
        life.why = "finished" if finished else f"stopped: {stop.asked_by}"
    return Outcome(run, "finished" if finished else "stopped", life.why)


class _Life:
    """What is to be written at the end of an attempt."""

    loop: Loop | None = None
    why = ""


@contextmanager
def _told_apart(claim: Claim) -> Iterator[_Life]:
    """Write down why an attempt ended, whatever ended it; a lost claim is not ours to write to."""
    life = _Life()
    try:
        yield life
    except BusyError:
        raise
    except KeyboardInterrupt:
        life.why = "stopped: SIGINT twice, at once"
        raise
    except BaseException as error:
        life.why = f"failed: {error}" if isinstance(error, CnnjobError) else f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        if life.why:
            with suppress(OSError):  # then the run counts as lost, which can go on too
                claim.end(life.why, life.loop.progress.step if life.loop else 0)


@contextmanager
def _cores(count: int | None) -> Iterator[nn.Workers]:
    """Workers on so many cores, or on all, and BLAS at one thread: its sums would depend on the number of threads."""
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it looks at every loaded library

    with threadpool_limits(1), nn.Workers(count or nn.available_cores()) as workers:
        yield workers
