"""Submitting without a SLURM: which job, what is submitted, and what a scheduler may answer.

Where commands of SLURM are called they are small shell scripts that answer as one does, or as none should.
"""

import os
import pwd
import re
import select
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.errors import JobError, SchedulerError
from cnnjob.slurm.scheduler import client, queue
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.request import Request
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import ANSWERS, JOB_OF_NUMPY, FakeSlurm
from tests.helpers.run_folders import finished_run, lost_run, pending_run, running_run, stopped_run
from tests.helpers.slurm_runs import only_run

# --- which job


@pytest.mark.usefixtures("no_slurm")
def test_the_job_of_the_one_prepared_dataset() -> None:
    none = cnnjob("submit", "--dry-run", "--data", "nowhere")
    assert (none.exit_code, "no job specified, and no dataset in nowhere/. Prepare a" in none.stderr) == (2, True)
    Path("jobs").mkdir()
    Path("jobs/toy.toml").write_text(JOB_OF_NUMPY)
    one = cnnjob("submit", "--dry-run", "--no-rehearsal")
    assert (one.exit_code, 'name = "toy"' in one.stdout) == (0, True), one.output
    Path("data/digits.h5").touch()
    two = cnnjob("submit", "--dry-run")
    assert (two.exit_code, "(found 2 prepared datasets in data/). Choose one of digits, toy" in two.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["toyy.toml"], 3, "toyy.toml: no such file"),
        (["toy.toml", "--profile", "lob"], 3, "--profile lob: no such profile. Did you mean 'lab'?"),
        (["toy.toml", "--mem", "4G", "--mem-per-cpu", "1G"], 2, "mem and mem_per_cpu are mutually exclusive"),
        (["toy.toml", "--time", "soon"], 2, "not a time limit (found 'soon')"),
        (["toy.toml", "--sbatch", "=5"], 2, "--sbatch =5: not of the form KEY=VALUE"),
        (["toy.toml", "--cpus-per-task", "0"], 2, "'--cpus-per-task' / '-c'"),
        (["toy.toml", "--set", "dataset=mnist"], 3, "Prepare it:\n    cnnjob prepare mnist"),
        (["toy.toml"], 4, "scontrol: not found; this machine has no SLURM. Log in to a machine that has it"),
        (
            ["toy.toml", "-p", "gpu"],
            4,
            "scontrol: not found; this machine has no SLURM. Log in to a machine that has it",
        ),
    ],
)
@pytest.mark.usefixtures("no_slurm")
def test_mistakes_are_one_message(arguments: list[str], code: int, message: str) -> None:
    found = cnnjob("submit", *arguments)
    assert (found.exit_code, message in found.stderr) == (code, True), found.output
    assert found.stdout == ""
    assert "Traceback" not in found.output


# --- submitting


@pytest.mark.usefixtures("slurm")
def test_what_is_submitted_is_what_the_dry_run_shows() -> None:
    options = ("toy.toml", "--partition", "gpu", "--time", "2h")
    shown = cnnjob("submit", *options, "--dry-run", "--no-rehearsal").stdout
    found = cnnjob("submit", *options)
    assert found.exit_code == 0, found.output
    run = only_run()
    assert found.stdout == f"{run.path}: submitted as job 17: {Request(partition='gpu', time='2h').describe()}\n"
    script = (run.path / "slurm" / "17_submission.sh").read_text()
    assert f"\n{script}\nnothing was submitted\n" in shown
    assert Request.model_validate(files.read_json(run.path / "slurm" / "request.json")).gpus == 0


@pytest.mark.usefixtures("slurm")
def test_an_enclosing_job_does_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SBATCH_EXPORT", "SRUN_CPUS_PER_TASK", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    before = dict(os.environ)
    assert cnnjob("submit", "toy.toml").exit_code == 0
    seen = Path("environment").read_text()
    assert re.findall(r"\b((?:SLURM|SBATCH|SRUN|SUBMITIT)_\w+)=", seen) == ["SLURM_CONF"]
    assert "PATH=" in seen
    assert dict(os.environ) == before


