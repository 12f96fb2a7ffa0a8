"""Queue and accounting that fail, stay silent, or answer as other versions of SLURM do."""

import re
import shlex
import time
from pathlib import Path

import pytest

from cnnjob.doctor.cluster import Nodes
from cnnjob.slurm import diagnosis, status
from cnnjob.slurm.node import restart
from cnnjob.slurm.scheduler import accounting, client, queue
from cnnjob.slurm.scheduler import job_states as words
from cnnjob.slurm.scheduler.site import query_site as look_at_site
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.request import Request
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import ANSWERS, SILENCE, FakeSlurm, queue_row, set_answers
from tests.helpers.run_folders import finished_run, pending_run, stopped_run
from tests.helpers.slurm_runs import lost_in_job, silent_run, status_of, stopped_in_job, waiting_run, with_job

pytestmark = pytest.mark.usefixtures("idle_slurm")


@pytest.mark.parametrize(
    ("squeue", "said"),
    [
        ("exit 1", "squeue: refused, exit code 1; the states shown are from the run folders"),
        # https://github.com/fls-bioinformatics-core/auto_process_ngs/issues/1182
        (
            'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1',
            "controller",
        ),
        # https://github.com/NCAR/ncar-python-tutorial/issues/13
        ('echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1', "Socket timed out"),
        (SILENCE, "no answer within 0.3 s"),
        ('printf "\\377\\376|\\000|\\n"', "part of its output could not be parsed"),
        ("echo slurm_load_jobs error: Invalid user", "part of its output could not be parsed"),
        ('echo "17_[1,3,5...]|PENDING|None||N/A|N/A|"', "part of its output could not be parsed"),
        ('echo "17|PENDING"', "part of its output could not be parsed"),
        (None, "squeue: not found; this machine has no SLURM; the states shown are from the run folders"),
    ],
)
def test_a_queue_that_cannot_be_read_makes_nothing_lost(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, squeue: str | None, said: str
) -> None:
    if squeue == SILENCE:
        monkeypatch.setattr(status, "ANSWER_SECONDS", 0.5)
    for make in (waiting_run, stopped_in_job, silent_run, finished_run):
        make(Path("runs") / make.__name__)
    folders = sorted(Path("runs").iterdir())
    idle_slurm.install(squeue=squeue, sacct="exit 1")
    found = cnnjob("status", *map(str, folders))
    assert found.exit_code == 0, found.output
    assert said in found.stderr
    assert found.stderr.count("\n") == 1
    states = [line.split()[1] for line in found.stdout.splitlines()[2:6]]
    assert sorted(states) == ["finished", "pending", "running", "stopped"], found.stdout


def test_without_a_slurm_nothing_is_said_of_it(idle_slurm: FakeSlurm) -> None:
    idle_slurm.install(squeue=None, sacct=None)
    stopped_run(Path("runs"))
    found = cnnjob("status")
    assert (found.exit_code, found.stderr) == (0, "")


@pytest.mark.parametrize(
    "sacct",
    [
        None,
        "exit 1",
        'echo "Slurm accounting storage is disabled" >&2; exit 1',  # 22.05, observed; "SLURM accounting …" before 20.11
        'echo "sacct: error: Problem talking to the database: Connection refused" >&2; exit 1',
        'echo "Slurm accounting storage is disabled"',
        'printf "\\377|\\376|x|y|z\\n17|WHATEVER|0:0||\\n17\\n"',
        SILENCE,
    ],
)
def test_accounts_that_cannot_be_read(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, sacct: str | None
) -> None:
    if sacct == SILENCE:
        monkeypatch.setattr(status, "ANSWER_SECONDS", 2.0)  # enough for squeue
    run = lost_in_job(Path("runs"))
    idle_slurm.install(sacct=sacct)
    found = cnnjob("status", str(run.path))
    assert (found.exit_code, "lost" in found.stdout, found.stderr) == (0, True, ""), found.output


CHANGING = {
    "SQUEUE_STATES": "COMPLETED", "SQUEUE_PARTITION": "none", "SQUEUE_USERS": "root", "SQUEUE_FORMAT2": "jobid",
    "SACCT_FORMAT": "jobid", "SACCT_LOCAL": "1", "SINFO_FORMAT": "%n", "SINFO_PARTITION": "none",
    "SCANCEL_INTERACTIVE": "1", "SCANCEL_STATE": "PENDING", "SCONTROL_LOCAL": "1", "SACCTMGR_X": "1",
    "SLURM_TIME_FORMAT": "relative", "SLURM_BITSTR_LEN": "1", "SBATCH_TEST": "1", "SLURM_JOB_ID": "9",
}  # fmt: skip
"""Variables that change what SLURM's commands answer or do, and one of an enclosing job."""
SELECTING = {"SLURM_CONF": "/etc/lab.conf", "SLURM_CLUSTERS": "lab", "SLURM_JWT": "x"}


