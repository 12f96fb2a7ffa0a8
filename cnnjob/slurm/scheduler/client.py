"""Calls of SLURM's commands, each with a time limit; errors distinguish a refusal from a missing answer.

Also what SLURM tells about a single job: whether it is over, and what is ending it.
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
"""Default time limit of a command."""
CLOCKS_SECONDS = 300.0
"""Largest difference between the clocks of a cluster's machines: beyond it SLURM's messages are refused."""
_SILENT = re.compile(
    r"timed out|unable to contact|zero bytes|connection|connect failure|try again|temporarily|not responding"
    r"|communication",
    re.IGNORECASE,
)
"""Messages by which a command says that SLURM's controller did not answer."""
_ABSENT = re.compile(r"this machine has no SLURM|configuration source")
"""Messages of a machine that has no commands of SLURM, or no configuration for them."""
_ALREADY_OVER = ("already completing", "already completed", "Invalid job id")
"""Parts of scancel's messages about a job that is over."""
_UNKNOWN = re.compile(r"invalid job id|job \S+ not found", re.IGNORECASE)
"""Messages about a job number that SLURM does not know, or no longer knows."""
_OF_SLURM = re.compile(
    r"(SLURM|SLURMD|SLURMDBD|SBATCH|SRUN|SALLOC|SACCT|SACCTMGR|SATTACH|SBCAST|SCANCEL|SCONTROL|SCRONTAB|SDIAG|SINFO"
    r"|SPRIO|SQUEUE|SREPORT|SSHARE|SSTAT|STRIGGER|SUBMITIT)_"
)
"""Prefixes of the variables that SLURM's commands and submitit set or read."""
_CLUSTER_CHOICE = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
"""Variables that select the cluster and the user, which commands keep."""
_FREE_TEXT = re.compile(
    r"\b(?:JobName|Account|QOS|WCKey|Reason|Features|Reservation|Licenses|Network|Container|Command|WorkDir|Comment"
    r"|AdminComment|SystemComment|Extra|StdErr|StdIn|StdOut|BatchScript|MailUser)="
)
"""Keys of ``scontrol show job`` whose values are chosen by a user or an administrator."""
MOST_DIGITS = 18
"""Longer numbers in an answer are ignored: Python refuses to convert very long ones, and ``range`` overflows."""


def has_slurm() -> bool:
    """Return whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of an enclosing job and without those that change answers.

    In a user's profile, ``SQUEUE_STATES`` would hide jobs and ``SLURM_TIME_FORMAT`` would make times unreadable.
    """
    return {name: value for name, value in environment.items() if name in _CLUSTER_CHOICE or not _OF_SLURM.match(name)}


def ask(command: Sequence[str], seconds: float | None = None) -> str:
    """Run one of SLURM's commands and return what it printed.

    Args:
        command: its words.
        seconds: how long to wait; None for ``ANSWER_SECONDS``.

    Returns:
        Its stdout.

    Raises:
        SchedulerError: the command is missing, did not answer in time, or refused.
    """
    return _run(command, seconds).stdout


def ask_stderr(command: Sequence[str], seconds: float | None = None) -> str:
    """Run one of SLURM's commands that answers on stderr, and return that.

    ``scancel`` reports some refusals there with exit code 0.

    Raises:
        SchedulerError: as in :func:`ask`.
    """
    return _run(command, seconds).stderr.strip()


