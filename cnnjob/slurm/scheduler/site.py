"""What a site allows, as SLURM itself says it: partitions, limits, preemption, requeueing."""

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pwd import getpwuid
from typing import Self

from cnnjob.errors import SchedulerError
from cnnjob.slurm.scheduler.client import ask, parse_number, parse_words
from cnnjob.slurm.scheduler.job_states import Limit, limit_of
from cnnjob.slurm.submit.request import Request, format_minutes, parse_minutes

MOST_ROWS = 1000
"""Of an answer of sacctmgr."""
CLOSED = {"DRAIN", "INACTIVE"}
"""States of a partition to which sbatch refuses jobs."""


@dataclass(frozen=True)
class Partition:
    """A partition."""

    name: str
    is_default: bool
    state: str
    """``UP``; ``DOWN`` takes jobs and starts none, ``DRAIN`` and ``INACTIVE`` take none."""
    max_minutes: int | None
    default_minutes: int | None
    preempt_mode: str
    """What happens to its jobs: ``OFF``, ``REQUEUE``, ``CANCEL``, …"""
    grace_seconds: int
    accounts: tuple[str, ...]
    """Those that may use it; ``ALL``."""

    @classmethod
    def of(cls, said: dict[str, str]) -> Self:
        """From what ``scontrol show partition`` says; what an old SLURM leaves out counts as no limit."""
        return cls(
            name=said["PartitionName"],
            is_default=said.get("Default") == "YES",
            state=said.get("State", "UP"),
            max_minutes=_minutes(said.get("MaxTime", "")),
            default_minutes=_minutes(said.get("DefaultTime", "")),
            preempt_mode=said.get("PreemptMode", "OFF"),
            grace_seconds=parse_number(said.get("GraceTime", "")),
            accounts=tuple(said.get("AllowAccounts", "ALL").split(",")),
        )


@dataclass(frozen=True)
class Site:
    """What holds for all jobs."""

    partitions: dict[str, Partition]
    requeues: bool
    """Whether a job that says nothing of it may be requeued."""
    max_array_size: int
    kill_wait_seconds: int
    signals_preempted: bool
    """Whether a preempted job gets its own signal at once."""
    version: str
    """SLURM's; empty where it does not say."""
    counts_gpus: bool
    """Whether GPUs may be asked for by number (``--gpus-per-node``), not only as generic resources."""
    keeps_accounts: bool
    """Whether jobs belong to accounts, and what became of them is kept."""

    def partition_of(self, request: Request) -> Partition | None:
        """The first partition that is asked for, or the default one."""
        if request.partition:
            return self.partitions.get(request.partition.split(",")[0])
        return next((one for one in self.partitions.values() if one.is_default), None)

    def check(self, request: Request) -> None:
        """Find what this site would refuse, or let wait for ever.

        Raises:
            SchedulerError: there is no such partition, it takes no jobs, is closed to this account, or its time limit
                is shorter.
        """
        if not self.partitions:
            return  # an answer that says nothing is no reason to refuse
        for name in request.partition.split(",") if request.partition else []:
            if name not in self.partitions:
                raise SchedulerError(f"--partition {name}: no such partition, {_choose(name, self.partitions, 'site')}")
        reasons = [_refusal(partition, request) for partition in self._chosen(request)]
        if reasons and all(reasons):
            raise SchedulerError("; ".join(reasons))

    def waits(self, request: Request) -> str:
        """Return a warning where jobs are queued and none is started; empty elsewhere."""
        usable = [one for one in self._chosen(request) if not _refusal(one, request)]
        if not usable or any(one.state != "DOWN" for one in usable):
            return ""
        names = ",".join(one.name for one in usable)
        return f"--partition {names}: it is DOWN, the job waits in the queue until the site sets it UP"

    def _chosen(self, request: Request) -> list[Partition]:
        """The partitions that a request names, or the default one."""
        names = request.partition.split(",") if request.partition else []
        named = [self.partitions[name] for name in names if name in self.partitions]
        default = self.partition_of(request)
        return named or ([default] if default else [])


def query_site() -> Site:
    """Ask SLURM for its partitions and its configuration.

    Raises:
        SchedulerError: it is not there, refused, or did not answer.
    """
    lines = ask(["scontrol", "--all", "show", "partition", "--oneliner"]).splitlines()
    partitions = [Partition.of(said) for said in map(parse_words, lines) if "PartitionName" in said]
    said = parse_words(ask(["scontrol", "show", "config"]))
    return Site(
        partitions={partition.name: partition for partition in partitions},
        requeues=said.get("JobRequeue", "1") != "0",
        max_array_size=parse_number(said.get("MaxArraySize", "")) or 1001,
        kill_wait_seconds=parse_number(said.get("KillWait", "")) or 30,
        signals_preempted="preempt_send_user_signal" in said.get("SlurmctldParameters", ""),
        version=said.get("SLURM_VERSION", ""),
        counts_gpus=said.get("SelectType", "select/cons_tres") == "select/cons_tres",
        keeps_accounts=said.get("AccountingStorageType", "").endswith("slurmdbd"),
    )


