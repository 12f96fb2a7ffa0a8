"""Diagnosis of a run: the cause of its state in one sentence, the evidence, and the command to type next.

The run's folder has precedence over the scheduler. Nothing is guessed: an exit code of 137 means signal 9, and it means
out of memory only if a log, a record or SLURM says so.
"""

import pwd
import re
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnnjob.errors import format_seconds
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.logs import (
    first_line_with,
    last_attempt_log,
    last_error,
    last_own_message,
    last_program_line,
    newest_log,
    shorten_lines,
)
from cnnjob.runs.restart_log import NO_STEP, UNDECIDED
from cnnjob.slurm import next_command
from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.status import ENDED_EARLY, Status, left

if TYPE_CHECKING:
    from collections.abc import Callable

_MEMORY = re.compile(
    r"oom[-_ ]kill|exceeded (?:job |step )?memory limit|Exceeded job memory|Out[ -]Of[ -]Memory"
    r"|MemoryError|Unable to allocate|std::bad_alloc|Cannot allocate memory",
    re.IGNORECASE,
)
"""Messages of SLURM, the kernel, Python, NumPy and C++ about the memory of a job or process."""
_DEVICE = re.compile(r"cupy\S{0,100}OutOfMemoryError|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY")
"""Messages of CuPy and CUDA about the memory of a GPU."""
_DISK = re.compile(r"No space left on device|Disk quota exceeded|not enough space", re.IGNORECASE)
_NUMBER = re.compile(r"the (?:\w+ )?loss is (?:nan|-?inf)\b")
_UNDECIDED = re.compile(rf": (?P<python>/.*) {UNDECIDED} (?P<code>\d+)$")
_DEAD = 128  # a shell adds it to the number of the signal that killed a process
_ENDS = {
    "TIMEOUT": "its job reached the time limit",
    "PREEMPTED": "its job was preempted by one of higher priority",
    "NODE_FAIL": "the node of its job failed",
    "BOOT_FAIL": "the node of its job did not boot",
    "DEADLINE": "its job could not end before its deadline",
    "REVOKED": "its job was revoked by another cluster of the federation",
    "LAUNCH_FAILED": "its job could not be launched on its node",
    "RECONFIG_FAIL": "the node of its job could not be configured",
    "COMPLETED": "its job ended with success, the run did not",
    "FAILED": "its job failed",
    "ENDED": "its job ended",
}
"""Causes by SLURM's final state of a job; ``ENDED`` if the state is not known."""
_BY = {"time limit": "TIMEOUT", "preempted": "PREEMPTED"}
"""States by ``ended_by`` of the restart log."""
_ASKED = {
    "stopped: time limit": "its time was nearly over, so it saved and stopped",
    "stopped: SIGUSR2": "the scheduler announced the end of its time or a preemption, so it saved and stopped",
    "stopped: SIGTERM": "somebody asked it to end (SIGTERM), so it saved and stopped",
    "stopped: SIGINT": "somebody pressed Ctrl-C, so it saved and stopped",
    "stopped: SIGQUIT": "somebody asked it to stop (SIGQUIT), so it saved and stopped",
    "stopped: SIGUSR1": "somebody asked it to stop (SIGUSR1), so it saved and stopped",
    "stopped: SIGHUP": "its terminal or session was closed (SIGHUP), so it saved and stopped",
    "stopped: SIGXCPU": "its processor time reached the limit (SIGXCPU), so it saved and stopped",
    "stopped: SIGPWR": "its machine is being shut down (SIGPWR), so it saved and stopped",
}
"""Causes by the reason that an attempt recorded when it saved and stopped."""


@dataclass(frozen=True)
class Cause:
    """The cause of a run's state."""

    sentence: str
    evidence: str
    """The file or command that the cause is known from, and what it says."""
    command: str
    """The command to type next; empty if there is nothing to do."""

    def as_json(self) -> dict[str, str]:
        """Return all fields under names that do not change between versions."""
        return {"cause": self.sentence, "evidence": self.evidence, "command": self.command}