def test_no_command_of_slurm_sees_variables_that_change_its_answer(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = f'export -p >> {tmp_path}/environment; echo "${{0##*/}}" >> {tmp_path}/called'
    answers = {name: ANSWERS.get(name, "") for name in ("squeue", "sacct", "scontrol", "sbatch", "srun", "sinfo")}
    run = with_job(pending_run(Path("runs")))
    answers["squeue"] = f'echo "17|RUNNING|None|n1|N/A|N/A|cnnjob {run.path.resolve()} 1"'
    idle_slurm.install(**{name: f"{record}\n{lines}" for name, lines in answers.items()}, scancel=record)
    for name, value in (CHANGING | SELECTING).items():
        monkeypatch.setenv(name, value)
    assert cnnjob("cancel", str(run.path)).exit_code == 0
    assert cnnjob("status", str(with_job(pending_run(Path("runs"), seed=1), "18").path)).exit_code == 0
    assert submission.submit([pending_run(Path("runs"), seed=2)], Request())[0].job_id == "17"
    cnnjob("doctor")
    assert set((tmp_path / "called").read_text().split()) == {*answers, "scancel"} - {"srun"}
    seen = set(re.findall(r"\b(\w+)=", (tmp_path / "environment").read_text()))
    assert seen & {*CHANGING, *SELECTING} == set(SELECTING)


def test_a_command_that_cannot_be_executed(idle_slurm: FakeSlurm) -> None:
    (idle_slurm.folder / "squeue").write_bytes(b"\x00\x01")
    waiting_run(Path("runs"))
    found = cnnjob("status")
    assert (found.exit_code, "squeue: " in found.stderr) == (0, True)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        # the states and flags of https://slurm.schedmd.com/job_state_codes.html (24.11)
        *((name, name) for name in sorted(words.STATES)),
        # gc3pie, gc3libs/backends/tests/test_slurm.py (2.6 to 16.05)
        ("CANCELLED by 1000", "CANCELLED"),
        # https://github.com/rug-cit-hpc/hb-jobinfo, test/data/sacct.txt (23.02)
        ("CANCELLED by 10304007", "CANCELLED"),
        # cut at sacct's ten columns, as in the manuals of many sites
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
        ("CANCELLED+", "CANCELLED"),
        ("NODE_FAIL+", "NODE_FAIL"),
        ("SPECIAL_E+", "SPECIAL_EXIT"),
        ("RE+", "RE"),
        ("", ""),
    ],
)
def test_words_for_states(text: str, state: str) -> None:
    assert words.parse_state(text) == state


@pytest.mark.parametrize("state", sorted(words.STATES | {"NEVER_HEARD_OF", "EXPEDITING"}))
def test_no_state_in_the_queue_makes_a_run_fail(idle_slurm: FakeSlurm, state: str) -> None:
    run = stopped_in_job(Path("runs"))
    set_answers(idle_slurm, queue_row(state))
    assert status_of(run).state in {"pending", "running", "stopped", "cancelled"}
    assert (status_of(run).state == "cancelled") == (state == "CANCELLED")


@pytest.mark.parametrize(
    ("sacct", "state", "by"),
    [
        # gc3pie, gc3libs/backends/tests/test_slurm.py; its columns in the order asked for here
        ("17|CANCELLED by 1000|0:0|n1|2014-12-11T17:13:44\n17.batch|CANCELLED|0:15|n1|2014-12-11T17:13:44",
         "CANCELLED", "1000"),
        ("17|NODE_FAIL|1:0|n1|2016-09-23T20:06:24\n17.0|CANCELLED by 1000|-2:0|n1|2016-09-23T20:06:24", "NODE_FAIL",
         None),
        ("17|TIMEOUT|0:1|n1|2014-12-11T17:11:34\n17.batch|CANCELLED|0:15|n1|2014-12-11T17:11:34", "TIMEOUT", None),
        ("17|COMPLETED|0:0|n1|4 Sep 11:18\n17.batch|COMPLETED|0:0|n1|4 Sep 11:18", "COMPLETED", None),
        # https://github.com/rug-cit-hpc/hb-jobinfo, test/data/sacct.txt (23.02)
        ("17|CANCELLED by 10290820|0:0|None assigned|2023-09-01T14:55:57", "CANCELLED", "10290820"),
        ("17|FAILED|1:0|n1|x\n17.extern|COMPLETED|0:0|n1|x\n17.0|FAILED|1:0|n1|x", "FAILED", None),
        # 22.05 with cgroups, observed: srun hides it from the job
        ("17|FAILED|137:0|n1|x\n17.batch|FAILED|137:0|n1|x\n17.0|OUT_OF_MEMORY|0:125|n1|x", "OUT_OF_MEMORY", None),
        ("17|OUT_OF_ME+|0:125|n1|x", "OUT_OF_MEMORY", None),
        ("a banner of the site\n\n17|PREEMPTED|0:0|n1|x\nand another|one", "PREEMPTED", None),
    ],
)  # fmt: skip
def test_accounts(idle_slurm: FakeSlurm, sacct: str, state: str, by: str | None) -> None:
    set_answers(idle_slurm, "", sacct)
    fate = accounting.query_outcomes(["17"])["17"]
    assert (fate.state, fate.cancelled_by) == (state, by)


