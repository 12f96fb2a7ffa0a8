"""Calls to SLURM's commands, each with a time limit, and queries about a single job.

A :class:`cnnjob.errors.SchedulerError` records whether SLURM refused a request or did not answer.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any

from cnnjob.errors import SchedulerError
from cnnjob.runs.process import RECENT_HEARTBEAT_SECONDS
from cnnjob.slurm.scheduler.job_states import ENDED
from cnnjob.slurm.scheduler.times import parse_time

ANSWER_SECONDS = 60
"""Default time limit for a command."""
CLOCKS_SECONDS = 300.0
"""Maximum difference between the clocks of a cluster's machines; SLURM rejects messages if it is larger."""
_SILENT = re.compile(
    r"timed out|unable to contact|zero bytes|connection|connect failure|try again|temporarily|not responding"
    r"|communication",
    re.IGNORECASE,
)
"""Messages that a command prints if SLURM's controller did not answer."""
_NOT_CONFIGURED = "configuration source"
"""Part of what SLURM's commands print on a machine on which they are installed but not configured."""
_ABSENT = re.compile(r"this machine has no SLURM|SLURM is installed on this machine, but not configured")
"""Messages about a machine that has no SLURM commands, or no configuration for them."""
_ALREADY_OVER = ("already completing", "already completed", "Invalid job id")
"""Parts of scancel's messages about a job that has ended."""
_UNKNOWN = re.compile(r"invalid job id|job \S+ not found", re.IGNORECASE)
"""Messages printed if SLURM has no record of a job id, or no longer has one."""
_OF_SLURM = re.compile(
    r"(SLURM|SLURMD|SLURMDBD|SBATCH|SRUN|SALLOC|SACCT|SACCTMGR|SATTACH|SBCAST|SCANCEL|SCONTROL|SCRONTAB|SDIAG|SINFO"
    r"|SPRIO|SQUEUE|SREPORT|SSHARE|SSTAT|STRIGGER|SUBMITIT)_"
)
"""Prefixes of the environment variables that SLURM's commands and submitit set or read."""
_CLUSTER_CHOICE = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
"""Variables that select the cluster and the user; passed on to the commands."""
_FREE_TEXT = re.compile(
    r"\b(?:JobName|Account|QOS|WCKey|Reason|Features|Reservation|Licenses|Network|Container|Command|WorkDir|Comment"
    r"|AdminComment|SystemComment|Extra|StdErr|StdIn|StdOut|BatchScript|MailUser)="
)
"""Keys in the output of ``scontrol show job`` whose values are chosen by a user or an administrator."""
MOST_DIGITS = 18
"""Numbers with more digits are ignored: Python refuses to convert very long strings, and ``range`` overflows."""


class RefusalError(SchedulerError):
    """SLURM has answered that it refuses a request, so the request has no effect."""


def has_slurm() -> bool:
    """Return whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without variables that belong to an enclosing SLURM job or change the output of commands.

    For example, ``SQUEUE_STATES`` would hide jobs, and ``SLURM_TIME_FORMAT`` would make times unparsable.
    """
    return {name: value for name, value in environment.items() if name in _CLUSTER_CHOICE or not _OF_SLURM.match(name)}


def ask(command: Sequence[str], seconds: float | None = None) -> str:
    """Run one of SLURM's commands and return its output.

    Args:
        command: the command and its arguments.
        seconds: how long to wait; None for ``ANSWER_SECONDS``.

    Returns:
        The stdout of the command.

    Raises:
        SchedulerError: the command is missing, did not answer in time, or failed.
    """
    return _run(command, seconds).stdout


def ask_stderr(command: Sequence[str], seconds: float | None = None) -> str:
    """Run one of SLURM's commands that answer on stderr, and return its stderr.

    ``scancel`` prints some refusals there even though it exits with 0.

    Raises:
        SchedulerError: as in :func:`ask`.
    """
    return _run(command, seconds).stderr.strip()


