"""Diagnosis of a run: the cause of its state in one sentence, the evidence, and the next command to run.

If the run's folder and the scheduler disagree, the folder takes precedence. Nothing is guessed: exit code 137 is
reported as signal 9; it is reported as running out of memory only if a log, a record or SLURM shows this.
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
from cnnjob.runs.restart_log import NO_STEP, TO_RESUME, UNDECIDED
from cnnjob.slurm import next_command
from cnnjob.slurm.run_state import ENDED_EARLY, Status, describe_left_queue
from cnnjob.slurm.scheduler import job_states

if TYPE_CHECKING:
    from collections.abc import Callable

_MEMORY = re.compile(
    r"oom[-_ ]kill|exceeded (?:job |step )?memory limit|Exceeded job memory|Out[ -]Of[ -]Memory"
    r"|MemoryError|Unable to allocate|std::bad_alloc|Cannot allocate memory",
    re.IGNORECASE,
)
"""Matches out-of-memory messages from SLURM, the kernel, Python, NumPy and C++."""
_DEVICE = re.compile(r"cupy\S{0,100}OutOfMemoryError|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY")
"""Matches out-of-memory messages from CuPy and CUDA about a GPU."""
_DISK = re.compile(r"No space left on device|Disk quota exceeded|not enough space", re.IGNORECASE)
_NOT_FINITE = re.compile(r"the (?:\w+ )?loss is (?:nan|-?inf)\b")
_UNDECIDED = re.compile(rf": (?P<python>/.*) {UNDECIDED} (?P<code>\d+)$")
_SIGNAL_CODES = 128  # a shell's exit code is 128 plus the number of the signal that killed the process
_END_CAUSES = {
    "TIMEOUT": "its job reached the time limit",
    "PREEMPTED": "its job was preempted by a job of higher priority",
    "NODE_FAIL": "its job's node failed",
    "BOOT_FAIL": "its job's node did not boot",
    "DEADLINE": "its job could not finish before its deadline",
    "REVOKED": "its job was revoked by another cluster of the federation",
    "LAUNCH_FAILED": "its job could not be launched on its node",
    "RECONFIG_FAIL": "its job's node could not be configured",
    "COMPLETED": "its job ended successfully, but the run is not finished",
    "FAILED": "its job failed",
    "ENDED": "its job ended",
}
"""Causes by the final state of a SLURM job; ``ENDED`` is used if the state is not known."""
_TO_RESUME = re.compile(f"{TO_RESUME}|; to go on: ")
_STATE_BY_RECORD = {"time limit": "TIMEOUT", "preempted": "PREEMPTED"}
"""The SLURM states that correspond to values of ``ended_by`` in the restart log."""
_STOP_REASONS = {
    "stopped: time limit": "its time limit was approaching, so it saved and stopped",
    "stopped: SIGUSR2": "SLURM signalled the time limit or a preemption (SIGUSR2), so it saved and stopped",
    "stopped: SIGTERM": "it was asked to stop (SIGTERM), so it saved and stopped",
    "stopped: SIGINT": "it was interrupted by Ctrl-C, so it saved and stopped",
    "stopped: SIGQUIT": "it was asked to stop (SIGQUIT), so it saved and stopped",
    "stopped: SIGUSR1": "it was asked to stop (SIGUSR1), so it saved and stopped",
    "stopped: SIGHUP": "its terminal or session was closed (SIGHUP), so it saved and stopped",
    "stopped: SIGXCPU": "its CPU time limit was reached (SIGXCPU), so it saved and stopped",
    "stopped: SIGPWR": "its machine was shutting down (SIGPWR), so it saved and stopped",
}
"""Causes by the reason that an attempt recorded when it saved and stopped."""


@dataclass(frozen=True)
class Cause:
    """The cause of a run's state."""

    sentence: str
    evidence: str
    """The file or command that shows the cause, with the relevant content or output."""
    command: str
    """The next command to run; empty if there is nothing to do."""

    def as_json(self) -> dict[str, str]:
        """Return all fields as a dict for JSON; the keys do not change between versions."""
        return {"cause": self.sentence, "evidence": self.evidence, "command": self.command}


def diagnose(status: Status) -> Cause:
    """Return the cause of a run's state."""
    cause, summary = _find_cause(status), status.summary
    if not summary.is_older or status.job or status.state not in ENDED_EARLY:
        return cause
    sentence = (
        f"{cause.sentence}; it was started by another version of cnnjob and cannot be resumed, so the command starts "
        "it from the beginning"
    )
    return Cause(sentence, cause.evidence, next_command.continue_command(summary.run))