def test_accounts_of_arrays(idle_slurm: FakeSlurm) -> None:
    set_answers(
        idle_slurm,
        "",
        "17_3|FAILED|1:0|n1|x\n17_3.batch|FAILED|1:0|n1|x\n17_[4-6%2]|PENDING|0:0|None assigned|Unknown\n",
    )
    assert {job: fate.state for job, fate in accounting.query_outcomes(["17_3"]).items()} == {
        "17_3": "FAILED", "17_4": "PENDING", "17_5": "PENDING", "17_6": "PENDING",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "jobs", "whole"),
    [
        # gc3pie, gc3libs/backends/tests/test_slurm.py: lines of a site's own around the answer
        ("Site-specific preamble here.\n17|PENDING|Resources||N/A|N/A|\n\nAdditional info.", ["17"], True),
        # a header, although none was asked for (squeue's own names of these columns)
        ("JOBID|STATE|REASON|NODELIST|START_TIME|END_TIME|COMMENT\n17|RUNNING|None|n1|x|y|z", ["17"], True),
        # https://slurm.schedmd.com/job_array.html and heterogeneous_jobs.html
        ("17_[0-5:2%4]|PENDING|JobArrayTaskLimit||N/A|N/A|", ["17_0", "17_2", "17_4"], True),
        ("17+0|RUNNING|None|n1|x|y|z", ["17"], True),
        ("17_[1-4,7...|PENDING|None||N/A|N/A|", [], False),
        ("17_[1-999999999]|PENDING|None||N/A|N/A|", [], False),
        ("17|PENDING", [], False),
        ("18_[1-4,7...|PENDING|None||N/A|N/A|cnnjob /a 1", [], False),
        # of others: nothing that is looked for
        ("18_[1-4,7...|PENDING|None||N/A|N/A|(null)\n17|RUNNING|None|n1|x|y|z", ["17"], True),
        ("18_[1-4,7...|???|None||N/A|N/A|a job of mine", [], True),
        ("squeue: warning: something", [], False),
        ("", [], True),
    ],
)
def test_queues(idle_slurm: FakeSlurm, answer: str, jobs: list[str], whole: bool) -> None:  # noqa: FBT001
    set_answers(idle_slurm, f"{answer}\n" if answer else "")
    found = queue.list_queue([0], ["17"])
    assert ([job.job_id for job in found.jobs], found.complete) == (jobs, whole)


def test_a_comment_of_several_lines_is_no_other_job(idle_slurm: FakeSlurm) -> None:
    """Whatever it says; squeue writes it as it is."""
    lines = ("18|RUNNING|None|n1|x|y|a", "17|RUNNING|None|n1|x|y|cnnjob /a 1", "1|2", "b\u2028c|d")
    begin = 'for mark; do :; done; printf "%s|" "${mark%%|*}"'
    idle_slurm.install(squeue=f"{begin}; printf '%s\\n' {' '.join(map(shlex.quote, lines))}")
    found = queue.list_queue([0])
    assert ([job.job_id for job in found.jobs], found.complete) == (["18"], True)


LONG = "9" * 5000
"""A number that Python refuses to convert."""


def test_numbers_of_5000_digits_are_no_numbers(idle_slurm: FakeSlurm) -> None:
    rows = [f"{text}|RUNNING|None|n1|{LONG}|{LONG}|x" for text in (
        LONG, f"17_{LONG}", f"17_[0-{LONG}]", f"17_[{LONG}]", f"17_[0-5:{LONG}]", "17_[1-99999999999999999999]",
    )]  # fmt: skip
    for line in rows:
        set_answers(idle_slurm, f"{line}\n")
        assert queue.list_own_jobs() == []
    set_answers(idle_slurm, "", f"{LONG}|FAILED|1:0|n1|x\n17_{LONG}|FAILED|1:0|n1|x\n17|CANCELLED by {LONG}|1:0|n1|x\n")
    fates = accounting.query_outcomes(["17"])
    assert list(fates) == ["17"]
    assert LONG in diagnosis.user_of(fates["17"].cancelled_by)
    facts = {"JobState": "RUNNING", "Restarts": LONG, "RunTime": f"{LONG}-00:00:00", "TimeLimit": f"{LONG}:00:00"}
    assert restart.cause_of_end(facts, 0) == "itself"