def diagnose(status: Status) -> Cause:
    """Return the cause of a run's state."""
    cause, seen = _cause_of(status), status.summary
    if not seen.is_older or status.job or status.state not in ENDED_EARLY:
        return cause
    again = (
        f"{cause.sentence}; another version of cnnjob began it, so it is not resumed, and its command begins it anew"
    )
    return Cause(again, cause.evidence, next_command.continue_command(seen.run))


def _cause_of(status: Status) -> Cause:
    known = {"finished": _finished, "running": _running, "pending": _pending, "damaged": _damaged}
    if status.state in known:
        return known[status.state](status)
    if status.state == "cancelled":
        return _cancelled(status)
    if status.left_queue:
        return _left_queue(status)
    text = last_attempt_log(status.summary.run)
    # The first step that finds a cause decides, so specific causes come before general ones.
    steps: tuple[Callable[[Status, str], Cause | None], ...] = (
        _copied, _no_interpreter, _own_error, _out_of_memory, _disk, _before_it_began, _crash_loop, _not_restarted,
        _moved, _ended_by_scheduler, _asked_to_stop, _python_error, _killed,
    )  # fmt: skip
    return next((cause for step in steps if (cause := step(status, text))), None) or _silent(status)


def _finished(status: Status) -> Cause:
    return Cause("it is finished", "result.json", f"cnnjob report {next_command.quoted_path(status.summary.run)}")


def _running(status: Status) -> Cause:
    since = status.summary.attempt.get("started")
    done = (
        f"it is in epoch {status.summary.epoch + 1} of {status.summary.epochs}"
        if status.summary.n_attempts
        else "it starts"
    )
    evidence = f"{status.detail or 'it gives signs of life'}{f', began {since}' * bool(since)}"
    return Cause(
        f"{done} on {status.node or 'its node'}", evidence, next_command.logs_command(status.summary.run, follow=True)
    )


def _pending(status: Status) -> Cause:
    seen, job = status.summary, status.job
    step = (
        f"; it goes on at step {seen.last_decision.get('step') or seen.attempt.get('step')}" if seen.n_attempts else ""
    )
    if job is None:
        told = "it was never submitted" if not seen.job_id else f"it waits for job {seen.job_id}"
        there = f"squeue -M {shlex.quote(seen.other_cluster)} -j {seen.job_id}" if seen.other_cluster else ""
        return Cause(told + step, status.detail, there if seen.job_id else next_command.continue_command(seen.run))
    evidence = f"squeue: job {job.job_id} {job.state}, {job.reason}"
    if job.state not in job_states.WAITING:
        ends = "is ending" if job.state == job_states.ENDING else f"is {job.state}"
        return Cause(f"its job {ends}, and the run has not begun", evidence, next_command.logs_command(seen.run))
    wait = job_states.waits_for(job.reason)
    expected = f", expected to start at {job.start}" if re.match(r"\d{4}-", job.start) and not wait.never else ""
    if wait.never:
        again = next_command.continue_command(seen.run, change=wait.option)
        return Cause(
            f"{wait.words}: it never starts so", evidence, f"{next_command.cancel_command(seen.run)} && {again}"
        )
    release = f"scontrol release {job.job_id}" if wait.release else ""
    return Cause(f"its job waits: {wait.words}{expected}{step}", evidence, release)


def _damaged(status: Status) -> Cause:
    run, trouble = status.summary.run, status.summary.damage
    if trouble.startswith(str(run.result_file)) and "Permission denied" not in trouble and status.summary.manifest:
        way = f"rm {shlex.quote(str(run.result_file))} && {next_command.continue_command(run)}"
        return Cause("its result cannot be read; without the file its own command makes it again",
                     trouble, way)  # fmt: skip
    return Cause("its folder cannot be read", trouble, f"ls -l {next_command.quoted_path(run)}")


