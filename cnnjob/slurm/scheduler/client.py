"""What the scheduler says: asked by its own commands, few times, never trusted to answer."""

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
from cnnjob.runs.process import HEARD_SECONDS

ANSWER_SECONDS = 60
CLOCKS_SECONDS = 300.0
"""So much at most differ the clocks of a cluster's machines: SLURM's messages are refused beyond it."""
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip
"""States of a job that is over; while anything of it may still run SLURM says ``COMPLETING``."""
_SILENT = re.compile(
    r"timed out|unable to contact|zero bytes|connection|connect failure|try again|temporarily|not responding"
    r"|communication",
    re.IGNORECASE,
)
_ABSENT = re.compile(r"not found; this machine|configuration source")
_OVER = ("already completing", "already completed", "Invalid job id")
"""What scancel says of a job that is no more."""
_UNKNOWN = re.compile(r"invalid job id|job \S+ not found", re.IGNORECASE)
_OF_SLURM = re.compile(
    r"(SLURM|SLURMD|SLURMDBD|SBATCH|SRUN|SALLOC|SACCT|SACCTMGR|SATTACH|SBCAST|SCANCEL|SCONTROL|SCRONTAB|SDIAG|SINFO"
    r"|SPRIO|SQUEUE|SREPORT|SSHARE|SSTAT|STRIGGER|SUBMITIT)_"
)
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
"""Variables that select the cluster and the user."""
_FREE_TEXT = re.compile(
    r"\b(?:JobName|Account|QOS|WCKey|Reason|Features|Reservation|Licenses|Network|Container|Command|WorkDir|Comment"
    r"|AdminComment|SystemComment|Extra|StdErr|StdIn|StdOut|BatchScript|MailUser)="
)
"""What ``scontrol show job`` writes before a text that somebody chose."""
MOST_DIGITS = 18
"""A longer number in an answer is no number: Python refuses to convert some, and ranges of others do not fit."""


def is_there() -> bool:
    """Whether this machine can submit to a SLURM."""
    return shutil.which("sbatch") is not None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of an enclosing job, and without those that change an answer.

    ``SQUEUE_STATES`` or ``SLURM_TIME_FORMAT`` in a user's profile would hide jobs or make times unreadable.
    """
    return {name: value for name, value in environment.items() if name in _KEPT or not _OF_SLURM.match(name)}


def ask(command: Sequence[str], seconds: float | None = None) -> str:
    """Run a command of SLURM's and give its answer.

    Args:
        command: its words.
        seconds: how long to wait; ``ANSWER_SECONDS`` by default.

    Returns:
        What it wrote to stdout.

    Raises:
        SchedulerError: it is not there, did not answer in time, or refused.
    """
    return _run(command, seconds).stdout


def tell(command: Sequence[str], seconds: float | None = None) -> str:
    """Run a command of SLURM's that is silent unless something is wrong; give what it said.

    ``scancel`` says some refusals with exit code 0.

    Raises:
        SchedulerError: as :func:`ask`.
    """
    return _run(command, seconds).stderr.strip()


def _run(command: Sequence[str], seconds: float | None) -> subprocess.CompletedProcess[str]:
    patience = ANSWER_SECONDS if seconds is None else seconds
    if any("\0" in word for word in command):  # of a name from outside
        raise SchedulerError(f"{command[0]}: cannot be asked about a name with a NUL (found {command[-1][:80]!r})")
    try:
        done = _finished(command, patience)
    except FileNotFoundError as error:
        raise SchedulerError(f"{command[0]}: not found; this machine has no SLURM, log in to one that has") from error
    except OSError as error:
        raise SchedulerError(f"{command[0]}: cannot be run, {error.strerror}; see to its installation") from error
    except subprocess.TimeoutExpired as error:
        lines = (error.stderr or b"").decode(errors="replace").split("\n")
        last = next((f" (it said: {line.strip()[:200]})" for line in reversed(lines) if line.strip()), "")
        raise SchedulerError(f"{command[0]}: no answer in {patience:g} s{last}; try again", silent=True) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        silent = done.returncode < 0 or _is_silence(command, done.stderr)
        raise SchedulerError(f"{' '.join(command)}: refused, {said}", silent=silent)
    return done


def _finished(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; whatever ends it sooner ends also what it started, as a wrapper's real sbatch.

    Raises:
        OSError: it cannot be run.
        TimeoutExpired: it did not end in time.
    """
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=clean_environment(os.environ), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _is_silence(command: Sequence[str], said: str) -> bool:
    """Return whether what a command said tells that SLURM did not answer, paths left out that it was given."""
    for word in command[1:]:
        said = said.replace(word, "") if "/" in word else said
    return bool(_SILENT.search(said))