def _run(command: Sequence[str], seconds: float | None) -> subprocess.CompletedProcess[str]:
    limit_seconds = ANSWER_SECONDS if seconds is None else seconds
    if any("\0" in word for word in command):  # from a record or a file name; Popen would raise ValueError
        raise SchedulerError(f"{command[0]}: an argument contains a NUL character (found {command[-1][:80]!r})")
    try:
        done = _run_or_kill(command, limit_seconds)
    except FileNotFoundError as error:
        raise SchedulerError(not_found_message(command[0])) from error
    except OSError as error:
        raise SchedulerError(f"{command[0]}: cannot be run ({error.strerror}). Check its installation") from error
    except subprocess.TimeoutExpired as error:
        # this exception contains bytes, even with text=True
        lines = (error.stderr or b"").decode(errors="replace").split("\n")
        last = next((f" (last message: {line.strip()[:200]!r})" for line in reversed(lines) if line.strip()), "")
        text = f"{command[0]}: no answer within {limit_seconds:g} s{last}. Try again"
        raise SchedulerError(text, silent=True) from error
    if done.returncode:
        message = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        # Paths among the arguments are removed from the message, since a folder may be named "connection".
        stderr = done.stderr
        for word in command[1:]:
            stderr = stderr.replace(word, "") if "/" in word else stderr
        # a command that was killed by a signal may have carried out the request, as after a timeout
        if done.returncode < 0 or _SILENT.search(stderr):
            raise SchedulerError(f"{' '.join(command)}: refused, {message}", silent=True)
        if _NOT_CONFIGURED in message:
            raise RefusalError(
                f"{command[0]}: SLURM is installed on this machine, but not configured (found no configuration of a "
                "cluster). Log in to a machine of the cluster"
            )
        raise RefusalError(f"{' '.join(command)}: refused, {message}")
    return done


def not_found_message(program: str) -> str:
    """Return the message for a SLURM command that this machine does not have."""
    return f"{program}: not found; this machine has no SLURM. Log in to a machine that has it"