def _run(command: Sequence[str], seconds: float | None) -> subprocess.CompletedProcess[str]:
    limit_seconds = ANSWER_SECONDS if seconds is None else seconds
    if any("\0" in word for word in command):  # a record or file name from outside; Popen raises ValueError at it
        raise SchedulerError(f"{command[0]}: an argument contains a NUL (found {command[-1][:80]!r})")
    try:
        done = _run_or_kill(command, limit_seconds)
    except FileNotFoundError as error:
        raise SchedulerError(not_found_message(command[0])) from error
    except OSError as error:
        raise SchedulerError(f"{command[0]}: cannot be run ({error.strerror}). Check its installation") from error
    except subprocess.TimeoutExpired as error:
        # an exception of communicate has bytes, even with text=True
        lines = (error.stderr or b"").decode(errors="replace").split("\n")
        last = next((f", last message {line.strip()[:200]!r}" for line in reversed(lines) if line.strip()), "")
        text = f"{command[0]}: no answer within {limit_seconds:g} s{last}. Try again"
        raise SchedulerError(text, silent=True) from error
    if done.returncode:
        message = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        # Paths among the command's words do not count, as a folder may be named "connection".
        stderr = done.stderr
        for word in command[1:]:
            stderr = stderr.replace(word, "") if "/" in word else stderr
        # killed by a signal, a command may have done its work just as after a time-out
        silent = done.returncode < 0 or bool(_SILENT.search(stderr))
        raise SchedulerError(f"{' '.join(command)}: refused, {message}", silent=silent)
    return done


def not_found_message(program: str) -> str:
    """Return the message for one of SLURM's commands that this machine does not have."""
    return f"{program}: not found, this machine has no SLURM. Log in to a machine that has it"


