"""SLURM's codes for the state of a job, for why it waits and for limits that it exceeds, in plain words.

The states are those of ``job_state_codes.html``, the reasons those of ``job_reason_codes.html`` in SLURM's
documentation. An unknown code is shown as it is, since other versions have others.
"""

import re
from dataclasses import dataclass

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
RUNNING = frozenset({
    *("RUNNING", "CONFIGURING", "POWER_UP_NODE", "RESIZING", "SIGNALING"),
    *("STAGE_OUT", "STOPPED", "SUSPENDED", "UPDATE_DB", "EXPEDITING"),
})  # fmt: skip
ENDING = "COMPLETING"
"""State of a job whose processes are ending, whatever the cause; SLURM may be about to requeue it."""
REFUSED = frozenset({"BOOT_FAIL", "DEADLINE", "FAILED", "LAUNCH_FAILED", "OUT_OF_MEMORY", "RECONFIG_FAIL"})
"""States of a job that, if it ended before its run began, would end the same way again."""
ENDED = frozenset({*REFUSED, "CANCELLED", "COMPLETED", "NODE_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT"})
STATES = frozenset({*WAITING, *RUNNING, ENDING, *ENDED})


def state_of(text: str) -> str:
    """Return the state in ``CANCELLED by 1000``, ``CANCELLED+`` or ``OUT_OF_ME+``, in full."""
    word = text.split(maxsplit=1)[0] if text.split() else ""
    if not word.endswith("+"):
        return word
    stem = word.rstrip("+")  # sacct marks a state that it cut to the column's width with a +
    whole = [state for state in STATES if state.startswith(stem)]
    return stem if stem in STATES or len(whole) != 1 else whole[0]


@dataclass(frozen=True)
class Wait:
    """The reason why a job waits, in words that complete "its job waits: …"."""

    words: str
    never: bool = False
    """True if the job can never start as requested."""
    option: str = ""
    """The option of the request to change, if known."""
    release: bool = False
    """True if the job is held and its user can release it."""
    held: bool = False
    """True if the job is held by somebody else."""

    @property
    def starts_by_itself(self) -> bool:
        """True if the job starts without anybody's help."""
        return not (self.never or self.release or self.held)


_KNOWN = {
    "None": Wait("the scheduler has not looked at it yet"),
    "Priority": Wait("jobs of higher priority go first"),
    "Resources": Wait("what it asks for is in use"),
    "BeginTime": Wait("its earliest start is still to come"),
    "Cleaning": Wait("its last life is still being cleaned up"),
    "Prolog": Wait("its node is being made ready"),
    "Dependency": Wait("the job that it depends on has not ended"),
    "DependencyNeverSatisfied": Wait("the job that it depends on failed", never=True, option="--dependency"),
    "JobArrayTaskLimit": Wait("as many jobs of its array run as may"),
    "JobHeldUser": Wait("its user holds it", release=True),
    "JobHeldAdmin": Wait("an administrator holds it", held=True),
    "JobHoldMaxRequeue": Wait("it was requeued too often and is held", release=True),
    "Licenses": Wait("the licences are in use"),
    "Reservation": Wait("its reservation has not begun"),
    "ReservationDeleted": Wait("its reservation is gone", never=True),
    "PartitionDown": Wait("its partition is down"),
    "PartitionInactive": Wait("its partition starts no jobs"),
    "PartitionTimeLimit": Wait("it asks for more time than its partition allows", never=True, option="--time"),
    "PartitionNodeLimit": Wait("it asks for more nodes than its partition allows or has", never=True),
    "PartitionConfig": Wait("its partition does not allow what it asks for", never=True, option="--partition"),
    "BadConstraints": Wait("no node has what it asks for", never=True, option="--constraint"),
    "Constraints": Wait("no node has what it asks for", never=True, option="--constraint"),
    "InvalidAccount": Wait("there is no such account", never=True, option="--account"),
    "AccountNotAllowed": Wait("its account may not use its partition", never=True, option="--account"),
    "InvalidQOS": Wait("there is no such QOS", never=True, option="--qos"),
    "QOSNotAllowed": Wait("its QOS may not be used in its partition", never=True, option="--qos"),
    "MaxMemPerLimit": Wait("it asks for more memory than its partition allows", never=True, option="--mem"),
    "ReqNodeNotAvail": Wait("nodes that it asks for are not available"),
    "NodeDown": Wait("a node that it asks for is down"),
}
_PHRASES = (
    (re.compile(r"requeued[ _]in[ _]held|requeued[ _]held", re.IGNORECASE), Wait("it was requeued held", release=True)),
    (
        re.compile(r"Reserved for maintenance"),  # SLURM says so for any reservation, with the flag MAINT or without
        Wait("its nodes are reserved, for maintenance or for others, before it could end"),
    ),
    (re.compile(r"May be reserved for other job"), Wait("nodes that it asks for may be reserved for another job")),
    (
        re.compile(r"Nodes required for job are"),
        Wait("nodes that it asks for are down, drained, or kept for jobs of partitions of higher priority"),
    ),
)
_UNAVAILABLE = re.compile(r"UnavailableNodes:([^\s,(][^\s]{0,200})")
_LIMITED = re.compile(r"(QOS|Assoc(?:iation)?)?(Grp|Max|Min)?(.*)")
_THINGS = {
    "wall": ("time", "--time"),
    "time": ("time", "--time"),
    "cpu": ("cores", "--cpus-per-task"),
    "mem": ("memory", "--mem"),
    "gres": ("GPUs", "--gpus"),
    "node": ("nodes", ""),
    "job": ("jobs", ""),
}
"""Part of SLURM's code → the resource in plain words, and the option that requests it."""