def _find_cause(status: Status) -> Cause:
    explain = {
        "finished": _explain_finished,
        "running": _explain_running,
        "pending": _explain_pending,
        "damaged": _explain_damaged,
        "cancelled": _explain_cancelled,
    }.get(status.state)
    if explain:
        return explain(status)
    if status.left_queue:
        return _explain_left_queue(status)
    text = last_attempt_log(status.summary.run)
    # The first check that finds a cause decides, so specific causes come before general ones.
    checks: tuple[Callable[[Status, str], Cause | None], ...] = (
        _check_copy, _check_interpreter, _check_own_error, _check_memory, _check_disk, _check_before_it_began,
        _check_crash_loop, _check_not_restarted, _check_moved, _check_scheduler, _check_stop_request,
        _check_python_error, _check_killed,
    )  # fmt: skip
    return next((cause for check in checks if (cause := check(status, text))), None) or _explain_silence(status)


def _explain_finished(status: Status) -> Cause:
    return Cause("finished", "result.json", f"cnnjob report {next_command.quoted_path(status.summary.run)}")


def _explain_running(status: Status) -> Cause:
    summary = status.summary
    phase = f"in epoch {summary.epoch + 1} of {summary.epochs}" if summary.n_attempts else "starting"
    saved_step, total = newest_step(summary.run.checkpoints_folder), summary.attempt.get("steps")
    saved = f"; step {saved_step:,}{f' of {total:,}' if total else ''} is saved" if saved_step else ""
    evidence = status.detail or "its heartbeat is recent"
    if since := summary.attempt.get("started"):
        evidence = f"{evidence}, started {since}"
    command = next_command.logs_command(summary.run, follow=True)
    return Cause(f"{phase} on {status.node or 'its node'}{saved}", evidence, command)


def _explain_pending(status: Status) -> Cause:
    summary, job = status.summary, status.job
    folder = summary.run.checkpoints_folder
    saved_step = summary.last_decision.get("step") or summary.attempt.get("step") or newest_step(folder)
    start = f"resume at step {saved_step}" if saved_step else "start from the beginning"
    resumption = f"; it will {start}" if summary.n_attempts else ""
    if job is None:
        if not summary.job_id:
            command = next_command.continue_command(summary.run)
            return Cause(f"it was never submitted{resumption}", status.detail, command)
        squeue = f"squeue -M {shlex.quote(summary.other_cluster)} -j {summary.job_id}" if summary.other_cluster else ""
        return Cause(f"it is waiting for job {summary.job_id}{resumption}", status.detail, squeue)
    evidence = f"squeue: job {job.job_id} {job.state}, {job.reason}"
    if job.state not in job_states.WAITING:
        phase = "is ending" if job.state == job_states.ENDING else f"is {job.state}"
        return Cause(f"its job {phase}, and the run has not begun", evidence, next_command.logs_command(summary.run))
    wait = job_states.parse_reason(job.reason)
    if wait.never:
        resubmit = next_command.continue_command(summary.run, change=wait.option)
        command = f"{next_command.cancel_command(summary.run)} && {resubmit}"
        return Cause(f"{wait.phrase}, so it will never start with this request", evidence, command)
    expected = f", expected to start at {job.start}" if re.match(r"\d{4}-", job.start) else ""
    release = f"scontrol release {job.job_id}" if wait.release else ""
    return Cause(f"its job is waiting: {wait.phrase}{expected}{resumption}", evidence, release)


def _explain_damaged(status: Status) -> Cause:
    run, trouble = status.summary.run, status.summary.damage
    if trouble.startswith(str(run.result_file)) and "Permission denied" not in trouble and status.summary.manifest:
        command = f"rm {shlex.quote(str(run.result_file))} && {next_command.continue_command(run)}"
        sentence = "its result cannot be read; the command removes the file, and the run writes a new one"
        return Cause(sentence, trouble, command)
    return Cause("its folder cannot be read", trouble, f"ls -l {next_command.quoted_path(run)}")