def explained(refusal: str, tasks: int = 1, alone: str = "") -> str:
    """Return a refusal of sbatch's with what this user can do: the limit, or what may be chosen instead.

    Args:
        refusal: the line in which sbatch says why.
        tasks: how many tasks the job has.
        alone: the command that submits one of several tasks alone.
    """
    if limit := limit_of(refusal):
        return f"refused by SLURM ({limit.word}): {_beyond(limit, tasks, alone)}"
    if "accounting/QOS policy" in refusal:
        return f"{refusal}. A limit of your account or QOS is reached; ask the site for them"
    return f"{refusal}{_choices(refusal)}"


def _beyond(limit: Limit, tasks: int, alone: str) -> str:
    """Say the limit, and what to do."""
    value = _value_of(limit)
    if limit.option:
        said = limit.words.format(value) if value else limit.words.replace(" ({})", "")
        return f"{said}. Ask for another amount with {limit.option}"
    said = limit.words.format(f"at most {value} job{'s' * (value != '1')}" if value else "a limited number of jobs")
    if tasks == 1:
        return f"{said}; one that is ending still counts. Wait until one has ended, then run the same command"
    return (
        f"{said}, and each of these {tasks} array tasks counts, so --parallel does not help. Submit fewer values or "
        f"seeds at once, or one run alone:\n  {alone}"
    )


def _value_of(limit: Limit) -> str:
    """A limit's value, by account or QOS where this user has several; empty where SLURM does not tell."""
    try:
        values = _of_accounts(limit.field) if limit.table == "associations" else _of_qos(limit.field)
    except SchedulerError:
        return ""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({name})" for name, value in sorted(values.items()))


def _of_accounts(field: str) -> dict[str, str]:
    """What this user's associations, and those of the accounts as a whole, say in a column."""
    accounts, users = f"account={','.join(yours('account'))}", {"", _me()}
    rows = _table("associations", accounts, f"format=account,user,{field}")
    return {row[0]: row[2] for row in rows if len(row) > 2 and row[1] in users and row[2]}  # noqa: PLR2004


def _of_qos(field: str) -> dict[str, str]:
    """What this user's QOS say in a column."""
    mine = yours("qos")
    return {row[0]: row[1] for row in _table("qos", f"format=name,{field}") if row[0] in mine and row[1:] > [""]}


def _table(*words: str) -> list[list[str]]:
    """The rows that sacctmgr shows, as far as they can be those of one user."""
    lines = ask(["sacctmgr", "--noheader", "--parsable2", "show", *words]).splitlines()
    return [line.split("|") for line in lines[:MOST_ROWS]]


def _me() -> str:
    return getpwuid(os.getuid()).pw_name


def _choices(refusal: str) -> str:
    """What this user may choose, where sbatch refused an account or a quality of service; else nothing."""
    key = next((key for key in ("account", "qos") if re.search(rf"invalid {key}", refusal, re.IGNORECASE)), None)
    if key is None:
        return ""
    try:
        found = yours(key)
    except SchedulerError:
        return ""
    return f"; yours are {', '.join(found)}" if found else f"; SLURM knows no {key} of yours, ask the site"


def yours(key: str) -> list[str]:
    """What of this user's SLURM knows, in order of name: each ``account``, or ``qos``.

    Raises:
        SchedulerError: it keeps none, or did not answer.
    """
    rows = _table("associations", f"user={_me()}", f"format={key}")
    return sorted({name for row in rows for name in re.split(r"[\s,]+", row[0]) if name})


def _refusal(partition: Partition, request: Request) -> str:
    """Why a partition would not start this request, if so."""
    if partition.state in CLOSED:
        return f"--partition {partition.name}: it is {partition.state} and takes no jobs; choose another, or wait"
    wanted, most = request.time_minutes, partition.max_minutes
    if wanted and most and wanted > most:
        return (
            f"--time {request.time}: longer than {partition.name} allows, which is {format_minutes(most)}; "
            "ask for less, a job that is stopped by the limit goes on by itself"
        )
    if request.account and partition.accounts != ("ALL",) and request.account not in partition.accounts:
        return (
            f"--account {request.account}: not allowed in {partition.name}, "
            f"{_choose(request.account, partition.accounts, 'partition')}"
        )
    return ""


def _choose(name: str, known: dict[str, Partition] | tuple[str, ...], what: str) -> str:
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
    return f"this {what} has {', '.join(sorted(known))}; {hint}"


def _minutes(text: str) -> int | None:
    """A time limit; None for a word such as ``UNLIMITED``."""
    try:
        return parse_minutes(text)
    except ValueError:
        return None
