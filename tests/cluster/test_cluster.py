"""``slurm/cluster``: it comes up, schedules as a site does, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster import lab
from tests.cluster.conftest import Start
from tests.cluster.lab import living

pytestmark = pytest.mark.slurm

SMALL = ("--nodes", 1, "--kill-wait", 1)
FORBIDDING = (*SMALL, "--no-requeue", "--preempt", "cancel")


def listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_up_within_ten_seconds_and_down_without_a_trace() -> None:
    start = time.monotonic()
    with lab.up("--nodes", 3) as cluster:
        assert time.monotonic() - start < 10
        job = cluster.submit("--wrap", "setsid -f sleep 98765; setsid -f env --ignore-environment sleep 98766")
        cluster.wait(job, "COMPLETED")
        ports = cluster.ports
        assert len(living("sleep 98765", "sleep 98766")) == 2
        assert listening(ports[0])
        assert lab.script("status").stdout.split().count(str(cluster.folder)) == 1
        again = lab.script("up", cluster.folder)
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert "already up" in again.stderr
        assert lab.script("down", cluster.folder).returncode == 0
        assert not living(str(cluster.folder), "sleep 98765", "sleep 98766")
        assert not any(map(listening, ports))
        assert {path.name for path in cluster.folder.iterdir()} == {"etc", "home", "log"}
        assert lab.script("down", cluster.folder).returncode == 0
        assert lab.script("env", cluster.folder).returncode == 1
        assert lab.script("up", cluster.folder, "--nodes", 1).returncode == 0


def test_two_at_once(cluster: Start) -> None:
    first = cluster(*SMALL)
    with lab.up(*SMALL) as second:
        assert not set(first.ports) & set(second.ports)
        job = second.submit("--wrap", "sleep 100", "--job-name=other")
        second.wait(job, "RUNNING")
        assert "other" in second.run("squeue").stdout
        assert "other" not in first.run("squeue").stdout
    assert "idle" in first.run("sinfo").stdout


def test_a_job_runs_as_an_ordinary_user(cluster: Start) -> None:
    one = cluster(*SMALL)
    job = one.submit("--wrap", "id --user --name; pwd; echo $HOME; srun hostname")
    assert one.wait(job, "COMPLETED")["Partition"] == "debug"
    assert one.output(job).split() == ["nobody", str(one.home), str(one.home), socket.gethostname()]


def test_gpus_cores_and_memory_are_counted(cluster: Start) -> None:
    one = cluster(*SMALL)
    for count, seen in ((1, "0"), (2, "0,1")):
        words = ("srun", "--partition=gpu", f"--gres=gpu:{count}", "printenv", "CUDA_VISIBLE_DEVICES")
        assert one.run(*words).stdout.strip() == seen
    for request in ("--gres=gpu:3", "--mem=9000"):
        refused = one.run("sbatch", request, "--wrap", "true", check=False)
        assert refused.returncode == 1
        assert "Requested node configuration is not available" in refused.stderr
    wide = one.run("sbatch", "--parsable", "--cpus-per-task=5", "--wrap", "true", check=False)
    if wide.returncode:  # SLURM 24.11 refuses what 22.05 lets wait for ever
        assert "Requested node configuration is not available" in wide.stderr
    else:
        lab.until(lambda: one.job(wide.stdout.strip())["Reason"] == "PartitionConfig", what="the reason of five cores")
    jobs = [one.submit("--gres=gpu:1", "--mem=100", "--wrap", "sleep 100") for _ in range(3)]
    for job in jobs[:2]:
        one.wait(job, "RUNNING")
    lab.until(lambda: one.job(jobs[2])["Reason"] == "Resources", what="the reason of the third")
    assert one.state(jobs[2]) == "PENDING"


def test_every_node_may_have_a_host_name_of_its_own(cluster: Start) -> None:
    one = cluster("--nodes", 2, "--kill-wait", 1, "--host-names")
    jobs = [one.submit("--nodelist=n2", "--wrap", "hostname; srun hostname")]
    one.daemon("kill", "n1")
    one.daemon("start", "n1")
    jobs.append(one.submit("--nodelist=n1", "--wrap", "hostname; srun hostname"))
    for job in jobs:
        one.wait(job, "COMPLETED")
    assert [one.output(job).split() for job in jobs] == [["n2", "n2"], ["n1", "n1"]]
    assert socket.gethostname() not in {"n1", "n2"}


def test_a_job_is_requeued(cluster: Start) -> None:
    one = cluster(*SMALL)
    job = one.submit("--wrap", "echo life ${SLURM_RESTART_COUNT:-0}; sleep 100")
    one.wait(job, "RUNNING")
    one.run("scontrol", "requeue", job)
    lab.until(lambda: one.job(job)["Restarts"] == "1")
    one.wait(job, "RUNNING")
    lab.until(lambda: one.output(job).split("\n").count("life 1") == 1)
    assert "life 0" in one.output(job)


def test_a_site_that_forbids_requeueing(cluster: Start) -> None:
    one = cluster(*FORBIDDING)
    job = one.submit("--requeue", "--wrap", "sleep 100")
    one.wait(job, "RUNNING")
    refused = one.run("scontrol", "requeue", job, check=False)
    assert "Requested operation is presently disabled" in refused.stderr + refused.stdout
    assert refused.returncode == 1


def test_high_requeues_low(cluster: Start) -> None:
    one = cluster(*SMALL)
    low = one.submit("--partition=low", "--exclusive", "--wrap", "sleep 100")
    one.wait(low, "RUNNING")
    high = one.submit("--partition=high", "--exclusive", "--wrap", "sleep 100")
    one.wait(high, "RUNNING")
    found = one.job(low)
    assert (found["JobState"], found["Restarts"]) == ("PENDING", "1")


def test_high_cancels_low(cluster: Start) -> None:
    one = cluster(*FORBIDDING)
    low = one.submit("--partition=low", "--exclusive", "--wrap", "sleep 100")
    one.wait(low, "RUNNING")
    high = one.submit("--partition=high", "--exclusive", "--wrap", "true")
    one.wait(high, "COMPLETED")
    assert one.state(low) == "PREEMPTED"


def test_high_waits_for_low() -> None:
    with lab.up(*SMALL, "--preempt", "off") as one:
        low = one.submit("--partition=low", "--exclusive", "--wrap", "sleep 100")
        one.wait(low, "RUNNING")
        high = one.submit("--partition=high", "--exclusive", "--wrap", "true")
        lab.until(lambda: one.job(high)["Reason"] == "Resources")
        assert one.state(low) == "RUNNING"


def test_a_preempted_job_has_its_own_signal_and_the_grace() -> None:
    with lab.up(*SMALL, "--grace", 30, "--user-signal") as one:
        wrap = "trap 'echo asked; exit' USR1; echo ready; for i in $(seq 1000); do sleep 0.1; done"
        low = one.submit("--partition=low", "--exclusive", "--signal=B:USR1@60", "--wrap", wrap)
        lab.until(lambda: one.state(low) == "RUNNING" and "ready" in one.output(low))
        high = one.submit("--partition=high", "--exclusive", "--wrap", "true")
        one.wait(high, "COMPLETED", seconds=20)
        assert "asked" in one.output(low)


def test_accounting_answers_and_without_it_says_so(cluster: Start) -> None:
    with_it, without = cluster("--accounting", *SMALL), cluster(*SMALL)
    job = with_it.submit("--wrap", "exit 3")
    words = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,User,Account,State,ExitCode")
    lab.until(lambda: with_it.run(*words).stdout.strip() == f"{job}|nobody|lab|FAILED|3:0", what="sacct's line")
    refused = without.run("sacct", check=False)
    assert refused.returncode == 1
    assert "accounting storage is disabled" in refused.stderr


def test_daemons_end_and_come_back(cluster: Start) -> None:
    one = cluster(*SMALL)
    job = one.submit("--wrap", "exec sleep 98767")
    one.wait(job, "RUNNING")
    lab.until(lambda: bool(living("sleep 98767")))
    one.daemon("stop", "slurmctld")
    assert not listening(one.ports[0])
    one.daemon("start", "slurmctld")
    one.daemon("stop", "n1")
    one.daemon("start", "n1")
    assert one.state(job) == "RUNNING"
    one.daemon("kill", "n1")
    assert not living("sleep 98767")
    one.admin("scontrol", "update", "nodename=n1", "state=down", "reason=lost")
    assert one.job(job)["Restarts"] == "1"
    one.daemon("start", "n1")
    one.wait(job, "RUNNING")


def test_it_ends_with_the_process_that_it_was_started_for() -> None:
    with lab.folder() as folder, subprocess.Popen(["sleep", "1000"]) as process:
        assert lab.script("up", folder, *SMALL, "--while", process.pid).returncode == 0
        process.kill()
        process.wait()
        lab.until(lambda: not living(str(folder)), what="the end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_comes_up(number: int) -> None:
    with lab.folder() as folder:
        command = ["env", "--default-signal=INT", str(lab.SCRIPT), "up", str(folder), "--accounting"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            lab.until((folder / "mysql").exists, what="the database")
            process.send_signal(number)
            assert process.wait(20) == 130
        assert not living(str(folder))


def test_the_users_python_has_everything(cluster: Start, user_python: Path) -> None:
    one = cluster("--accounting", *SMALL)
    program = one.home / "first.py"
    program.write_text(
        "import submitit, numpy\n"
        "executor = submitit.SlurmExecutor(folder='submitted')\n"
        "executor.update_parameters(time=2, mem='200MB', partition='gpu', gres='gpu:1')\n"
        "job = executor.submit(divmod, 17, 5)\n"
        "print(job.result())\n"
    )
    found = one.run(user_python, program, check=False)
    assert (found.returncode, found.stdout) == (0, "(3, 2)\n"), found.stderr
    assert one.run(user_python, "-m", "cnnjob", "--version").stdout.startswith("cnnjob ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nodes", 0), "--nodes takes a number from 1 to 64, not '0'"),
        (("--nodes",), "--nodes takes a value"),
        (("--preempt", "suspend"), "--preempt is requeue, cancel or off, not 'suspend'"),
        (("--bogus",), "up has no option '--bogus'"),
        (("--user", "root"), "jobs are submitted by an ordinary user"),
        (("--user", "no-such-user"), "there is no user 'no-such-user'"),
        (("--while", 9999999), "there is no process 9999999"),
    ],
)
def test_a_wrong_option_is_one_line(words: tuple[object, ...], message: str) -> None:
    with lab.folder() as folder:
        found = lab.script("up", folder / "new", *words)
        assert (found.returncode, found.stderr.count("\n")) == (2, 1)
        assert message in found.stderr
        assert not (folder / "new").exists()


def test_a_bad_line_of_slurm_conf_is_named_and_leaves_nothing() -> None:
    with lab.folder() as folder:
        found = lab.script("up", folder, "--set", "Bogus=1")
        assert (found.returncode, found.stderr.count("\n")) == (1, 1)
        assert "unrecognized key: Bogus" in found.stderr
        assert not living(str(folder))


def test_a_port_in_use_and_a_folder_in_use_are_refused() -> None:
    with lab.folder() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"port {port} is in use" in lab.script("up", folder, "--port", port).stderr
        (folder / "mine").touch()
        assert "holds something else" in lab.script("up", folder).stderr
        folder.chmod(0o700)
        assert f"{folder} is closed to nobody" in lab.script("up", folder / "deep" / "er").stderr


def test_what_is_not_installed_is_named_with_the_line_that_installs_it() -> None:
    found = lab.script("up", "/nonexistent/folder", env={**os.environ, "PATH": "/usr/bin:/bin"})
    assert found.returncode == 1
    assert found.stderr == "slurm/cluster: slurmctld is not installed; install it with: slurm/cluster install\n"