def test_a_job_that_waits_or_runs_is_left_alone(slurm: FakeSlurm) -> None:
    cnnjob("submit", "toy.toml")
    run = only_run()
    line = "|PENDING|Resources||N/A|N/A|cnnjob"
    slurm.install(
        squeue=f'echo "16{line}"; echo "17{line} {run.path.resolve()} 1"; echo "19{line} {run.path.resolve()}2 1"'
    )
    again = cnnjob("submit", "toy.toml")
    assert (again.exit_code, again.stdout) == (0, f"{run.path}: queued as 17, nothing submitted\n")
    running = running_run(Path("other"))
    assert [done.status for done in submission.submit([running], Request())] == ["running"]
    assert [done.status for done in submission.submit([finished_run(Path("another"))], Request())] == ["finished"]


def test_a_job_whose_run_folder_was_removed_while_it_waits_gets_its_files_again(slurm: FakeSlurm) -> None:
    cnnjob("submit", "toy.toml")
    run = only_run()
    before = {path.name for path in run.slurm_folder.iterdir()}
    shutil.rmtree(run.path)
    slurm.install(squeue=f'echo "17|PENDING|Resources||N/A|N/A|cnnjob {run.path.resolve()} 1"')
    again = cnnjob("submit", "toy.toml")
    assert (again.exit_code, again.stdout) == (0, f"{run.path}: queued as 17, nothing submitted\n")
    assert {path.name for path in run.slurm_folder.iterdir()} == before - {"17_submission.sh"}


@pytest.mark.usefixtures("slurm")
def test_a_stopped_or_lost_run_goes_on() -> None:
    for run in (stopped_run(Path("a")), lost_run(Path("b")), pending_run(Path("c"))):
        [done] = submission.submit([run], Request())
        assert (done.job_id, done.status) == ("17", "submitted")


# --- a scheduler that does not answer as it should


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"scontrol": "exit 1"}, "scontrol --all show partition --oneliner: refused, exit code 1"),
        (
            {"scontrol": 'echo "Unable to contact slurm controller" >&2; exit 1'},
            "refused, Unable to contact slurm controller",
        ),
        (
            {"scontrol": "echo PartitionName=gpu-long; echo PartitionName=batch State=UP"},
            "--partition gpu: no such partition. Valid names for this site: batch, gpu-long",
        ),
        ({"scontrol": "echo PartitionName=gpu State=DRAIN"}, "--partition gpu: state DRAIN; it accepts no jobs"),
        ({"scontrol": "echo PartitionName=gpu State=INACTIVE"}, "--partition gpu: state INACTIVE; it accepts no jobs"),
        (
            {"scontrol": "echo PartitionName=gpu MaxTime=00:30:00"},
            "--time 2h: longer than the limit of partition gpu (30 min). Request less",
        ),
        (
            {"scontrol": "echo PartitionName=gpu AllowAccounts=them,uss"},
            "--account us: not allowed in partition gpu. Did you mean 'uss'? Valid names for this partition: them, uss",
        ),
        (
            {"squeue": "exit 1"},
            f"|{queue.FORMAT}: refused, exit code 1",
        ),
        ({"squeue": None}, "squeue: not found; this machine has no SLURM"),
        ({"srun": None}, "srun: not found; this machine has no SLURM"),
        ({"sbatch": None}, "sbatch: not found; this machine has no SLURM"),
        (
            {"sbatch": 'echo "Batch job submission failed: Invalid account" >&2; exit 1'},
            "sbatch: refused, Batch job submission failed: Invalid account",
        ),
        ({"sbatch": 'echo "sbatch: error: one" >&2; echo "two" >&2; exit 1'}, "sbatch: refused, sbatch: error: one"),
        ({"sbatch": 'echo "sbatch: no option x" >&2; echo "Try --help" >&2; exit 1'}, "refused, sbatch: no option x"),
        ({"sbatch": "exit 1"}, "sbatch: refused, exit code 1"),
        (
            {"sbatch": "echo garbage"},
            "sbatch: its output contains no job id (found 'garbage'), and no such job is in the queue. Submit",
        ),
        (
            {"sbatch": "exit 0"},
            "sbatch: its output contains no job id (found ''), and no such job is in the queue. Submit again",
        ),
    ],
)
def test_what_a_scheduler_may_do(slurm: FakeSlurm, answers: dict[str, str | None], message: str) -> None:
    slurm.install(**answers)
    found = cnnjob("submit", "toy.toml", "--partition", "gpu", "--time", "2h", "--account", "us")
    assert (found.exit_code, found.stdout) == (4, ""), found.output
    assert message in found.stderr
    assert found.stderr.startswith("cnnjob: ")
    advice = ". To train here, without SLURM:\n  cnnjob submit --local" if "no SLURM" in message else ""
    assert found.stderr.count("\n") == 1 + advice.count("\n")
    assert advice in found.stderr