def waits_for(reason: str) -> Wait:
    """Translate squeue's reason for a job that waits.

    Args:
        reason: for example ``Priority``, ``QOSMaxGRESPerUser`` or ``ReqNodeNotAvail, UnavailableNodes:n[1-3]``.

    Returns:
        What is known about it; for an unknown reason, its own text as the words.
    """
    text = reason.strip().removeprefix("(").removesuffix(")")
    word = re.split(r"[,\s(]", text, maxsplit=1)[0]
    phrase = next((known for pattern, known in _PHRASES if pattern.search(text)), None)
    if nodes := _UNAVAILABLE.search(text):
        phrase = Wait(f"nodes that it asks for are down or drained ({nodes[1]})")
    return phrase or _KNOWN.get(word) or _limit(word) or Wait(text or "SLURM does not say why")


def _limit(word: str) -> Wait | None:
    """Translate a limit: ``QOSMaxGRESPerUser``, ``AssocGrpCPUMinutesLimit``, ``MaxNodePerAccount``, ….

    A job that exceeds the limit of a single job never starts; one that exceeds the share of a user, an account or a
    group starts when other jobs have ended.
    """
    found = _LIMITED.fullmatch(word)
    if not found or not (found[1] or (found[2] and "PerAccount" in word)):
        return None
    owner, thing, option = _owner(word), *_thing(word)
    if found[2] == "Min":
        return Wait(f"it asks for less {thing} than {owner} demands", never=True, option=option)
    if "PerJob" in word or "PerNode" in word:
        return Wait(f"it asks for more {thing} than {owner} allows a job", never=True, option=option)
    whom = " a user" if "PerUser" in word else ""
    return Wait(f"the {thing} that {owner} allows{whom} are in use")


def _owner(word: str) -> str:
    """Return the owner of the limit that SLURM's code names."""
    return "its QOS" if word.startswith("QOS") and "PerAccount" not in word else "its account"


def _thing(word: str) -> tuple[str, str]:
    """Return the resource that SLURM's code is about, and the option that requests it."""
    return next((pair for key, pair in _THINGS.items() if key in word.lower()), ("resources", ""))


@dataclass(frozen=True)
class Limit:
    """A limit that makes sbatch refuse a job."""

    word: str
    """SLURM's code."""
    words: str
    """The limit in plain words, with ``{}`` in place of its value."""
    table: str
    """The table of sacctmgr that holds the value: ``associations`` or ``qos``."""
    field: str
    """The column of that table."""
    option: str = ""
    """The option to change; empty for limits on the number of jobs in the queue."""


_OF_REFUSALS = re.compile(r"error: ((?:QOS|Assoc|MaxSubmit)[A-Za-z]+)$")
_COUNTED = {
    "AssocMaxSubmit": ("your account allows you {} in the queue", "associations", "maxsubmit"),
    "AssocGrpSubmit": ("your account allows all its users together {} in the queue", "associations", "grpsubmit"),
    "QOSGrpSubmit": ("your QOS allows all its users together {} in the queue", "qos", "grpsubmit"),
    "PerAccount": ("your QOS allows your account {} in the queue", "qos", "maxsubmitpa"),
    "PerUser": ("your QOS allows you {} in the queue", "qos", "maxsubmitpu"),
}
"""Limits on the number of jobs: part of SLURM's code → words, table and column."""


def limit_of(refusal: str) -> Limit | None:
    """Return the limit that a line of sbatch names, as ``sbatch: error: QOSMaxWallDurationPerJobLimit``, or None."""
    found = _OF_REFUSALS.search(refusal.strip())
    if not found:
        return None
    word = found[1]
    if "Submit" in word:
        counted = next((known for key, known in _COUNTED.items() if key in word), None)
        return counted and Limit(word, *counted)
    table, prefix = ("qos", "your QOS") if word.startswith("QOS") else ("associations", "your account")
    thing, option = _thing(word)
    if "Min" in word:
        return Limit(word, f"it asks for less {thing} than {prefix} demands ({{}})", table, "mintres", option)
    whom = "you" if "PerUser" in word else "a job" if "PerJob" in word or thing == "time" else "its users"
    field = "maxwall" if thing == "time" else {"you": "maxtrespu", "a job": "maxtres"}.get(whom, "grptres")
    return Limit(word, f"it asks for more {thing} than {prefix} allows {whom} ({{}})", table, field, option)