def _run_or_kill(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command to completion; on a timeout or an interrupt, kill it together with its child processes.

    A site's sbatch may be a wrapper; the sbatch that it calls could otherwise still submit the job later.

    Raises:
        OSError: the command cannot be run.
        TimeoutExpired: the command did not end in time.
    """
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=clean_environment(os.environ), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            with suppress(ProcessLookupError):  # start_new_session makes the process's pid the id of its group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def cancel_jobs(job_ids: Sequence[str]) -> list[str]:
    """Cancel jobs and return the lines that scancel printed, for :func:`refusals`.

    Raises:
        SchedulerError: as in :func:`ask`; not raised if only individual jobs could not be cancelled.
    """
    if not job_ids:
        return []
    try:
        return ask_stderr(["scancel", *job_ids]).splitlines()
    except SchedulerError as error:
        # scancel exits with 0 or 1 when it reports jobs that it could not cancel
        lines = str(error).partition(": refused, ")[2].splitlines()
        if not any("Kill job error" in line for line in lines):
            raise
        return lines


def refusals(job_ids: Sequence[str], lines: Sequence[str]) -> dict[str, str]:
    """Return, by job id, why scancel could not cancel jobs that have not ended; the lines are those that it printed."""
    errors = [line for line in lines if "error" in line and not any(part in line for part in _ALREADY_OVER)]
    return {job_id: line for job_id in job_ids for line in errors if job_id in line.replace(":", " ").split()}


def parse_words(text: str) -> dict[str, str]:
    """Return the ``Name=value`` and ``Name = value`` pairs in scontrol's output; each value ends at the next space."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)(?: += |=)(\S*)", text))


def query_job(job_id: str, seconds: float | None = None) -> dict[str, str]:
    """Return what SLURM reports about a job, including ``JobState``, ``EndTime`` and ``Requeue``.

    Raises:
        SchedulerError: as in :func:`ask`; also if SLURM no longer has a record of the job.
    """
    facts: dict[str, str] = {}
    for name, value in _parse_job_facts(ask(["scontrol", "show", "job", job_id], seconds)):
        facts.setdefault(name, value)  # the first of equal names: text with line breaks comes after SLURM's own values
    return facts


def _parse_job_facts(answer: str) -> Iterator[tuple[str, str]]:
    """Yield the ``Name=value`` pairs that SLURM prints about a job, except those inside text chosen by a user.

    Such text, for example a job's name, comment or paths, may itself contain ``Name=value``. Each line is therefore
    parsed only up to the first key whose value is such text. If such text contains a line break, the lines after the
    break are parsed nevertheless; except for the job's name, all such text comes after SLURM's own values.
    """
    for line in answer.splitlines():
        yield from parse_words(_FREE_TEXT.split(line, maxsplit=1)[0]).items()


def is_silent(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, means that the scheduler did not answer, as opposed to refusing.

    The scheduler may answer later, and may have carried out the request.
    """
    return isinstance(error, SchedulerError) and (error.silent or is_silent(error.__cause__))


def was_refused(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that SLURM refused the request.

    The result is False if an earlier call with the same request was not answered, since that call may have had an
    effect.
    """
    chain: list[BaseException] = [error]
    while context := chain[-1].__context__:
        chain.append(context)
    return any(isinstance(each, RefusalError) for each in chain) and not any(map(is_silent, chain))


def is_absent(error: SchedulerError) -> bool:
    """Return whether an error means that this machine does not belong to a cluster."""
    return bool(_ABSENT.search(str(error)))


def job_is_over(attempt: Mapping[str, Any], silent_seconds: float) -> bool:
    """Return whether the SLURM job of an attempt has ended; False if SLURM does not answer.

    Args:
        attempt: the record of the attempt.
        silent_seconds: time since the attempt's last heartbeat.

    Returns:
        False if the job is on another cluster, since its id belongs to a different job here. True if the job is on this
        cluster and SLURM reports that it has ended. If SLURM has no job with this id, or has reused the id for another
        job, a job on this cluster counts as ended once three heartbeats have been missed. If the record does not name a
        cluster, the job counts as ended only if SLURM reports that it has ended and three heartbeats have been missed.
    """
    return _query_is_over(attempt, silent_seconds, cache(query_config))


def _query_is_over(
    attempt: Mapping[str, Any], silent_seconds: float, ask_config: Callable[[], Mapping[str, str]]
) -> bool:
    recorded, is_quiet = attempt.get("cluster"), silent_seconds >= RECENT_HEARTBEAT_SECONDS
    if recorded and recorded != current_cluster(ask_config):
        return False
    try:
        facts = list(_parse_job_facts(ask(["scontrol", "show", "job", str(attempt["job_id"])])))
    except SchedulerError as error:
        is_unknown = bool(_UNKNOWN.search(str(error)))
        return is_unknown and bool(recorded) and is_quiet and not hides_jobs(ask_config)
    states = {value for name, value in facts if name == "JobState"}  # several if the user's text contains a line break
    if not _is_job_of(attempt, dict(reversed(facts))):  # reversed: the first of equal keys wins, as in query_job
        return bool(recorded) and is_quiet
    return bool(states) and states <= ENDED and (bool(recorded) or is_quiet)


def _is_job_of(attempt: Mapping[str, Any], job: Mapping[str, str]) -> bool:
    """Return whether the job that now has an attempt's job id may be the attempt's own job.

    SLURM reuses ids. The job is a different one if it belongs to another user, if it was submitted after the attempt
    began and has not been requeued since, or if it ended before the attempt began.
    """
    user = re.search(r"\(([0-9]{1,10})\)$", job.get("UserId", ""))
    if user and attempt.get("uid") not in {None, int(user[1])}:
        return False
    started = datetime.fromisoformat(attempt["started"]).timestamp()
    was_requeued = parse_number(job.get("Restarts", "")) > (attempt.get("job_restarts") or 0)
    # a requeue updates SubmitTime, so the job may seem to be younger than its own attempt
    submitted, ended = (parse_time(job.get(name, "")) for name in ("SubmitTime", "EndTime"))
    if submitted and submitted > started + CLOCKS_SECONDS and not was_requeued:
        return False
    return not (ended and job.get("JobState") in ENDED and ended < started - CLOCKS_SECONDS)


def make_job_is_over(read_job_ids: Callable[[], Container[str]]) -> Callable[[Mapping[str, Any], float], bool]:
    """Return a variant of :func:`job_is_over` that is faster for many attempts.

    The variant reads the queue once, and then queries SLURM only about jobs that are not in the queue.

    Args:
        read_job_ids: a function that returns the ids of jobs that have not ended. It is called at most once; if it
            raises a SchedulerError, no job counts as ended.
    """
    queued_ids, ask_config = cache(read_job_ids), cache(query_config)
    silent = False

    def is_over(attempt: Mapping[str, Any], silent_seconds: float) -> bool:
        nonlocal silent
        try:
            is_queued = silent or attempt["job_id"] in queued_ids()
        except SchedulerError:  # not queried again, since every query could take until its time limit
            silent = True
            return False
        return not is_queued and _query_is_over(attempt, silent_seconds, ask_config)

    return is_over


def query_config(seconds: float | None = None) -> dict[str, str]:
    """Return SLURM's configuration; empty if SLURM does not answer."""
    try:
        return parse_words(ask(["scontrol", "show", "config"], seconds))
    except SchedulerError:
        return {}


def current_cluster(ask_config: Callable[[], Mapping[str, str]] = query_config) -> str:
    """Return the name of the cluster that SLURM's commands use here; empty if unknown or if there are several."""
    chosen = os.environ.get("SLURM_CLUSTERS") or os.environ.get("SLURM_CLUSTER_NAME")
    name = chosen or ask_config().get("ClusterName", "")
    return "" if "," in name or name == "all" else name.lower()


def hides_jobs(ask_config: Callable[[], Mapping[str, str]] = query_config) -> bool:
    """Return whether this site hides the jobs of other users (``PrivateData``); False if SLURM does not answer."""
    return "jobs" in ask_config().get("PrivateData", "").split(",")


def parse_number(text: str) -> int:
    """Return the number at the beginning of a string; 0 if there is none or it has more than ``MOST_DIGITS`` digits."""
    digits = re.match(r"[0-9]*", text)
    return int(digits[0]) if digits and 0 < len(digits[0]) <= MOST_DIGITS else 0