def test_a_site_of_numbers_of_5000_digits(idle_slurm: FakeSlurm) -> None:
    partition = f"PartitionName=gpu MaxTime={LONG} DefaultTime={LONG}-00:00:00 GraceTime={LONG} State=UP"
    config = f"MaxArraySize = {LONG}; KillWait = {LONG} sec; SLURM_VERSION = {LONG}"
    idle_slurm.install(scontrol=f'case "$*" in *config*) echo "{config}";; *) echo "{partition}";; esac')
    found = look_at_site()
    assert (found.max_array_size, found.kill_wait_seconds) == (1001, 30)
    assert found.partitions["gpu"].max_minutes is None
    assert Nodes.parse(f"gpu|{LONG}|4|8000|gpu:2") is None
    nodes = Nodes.parse(f"gpu|2|4|8000|gpu:{LONG}")
    assert nodes is not None
    assert nodes.gpus == ()


def test_a_comment_may_hold_the_separator(idle_slurm: FakeSlurm) -> None:
    set_answers(idle_slurm, queue_row("PENDING", comment="cnnjob /a|b 1"))
    assert queue.list_own_jobs()[0].comment == "cnnjob /a|b 1"


@pytest.mark.parametrize(
    ("reason", "said", "never"),
    [
        # https://slurm.schedmd.com/job_reason_codes.html, and src/common/job_state_reason.c of SLURM 24.11
        ("Priority", "jobs of higher priority start first", False),
        ("PartitionTimeLimit", "it requests more time than its partition allows", True),
        ("QOSMaxWallDurationPerJobLimit", "it requests more time than its QOS allows per job", True),
        ("QOSMaxCpuPerUserLimit", "the limit of its QOS on cores per user has been reached", False),
        ("QOSMaxGRESPerUser", "the limit of its QOS on GPUs per user has been reached", False),
        ("QOSMaxMemoryPerJob", "it requests more memory than its QOS allows per job", True),
        ("QOSGrpNodeLimit", "the limit of its QOS on nodes has been reached", False),
        ("QOSMinGRES", "it requests fewer GPUs than its QOS requires", True),
        ("AssocGrpCPUMinutesLimit", "the limit of its account on cores has been reached", False),
        ("AssocMaxJobsLimit", "the limit of its account on jobs has been reached", False),
        ("MaxGRESPerAccount", "the limit of its account on GPUs has been reached", False),
        ("AccountingPolicy", "AccountingPolicy", False),
        ("BadConstraints", "no node has what it requests", True),
        ("DependencyNeverSatisfied", "the job that it depends on failed", True),
        # a class repository's fixture of DAS-5's squeue, February 2021
        ("ReqNodeNotAvail, UnavailableNodes:node[028,054,074]",
         "nodes that it requests are down or drained (node[028,054,074])", False),
        ("(Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions)",
         "nodes that it requests are down, drained, or reserved for partitions of higher priority", False),
        # 22.05, observed of reservations with and without the flag MAINT; 24.11, observed
        ("ReqNodeNotAvail, Reserved for maintenance",
         "its nodes are reserved for maintenance or other jobs, starting before it could end", False),
        ("ReqNodeNotAvail, May be reserved for other job", "nodes that it requests may be reserved for another job",
         False),
        ("ReqNodeNotAvail, UnavailableNodes:", "nodes that it requests are not available", False),
        ("ReqNodeNotAvail", "nodes that it requests are not available", False),
        ("Reservation", "its reservation has not begun", False),
        ("job_requeued_in_held_state", "it was requeued and is held", False),  # up to 23.02
        ("launch failed requeued held", "it was requeued and is held", False),
        ("Never, heard", "Never, heard", False),
        ("", "SLURM gives no reason", False),
    ],
)  # fmt: skip
def test_reasons(reason: str, said: str, never: bool) -> None:  # noqa: FBT001
    found = words.parse_reason(reason)
    assert (found.phrase, found.never) == (said, never)


def test_patience_is_bounded(idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "ANSWER_SECONDS", 1.0)
    silent_run(Path("runs"))
    idle_slurm.install(squeue=SILENCE, sacct=SILENCE)
    start = time.monotonic()
    assert cnnjob("status").exit_code == 0
    assert time.monotonic() - start < 10
    assert client.ANSWER_SECONDS > status.ANSWER_SECONDS