def _cancelled(status: Status) -> Cause:
    seen, fate = status.summary, status.fate
    again = next_command.continue_command(seen.run)
    if fate and fate.state == "CANCELLED":
        whom = f" by {user_of(fate.cancelled_by)}" if fate.cancelled_by else ""
        return Cause(f"its job {fate.job_id} was cancelled{whom}", f"{fate.said_by}: {fate.said}", again)
    if seen.was_cancelled_by_cnnjob:
        when = f"slurm/cancelled.json: {seen.cancellation.get('time')}"
        return Cause(f"it was cancelled by {seen.cancellation.get('by')} with cnnjob cancel", when, again)
    return Cause(f"its job {seen.job_id} was cancelled", "slurm/restarts.json: ended_by cancelled", again)


def _left_queue(status: Status) -> Cause:
    seen = status.summary
    evidence = f"slurm/job.json names job {seen.job_id}; neither squeue nor sacct knows it, and no attempt is of it"
    return Cause(left(seen), evidence, next_command.continue_command(seen.run))


def user_of(number: str | None) -> str:
    """Return the name of a user with the id, or the id alone where the name is not known.

    Args:
        number: the user id as text.
    """
    try:
        return f"{pwd.getpwuid(int(number or '')).pw_name} (user {number})"
    except (KeyError, ValueError, OverflowError):
        return f"user {number}"


def _why(status: Status) -> str:
    return shorten_lines(str(status.summary.attempt.get("why") or ""))


def _attempt_file(status: Status) -> str:
    return f"attempts/{status.summary.n_attempts:04d}.json"


def _copied(status: Status, _: str) -> Cause | None:
    """Return the cause of a copy that was made while its original was being trained."""
    seen = status.summary
    if not seen.original or status.state != "lost":
        return None
    sentence = f"it is a copy of {seen.original}, made while that was trained; no process trains the copy"
    return Cause(sentence, f"{_attempt_file(status)}: folder {seen.original}", next_command.continue_command(seen.run))


def _no_interpreter(status: Status, text: str) -> Cause | None:
    """Return the cause if the batch script could not run its Python, or that Python lacks a package."""
    undecided = _UNDECIDED.search(last_own_message(text))
    if not undecided:
        return None
    what = f"{undecided['python']} cannot run cnnjob"
    if int(undecided["code"]) in {126, 127}:  # a shell's exit codes for not executable and not found
        what = f"{undecided['python']} is missing or cannot be executed"
    run, error = status.summary.run, last_error(text)
    evidence = f"{newest_log(run)}: {error or last_program_line(text)}"
    return Cause(
        f"its job had no Python: {what}, so it was not restarted", evidence, next_command.continue_command(run)
    )


def _own_error(status: Status, text: str) -> Cause | None:
    """Return the failure that the run itself recorded, unless a later step explains it better."""
    seen, why = status.summary, _why(status).removeprefix("failed: ")
    if seen.state != "failed" or _MEMORY.search(why) or _DEVICE.search(why) or _DISK.search(why):
        return None
    if _NUMBER.search(why):
        said = why.removeprefix(f"{seen.run.path}: ").removeprefix(f"{seen.run.path.resolve()}: ")
        slower = next_command.continue_command(seen.run, change="train.learning_rate")
        # Older versions wrote the advice after a semicolon.
        sentence = re.split(r"[.;] lower ", said, maxsplit=1, flags=re.IGNORECASE)[0]
        return Cause(sentence, _attempt_file(status), slower)
    kind, error = why.partition(":")[0], last_error(text)
    if error and kind in error.partition(":")[0]:
        return Cause(error, f"{_attempt_file(status)} and {newest_log(seen.run)}", next_command.logs_command(seen.run))
    return Cause(why or "it failed", _attempt_file(status), next_command.logs_command(seen.run))


