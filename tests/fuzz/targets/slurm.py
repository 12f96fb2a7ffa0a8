"""Answers of SLURM's commands, as 22.05 and 24.11 print them: the first line of an input names the command."""

import os
from collections.abc import Callable
from pathlib import Path

from cnnjob.doctor import cluster, profile
from cnnjob.errors import SchedulerError
from cnnjob.slurm import diagnosis, job_index
from cnnjob.slurm.job_index import JobIndex
from cnnjob.slurm.node import deadlines, restart
from cnnjob.slurm.scheduler import accounting, client, job_states, queue, sbatch, site
from cnnjob.slurm.submit import dry_run
from cnnjob.slurm.submit.request import Request
from tests.fuzz.targets import Target

COMMANDS = ("squeue", "sacct", "scontrol", "sinfo", "sacctmgr", "sbatch", "scancel")

ANSWERS = (
    "squeue\n"
    "2_0|COMPLETED|None|n1|2026-11-29T18:51:43|2026-11-29T18:51:46|(null)\n"
    "2_[4-5%2]|PENDING|JobArrayTaskLimit||N/A|N/A|cnnjob /runs/.sweeps/1a2b3c4d 4\n"
    "26|PENDING|ReqNodeNotAvail, UnavailableNodes:n[1-3]||N/A|N/A|cnnjob /runs/toy-1a2b3c4d 1\n"
    "27|PENDING|QOSMaxGRESPerUser||2026-11-29T19:00:00|N/A|x|y\n",
    "sacct\n"
    "1|CANCELLED by 65534|0:0|n1|2026-11-29T18:51:49\n"
    "1.batch|CANCELLED|0:15|n1|2026-11-29T18:51:49\n"
    "2_[5-6%2]|PENDING|0:0|None assigned|Unknown\n"
    "17|FAILED|137:0|n1|x\n17.0|OUT_OF_ME+|0:125|n1|x\n",
    "job\n"
    "JobId=10 ArrayJobId=10 ArrayTaskId=3 JobName=wrap\n   UserId=nobody(65534)\n   JobState=COMPLETING Reason=None\n"
    "   Requeue=1 Restarts=1 ExitCode=0:0\n   RunTime=1-00:01:15 TimeLimit=00:01:00\n"
    "   StartTime=2026-11-29T18:51:50 EndTime=2026-11-29T18:56:50\n   PreemptTime=2026-11-29T18:51:59\n   NodeList=n1\n"
    "   Command=(null)\n   Comment=cnnjob a|b c \n",
    "site\n"
    "PartitionName=debug AllowAccounts=ALL Default=YES DefaultTime=00:05:00 GraceTime=0 MaxTime=01:00:00 "
    "PreemptMode=OFF State=UP TRES=cpu=8,mem=16000M,node=2,billing=8,gres/gpu=4\n"
    "PartitionName=low AllowAccounts=lab,other Default=NO DefaultTime=NONE GraceTime=30 MaxTime=UNLIMITED "
    "PreemptMode=REQUEUE State=DOWN\n"
    "AccountingStorageType   = accounting_storage/slurmdbd\nJobRequeue              = 0\n"
    "KillWait                = 5 sec\nMaxArraySize            = 1001\nPrivateData             = none\n"
    "SelectType              = select/cons_tres\nSlurmctldParameters     = preempt_send_user_signal\n"
    "SLURM_VERSION           = 24.11.5\n"
    "debug|2|4+|8000|gpu:a100:2(S:0)\nlow|2|64|256000+|(null)\nlab\n",
    "sbatch\nWelcome (max. job 48 hours)\nSubmitted batch job 17\n",
    "refusal\nsbatch: error: AssocMaxSubmitJobLimit\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)\n",
    "limits\nlab||3\nlab|nobody|2\nnormal|cpu=2,gres/gpu=1\n",
)
"""Of squeue and sacct in the columns that are asked for, of the others in the order in which they are read."""


def _jobs() -> None:
    listing = queue.list_queue([65534], ended=True)
    for job in listing.jobs[:1000]:
        job_states.parse_reason(job.reason)
    job_index.newest_job_ids(listing.jobs[:1000])
    JobIndex(listing.jobs)


def _fates() -> None:
    for fate in list(accounting.query_outcomes(["1", "2_5"]).values())[:1000]:
        diagnosis.user_of(fate.cancelled_by)


def _job() -> None:
    assert restart.cause_of_end(client.query_job("10"), 1) in {
        "requeued",
        "preempted",
        "time limit",
        "cancelled",
        "itself",
    }
    attempt = {"cluster": None, "job_id": "10", "job_restarts": 0, "uid": 0, "started": "2026-11-29T18:52:00+00:00"}
    client.job_is_over(attempt, 100)
    deadlines.query_end()


def _site() -> None:
    found = cluster.query_cluster()
    list(cluster.check_cluster(found))
    for one in list(found.site.partitions.values())[:20]:
        profile.profile_text("lab", found, one)
    request = Request(partition="debug", time="2h", account="lab")
    dry_run.describe_time_limit(request, found.site)
    dry_run.describe_preemption(request, found.site)
    found.site.explain_wait(request)
    found.site.check(request)


def _submitted() -> None:
    assert len(sbatch.submit_script("cnnjob /runs/toy-1a2b3c4d 1", "script.sh")) <= client.MOST_DIGITS


def _limits() -> None:
    for word in (
        "AssocMaxSubmitJobLimit",
        "AssocGrpSubmitJobsLimit",
        "QOSMaxGRESPerUser",
        "QOSMaxSubmitJobPerUserLimit",
    ):
        site.explain_refusal(f"sbatch: error: {word}", 3, "cnnjob submit toy")
    site.explain_refusal("sbatch: error: Invalid account")


def _refusal(text: str) -> None:
    error = SchedulerError(text)
    client.is_silent(error)
    client.is_absent(error)
    for line in text.splitlines()[:20]:
        job_states.parse_limit(line)


READERS: dict[str, Callable[[], None]] = {
    "squeue": _jobs, "sacct": _fates, "job": _job, "site": _site, "sbatch": _submitted, "limits": _limits,
}  # fmt: skip


def _read(content: bytes, folder: Path) -> None:
    name, _, answer = content.partition(b"\n")
    (folder / "answer").write_bytes(answer)
    script = folder / COMMANDS[0]
    script.write_text(f"#!/bin/sh\nexec /bin/cat {folder}/answer\n", encoding="utf-8")
    script.chmod(0o755)
    for command in COMMANDS[1:]:
        (folder / command).hardlink_to(script)
    os.environ.update(PATH=str(folder), SLURM_JOB_ID="10")  # of the reading process, which nothing else uses
    if name == b"refusal":
        _refusal(answer.decode(errors="replace"))
    else:
        READERS.get(name.decode(errors="replace"), _jobs)()


TARGET = Target(lambda: [text.encode() for text in ANSWERS], _read, errors=(SchedulerError,), text=True)
