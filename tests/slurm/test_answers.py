"""What SLURM 24.11.5 (Debian 13) printed, cut short, is read as it was meant."""

from datetime import datetime
from pathlib import Path

import pytest

from cnnjob.doctor.cluster import Nodes
from cnnjob.slurm.node import restart
from cnnjob.slurm.scheduler import accounting, client, job_states, queue, site
from cnnjob.slurm.submit import dry_run
from tests.helpers.fake_slurm import FakeSlurm
from tests.helpers.run_folders import owner_record

SQUEUE = r"""printf '%s\n' \
"2_0|COMPLETED|None|n1|2026-11-29T18:51:43|2026-11-29T18:51:46|(null)" \
"17|FAILED|BadConstraints||2026-11-29T18:51:44|2026-11-29T18:51:44|(null)" \
"2_[4-5%2]|PENDING|JobArrayTaskLimit||N/A|N/A|(null)" \
"26|PENDING|ReqNodeNotAvail, May be reserved for other job||N/A|N/A|(null)" \
"10|SUSPENDED|None|n1|2026-11-29T18:51:44|2026-11-29T18:56:44|(null)" \
"1|RUNNING|None|n1|2026-11-29T18:51:43|2026-11-29T18:56:43|cnnjob a|b c" """
SACCT = r"""printf '%s\n' \
"1|CANCELLED by 65534|0:0|n1|2026-11-29T18:51:49" \
"1.batch|CANCELLED|0:15|n1|2026-11-29T18:51:49" \
"2_4|COMPLETED|0:0|n1|2026-11-29T18:51:53" \
"2_[5-6%2]|PENDING|0:0|None assigned|Unknown" \
"3|FAILED|3:0|n1|2026-11-29T18:51:43" \
"8|RUNNING|0:0|n2|Unknown" """
JOB = r"""JobId=10 JobName={name}
   UserId=nobody(65534) GroupId=nogroup(65534) MCS_label=N/A
   Priority=42 Nice=0 Account=lab QOS=normal WCKey=*
   JobState={state} Reason=None Dependency=(null)
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime={ran} TimeLimit=00:01:00 TimeMin=N/A
   SubmitTime=2026-11-29T18:51:50 EligibleTime=2026-11-29T18:51:50
   AccrueTime=2026-11-29T18:51:50
   StartTime=2026-11-29T18:51:50 EndTime=2026-11-29T18:56:50 Deadline=N/A
   PreemptEligibleTime=2026-11-29T18:51:50 PreemptTime={preempted}
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-29T18:51:44 Scheduler=Backfill
   Partition=debug AllocNode:Sid=localhost:0
   NodeList=n1
   NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   ReqTRES=cpu=1,mem=100M,node=1,billing=1,gres/gpu=1
   Features=(null) DelayBoot=00:00:00
   OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null)
   Command={text}
   WorkDir={text}
   Comment={text}
   StdErr={text}
   StdIn=/dev/null
   StdOut={text}
   TresPerNode=gres/gpu:1
"""
MISLEADING = "/a JobState=FAILED Restarts=9 PreemptTime=2027-01-01T00:00:00 EndTime=Unknown Requeue=0"
SCONTROL = r"""case "$*" in
*"show partition"*) printf '%s\n' \
"PartitionName=debug AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A \
DefaultTime=00:05:00 DisableRootJobs=NO ExclusiveUser=NO ExclusiveTopo=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED \
MaxTime=01:00:00 MinNodes=0 NodeSets=ALL Nodes=n[1-2] PreemptMode=OFF State=DOWN TotalCPUs=8 TotalNodes=2 \
JobDefaults=(null) DefMemPerNode=UNLIMITED TRES=cpu=8,mem=16000M,node=2,billing=8,gres/gpu=4" \
"PartitionName=low AllowAccounts=lab,other Default=NO DefaultTime=NONE GraceTime=30 MaxTime=UNLIMITED \
PreemptMode=REQUEUE State=UP";;
*"show config"*) printf '%s\n' "Configuration data as of 2026-11-29T18:51:48" \
"AccountingStorageType   = accounting_storage/slurmdbd" "JobRequeue              = 0" \
"KillWait                = 5 sec" "MaxArraySize            = 1001" "MaxBatchRequeue         = 5" \
"SelectType              = select/cons_tres" "SelectTypeParameters    = CR_CPU_MEMORY" \
"SlurmctldParameters     = preempt_send_user_signal" "SLURM_VERSION           = 24.11.5";;
esac"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Commands of SLURM that print these answers."""
    commands = FakeSlurm(tmp_path / "commands")
    commands.install(squeue=SQUEUE, sacct=SACCT, scontrol=SCONTROL)
    monkeypatch.setenv("PATH", str(commands.folder))
    return commands


