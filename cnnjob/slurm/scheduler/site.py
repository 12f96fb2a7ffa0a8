"""A site's settings as SLURM reports them: partitions, limits, preemption and requeueing."""

import os
import re
from dataclasses import dataclass
from pwd import getpwuid
from typing import Self

from cnnjob.errors import SchedulerError, closest_name, format_seconds, plural
from cnnjob.slurm.scheduler.client import ask, parse_number, parse_words
from cnnjob.slurm.scheduler.job_states import Limit, parse_limit
from cnnjob.slurm.scheduler.times import parse_duration
from cnnjob.slurm.submit.request import Request

MOST_ROWS = 1000
"""Maximum number of rows that are read from sacctmgr's output."""
CLOSED = {"DRAIN", "INACTIVE"}
"""Partition states in which sbatch refuses jobs."""


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster."""

    name: str
    is_default: bool
    state: str
    """``UP``; ``DOWN``, which accepts jobs but starts none; ``DRAIN`` or ``INACTIVE``, which accept no jobs."""
    max_minutes: int | None
    """Maximum time limit, rounded up to minutes; None if there is no maximum."""
    default_minutes: int | None
    """Time limit for a job that requests none; None if not set."""
    preempt_mode: str
    """Effect of preemption on the partition's jobs: ``OFF``, ``REQUEUE``, ``CANCEL``, …"""
    grace_seconds: int
    """Time between the signal to a preempted job and the end of the job (``GraceTime``)."""
    accounts: tuple[str, ...]
    """Accounts that may use the partition; ``("ALL",)`` if there is no restriction."""

    @classmethod
    def of(cls, facts: dict[str, str]) -> Self:
        """Build a partition from the pairs that ``scontrol show partition`` prints.

        Old versions of SLURM print fewer pairs; a missing limit counts as no limit.
        """
        return cls(
            name=facts["PartitionName"],
            is_default=facts.get("Default") == "YES",
            state=facts.get("State", "UP"),
            max_minutes=_parse_minutes(facts.get("MaxTime", "")),
            default_minutes=_parse_minutes(facts.get("DefaultTime", "")),
            preempt_mode=facts.get("PreemptMode", "OFF"),
            grace_seconds=parse_number(facts.get("GraceTime", "")),
            accounts=tuple(facts.get("AllowAccounts", "ALL").split(",")),
        )


@dataclass(frozen=True)
class Site:
    """The partitions of a cluster and the settings that apply to all jobs."""

    partitions: dict[str, Partition]
    requeues: bool
    """True if a job that sets neither ``--requeue`` nor ``--no-requeue`` may be requeued."""
    max_array_size: int
    """Maximum number of tasks in a job array; the maximum index is one less."""
    kill_wait_seconds: int
    """Time between SIGTERM and SIGKILL at a job's time limit (``KillWait``)."""
    signals_preempted: bool
    """True if a job receives the signal set with ``--signal`` as soon as it is preempted."""
    version: str
    """SLURM's version; empty if unknown."""
    counts_gpus: bool
    """True if GPUs may be requested by number (``--gpus-per-node``), not only as generic resources."""
    keeps_accounts: bool
    """True if the site uses SLURM accounting: jobs belong to accounts, and their outcomes are stored."""

    def partition_of(self, request: Request) -> Partition | None:
        """Return the first partition in a request, or the default partition if the request names no partition.

        The result is None if the site has no such partition.
        """
        if request.partition:
            return self.partitions.get(request.partition.split(",")[0])
        return next((partition for partition in self.partitions.values() if partition.is_default), None)

    def check(self, request: Request) -> None:
        """Check that this site would neither refuse a request nor leave its job waiting forever.

        Raises:
            SchedulerError: a requested partition does not exist, or none of the requested partitions accepts jobs from
                this account with this time limit.
        """
        if not self.partitions:
            return  # SLURM listed no partitions: sbatch decides
        for name in request.partition.split(",") if request.partition else []:
            if name not in self.partitions:
                raise SchedulerError(
                    f"--partition {name}: no such partition. {_suggest_names(name, self.partitions, 'site')}"
                )
        # a job may start in any of the partitions that it requests, so one is enough
        reasons = [_refusal_by(partition, request) for partition in self._requested(request)]
        if reasons and all(reasons):
            raise SchedulerError("; ".join(reasons))

    def explain_wait(self, request: Request) -> str:
        """Return a warning if all suitable partitions accept jobs but start none at present; otherwise ``""``."""
        usable = [partition for partition in self._requested(request) if not _refusal_by(partition, request)]
        if not usable or any(partition.state != "DOWN" for partition in usable):
            return ""
        names = ",".join(partition.name for partition in usable)
        return f"--partition {names}: state DOWN; the job will wait in the queue until the site sets the state to UP"

    def _requested(self, request: Request) -> list[Partition]:
        """Return the partitions that a request specifies, or the default one."""
        names = request.partition.split(",") if request.partition else []
        named = [self.partitions[name] for name in names if name in self.partitions]
        default = self.partition_of(request)
        return named or ([default] if default else [])