def _before_it_began(status: Status, text: str) -> Cause | None:
    """Return the error that ended a job before its run began: in the dataset, the memory, or a setup line."""
    seen, decided = status.summary, status.summary.current_decision
    if seen.state == "failed" or "own error" not in str(decided.get("said")):
        return None
    own = last_own_message(text, str(decided["said"]))
    sentence = own or last_error(text) or f"its job ended with exit code {decided.get('code')}"
    words_ = "" if own else last_program_line(text)
    return Cause(sentence, f"{newest_log(seen.run)}{f': {words_}' * bool(words_)}", next_command.logs_command(seen.run))


def _out_of_memory(status: Status, text: str) -> Cause | None:
    seen, fate = status.summary, status.fate
    if line := first_line_with(_DEVICE, _why(status)) or first_line_with(_DEVICE, text):
        smaller = next_command.continue_command(seen.run, change="train.batch_size")
        return Cause("the GPU's memory did not suffice", line, smaller)
    more = next_command.continue_command(seen.run, change="--mem")
    if line := first_line_with(_MEMORY, _why(status)):
        return Cause("it ran out of memory", f"{_attempt_file(status)}: {line}", more)
    # a training that saved and stopped in order did not die of what its log mentions
    if seen.state != "stopped" and (line := first_line_with(_MEMORY, text)):
        return Cause("it ran out of memory", f"{newest_log(seen.run).name}: {line}", more)
    if fate and fate.state == "OUT_OF_MEMORY":
        return Cause("it ran out of memory", f"{fate.said_by}: job {fate.job_id} {fate.said}", more)
    return None


def _disk(status: Status, text: str) -> Cause | None:
    line = first_line_with(_DISK, _why(status)) or (
        first_line_with(_DISK, text) if status.summary.state != "stopped" else ""
    )
    return Cause("the disk is full", line, f"df -h {next_command.quoted_path(status.summary.run)}") if line else None


def _crash_loop(status: Status, text: str) -> Cause | None:
    decided = status.summary.current_decision
    if "without progress" not in str(decided.get("said")):
        return None
    code = decided.get("code")
    how = f", each time {_death(int(code))}" if isinstance(code, int) and code > _DEAD else f", exit code {code}"
    last = last_error(text) or last_program_line(text)
    evidence = f"slurm/restarts.json{f'; {last}' * bool(last)}"
    return Cause(f"{decided['said']}{how}", evidence, next_command.logs_command(status.summary.run))


def _not_restarted(status: Status, _: str) -> Cause | None:
    """Return why a batch script could not restart a run: SLURM refused both a requeue and a successor."""
    said = str(status.summary.current_decision.get("said", ""))
    if not said.startswith("not restarted, "):
        return None
    run = status.summary.run
    ended = _ENDS[_BY.get(str(status.summary.current_decision.get("ended_by")), "ENDED")]
    why = said.removeprefix("not restarted, ").partition("; to go on: ")[0].removeprefix(f"{run.name}: ")
    return Cause(f"{ended} and was not restarted: {why}", "slurm/restarts.json", next_command.continue_command(run))


def _ended_by_scheduler(status: Status, _: str) -> Cause | None:
    """Return how SLURM ended the job, from accounting or from what the job's own batch script recorded."""
    seen, fate = status.summary, status.fate
    again = next_command.continue_command(seen.run)
    # FAILED and COMPLETED tell no more than the exit code: a later step may know the cause
    if fate and fate.state in _ENDS and fate.state not in {"FAILED", "COMPLETED"}:
        where = f" ({fate.node})" if fate.state in {"NODE_FAIL", "BOOT_FAIL"} and fate.node else ""
        more = (
            next_command.continue_command(seen.run, change="--time")
            if fate.state == "TIMEOUT" and not seen.n_attempts
            else again
        )
        return Cause(f"{_ENDS[fate.state]}{where}", f"{fate.said_by}: job {fate.job_id} {fate.said}", more)
    ended_by = str(seen.current_decision.get("ended_by"))
    if ended_by in _BY:
        said = seen.current_decision.get("said")
        return Cause(_ENDS[_BY[ended_by]], f"slurm/restarts.json: ended_by {ended_by}, {said}", again)
    return None