def _explain_cancelled(status: Status) -> Cause:
    summary, outcome = status.summary, status.outcome
    resubmit = next_command.continue_command(summary.run)
    if outcome and outcome.state == "CANCELLED":
        user = f" by {user_of(outcome.cancelled_by)}" if outcome.cancelled_by else ""
        evidence = f"{outcome.source}: {outcome.printed}"
        return Cause(f"its job {outcome.job_id} was cancelled{user}", evidence, resubmit)
    if summary.was_cancelled_by_cnnjob:
        evidence = f"slurm/cancelled.json: {summary.cancellation.get('time')}"
        return Cause(f"it was cancelled by {summary.cancellation.get('by')} with cnnjob cancel", evidence, resubmit)
    return Cause(f"its job {summary.job_id} was cancelled", "slurm/restarts.json: ended_by cancelled", resubmit)


def _explain_left_queue(status: Status) -> Cause:
    summary = status.summary
    # without accounting, or for a job on another cluster, sacct returns nothing
    sacct = "sacct has no record of it" if status.sacct_answered else "sacct did not answer"
    evidence = (
        f"slurm/job.json names job {summary.job_id}; squeue does not list it, {sacct}, and it left no attempt or log"
    )
    return Cause(describe_left_queue(summary), evidence, next_command.continue_command(summary.run))


def _check_copy(status: Status, _: str) -> Cause | None:
    """Return the cause if the run is a copy that was made while the original was being trained."""
    summary = status.summary
    if not summary.original or status.state != "lost":
        return None
    sentence = (
        f"it is a copy of {summary.original}, made while that run was being trained; the copy is not being trained"
    )
    evidence = f"{_attempt_file_name(status)}: folder {summary.original}"
    return Cause(sentence, evidence, next_command.continue_command(summary.run))


def _check_interpreter(status: Status, text: str) -> Cause | None:
    """Return the cause if the batch script could not run its Python interpreter, or the interpreter lacks a package."""
    match = _UNDECIDED.search(last_own_message(text))
    if not match:
        return None
    problem = f"{match['python']} cannot run cnnjob"
    if int(match["code"]) in {126, 127}:  # a shell's exit codes for not executable and not found
        problem = f"{match['python']} is missing or cannot be executed"
    run = status.summary.run
    evidence = f"{newest_log(run)}: {last_error(text) or last_program_line(text)}"
    sentence = f"its job could not start: {problem}, so it was not restarted"
    return Cause(sentence, evidence, next_command.continue_command(run))


def _check_own_error(status: Status, text: str) -> Cause | None:
    """Return the failure that the run itself recorded, unless a later check explains it better."""
    summary, failure = status.summary, _recorded_end(status).removeprefix("failed: ")
    if summary.state != "failed" or _MEMORY.search(failure) or _DEVICE.search(failure) or _DISK.search(failure):
        return None
    if _NOT_FINITE.search(failure):
        message = failure.removeprefix(f"{summary.run.path}: ").removeprefix(f"{summary.run.path.resolve()}: ")
        command = next_command.continue_command(summary.run, change="train.learning_rate")
        # older versions wrote the advice after a semicolon
        sentence = re.split(r"[.;] lower ", message, maxsplit=1, flags=re.IGNORECASE)[0]
        return Cause(sentence, _attempt_file_name(status), command)
    logs = next_command.logs_command(summary.run)
    error_type, error = failure.partition(":")[0], last_error(text)
    if error and error_type in error.partition(":")[0]:
        return Cause(error, f"{_attempt_file_name(status)} and {newest_log(summary.run)}", logs)
    return Cause(failure or "it failed", _attempt_file_name(status), logs)


def _check_memory(status: Status, text: str) -> Cause | None:
    """Return the cause if the run's record, its log or SLURM shows that memory ran out."""
    summary, outcome = status.summary, status.outcome
    if line := first_line_with(_DEVICE, _recorded_end(status)) or first_line_with(_DEVICE, text):
        command = next_command.continue_command(summary.run, change="train.batch_size")
        return Cause("the GPU ran out of memory", line, command)
    sentence, command = "it ran out of memory", next_command.continue_command(summary.run, change="--mem")
    if line := first_line_with(_MEMORY, _recorded_end(status)):
        return Cause(sentence, f"{_attempt_file_name(status)}: {line}", command)
    # if the run saved and stopped normally, an out-of-memory message in its log is not the cause
    if summary.state != "stopped" and (line := first_line_with(_MEMORY, text)):
        return Cause(sentence, f"{newest_log(summary.run).name}: {line}", command)
    if outcome and outcome.state == "OUT_OF_MEMORY":
        return Cause(sentence, f"{outcome.source}: job {outcome.job_id} {outcome.printed}", command)
    return None