def _run_or_kill(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; on a time-out or an interrupt kill it together with its child processes.

    A site's sbatch may be a wrapper, whose real sbatch would otherwise submit the job later.

    Raises:
        OSError: the command cannot be run.
        TimeoutExpired: it did not end in time.
    """
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=clean_environment(os.environ), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            with suppress(ProcessLookupError):  # start_new_session made its pid the id of its process group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def cancel_jobs(job_ids: Sequence[str]) -> list[str]:
    """Cancel jobs and return the lines that scancel printed, for :func:`refusals`.

    Raises:
        SchedulerError: as in :func:`ask`, but not if only some jobs could not be cancelled.
    """
    if not job_ids:
        return []
    try:
        return ask_stderr(["scancel", *job_ids]).splitlines()
    except SchedulerError as error:
        # scancel reports the jobs that it could not cancel with exit code 0 or 1
        lines = str(error).partition(": refused, ")[2].splitlines()
        if not any("Kill job error" in line for line in lines):
            raise
        return lines


def refusals(job_ids: Sequence[str], lines: Sequence[str]) -> dict[str, str]:
    """Return the jobs that are not over and could not be cancelled, each with its line of :func:`cancel_jobs`."""
    errors = [line for line in lines if "error" in line and not any(part in line for part in _ALREADY_OVER)]
    return {job_id: line for job_id in job_ids for line in errors if job_id in line.replace(":", " ").split()}


def parse_words(text: str) -> dict[str, str]:
    """Return the ``Name=value`` and ``Name = value`` pairs in scontrol's output; a value ends at a space."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)(?: += |=)(\S*)", text))


def query_job(job_id: str, seconds: float | None = None) -> dict[str, str]:
    """Return what SLURM knows about a job: ``JobState``, ``EndTime``, ``Requeue``, ….

    Raises:
        SchedulerError: as in :func:`ask`; also if SLURM has forgotten the job.
    """
    facts: dict[str, str] = {}
    for name, value in _parse_job_facts(ask(["scontrol", "show", "job", job_id], seconds)):
        facts.setdefault(name, value)  # the first: texts that may contain a line end come after SLURM's own values
    return facts


def _parse_job_facts(answer: str) -> Iterator[tuple[str, str]]:
    """Yield the ``Name=value`` pairs of a job without those inside text that its user chose.

    A name, comment or path may contain words of the same form, and line ends. So the rest of the line after such a text
    is skipped. Except for the name, texts that may contain a line end come last.
    """
    for line in answer.splitlines():
        yield from parse_words(_FREE_TEXT.split(line, maxsplit=1)[0]).items()


def is_silent(error: BaseException | None) -> bool:
    """Return whether an error means that the scheduler did not answer, rather than that it refused.

    It may answer later, or may even have done what it was asked. An error raised from a silent one is silent too.
    """
    return isinstance(error, SchedulerError) and (error.silent or is_silent(error.__cause__))


def is_absent(error: SchedulerError) -> bool:
    """Return whether an error means that this machine belongs to no cluster."""
    return bool(_ABSENT.search(str(error)))


def job_is_over(attempt: Mapping[str, Any], silent_seconds: float) -> bool:
    """Return whether SLURM says that the job of an attempt is over; False if SLURM does not answer.

    Args:
        attempt: the record of the attempt.
        silent_seconds: time since its last heartbeat.

    Returns:
        False for a job of another cluster, as the same number here is another job's. If SLURM does not know the number,
        or it now belongs to another job, a job of this cluster is over once it has missed three heartbeats. A record
        without a cluster may belong to any: such a job is over only if SLURM says so and three heartbeats are missing.
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
    states = {value for name, value in facts if name == "JobState"}  # several if a text of the user's has a line end
    if not _is_job_of(attempt, dict(reversed(facts))):  # reversed: the first of equal keys wins, as in job_facts
        return bool(recorded) and is_quiet
    return bool(states) and states <= ENDED and (bool(recorded) or is_quiet)


def _is_job_of(attempt: Mapping[str, Any], job: Mapping[str, str]) -> bool:
    """Return whether an attempt may belong to a job with its number, as SLURM uses numbers again.

    It does not if the job is another user's, was submitted after the attempt began and not requeued since, or ended
    before the attempt began.
    """
    user = re.search(r"\(([0-9]{1,10})\)$", job.get("UserId", ""))
    if user and attempt.get("uid") not in {None, int(user[1])}:
        return False
    started = datetime.fromisoformat(attempt["started"]).timestamp()
    was_requeued = parse_number(job.get("Restarts", "")) > (attempt.get("job_restarts") or 0)
    # a requeue moves SubmitTime, so that the job of an earlier start looks younger than its attempt
    submitted, ended = (parse_time(job.get(name, "")) for name in ("SubmitTime", "EndTime"))
    if submitted and submitted > started + CLOCKS_SECONDS and not was_requeued:
        return False
    return not (ended and job.get("JobState") in ENDED and ended < started - CLOCKS_SECONDS)


def make_job_is_over(read_job_ids: Callable[[], Container[str]]) -> Callable[[Mapping[str, Any], float], bool]:
    """Return a :func:`job_is_over` for many jobs that asks SLURM about none of those in the queue.

    Args:
        read_job_ids: returns the ids of the jobs that have not ended. Called at most once; if it raises a
            SchedulerError, no job counts as ended.
    """
    queued_ids, ask_config = cache(read_job_ids), cache(query_config)
    silent = False

    def is_over(attempt: Mapping[str, Any], silent_seconds: float) -> bool:
        nonlocal silent
        try:
            is_queued = silent or attempt["job_id"] in queued_ids()
        except SchedulerError:  # asked once only: each further question could wait for its time limit
            silent = True
            return False
        return not is_queued and _query_is_over(attempt, silent_seconds, ask_config)

    return is_over


def query_config(seconds: float | None = None) -> dict[str, str]:
    """Return SLURM's configuration; empty if it does not answer."""
    try:
        return parse_words(ask(["scontrol", "show", "config"], seconds))
    except SchedulerError:
        return {}


def current_cluster(ask_config: Callable[[], Mapping[str, str]] = query_config) -> str:
    """Return the name of the cluster whose SLURM answers here; empty if it is not known or there are several."""
    chosen = os.environ.get("SLURM_CLUSTERS") or os.environ.get("SLURM_CLUSTER_NAME")
    name = chosen or ask_config().get("ClusterName", "")
    return "" if "," in name or name == "all" else name.lower()


def hides_jobs(ask_config: Callable[[], Mapping[str, str]] = query_config) -> bool:
    """Return whether users see only their own jobs here (``PrivateData``), as far as SLURM tells."""
    return "jobs" in ask_config().get("PrivateData", "").split(",")


def parse_number(text: str) -> int:
    """Return the number at the beginning of a text; 0 if there is none or it is longer than ``MOST_DIGITS``."""
    digits = re.match(r"[0-9]*", text)
    return int(digits[0]) if digits and 0 < len(digits[0]) <= MOST_DIGITS else 0