def cancel(job_ids: Sequence[str]) -> list[str]:
    """Cancel jobs and return the lines that scancel said, which it does with exit code 0 and 1.

    Raises:
        SchedulerError: as :func:`ask`; not where some jobs could not be cancelled.
    """
    if not job_ids:
        return []
    try:
        return tell(["scancel", *job_ids]).splitlines()
    except SchedulerError as error:
        lines = str(error).partition(": refused, ")[2].splitlines()
        if not any("Kill job error" in line for line in lines):
            raise
        return lines


def refusals(job_ids: Sequence[str], said: Sequence[str]) -> dict[str, str]:
    """Return the jobs that were not cancelled though they are not over, with what :func:`cancel` said of each."""
    errors = [line for line in said if "error" in line and not any(words_ in line for words_ in _OVER)]
    return {one: line for one in job_ids for line in errors if one in line.replace(":", " ").split()}


def parse_words(text: str) -> dict[str, str]:
    """The ``Name=value`` words of an answer of scontrol; spaces in a value cut it short."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)(?: += |=)(\S*)", text))


def job_facts(job_id: str, seconds: float | None = None) -> dict[str, str]:
    """Return what SLURM knows of a job: ``JobState``, ``EndTime``, ``Requeue``, ….

    Raises:
        SchedulerError: as :func:`ask`; also when SLURM has forgotten the job.
    """
    facts: dict[str, str] = {}
    for name, value in _facts(ask(["scontrol", "show", "job", job_id], seconds)):
        facts.setdefault(name, value)
    return facts


def _facts(answer: str) -> Iterator[tuple[str, str]]:
    """Yield the ``Name=value`` words of a job, without those in text that its user chose.

    A name, comment or path may hold words of the same form, and line ends. So nothing is read of a line after such a
    text; those that may hold a line end come last, but for the name.
    """
    for line in answer.splitlines():
        read = _FREE_TEXT.split(line, maxsplit=1)[0]
        yield from parse_words(read).items()


def is_silent(error: BaseException | None) -> bool:
    """Whether a scheduler did not answer, rather than refuse: it may answer, or even have done it, in a while.

    An error that was raised from another one is as silent as that.
    """
    return isinstance(error, SchedulerError) and (error.silent or is_silent(error.__cause__))


def is_absent(error: SchedulerError) -> bool:
    """Whether this machine belongs to no cluster, as far as an error tells."""
    return bool(_ABSENT.search(str(error)))


def job_is_over(holder: Mapping[str, Any], silent_seconds: float) -> bool:
    """Return whether SLURM says that an attempt's job is over; no answer is a no.

    Args:
        holder: the attempt's record.
        silent_seconds: since its last heartbeat.

    Returns:
        False for a job of another cluster, of which this one knows at most another job with its number. Where SLURM
        does not know the number, or knows it of another job, a job of this cluster is over that has missed three
        heartbeats. A record without a cluster may be of any: then a job is over only with both.
    """
    return _is_over(holder, silent_seconds, cache(config))


def _is_over(holder: Mapping[str, Any], silent_seconds: float, ask_config: Callable[[], Mapping[str, str]]) -> bool:
    recorded, is_quiet = holder.get("cluster"), silent_seconds >= HEARD_SECONDS
    if recorded and recorded != cluster(ask_config):
        return False
    try:
        facts = list(_facts(ask(["scontrol", "show", "job", str(holder["job_id"])])))
    except SchedulerError as error:
        is_unknown = bool(_UNKNOWN.search(str(error)))
        return is_unknown and bool(recorded) and is_quiet and not hides_jobs(ask_config)
    states = {value for name, value in facts if name == "JobState"}  # several: one is of a text with a line end
    if not _is_job_of(holder, dict(reversed(facts))):
        return bool(recorded) and is_quiet
    return bool(states) and states <= ENDED and (bool(recorded) or is_quiet)


def _is_job_of(holder: Mapping[str, Any], job: Mapping[str, str]) -> bool:
    """Return whether an attempt may have been in a job with its number, which SLURM may use again.

    Its user is another's, it was submitted after the attempt's start and not requeued since then, or it had ended
    before it.
    """
    user = re.search(r"\(([0-9]{1,10})\)$", job.get("UserId", ""))
    if user and holder.get("uid") not in {None, int(user[1])}:
        return False
    started = datetime.fromisoformat(holder["started"]).timestamp()
    is_later_life = parse_number(job.get("Restarts", "")) > (holder.get("job_restarts") or 0)
    submitted, ended = (_timestamp(job.get(name, "")) for name in ("SubmitTime", "EndTime"))
    if submitted and submitted > started + CLOCKS_SECONDS and not is_later_life:
        return False
    return not (ended and job.get("JobState") in ENDED and ended < started - CLOCKS_SECONDS)


def _timestamp(clock: str) -> float | None:
    """Return a time of SLURM's as ``time.time()`` counts; None for a word such as ``Unknown``."""
    try:
        return datetime.fromisoformat(clock).timestamp()
    except (ValueError, OverflowError):
        return None


