"""Plain-language descriptions of SLURM's job states, reasons for waiting, and limits.

SLURM documents the states in ``job_state_codes.html`` and the reasons in ``job_reason_codes.html``. Other versions of
SLURM have other codes, so an unknown code is shown unchanged.
"""

import re
from dataclasses import dataclass

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
RUNNING = frozenset({
    *("RUNNING", "CONFIGURING", "POWER_UP_NODE", "RESIZING", "SIGNALING"),
    *("STAGE_OUT", "STOPPED", "SUSPENDED", "UPDATE_DB", "EXPEDITING"),
})  # fmt: skip
ENDING = "COMPLETING"
"""State of a job whose processes are ending, whatever the reason; SLURM may be about to requeue the job."""
REFUSED = frozenset({"BOOT_FAIL", "DEADLINE", "FAILED", "LAUNCH_FAILED", "OUT_OF_MEMORY", "RECONFIG_FAIL"})
"""Final states that a resubmitted job would reach again, if the job ended before its run had begun."""
ENDED = frozenset({*REFUSED, "CANCELLED", "COMPLETED", "NODE_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT"})
STATES = frozenset({*WAITING, *RUNNING, ENDING, *ENDED})


def parse_state(text: str) -> str:
    """Return the full name of a state that is printed as, for example, ``CANCELLED by 1000`` or ``OUT_OF_ME+``."""
    word = text.split(maxsplit=1)[0] if text.split() else ""
    if not word.endswith("+"):
        return word
    stem = word.rstrip("+")  # sacct appends a + to a state that was truncated to the width of the column
    matches = [state for state in STATES if state.startswith(stem)]
    return stem if stem in STATES or len(matches) != 1 else matches[0]


@dataclass(frozen=True)
class Wait:
    """The reason why a job waits; ``phrase`` is printed after "its job is waiting: "."""

    phrase: str
    never: bool = False
    """True if the job can never start as requested."""
    option: str = ""
    """The option to change in the request, if known; otherwise empty."""
    release: bool = False
    """True if the job is held and its user can release it."""
    held: bool = False
    """True if the job is held by someone other than its user."""

    @property
    def starts_by_itself(self) -> bool:
        """True if the job starts without any intervention."""
        return not (self.never or self.release or self.held)


_KNOWN = {
    "None": Wait("the scheduler has not considered it yet"),
    "Priority": Wait("jobs of higher priority start first"),
    "Resources": Wait("the resources that it requests are in use"),
    "BeginTime": Wait("its earliest start time has not been reached"),
    "Cleaning": Wait("its previous execution is still being cleaned up"),
    "Prolog": Wait("its node is being prepared"),
    "Dependency": Wait("the job that it depends on has not ended"),
    "DependencyNeverSatisfied": Wait("the job that it depends on failed", never=True, option="--dependency"),
    "JobArrayTaskLimit": Wait("its array is already running the maximum number of tasks"),
    "JobHeldUser": Wait("it is held by its user", release=True),
    "JobHeldAdmin": Wait("it is held by an administrator", held=True),
    "JobHoldMaxRequeue": Wait("it was requeued too often and is therefore held", release=True),
    "Licenses": Wait("the licences are in use"),
    "Reservation": Wait("its reservation has not begun"),
    "ReservationDeleted": Wait("its reservation was deleted", never=True),
    "PartitionDown": Wait("its partition is down"),
    "PartitionInactive": Wait("its partition is not starting jobs"),
    "PartitionTimeLimit": Wait("it requests more time than its partition allows", never=True, option="--time"),
    "PartitionNodeLimit": Wait("it requests more nodes than its partition has or allows", never=True),
    "PartitionConfig": Wait("its partition does not allow what it requests", never=True, option="--partition"),
    "BadConstraints": Wait("no node has what it requests", never=True, option="--constraint"),
    "Constraints": Wait("no node has what it requests", never=True, option="--constraint"),
    "InvalidAccount": Wait("its account does not exist", never=True, option="--account"),
    "AccountNotAllowed": Wait("its account is not allowed to use its partition", never=True, option="--account"),
    "InvalidQOS": Wait("its QOS does not exist", never=True, option="--qos"),
    "QOSNotAllowed": Wait("its QOS is not allowed in its partition", never=True, option="--qos"),
    "MaxMemPerLimit": Wait("it requests more memory than its partition allows", never=True, option="--mem"),
    "ReqNodeNotAvail": Wait("nodes that it requests are not available"),
    "NodeDown": Wait("a node that it requests is down"),
}
_DESCRIBED = {
    r"(?i)requeued[ _](?:in[ _])?held": Wait("it was requeued and is held", release=True),
    # SLURM prints this for any reservation, even without the flag MAINT
    "Reserved for maintenance": Wait(
        "its nodes are reserved for maintenance or other jobs, starting before it could end"
    ),
    "May be reserved for other job": Wait("nodes that it requests may be reserved for another job"),
    "Nodes required for job are": Wait(
        "nodes that it requests are down, drained, or reserved for partitions of higher priority"
    ),
}
"""Reasons that SLURM gives as text: a regular expression for the text, and what it means."""
_UNAVAILABLE = re.compile(r"UnavailableNodes:([^\s,(][^\s]{0,200})")
_LIMIT = re.compile(r"(?P<owner>QOS|Assoc(?:iation)?)?(?P<kind>Grp|Max|Min)?.*")
_RESOURCES = {
    "wall": ("time", "--time"),
    "time": ("time", "--time"),
    "cpu": ("cores", "--cpus-per-task"),
    "mem": ("memory", "--mem"),
    "gres": ("GPUs", "--gpus"),
    "node": ("nodes", ""),
    "job": ("jobs", ""),
}
"""A part of a SLURM code → the name of the resource, and the option that requests it."""