@pytest.mark.usefixtures("slurm")
def test_an_unknown_partition_is_named_with_the_near_one() -> None:
    found = cnnjob("submit", "toy.toml", "--partition", "debug,gup")
    assert found.exit_code == 4
    assert (
        "--partition gup: no such partition. Did you mean 'gpu'? Valid names for this site: debug, gpu, gpu-long"
        in found.stderr
    )
    assert cnnjob("submit", "toy.toml", "--partition", "debug,gpu").exit_code == 0


@pytest.mark.parametrize(
    ("asked", "states", "warned"),
    [
        ("gpu", {"gpu": "DOWN"}, "gpu"),
        ("gpu,low", {"gpu": "DOWN", "low": "DRAIN"}, "gpu"),
        ("gpu,low", {"gpu": "DOWN", "low": "DOWN"}, "gpu,low"),
        ("gpu,low", {"gpu": "DOWN", "low": "UP"}, ""),
        ("", {"gpu": "DOWN Default=YES"}, "gpu"),
        ("gpu", {"gpu": "UP"}, ""),
    ],
)
def test_a_partition_that_is_down_takes_jobs_and_a_warning_is_said(
    slurm: FakeSlurm, asked: str, states: dict[str, str], warned: str
) -> None:
    lines = "; ".join(f'echo "PartitionName={name} State={state}"' for name, state in states.items())
    slurm.install(scontrol=f'case "$*" in *partition*) {lines};; esac')
    options = ["--partition", asked] * bool(asked)
    found = cnnjob("submit", "toy.toml", *options)
    said = (
        f"cnnjob: warning: --partition {warned}: state DOWN; "
        "the job will wait in the queue until the site sets the state to UP\n"
    )
    assert (found.exit_code, found.stderr) == (0, said * bool(warned)), found.output
    assert ": submitted as job 17" in found.stdout
    shown = cnnjob("submit", "toy.toml", "--set", "seed=5", *options, "--dry-run", "--no-rehearsal").stdout
    assert ("DOWN; the job will wait" in shown) == bool(warned)