@pytest.mark.usefixtures("here")
def test_squeue() -> None:
    listing = queue.list_queue([65534], ended=True)
    assert listing.complete
    states = {job.job_id: job.state for job in listing.jobs}
    assert states == {
        "2_0": "COMPLETED", "17": "FAILED", "2_4": "PENDING", "2_5": "PENDING", "26": "PENDING", "10": "SUSPENDED",
        "1": "RUNNING",
    }  # fmt: skip
    assert listing.jobs[-1].comment == "cnnjob a|b c"
    assert not job_states.parse_reason(next(job.reason for job in listing.jobs if job.job_id == "26")).never


@pytest.mark.usefixtures("here")
def test_sacct() -> None:
    fates = accounting.query_outcomes(["1", "2_4", "3", "8"])
    assert {job_id: fate.state for job_id, fate in fates.items()} == {
        "1": "CANCELLED", "2_4": "COMPLETED", "2_5": "PENDING", "2_6": "PENDING", "3": "FAILED", "8": "RUNNING",
    }  # fmt: skip
    assert (fates["1"].cancelled_by, fates["3"].exit_code) == ("65534", "3:0")


@pytest.mark.parametrize(
    ("state", "restarts", "ran", "preempted", "ended_by"),
    [
        ("COMPLETING", 1, "00:00:00", "None", "requeued"),
        ("COMPLETING", 0, "00:00:09", "2026-11-29T18:51:59", "preempted"),
        ("COMPLETING", 0, "00:01:15", "None", "time limit"),
        ("CANCELLED", 0, "00:00:06", "None", "cancelled"),
        ("RUNNING", 0, "00:00:06", "None", "itself"),
    ],
)
def test_a_job(here: FakeSlurm, state: str, restarts: int, ran: str, preempted: str, ended_by: str) -> None:
    texts = (("wrap", "(null)"), (MISLEADING, MISLEADING), ("a b", MISLEADING.replace(" ", "\n   ")))
    for name, text in texts:
        said = JOB.format(name=name, text=text, state=state, restarts=restarts, ran=ran, preempted=preempted)
        here.install(scontrol=f"echo '{said}'")
        job = client.query_job("10")
        assert (job["JobState"], job["EndTime"], job["Requeue"]) == (state, "2026-11-29T18:56:50", "1")
        assert restart.cause_of_end(job, 0) == ended_by


def test_a_job_whose_name_says_that_it_has_ended(here: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    facts = {"text": "(null)", "restarts": 0, "ran": "00:00:06", "preempted": "None"}
    for name, state, ended in (("a\n   JobState=FAILED", "RUNNING", False), ("a", "FAILED", True)):
        said = JOB.format(name=name, state=state, **facts)
        here.install(scontrol=f"echo '{said}'")
        begun = datetime.fromisoformat("2026-11-29T18:51:50").astimezone().isoformat()
        assert client.job_is_over(owner_record("10", uid=None, started=begun), 0) is ended


@pytest.mark.usefixtures("here")
def test_the_site() -> None:
    found = site.query_site()
    debug, low = found.partitions["debug"], found.partitions["low"]
    assert (debug.is_default, debug.state, debug.max_minutes, debug.default_minutes) == (True, "DOWN", 60, 5)
    assert (low.max_minutes, low.default_minutes, low.preempt_mode, low.grace_seconds) == (None, None, "REQUEUE", 30)
    assert low.accounts == ("lab", "other")
    assert (found.version, found.requeues, found.max_array_size, found.kill_wait_seconds) == ("24.11.5", False, 1001, 5)
    assert found.signals_preempted
    assert found.counts_gpus
    assert found.keeps_accounts
    nodes = Nodes.parse("debug|2|4|8000|gpu:2")
    assert nodes is not None
    assert nodes.describe() == "2 nodes with 4 cores, 8 GB and 2 GPUs"


@pytest.mark.parametrize(
    ("refusal", "ended"),
    [
        ("slurm_load_jobs error: Invalid job id specified", True),
        ("Job 4_0 not found", True),  # of an array of which others are still known
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", False),
    ],
)
def test_a_job_that_is_not_known_has_ended(
    here: FakeSlurm, monkeypatch: pytest.MonkeyPatch, refusal: str, *, ended: bool
) -> None:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    here.install(scontrol=f"echo '{refusal}' >&2; exit 1")
    assert client.job_is_over(owner_record("4_0"), 100) is ended


def test_what_sbatch_would_do(here: FakeSlurm) -> None:
    starts = "Job 13 to start at 2026-11-29T19:06:44 using 1 processors on nodes n1 in partition debug"
    here.install(sbatch=f"echo 'sbatch: {starts}' >&2")
    assert dry_run.query_start("") == (starts, False)
    here.install(sbatch="echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    said, refused = dry_run.query_start("")
    assert (said.endswith("allocation failure: Requested node configuration is not available"), refused) == (True, True)
