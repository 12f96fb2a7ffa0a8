"""What runs inside a SLURM job: owners that have ended, deadlines, GPUs, one attempt."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnjob.errors import JobError, SchedulerError
from cnnjob.runs.claims import claim
from cnnjob.slurm.node import deadlines, node_task
from cnnjob.slurm.scheduler import client
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.stopping import Deadline
from cnnjob.training.train import train
from tests.helpers.fake_slurm import NO_ANSWER, FakeSlurm, slurm_time
from tests.helpers.run_folders import owner_record
from tests.helpers.toy_jobs import job as toy_job
from tests.helpers.toy_jobs import trained


def test_when_the_job_ends(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1234567890")
    assert deadlines.read_first_end() == 1234567890
    monkeypatch.setenv("SLURM_JOB_END_TIME", "soon")
    slurm.install(scontrol='echo "JobId=17 EndTime=2026-01-01T00:00:00"')
    assert deadlines.read_first_end() == math.inf  # no job, no end
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert 1.7e9 < (deadlines.read_first_end() or 0) < 1.8e9
    for answer, end in (('echo "EndTime=Unknown"', math.inf), ("echo garbage", None), ("exit 1", None), (None, None)):
        slurm.install(scontrol=answer)
        assert deadlines.read_first_end() == end
        assert deadlines.query_end() == end


def test_the_log_of_a_long_epoch_shows_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 10_000, 100))  # every look at the clock takes 100 s
    lines = node_task.LogLines(lambda: next(clock))
    job = toy_job()
    lines.start(job, 1200)
    for step in range(1001, 1007):
        lines.loss(1.25)
        lines.step(1, step)
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"epoch 1/{job.train.epochs}, step 1,003/1,200: loss 1.2500",
        f"epoch 1/{job.train.epochs}, step 1,006/1,200: loss 1.2500",
    ]


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        ("echo JobId=17 JobState=COMPLETED", True),
        ("echo JobState=NODE_FAIL", True),
        ("echo JobState=COMPLETING", False),
        ("echo JobState=RUNNING", False),
        ("echo JobState=PENDING", False),
        ("echo garbage", False),
        ('echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1', True),
        (NO_ANSWER, False),
        ("exit 1", False),
        (None, False),
    ],
)
def test_whether_a_job_has_ended(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, answer: str | None, *, ended: bool
) -> None:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    slurm.install(scontrol=answer)
    assert client.job_is_over(owner_record(), 100) is ended


@pytest.mark.parametrize(
    ("answer", "silent"),
    [
        (NO_ANSWER, True),
        (
            'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1',
            True,
        ),
        ("kill -15 $$", True),
        ('echo "Requested operation is presently disabled" >&2; exit 1', False),
        ("exit 1", False),
        (None, False),
        ('echo "sbatch: error: Unable to open file $1" >&2; exit 1', False),
    ],
)
def test_silent_or_refused(slurm: FakeSlurm, answer: str | None, *, silent: bool) -> None:
    """A folder or a run may have any name."""
    slurm.install(sbatch=answer)
    with pytest.raises(SchedulerError) as error:
        client.ask(["sbatch", "/data/communication-lab/timed out/x.sh"])
    assert client.is_silent(error.value) is silent


def test_a_run_is_taken_over_from_a_job_that_has_ended(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    whole = trained(tmp_path / "whole").run
    whole.result_file.unlink()
    claim(whole).note(host="elsewhere", job_id="16", cluster="lab")
    slurm.install(scontrol='case "$*" in *16) echo JobState=NODE_FAIL;; esac')
    assert node_task.NodeTask(str(whole.path), 30)._run_attempt() == 0
    assert [attempt["ended"] is None for attempt in whole.attempts()] == [False, True, False]


def test_a_deadline_that_was_moved_stops_nobody() -> None:
    """SLURM is asked once for each deadline that is over."""
    asked: list[float] = []

    def moved() -> float:
        asked.append(time.time() + 1000 if not asked else time.time() - 1)
        return asked[-1]

    deadline = Deadline(time.time() + 1000, moved)
    assert (deadline.is_over(), asked) == (False, [])
    deadline.time = time.time() - 1  # the process was suspended, or the limit extended
    assert [deadline.is_over() for _ in range(3)] == [False] * 3
    assert (len(asked), deadline.time) == (1, asked[0])
    deadline.time = time.time() - 1
    assert deadline.is_over()
    assert Deadline(time.time() - 1, lambda: None).is_over()


def test_an_end_that_slurm_did_not_tell_at_the_start_is_asked_for_later(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less and less often, until it answers; then an end is confirmed as any other."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    slurm.install(scontrol="echo x >> asked; exit 1")
    assert deadlines.read_first_end() is None
    one = deadlines.make_deadline(None, 30.0)
    pauses = []
    for _ in range(6):
        pauses.append(one.time - time.time())
        assert not one.is_over()  # asks nobody
        one.time = 0.0
        assert not one.is_over()  # as the first pause is over, SLURM is asked
    assert [round(pause, -1) for pause in pauses] == [60, 120, 240, 480, 960, 960]
    assert len(Path("asked").read_text().split()) == 7
    one.time = 0.0
    slurm.install(scontrol=f"echo EndTime={slurm_time(1000)}")
    assert not one.is_over()
    assert 960 < one.time - time.time() <= 970
    one.time = 0.0
    slurm.install(scontrol="exit 1")
    assert one.is_over()


def test_a_guard_that_knows_no_end_asks_for_it(slurm: FakeSlurm) -> None:
    slurm.install(scontrol=f"echo EndTime={slurm_time(5)}")
    code = "from cnnjob.slurm.node.deadlines import *\nwith ended_in_time(None): time.sleep(60)"
    environment = {**os.environ, "SLURM_JOB_ID": "17"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGALRM


def test_a_process_that_does_not_react_is_ended_once_slurm_confirms_its_end(slurm: FakeSlurm) -> None:
    """It was told an end that is over: SLURM does not answer, then names a later one, then confirms."""
    late = f"$(/bin/date --date=+{deadlines.LAST_SECONDS + 2:g}sec +%FT%T)"
    answer = (
        f"case $(/usr/bin/wc -l < asked) in 1) exit 1;; 2) echo EndTime={late};; *) echo EndTime={slurm_time(5)};; esac"
    )
    slurm.install(scontrol=f"echo x >> asked; {answer}")
    hang = "import ctypes; ctypes.PyDLL(None).sleep(60)"
    code = f"from cnnjob.slurm.node.deadlines import *\nwith ended_in_time(time.time()): {hang}"
    environment = {**os.environ, "SLURM_JOB_ID": "17"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGALRM
    assert len(Path("asked").read_text().split()) == 3


def test_nobody_is_ended_after_the_block_or_with_another_signal() -> None:
    code = """