def _check_disk(status: Status, text: str) -> Cause | None:
    line = first_line_with(_DISK, _recorded_end(status))
    if not line and status.summary.state != "stopped":
        line = first_line_with(_DISK, text)
    return Cause("the disk is full", line, f"df -h {next_command.quoted_path(status.summary.run)}") if line else None


def _check_before_it_began(status: Status, text: str) -> Cause | None:
    """Return the cause if an error ended the job before the run began.

    Such an error concerns the dataset, the available memory or a setup line of the batch script.
    """
    summary, decided = status.summary, status.summary.current_decision
    decision = str(decided.get("said"))
    if summary.state == "failed" or "own error" not in decision:
        return None
    evidence = str(newest_log(summary.run))
    message = last_own_message(text, decision)
    if not message:
        message = last_error(text) or f"its job ended with exit code {decided.get('code')}"
        if last_line := last_program_line(text):
            evidence = f"{evidence}: {last_line}"
    command = next_command.logs_command(summary.run)
    resubmit = next_command.continue_command(summary.run)
    if "submit the job with --gpus 0" in message and "--gpus" not in resubmit and "--gres" not in resubmit:
        command = f"{resubmit} --gpus 0"
    return Cause(message, evidence, command)


def _check_crash_loop(status: Status, text: str) -> Cause | None:
    """Return a cause if the batch script gave up restarting the run for lack of progress, otherwise None."""
    decided = status.summary.current_decision
    if "without progress" not in str(decided.get("said")):
        return None
    code = decided.get("code")
    how = f"exit code {code}"
    if isinstance(code, int) and code > _SIGNAL_CODES:
        how = f"each time {_describe_exit(code)}"
    last_line = last_error(text) or last_program_line(text)
    evidence = f"slurm/restarts.json; {last_line}" if last_line else "slurm/restarts.json"
    return Cause(f"{decided['said']}, {how}", evidence, next_command.logs_command(status.summary.run))


def _check_not_restarted(status: Status, _: str) -> Cause | None:
    """Return the cause if the batch script could not restart the run: SLURM refused both a requeue and a new job."""
    decision = str(status.summary.current_decision.get("said", ""))
    if not decision.startswith("not restarted, "):
        return None
    run = status.summary.run
    ended = _END_CAUSES[_STATE_BY_RECORD.get(str(status.summary.current_decision.get("ended_by")), "ENDED")]
    reason = _TO_RESUME.split(decision.removeprefix("not restarted, "), maxsplit=1)[0].removeprefix(f"{run.name}: ")
    sentence = f"{ended} and was not restarted: {reason}"
    return Cause(sentence, "slurm/restarts.json", next_command.continue_command(run))


def _check_moved(status: Status, text: str) -> Cause | None:
    """Return the cause if the run's folder, which contains its log, was moved during training."""
    run, before = status.summary.run, status.summary.moved_from
    if not (before and status.summary.n_attempts and status.summary.state == "lost"):
        return None
    command = next_command.continue_command(run)
    former_name = run.path.with_name(Path(before).name)
    if former_name.name != run.path.name:
        command = f"mv {next_command.quoted_path(run)} {shlex.quote(str(former_name))} && {command}"
    sentence = f"its folder was moved from {before} during training, so training stopped"
    return Cause(sentence, f"{newest_log(run)}: {last_own_message(text)}", command)


def _check_scheduler(status: Status, _: str) -> Cause | None:
    """Return the cause if SLURM ended the job, according to SLURM's accounting or to the batch script's record."""
    summary, outcome = status.summary, status.outcome
    command = next_command.continue_command(summary.run)
    # FAILED and COMPLETED add nothing to the exit code: a later check may find the cause
    if outcome and outcome.state in _END_CAUSES and outcome.state not in {"FAILED", "COMPLETED"}:
        node = f" ({outcome.node})" if outcome.state in {"NODE_FAIL", "BOOT_FAIL"} and outcome.node else ""
        if outcome.state == "TIMEOUT" and not summary.n_attempts:  # the run did not begin within the time limit
            command = next_command.continue_command(summary.run, change="--time")
        evidence = f"{outcome.source}: job {outcome.job_id} {outcome.printed}"
        return Cause(f"{_END_CAUSES[outcome.state]}{node}", evidence, command)
    ended_by = str(summary.current_decision.get("ended_by"))
    if ended_by in _STATE_BY_RECORD:
        evidence = f"slurm/restarts.json: ended_by {ended_by}, {summary.current_decision.get('said')}"
        return Cause(_END_CAUSES[_STATE_BY_RECORD[ended_by]], evidence, command)
    return None