def _asked_to_stop(status: Status, _: str) -> Cause | None:
    why = _why(status)
    if status.summary.state != "stopped":
        return None
    step = f" at step {status.summary.attempt.get('step')}"
    sentence = _ASKED.get(why, why.removeprefix("stopped: ") or "it stopped") + step
    seen, said = status.summary, str(status.summary.current_decision.get("said", ""))
    after = f"; slurm/restarts.json: {said}" * bool(said)
    # a batch script records what it decides: without a record, it ended before it could
    if not seen.current_decision and not status.job and seen.attempt.get("job_id") == seen.submission.get("job_id", ""):
        sentence = f"its batch script was killed or lost before it restarted the run, which saved and stopped{step}"
        after = "; its batch script decided nothing about a restart"
    return Cause(sentence, f"{_attempt_file(status)}: {why}{after}", next_command.continue_command(seen.run))


def _moved(status: Status, text: str) -> Cause | None:
    """Return the cause of a run whose folder was moved during its training; the log moved with it."""
    run, before = status.summary.run, status.summary.moved_from
    if not (before and status.summary.n_attempts and status.summary.state == "lost"):
        return None
    named = run.path.with_name(Path(before).name)
    back = f"mv {next_command.quoted_path(run)} {shlex.quote(str(named))} && " if named.name != run.path.name else ""
    sentence = f"its folder was moved from {before} during its training, which stopped"
    return Cause(sentence, f"{newest_log(run)}: {last_own_message(text)}", back + next_command.continue_command(run))


def _python_error(status: Status, text: str) -> Cause | None:
    error = last_error(text)
    run = status.summary.run
    return Cause(error, str(newest_log(run)), next_command.logs_command(run)) if error else None


def _killed(status: Status, _: str) -> Cause | None:
    code = status.summary.current_decision.get("code")
    if not isinstance(code, int) or code <= _DEAD:
        return None
    return Cause(
        f"it was {_death(code)}", f"slurm/restarts.json: code {code}", next_command.continue_command(status.summary.run)
    )


def _death(code: int) -> str:
    if code == NO_STEP:
        return "not started by srun"
    if code == _DEAD + signal.SIGALRM:
        return "ended because it did not stop before its job's end"
    try:
        return f"killed by signal {code - _DEAD} ({signal.Signals(code - _DEAD).name})"
    except ValueError:
        return f"ended with exit code {code}"


def _silent(status: Status) -> Cause:
    """Return what is known of a run whose end nothing explains."""
    seen, fate = status.summary, status.fate
    heard = (
        f"no sign of life for {format_seconds(seen.heartbeat_age_seconds)}"
        if seen.n_attempts
        else "the run has not begun"
    )
    if fate:
        ended = _ENDS.get(fate.state, f"SLURM says {fate.said}")
        code = f", exit code {fate.exit_code}" * bool(fate.exit_code)
        last = last_program_line(last_attempt_log(seen.run)) or heard
        evidence = f"{fate.said_by}: job {fate.job_id} {fate.said}{code}; {last}"
        return Cause(f"{ended} without a word in the run's folder", evidence, next_command.logs_command(seen.run))
    if seen.n_attempts:
        step = newest_step(seen.run.checkpoints_folder)
        gone = f"its process is gone without a word{f'; step {step:,} is saved' * bool(step)}"
        return Cause(gone, f"{_attempt_file(status)}: {heard}", next_command.continue_command(seen.run))
    return Cause("its job is gone without a word", status.detail or heard, next_command.continue_command(seen.run))