def query_site() -> Site:
    """Query SLURM for its partitions and its configuration.

    Raises:
        SchedulerError: SLURM is not available, refused, or did not answer.
    """
    # --all includes hidden partitions, which also accept jobs
    lines = ask(["scontrol", "--all", "show", "partition", "--oneliner"]).splitlines()
    partitions = [Partition.of(facts) for facts in map(parse_words, lines) if "PartitionName" in facts]
    config = parse_words(ask(["scontrol", "show", "config"]))
    return Site(
        partitions={partition.name: partition for partition in partitions},
        requeues=config.get("JobRequeue", "1") != "0",
        max_array_size=parse_number(config.get("MaxArraySize", "")) or 1001,  # 1001 and 30 are SLURM's defaults
        kill_wait_seconds=parse_number(config.get("KillWait", "")) or 30,
        signals_preempted="preempt_send_user_signal" in config.get("SlurmctldParameters", ""),
        version=config.get("SLURM_VERSION", ""),
        # --gpus-per-node and similar options need this plugin
        counts_gpus=config.get("SelectType", "select/cons_tres") == "select/cons_tres",
        keeps_accounts=config.get("AccountingStorageType", "").endswith("slurmdbd"),
    )


def explain_refusal(refusal: str, tasks: int = 1, single_command: str = "") -> str:
    """Return sbatch's refusal with an explanation of the limit that was exceeded, or with the choices that are valid.

    Args:
        refusal: the line in which sbatch gives the reason.
        tasks: number of array tasks in the job; 1 if the job is not an array.
        single_command: the command that submits only one of several tasks.
    """
    if limit := parse_limit(refusal):
        return f"refused by SLURM ({limit.code}): {_explain_limit(limit, tasks, single_command)}"
    if "accounting/QOS policy" in refusal:
        return f"{refusal}. A limit of your account or QOS has been reached; ask the site's administrators about it"
    return f"{refusal}{_list_own_choices(refusal)}"


def _explain_limit(limit: Limit, tasks: int, single_command: str) -> str:
    """Return a message that explains a limit and gives advice."""
    value = _query_limit_value(limit)
    if limit.option:
        clause = limit.template.format(value) if value else limit.template.replace(" ({})", "")
        return f"{clause}. Request a different amount with {limit.option}"
    if value.isdecimal():
        value = plural(int(value), "job")
    elif value:  # several values, each with its account or QOS
        value = f"{value} jobs"
    clause = limit.template.format(f"at most {value}" if value else "a limited number of jobs")
    if tasks == 1:
        return (
            f"{clause}; a job that is ending still counts. Wait until a job has ended, then run the same command again"
        )
    return (
        f"{clause}, and each of these {tasks} array tasks counts as a job, so --parallel does not help. Submit fewer "
        f"values or seeds at once, or a single run:\n  {single_command}"
    )