def parse_reason(reason: str) -> Wait:
    """Translate squeue's reason why a job is waiting.

    Args:
        reason: for example ``Priority``, ``QOSMaxGRESPerUser`` or ``ReqNodeNotAvail, UnavailableNodes:n[1-3]``.

    Returns:
        A description of the reason; for an unknown reason, the original text.
    """
    text = reason.strip().removeprefix("(").removesuffix(")")
    code = re.split(r"[,\s(]", text, maxsplit=1)[0]
    if nodes := _UNAVAILABLE.search(text):
        return Wait(f"nodes that it requests are down or drained ({nodes[1]})")
    described = next((wait for pattern, wait in _DESCRIBED.items() if re.search(pattern, text)), None)
    return described or _KNOWN.get(code) or _parse_limit_reason(code) or Wait(text or "SLURM gives no reason")


def _parse_limit_reason(code: str) -> Wait | None:
    """Translate the code of a limit, such as ``QOSMaxGRESPerUser`` or ``MaxNodePerAccount``; None for other codes.

    A job that exceeds a limit per job never starts. A job that exceeds a limit per user, account or group starts when
    enough other jobs have ended.
    """
    match = _LIMIT.fullmatch(code)
    if not match or not (match["owner"] or (match["kind"] and "PerAccount" in code)):
        return None
    owner = "its QOS" if code.startswith("QOS") and "PerAccount" not in code else "its account"
    resource, option = _resource_in(code)
    if match["kind"] == "Min":
        return Wait(f"it requests {_too_little(resource)} than {owner} requires", never=True, option=option)
    if "PerJob" in code or "PerNode" in code:
        return Wait(f"it requests more {resource} than {owner} allows per job", never=True, option=option)
    per_user = " per user" if "PerUser" in code else ""
    return Wait(f"the limit of {owner} on {resource}{per_user} has been reached")


def _resource_in(code: str) -> tuple[str, str]:
    """Return the resource to which a SLURM code refers, and the option that requests it."""
    return next((pair for key, pair in _RESOURCES.items() if key in code.lower()), ("resources", ""))


def _too_little(resource: str) -> str:
    return f"less {resource}" if resource in {"time", "memory"} else f"fewer {resource}"


@dataclass(frozen=True)
class Limit:
    """A limit that makes sbatch refuse a job."""

    code: str
    """SLURM's code."""
    template: str
    """The limit as a clause, with ``{}`` in place of its value."""
    table: str
    """The sacctmgr table that contains the value: ``associations`` or ``qos``."""
    field: str
    """The column in that table."""
    option: str = ""
    """The option to change; empty for a limit on the number of jobs in the queue."""


_REFUSAL_CODE = re.compile(r"error: ((?:QOS|Assoc|MaxSubmit)[A-Za-z]+)$")
_JOB_LIMITS = {
    "AssocMaxSubmit": ("your account allows you {} in the queue", "associations", "maxsubmit"),
    "AssocGrpSubmit": ("your account allows all its users combined {} in the queue", "associations", "grpsubmit"),
    "QOSGrpSubmit": ("your QOS allows all its users combined {} in the queue", "qos", "grpsubmit"),
    "PerAccount": ("your QOS allows your account {} in the queue", "qos", "maxsubmitpa"),
    "PerUser": ("your QOS allows you {} in the queue", "qos", "maxsubmitpu"),
}
"""Limits on the number of jobs: a part of a SLURM code → the template, table and column of its :class:`Limit`."""


def parse_limit(refusal: str) -> Limit | None:
    """Return the limit in an error from sbatch (``… error: QOSMaxWallDurationPerJobLimit``); None if there is none."""
    match = _REFUSAL_CODE.search(refusal.strip())
    if not match:
        return None
    code = match[1]
    if "Submit" in code:
        job_limit = next((limit for part, limit in _JOB_LIMITS.items() if part in code), None)
        return job_limit and Limit(code, *job_limit)
    table, owner = ("qos", "your QOS") if code.startswith("QOS") else ("associations", "your account")
    resource, option = _resource_in(code)
    if "Min" in code:
        return Limit(
            code, f"it requests {_too_little(resource)} than {owner} requires ({{}})", table, "mintres", option
        )
    if "PerUser" in code:
        scope, field = "per user", "maxtrespu"
    elif "PerJob" in code or resource == "time":
        scope, field = "per job", "maxtres"
    else:
        scope, field = "for all its users combined", "grptres"
    field = "maxwall" if resource == "time" else field
    return Limit(code, f"it requests more {resource} than {owner} allows {scope} ({{}})", table, field, option)