def _check_stop_request(status: Status, _: str) -> Cause | None:
    """Return the cause if the run saved a checkpoint and stopped."""
    summary, reason = status.summary, _recorded_end(status)
    if summary.state != "stopped":
        return None
    step = f" at step {summary.attempt.get('step')}"
    sentence = _STOP_REASONS.get(reason, reason.removeprefix("stopped: ") or "it stopped") + step
    decision = str(summary.current_decision.get("said", ""))
    evidence = f"{_attempt_file_name(status)}: {reason}"
    # a batch script records its decision, so without a record it ended before it could decide
    if (
        not summary.current_decision
        and not status.job
        and summary.attempt.get("job_id") == summary.submission.get("job_id", "")
    ):
        sentence = f"it saved and stopped{step}, but its batch script was killed or lost before restarting it"
        evidence += "; its batch script recorded no decision about a restart"
    elif decision:
        evidence += f"; slurm/restarts.json: {decision}"
    return Cause(sentence, evidence, next_command.continue_command(summary.run))


def _check_python_error(status: Status, text: str) -> Cause | None:
    if error := last_error(text):
        return Cause(error, str(newest_log(status.summary.run)), next_command.logs_command(status.summary.run))
    return None


def _check_killed(status: Status, _: str) -> Cause | None:
    """Return the cause if the attempt's exit code shows which signal killed it."""
    code = status.summary.current_decision.get("code")
    if not isinstance(code, int) or code <= _SIGNAL_CODES:
        return None
    command = next_command.continue_command(status.summary.run)
    return Cause(f"it was {_describe_exit(code)}", f"slurm/restarts.json: code {code}", command)


def _explain_silence(status: Status) -> Cause:
    """Return what is known about the end of a run for which no other cause was found."""
    summary, outcome = status.summary, status.outcome
    heartbeat = (
        f"no heartbeat for {format_seconds(summary.heartbeat_age_seconds)}"
        if summary.n_attempts
        else "the run has not begun"
    )
    if outcome:
        ended = _END_CAUSES.get(outcome.state, f"SLURM reports {outcome.printed}")
        code = f", exit code {outcome.exit_code}" if outcome.exit_code else ""
        last_line = last_program_line(last_attempt_log(summary.run)) or heartbeat
        evidence = f"{outcome.source}: job {outcome.job_id} {outcome.printed}{code}; {last_line}"
        sentence = f"{ended}; the run's folder does not show why"
        return Cause(sentence, evidence, next_command.logs_command(summary.run))
    command = next_command.continue_command(summary.run)
    if not summary.n_attempts:
        return Cause("its job ended without recording why", status.detail or heartbeat, command)
    sentence = "the process died without recording why"
    if step := newest_step(summary.run.checkpoints_folder):
        sentence += f"; step {step:,} is saved"
    return Cause(sentence, f"{_attempt_file_name(status)}: {heartbeat}", command)


def _describe_exit(code: int) -> str:
    """Return the meaning of an exit code above 128, as a phrase that completes "it was …"."""
    if code == NO_STEP:
        return "not started by srun"
    if code == _SIGNAL_CODES + signal.SIGALRM:
        return "terminated because it did not stop before its job ended"
    try:
        return f"killed by signal {code - _SIGNAL_CODES} ({signal.Signals(code - _SIGNAL_CODES).name})"
    except ValueError:
        return f"terminated (exit code {code})"


def _recorded_end(status: Status) -> str:
    """Return the recorded reason why the last attempt ended; empty if none was recorded."""
    return shorten_lines(str(status.summary.attempt.get("why") or ""))


def _attempt_file_name(status: Status) -> str:
    return f"attempts/{status.summary.n_attempts:04d}.json"


def user_of(number: str | None) -> str:
    """Return a user's name and id, or only the id if the name is not known.

    Args:
        number: the user id as a string.
    """
    try:
        return f"{pwd.getpwuid(int(number or '')).pw_name} (user {number})"
    except (KeyError, ValueError, OverflowError):
        return f"user {number}"