def _query_limit_value(limit: Limit) -> str:
    """Return the value of a limit as text; empty if SLURM reports none.

    If the limit differs between this user's accounts or QOS, the text lists the value for each account or QOS.
    """
    try:
        if limit.table == "associations":
            # a row without a user contains the limits of the account as a whole
            accounts, users = f"account={','.join(query_own_names('account'))}", {"", _login_name()}
            rows = _query_table("associations", accounts, f"format=account,user,{limit.field}")
            values = {row[0]: row[2] for row in rows if len(row) > 2 and row[1] in users and row[2]}  # noqa: PLR2004
        else:
            mine = query_own_names("qos")
            rows = _query_table("qos", f"format=name,{limit.field}")
            values = {row[0]: row[1] for row in rows if row[0] in mine and len(row) > 1 and row[1]}
    except SchedulerError:
        return ""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({name})" for name, value in sorted(values.items()))


def _query_table(*words: str) -> list[list[str]]:
    """Return the rows that sacctmgr prints, at most ``MOST_ROWS``."""
    lines = ask(["sacctmgr", "--noheader", "--parsable2", "show", *words]).splitlines()
    return [line.split("|") for line in lines[:MOST_ROWS]]


def _login_name() -> str:
    return getpwuid(os.getuid()).pw_name


def _list_own_choices(refusal: str) -> str:
    """Return text that lists this user's accounts or QOS, if sbatch refused the requested account or QOS.

    The text is empty if sbatch refused for another reason, or if the names cannot be queried.
    """
    key = next((key for key in ("account", "qos") if re.search(rf"invalid {key}", refusal, re.IGNORECASE)), None)
    if key is None:
        return ""
    try:
        names = query_own_names(key)
    except SchedulerError:
        return ""
    kind = {"account": "accounts", "qos": "QOS"}[key]
    return (
        f". Your {kind}: {', '.join(names)}"
        if names
        else f". SLURM lists no {key} for you; ask the site's administrators"
    )


def query_own_names(key: str) -> list[str]:
    """Return this user's accounts or QOS, sorted by name.

    Args:
        key: ``account`` or ``qos``.

    Raises:
        SchedulerError: the site does not use SLURM accounting, or SLURM did not answer.
    """
    rows = _query_table("associations", f"user={_login_name()}", f"format={key}")
    return sorted({name for row in rows for name in re.split(r"[\s,]+", row[0]) if name})


def _refusal_by(partition: Partition, request: Request) -> str:
    """Return why a partition would never start a job with this request; an empty string if no reason is known."""
    if partition.state in CLOSED:
        return (
            f"--partition {partition.name}: state {partition.state}; it accepts no jobs. "
            "Choose another partition, or wait"
        )
    limit = partition.max_minutes
    if request.time_minutes and limit and request.time_minutes > limit:
        return (
            f"--time {request.time}: longer than the limit of partition {partition.name} "
            f"({format_seconds(60 * limit)}). Request less time; a job that reaches its time limit is "
            "restarted and resumes"
        )
    if request.account and partition.accounts != ("ALL",) and request.account not in partition.accounts:
        return (
            f"--account {request.account}: not allowed in partition {partition.name}. "
            f"{_suggest_names(request.account, partition.accounts, 'partition')}"
        )
    return ""


def _suggest_names(name: str, known: dict[str, Partition] | tuple[str, ...], owner: str) -> str:
    """Return a hint that lists the valid names for a site or partition, after the closest match if there is one."""
    near = closest_name(name, known)
    hint = f"Did you mean {near!r}? " if near else ""
    return f"{hint}Valid names for this {owner}: {', '.join(sorted(known))}"


def _parse_minutes(text: str) -> int | None:
    """Convert a time limit to minutes, rounded up as in SLURM; return None for a word such as ``UNLIMITED``."""
    seconds = parse_duration(text)
    return -(-seconds // 60) if seconds else None