@pytest.mark.parametrize(
    ("options", "script", "said"),
    [
        (("--set", "resources.backend=numpy"), "", ""),
        (
            ("--set", "resources.backend=numpy", "--gpus", "1"),
            "#SBATCH --gpus-per-node=1",
            "a run on NumPy uses no GPU",
        ),
        (("--set", "resources.backend=auto"), "#SBATCH --gpus-per-node=1", ""),
        (("--set", "resources.backend=auto", "--gpus", "2"), "#SBATCH --gpus-per-node=2", "1 of 2 will be idle"),
    ],
)
@pytest.mark.usefixtures("slurm")
def test_a_profile_with_gpus_and_the_backend_of_the_command_line(
    options: tuple[str, ...], script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cupy.py").touch()
    monkeypatch.syspath_prepend(tmp_path)  # where CuPy is installed
    Path("site.toml").write_text("gpus = 1\n[sbatch]\ngpu-bind = 'closest'\n")
    found = cnnjob("submit", "toy.toml", "--profile", "site.toml", *options)
    assert found.exit_code == 0, found.output
    asked = [
        line for line in (only_run().slurm_folder / "17_submission.sh").read_text().splitlines() if "gpus-per" in line
    ]
    assert asked == [script] * bool(script)
    assert (said in found.stderr, bool(found.stderr)) == (True, bool(said))


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("options", [("--dry-run", "--no-rehearsal"), ()])
def test_gpus_that_are_requested_without_cupy_are_said(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    found = cnnjob("submit", "toy.toml", "--set", "resources.backend=auto", *options)
    assert found.exit_code == 0, found.output
    assert found.stderr.startswith("cnnjob: warning: GPUs are requested, but CuPy is not installed in /")
    assert found.stderr.endswith("or train on CPUs with --gpus 0\n")
    assert not cnnjob("submit", "toy.toml", "--set", "resources.backend=auto", "--gpus", "0", *options).stderr


@pytest.mark.usefixtures("slurm")
def test_a_folder_with_a_line_end_in_its_name_is_refused() -> None:
    found = cnnjob("submit", "toy.toml", "--runs", "a\nb")
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "'a\\nb': a batch script cannot contain control" in found.stderr.replace(str(Path.cwd()) + "/", "")


def test_a_hidden_partition_is_there_all_the_same(slurm: FakeSlurm) -> None:
    slurm.install(scontrol='case "$*" in *--all*) echo PartitionName=gpu;; esac')
    assert cnnjob("submit", "toy.toml", "--partition", "gpu").exit_code == 0


def test_the_accounts_of_the_user_are_said_when_one_is_refused(slurm: FakeSlurm) -> None:
    refused = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    slurm.install(sbatch=f'echo "{refused}" >&2; exit 1', sacctmgr='printf "%s\\n" us them us')
    assert cnnjob("submit", "toy.toml", "-A", "uss").stderr.endswith(f"{refused}. Your accounts: them, us\n")
    slurm.install(sacctmgr="exit 0")
    assert (
        "SLURM lists no account for you; ask the site's administrators"
        in cnnjob("submit", "toy.toml", "-A", "uss").stderr
    )
    slurm.install(sacctmgr="exit 1")
    assert cnnjob("submit", "toy.toml", "-A", "uss").stderr.endswith(f"{refused}\n")


SACCTMGR = """case "$*" in
*format=account|*format=qos) echo us;;
*associations*maxsubmit*) echo "us||"; echo "us|ME|2"; echo "us|other|7";;
*associations*grpsubmit*) echo "us||9"; echo "us|ME|";;
*qos*maxsubmitpu*) echo "us|4"; echo "theirs|1";;
*qos*maxwall*) echo "us|01:00:00";;
*) exit 1;;
esac"""
POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"
)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "AssocMaxSubmitJobLimit",
            "your account allows you at most 2 jobs in the queue; a job that is ending still counts",
        ),
        ("AssocGrpSubmitJobsLimit", "your account allows all its users combined at most 9 jobs in the queue"),
        ("QOSMaxSubmitJobPerUserLimit", "your QOS allows you at most 4 jobs in the queue"),
        ("QOSGrpSubmitJobsLimit", "your QOS allows all its users combined a limited number of jobs in the queue"),
        ("MaxSubmitJobsPerAccount", "your QOS allows your account a limited number of jobs in the queue"),
        (
            "QOSMaxWallDurationPerJobLimit",
            "it requests more time than your QOS allows per job (01:00:00). Request a different",
        ),
        (
            "AssocMaxWallDurationPerJobLimit",
            "it requests more time than your account allows per job. Request a different",
        ),
        (
            "QOSMaxGRESPerUser",
            "it requests more GPUs than your QOS allows per user. Request a different amount with --gpus",
        ),
        ("QOSMinCpuNotSatisfied", "it requests fewer cores than your QOS requires. Request a different amount"),
    ],
)
def test_a_limit_is_said_in_a_sentence(slurm: FakeSlurm, word: str, said: str) -> None:
    slurm.install(sbatch=f'echo "sbatch: error: {word}" >&2; echo "{POLICY}" >&2; exit 1')
    slurm.install(sacctmgr=SACCTMGR.replace("ME", pwd.getpwuid(os.getuid()).pw_name))
    found = cnnjob("submit", "toy.toml")
    assert (found.exit_code, found.stderr.count("\n")) == (4, 1)
    assert f"refused by SLURM ({word}): {said}" in found.stderr
    sweep = cnnjob("submit", "toy.toml", "--seeds", "3", "--parallel", "1").stderr
    counts = (
        "each of these 3 array tasks counts as a job, so --parallel does not help. Submit fewer values or seeds at once"
    )
    assert (counts in sweep) == ("Submit" in word)
    if counts in sweep:
        command = shlex.split(sweep.splitlines()[-1])
        slurm.install(sbatch='echo "Submitted batch job 17"')
        assert ": submitted as job 17" in cnnjob(*command[1:]).stdout
    slurm.install(sacctmgr="exit 1", sbatch=f'echo "{POLICY}" >&2; exit 1')
    found = cnnjob("submit", "toy.toml", "--set", "seed=7")
    assert "A limit of your account or QOS has been reached; ask the site's administrators about it" in found.stderr