import os, signal, subprocess, sys, time
from pathlib import Path
from cnnjob.slurm.node.deadlines import ended_in_time
with ended_in_time(time.time() + 3600):
    [guard] = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    while "cnnjob.slurm.node.deadlines" not in Path(f"/proc/{guard}/cmdline").read_text():
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
        os.kill(int(guard), number)
    time.sleep(0.2)
    print(Path(f"/proc/{guard}/stat").read_text().split()[2] in "ZX")
print(os.path.exists(f"/proc/{guard}"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS"])
def test_a_job_that_holds_gpus_does_not_silently_compute_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = trained(tmp_path).run
    run.result_file.unlink()
    job = run.job()
    monkeypatch.setenv(name, "0,1")
    auto = job.model_copy(update={"resources": job.resources.model_copy(update={"backend": "auto"})})
    with pytest.raises(JobError, match=r"resources\.backend: 'auto', and this SLURM job was allocated GPU 0,1, but"):
        train(run, setup=TrainingSetup.of_run(run, auto))
    numpy = job.model_copy(update={"resources": job.resources.model_copy(update={"backend": "numpy"})})
    assert train(run, setup=TrainingSetup.of_run(run, numpy)).state == "finished"


@pytest.mark.usefixtures("slurm")
def test_a_life_on_the_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "whole").run
    assert node_task.NodeTask(str(run.path), 30)._run_attempt() == 0
    assert capsys.readouterr().out == f"{run.path}: was finished\n"