def ended_among(queued: Callable[[], Container[str]]) -> Callable[[Mapping[str, Any], float], bool]:
    """Return :func:`job_is_over` for many jobs: it asks about none of those that are queued.

    Args:
        queued: the ids of jobs that have not ended. Asked once, and not for no job; where it gets no answer, no job
            has ended.
    """
    known, ask_config = cache(queued), cache(config)
    silent = False

    def ended(holder: Mapping[str, Any], silent_seconds: float) -> bool:
        nonlocal silent
        try:
            return not silent and holder["job_id"] not in known() and _is_over(holder, silent_seconds, ask_config)
        except SchedulerError:
            silent = True
            return False

    return ended


def config(seconds: float | None = None) -> dict[str, str]:
    """Return SLURM's configuration; empty where it does not answer."""
    try:
        return parse_words(ask(["scontrol", "show", "config"], seconds))
    except SchedulerError:
        return {}


def cluster(ask_config: Callable[[], Mapping[str, str]] = config) -> str:
    """Return the name of the cluster whose SLURM answers here; empty where that is not known, or several do."""
    chosen = os.environ.get("SLURM_CLUSTERS") or os.environ.get("SLURM_CLUSTER_NAME")
    name = chosen or ask_config().get("ClusterName", "")
    return "" if "," in name or name == "all" else name.lower()


def hides_jobs(ask_config: Callable[[], Mapping[str, str]] = config) -> bool:
    """Return whether each user sees no jobs but their own here (``PrivateData``), as far as SLURM says."""
    return "jobs" in ask_config().get("PrivateData", "").split(",")


def ended_by(job: Mapping[str, str], restarts: int) -> str:
    """Who is ending a job, as far as its own batch script can see.

    While the script still runs SLURM says ``COMPLETING`` for every cause, so the other facts tell.

    Args:
        job: what :func:`job_facts` gave.
        restarts: ``SLURM_RESTART_COUNT`` of this life.

    Returns:
        ``requeued`` (it is in the queue again), ``preempted``, ``time limit``, ``cancelled``, or ``itself``.
    """
    state = job.get("JobState", "")
    if parse_number(job.get("Restarts", "")) > restarts or state.startswith(("PENDING", "REQUEUE", "CONFIGURING")):
        return "requeued"
    if job.get("PreemptTime", "")[:1].isdecimal() and job["PreemptTime"] >= job.get("StartTime", ""):
        return "preempted"
    if state.startswith("TIMEOUT") or _seconds(job.get("RunTime", "")) >= _seconds(job.get("TimeLimit", "")) > 0:
        return "time limit"
    return "cancelled" if state.startswith(("COMPLETING", "CANCELLED")) else "itself"


def parse_number(text: str) -> int:
    """Return the number that a text begins with; 0 for none, and for one that is too long."""
    digits = re.match(r"[0-9]*", text)
    return int(digits[0]) if digits and 0 < len(digits[0]) <= MOST_DIGITS else 0


def _seconds(clock: str) -> int:
    """``D-HH:MM:SS`` in seconds; 0 for a word such as ``UNLIMITED``."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})", clock)
    if not found:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