def test_garbage_in_the_queue_is_no_job_of_ours(slurm: FakeSlurm) -> None:
    slurm.install(squeue=r'printf "\377\376 \n\n   \nslurm_load_jobs error\n"')
    assert queue.list_own_jobs() == []


def test_no_answer_in_time(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.1)
    slurm.install(squeue="exec /bin/sleep 60")
    with pytest.raises(SchedulerError, match=r"squeue: no answer within 0\.1 s\. Try again"):
        queue.list_own_jobs()


def test_what_a_command_started_ends_with_it(slurm: FakeSlurm) -> None:
    """A site's sbatch may be a wrapper, whose real one would submit the job later."""
    os.mkfifo("held")
    held = os.open("held", os.O_RDONLY | os.O_NONBLOCK)
    slurm.install(sbatch="/bin/sleep 60 > held & echo waits for the controller >&2; wait")
    with pytest.raises(
        SchedulerError, match=r"sbatch: no answer within 1 s \(last message: 'waits for the controller'\)\. Try"
    ):
        client.ask(["sbatch", "x.sh"], 1)
    poll = select.poll()
    poll.register(held)
    assert poll.poll(20_000) == [(held, select.POLLHUP)]
    os.close(held)


def test_whether_there_is_a_slurm(no_slurm: FakeSlurm) -> None:
    assert not client.has_slurm()
    no_slurm.install(**ANSWERS)
    assert client.has_slurm()


def test_the_facts_of_a_job(slurm: FakeSlurm) -> None:
    facts = "PreemptTime=None TRES=cpu=2,mem=1G Nodes= NtasksPerN:B:S:C=0:0:*:*"
    slurm.install(scontrol=f'printf "%s\\n" "JobId=7 JobName=a b" "   {facts}"')
    found = client.query_job("7")
    assert (found["JobId"], found["PreemptTime"], found["TRES"], found["Nodes"]) == ("7", "None", "cpu=2,mem=1G", "")


@pytest.mark.usefixtures("counting_slurm")
def test_a_run_that_is_running_is_left_alone() -> None:
    run = running_run(Path("runs/a"))
    assert [done.status for done in submission.submit([run], Request())] == ["running"]
    with pytest.raises(JobError, match="SLURM would expand the %"):
        submission.submit([pending_run(Path("%j"))], Request())
