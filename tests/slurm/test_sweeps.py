"""Sweeps as job arrays, here, and waited for; a site's limits; an sbatch that does not answer. Without a SLURM."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from cnnjob import files
from cnnjob.cli import submit as cli
from cnnjob.errors import DataError, JobError, SchedulerError
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.claims import claim
from cnnjob.runs.environment import commit
from cnnjob.runs.run import Run
from cnnjob.slurm import job_array, wait
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.node.node_task import NodeTask
from cnnjob.slurm.scheduler import sbatch, site
from cnnjob.slurm.scheduler.queue import QueuedJob
from cnnjob.slurm.status import statuses
from cnnjob.slurm.submit import local, submission
from cnnjob.slurm.submit.code_snapshot import save_snapshot
from cnnjob.slurm.submit.dry_run import at_preemption, at_the_time_limit
from cnnjob.slurm.submit.request import Request
from tests.helpers.run_folders import change_json, finished_run, pending_run, running_run, stopped_run
from tests.slurm.test_status import (
    cancelled_by_script,
    crash_loop,
    decided,
    elsewhere,
    failed,
    log,
    lost_in_job,
    stopped_in_job,
    submitted,
)
from tests.slurm.test_status import waits as waits_in_queue
from tests.slurm.test_submission import ANSWERS, Site, cnnjob
from tests.slurm.test_submission import nowhere as nowhere  # noqa: PLC0414 - a fixture

SWEEP = ("submit", "toy.toml", "--sweep", "train.learning_rate=0.1,0.2", "--seeds", "2")
LINE = "|PENDING|Resources||N/A|N/A|"


@pytest.fixture
def here(nowhere: Site) -> Site:
    """A SLURM that counts its jobs from 17, and keeps the scripts that it was given."""
    nowhere.says(**ANSWERS)
    count = 'n=$(cat count 2>/dev/null || echo 16); echo $((n + 1)) > count; cp "$1" $((n + 1)).sh'
    nowhere.says(cp='exec /bin/cp "$@"', cat='exec /bin/cat "$@"')
    nowhere.says(sbatch=f'[ "$1" = --test-only ] && exit; {count}; echo "Submitted batch job $((n + 1))"')
    return nowhere


def waits(job_id: str, comment: str) -> QueuedJob:
    return QueuedJob(job_id, "PENDING", "Resources", "", "N/A", "N/A", comment)


def own_error(root: Path) -> Run:
    """A run whose job ended before it could claim it."""
    run = decided(waits_in_queue(root), code=2, said="the job's own error is not restarted")
    return log(run, "cnnjob: resources.backend: no CuPy\ncnnjob: x: the job's own error is not restarted\n")


def submitted_again(root: Path) -> Run:
    return submitted(stopped_in_job(root), "18")


def finish(run: Run) -> None:
    run.result_file.write_text('{"test_accuracy": 0.5}')


def folder() -> Path:
    [found] = Path("runs/.sweeps").iterdir()
    return found


# --- sweeps


@pytest.mark.usefixtures("here")
def test_a_sweep_is_one_job_array() -> None:
    shown = cnnjob(*SWEEP, "--parallel", "3", "--dry-run", "--no-rehearsal").stdout
    found = cnnjob(*SWEEP, "--parallel", "3")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert [line.partition(" (")[2].partition(": 1 node")[0] for line in lines] == [
        f"seed={seed}, train.learning_rate={rate}): submitted as job 17_{element}"
        for element, (rate, seed) in enumerate([(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)])
    ]
    script = Path("17.sh").read_text()
    assert "#SBATCH --array=0-3%3\n" in script
    assert "#SBATCH --job-name=toy\n" in script
    assert f"\n{script}\nnothing was submitted\n" in shown
    assert (folder() / "17_submission.sh").read_text() == script
    assert len(list(folder().glob("17_*_submitted.pkl"))) == 4


@pytest.mark.usefixtures("here")
def test_each_run_knows_its_element() -> None:
    cnnjob(*SWEEP)
    batch = JobArray.read(folder())
    for element, run in enumerate(batch.runs):
        said = files.read_json(run.submission_file)
        assert said["job_id"] == f"17_{element}"
        assert said["log"] == str(folder().resolve() / f"17_{element}_0_log.out")
        assert Request.model_validate(files.read_json(run.slurm_folder / "request.json")).gpus == 0
    assert batch.comment == said["comment"]


def test_what_is_finished_runs_or_waits_is_left_out(here: Site) -> None:
    cnnjob(*SWEEP)
    runs = JobArray.read(folder()).runs
    finish(runs[0])
    here.says(squeue=f'echo "17_2{LINE}cnnjob {folder().resolve()} 4"')
    said = [line.partition("): ")[2].partition(": 1 node")[0] for line in cnnjob(*SWEEP).stdout.splitlines()]
    assert said == [
        "finished, nothing submitted", "submitted as job 18_0", "queued as 17_2, nothing submitted",
        "submitted as job 18_1",
    ]  # fmt: skip
    assert "#SBATCH --array=0-1%2\n" in Path("18.sh").read_text()


@pytest.mark.usefixtures("here")
def test_a_finished_sweep_submits_nothing_and_asks_nobody(here: Site) -> None:
    cnnjob(*SWEEP)
    for run in JobArray.read(folder()).runs:
        finish(run)
    here.says(scontrol="exit 1", squeue="exit 1", sbatch="exit 1")
    again = cnnjob(*SWEEP)
    assert (again.exit_code, again.stdout.count("finished, nothing submitted\n")) == (0, 4), again.output


def test_an_array_is_split_where_the_site_wants_it(here: Site) -> None:
    config = 'case "$*" in *config*) echo "MaxArraySize = 3";; *) echo PartitionName=gpu;; esac'
    here.says(scontrol=config)
    found = cnnjob("submit", "toy.toml", "--seeds", "7", "--dependency", "afterok:5")
    assert found.exit_code == 0, found.output
    assert [f"17_{n}" in found.stdout for n in range(4)] == [True, True, True, False]
    assert ": submitted as job 19: " in found.stdout  # the last one is alone
    arrays = [Path(f"{number}.sh").read_text() for number in (17, 18, 19)]
    assert ["--array=0-2%3" in script for script in arrays] == [True, True, False]
    assert all("--dependency=afterok:5\n" in script for script in arrays)


def test_the_parts_of_a_split_array_do_not_add_up(here: Site) -> None:
    config = 'case "$*" in *config*) echo "MaxArraySize = 3";; *) echo PartitionName=gpu;; esac'
    here.says(scontrol=config)
    cnnjob("submit", "toy.toml", "--seeds", "7", "--parallel", "2")
    waits = [Path(f"{number}.sh").read_text().partition("--dependency=")[2].split("\n")[0] for number in (17, 18, 19)]
    assert waits == ["", "afterany:17", "afterany:17,afterany:18"]
    for run in Run.all(Path("runs")):  # what the user asked for
        assert files.read_json(run.slurm_folder / "request.json")["dependency"] is None


def test_arrays_that_were_accepted_before_a_refusal_are_named(here: Site) -> None:
    config = 'case "$*" in *config*) echo "MaxArraySize = 3";; *) echo PartitionName=gpu;; esac'
    taken = (here.folder / "sbatch").read_text().partition("\n")[2]
    here.says(scontrol=config, sbatch=f'[ ! -e 17.sh ] || {{ echo "sbatch: error: too many" >&2; exit 1; }}; {taken}')
    found = cnnjob("submit", "toy.toml", "--seeds", "5")
    assert (found.exit_code, "too many" in found.stderr) == (4, True)
    assert [f": submitted as job 17_{n}: " in found.stdout for n in range(3)] == [True] * 3
    assert found.stdout.count("\n") == 3


@pytest.mark.parametrize("shown", ["(null)", "N/A", "the site wrote this"])
def test_a_job_whose_comment_the_site_changes_is_known(here: Site, shown: str) -> None:
    here.says(squeue=f'[ ! -e 17.sh ] || echo "17{LINE}{shown}"')
    assert ": submitted as job 17: " in cnnjob("submit", "toy.toml").stdout
    assert cnnjob("submit", "toy.toml").stdout.endswith(": queued as 17, nothing submitted\n")
    assert json.loads(cnnjob("status", "--json").stdout)[0]["state"] == "pending"


@pytest.mark.parametrize("answer", ['echo "17|???"', "echo '17|PENDING|Priority||'", "echo 'slurm_load_jobs: odd'"])
def test_nothing_is_submitted_where_the_queue_is_not_understood(here: Site, answer: str) -> None:
    here.says(squeue=answer)
    found = cnnjob("submit", "toy.toml")
    assert (found.exit_code, "its answer was not understood" in found.stderr) == (4, True), found.output
    assert not list(Path().glob("*.sh"))


def test_few_questions_about_runs_whose_jobs_are_in_the_queue(here: Site) -> None:
    runs = [elsewhere(running_run(Path("runs"), seed=seed), 20, str(40 + seed)) for seed in range(4)]
    lines = "".join(f'echo "{number}|RUNNING|None|n1|N/A|N/A|x";' for number in range(40, 43))
    here.says(squeue=lines, scontrol='echo "$*" >> asked; echo JobState=RUNNING')
    assert {done.why for done in submission.submit(runs, Request())} == {"running"}
    assert Path("asked").read_text().splitlines() == ["show job 43"]
    here.says(squeue="exit 1")
    assert {done.why for done in submission.submit(runs, Request())} == {"running"}
    assert len(Path("asked").read_text().splitlines()) == 1


@pytest.mark.usefixtures("here")
def test_a_percent_sign_in_the_folder_is_refused() -> None:
    found = cnnjob("submit", "toy.toml", "--runs", "100%")
    assert (found.exit_code, found.stderr) == (
        2, f"cnnjob: --runs {Path.cwd()}/100%: SLURM reads the % as a pattern; give a folder without it\n",
    )  # fmt: skip


def test_a_batch_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [pending_run(tmp_path / name) for name in "abc"]
    batch = JobArray.of(runs)
    batch.write()
    assert JobArray.read(batch.folder) == batch
    assert JobArray.of([runs[0]]).folder == runs[0].path
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert batch.own_run() == runs[2]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(DataError, match="no element '3', found 3; submit the sweep again"):
        batch.own_run()
    (batch.folder / "runs.json").write_text("[]")
    with pytest.raises(DataError, match="damaged, it has 0 members"):
        JobArray.read(batch.folder)
    assert job_array.queued([waits("7_1", f"cnnjob {batch.folder} 3")]) == {}


def test_a_job_in_the_queue_is_known_by_its_comment(tmp_path: Path) -> None:
    runs = [pending_run(tmp_path / name) for name in "abc"]
    batch = JobArray.of(runs)
    batch.write()
    comments = {"7_1": batch.comment, "7_9": batch.comment, "8": f"cnnjob {runs[0].path} 2", "9": "other 3", "10": ""}
    jobs = [waits(job_id, comment) for job_id, comment in comments.items()]
    assert job_array.queued(jobs) == {runs[1].path: "7_1", runs[0].path: "8"}


# --- here, and waiting


@pytest.mark.usefixtures("nowhere")
def test_a_sweep_here_needs_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "kept")
    options = ("submit", "toy.toml", "--local", "--seeds", "3", "--parallel", "2", "-c", "1")
    found = cnnjob(*options)
    assert found.exit_code == 0, found.output
    assert found.stdout.count("trained here") == 3
    assert found.stdout.count(": finished, test accuracy ") == 3
    assert {run.state() for run in Run.all(Path("runs"))} == {"finished"}
    assert os.environ["PYTHONPATH"] == "kept"
    again = cnnjob(*options)
    assert (again.exit_code, again.stdout.count(": finished, left alone\n")) == (0, 3)


@pytest.mark.usefixtures("nowhere")
def test_a_run_that_is_trained_elsewhere_is_left_alone() -> None:
    cnnjob("train", "toy.toml")
    [run] = Run.all(Path("runs"))
    run.result_file.unlink()
    claim(run)
    found = cnnjob("submit", "toy.toml", "--local")
    assert (found.exit_code, found.stdout) == (5, f"{run.path}: running, left alone\n")


@pytest.mark.usefixtures("nowhere")
def test_a_run_here_that_fails_is_exit_1() -> None:
    wrong = ("--set", "train.learning_rate=900.0", "--set", "model.blocks=[{dense=8,activation='none'}]")
    found = cnnjob("submit", "toy.toml", "--local", *wrong)
    assert found.exit_code == 1, found.output
    assert ": failed, the loss is " in found.stdout


@pytest.mark.usefixtures("nowhere")
def test_a_time_limit_here_stops_in_time() -> None:
    found = cnnjob("submit", "toy.toml", "--local", "--time", "1m", "--set", "train.epochs=1")
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("nowhere")
def test_ctrl_c_stops_all_that_trains_here_with_its_work_saved(number: signal.Signals) -> None:
    """As a terminal does, to every process of the group; or as kill does, to one."""
    words = [sys.executable, "-m", "cnnjob", "submit", "toy.toml", "--local", "--seeds", "2", "--parallel", "2"]
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/bin:/usr/bin"}
    more = ["--set", "train.epochs=100000", "--set", "train.checkpoint_seconds=0.1"]
    with subprocess.Popen([*words, *more], env=known, start_new_session=True, stderr=subprocess.PIPE) as child:
        until = time.monotonic() + 60
        while len(list(Path("runs").glob("*/history.jsonl"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        os.killpg(child.pid, number) if number == signal.SIGINT else child.send_signal(number)
        assert child.communicate(timeout=60)[1].decode() == "cnnjob: interrupted\n"
    assert child.returncode == 130
    for run in Run.all(Path("runs")):
        assert run.attempts()[-1]["why"] in {"stopped: SIGINT", "stopped: SIGTERM"}


@pytest.mark.usefixtures("nowhere")
def test_runs_that_wait_their_turn_here_can_be_cancelled() -> None:
    words = [sys.executable, "-m", "cnnjob", "submit", "toy.toml", "--local", "--seeds", "3"]
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/bin:/usr/bin"}
    more = ["--set", "train.epochs=100000", "--set", "train.checkpoint_seconds=0.1"]
    with subprocess.Popen([*words, *more], env=known, stdout=subprocess.PIPE, text=True) as child:
        until = time.monotonic() + 60
        while not list(Path("runs").glob("*/history.jsonl")):
            assert time.monotonic() < until
            time.sleep(0.05)
        told = cnnjob("cancel", "runs")
        out, _ = child.communicate(timeout=60)
    assert told.exit_code == 0, told.output
    assert told.stdout.count(": asked process ") == 1
    assert told.stdout.count(f": cancelled, it waited for process {child.pid} on ") == 2
    assert (child.returncode, len(re.findall(r": cancelled, .*cnnjob cancel", out))) == (1, 3), out
    runs = Run.all(Path("runs"))
    assert sorted(len(run.attempt_files()) for run in runs) == [0, 0, 1]
    assert [one.state for one in statuses(runs).statuses] == ["cancelled"] * 3
    assert not list(Path("runs").glob("*/slurm/local.json"))
    assert set(re.findall("nothing to cancel, it is (.*)", cnnjob("cancel", "runs").stdout)) == {"cancelled"}


@pytest.mark.usefixtures("nowhere")
def test_a_run_here_that_cannot_begin_is_exit_1_with_its_error() -> None:
    assert cnnjob("submit", "toy.toml", "--local", "--set", "train.epochs=1").exit_code == 0
    [first] = Run.all(Path("runs"))
    first.result_file.unlink()
    shutil.rmtree(first.checkpoints_folder)
    run = _stopped(first)
    for message in (
        "was started with 'numpy'",
        "CuPy cannot be",
    ):  # of a run that was stopped, and of one that never began
        found = cnnjob("submit", "toy.toml", "--local", "--set", "train.epochs=1", "--set", "resources.backend=cuda")
        assert found.exit_code == 1, found.output
        assert re.search(rf"{run.path}: failed, .*{message}", found.stdout), found.stdout
        shutil.rmtree(run.path)


def _stopped(run: Run) -> Run:
    [attempt] = run.attempt_files()
    change_json(attempt, why="stopped: SIGTERM")
    return run


KILLED = ("submit", "toy.toml", "--local", "--set", "train.epochs=100000", "--set", "train.checkpoint_seconds=0.1")


@pytest.mark.usefixtures("nowhere")
def test_a_run_here_that_was_killed_resumes_until_it_makes_no_progress() -> None:
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/bin:/usr/bin"}
    with subprocess.Popen([sys.executable, "-m", "cnnjob", *KILLED], env=known, stdout=subprocess.PIPE) as child:
        until = time.monotonic() + 60
        while not list(Path("runs").glob("*/checkpoints/step-*[1-9]*.npz")):
            assert time.monotonic() < until
            time.sleep(0.05)
        [run] = Run.all(Path("runs"))
        os.kill(run.attempts()[-1]["pid"], signal.SIGKILL)
        said = child.communicate(timeout=60)[0].decode()
    assert (child.returncode, "its process is gone without a word" in said) == (75, True), said
    attempt, step = run.attempt_files()[0], newest_step(run.checkpoints_folder)
    for number in range(2, 6):
        shutil.copy(attempt, run.attempts_folder / f"000{number}.json")
    assert not local._is_crash_loop(run)
    for path in run.attempt_files():
        change_json(path, resumed_at_step=step)
    assert local._is_crash_loop(run)


# --- waiting


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "FIRST_SECONDS", 0.01)


@pytest.mark.usefixtures("patient")
def test_waiting_ends_when_all_have_ended(here: Site) -> None:
    runs = [finished_run(Path("a")), stopped_run(Path("b")), pending_run(Path("c"))]
    here.says(squeue=f'[ -e looked ] || echo "5{LINE}cnnjob {runs[1].path.resolve()} 2"; : > looked', sacct="exit 1")
    assert [one.summary.run.path.parts[0] for one in wait.wait_for_runs(runs)] == ["a", "c", "b"]


@pytest.mark.usefixtures("patient")
def test_wait_says_how_each_run_ended(here: Site) -> None:
    here.says(sacct="exit 1", squeue="exit 0")  # a SLURM that forgets what it was given
    found = cnnjob("submit", "toy.toml", "--wait")
    [run] = Run.all(Path("runs"))
    gone = "lost, job 17 left the queue before it started (cancelled or purged)"
    assert (found.exit_code, found.stdout.splitlines()[-1]) == (1, f"{run.path}: {gone}")
    finish(run)
    assert cnnjob("submit", "toy.toml", "--wait").exit_code == 0


SCRIPT_LOST = "its batch script was killed or lost before it restarted the run, which saved and stopped at step 150"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("make", "sacct", "code", "said"),
    [
        (finished_run, "", 0, "finished, test accuracy 80.00 %"),
        (stopped_in_job, "", 75, f"stopped, {SCRIPT_LOST}"),
        (lost_in_job, "17|NODE_FAIL|0:0|n7|x", 75, "lost, the node of its job failed (n7)"),
        (failed, "", 1, "failed, KeyError: 'x'"),
        (crash_loop, "", 1, "failed, 3 restarts without progress, each time killed by signal 9 (SIGKILL)"),
        (own_error, "", 1, "failed, resources.backend: no CuPy"),
        (cancelled_by_script, "", 1, "cancelled, its job 17 was cancelled"),
        (waits_in_queue, "17|CANCELLED by 987654|0:0||x", 1, "cancelled, its job 17 was cancelled by user 987654"),
        (waits_in_queue, "17|OUT_OF_MEMORY|0:125|n1|x", 1, "failed, it ran out of memory"),
        (waits_in_queue, "", 1, "lost, job 17 left the queue before it started (cancelled or purged)"),
        (submitted_again, "", 1, "stopped, job 18 left the queue before it started (cancelled or purged)"),
    ],
)
def test_wait_ends_with_75_only_where_the_same_command_resumes(
    here: Site, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Run], sacct: str, code: int, said: str
) -> None:
    here.says(squeue="exit 0", sacct=f'echo "{sacct}"')
    runs = [make(Path("runs")), finished_run(Path("others"))]
    try:
        cli._wait_for(runs)
        left = 0
    except typer.Exit as end:
        left = end.exit_code
    assert left == code
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted([f"{runs[0].path}: {said}", f"{runs[1].path}: finished, test accuracy 80.00 %"])


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("JobHeldUser", "its user holds it. To change that:\n  scontrol release 17"),
        ("JobHeldAdmin", "an administrator holds it"),
        ("PartitionTimeLimit", "it asks for more time than its partition allows, it never starts so. To change that:"),
    ],
)
def test_a_job_that_does_not_start_by_itself_is_said_once(
    here: Site, capsys: pytest.CaptureFixture[str], reason: str, said: str
) -> None:
    run = waits_in_queue(Path("runs"))
    line = f"17|PENDING|{reason}||N/A|N/A|"
    here.says(squeue=f'echo x >> looked; [ "$(wc -l < looked)" -gt 3 ] || echo "{line}"', wc='exec /usr/bin/wc "$@"')
    with pytest.raises(typer.Exit):
        cli._wait_for([run])
    out = capsys.readouterr().out
    assert f"{run.path}: job 17 does not start by itself, {said}" in out
    assert out.count("does not start by itself") == 1


@pytest.mark.usefixtures("patient")
def test_a_scheduler_that_stays_silent_ends_the_waiting(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run = waits_in_queue(Path("runs"))
    silent = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
    here.says(squeue=f"[ -e looked ] && exit 0; : > looked; {silent}", sacct="exit 1")
    assert [one.left_queue for one in wait.wait_for_runs([run])] == [True]
    monkeypatch.setattr(wait, "SILENT_SECONDS", 0.0)
    here.says(squeue=silent)
    with pytest.raises(SchedulerError, match="no longer waiting, the jobs are not affected"):
        list(wait.wait_for_runs([run]))


# --- an sbatch that does not answer


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbatch, "SETTLE_SECONDS", 0.01)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "error",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    ],
)
def test_a_job_that_was_taken_in_silence_is_not_submitted_twice(here: Site, error: str) -> None:
    here.says(sbatch=f'echo x >> tried; echo "{error}" >&2; exit 1', squeue=f'echo "23_1{LINE}cnnjob /runs/a 1"')
    assert sbatch.submit("cnnjob /runs/a 1", "x.sh") == "23"
    assert Path("tried").read_text() == "x\n"
    with pytest.raises(SchedulerError, match="refused, sbatch: error"):
        sbatch.submit("cnnjob /runs/a 2", "x.sh")
    assert Path("tried").read_text() == "x\n" * 3  # a second try, as nothing was queued
    here.says(squeue="exit 1")
    with pytest.raises(SchedulerError, match="whether it has the job is not known, submitting again looks first"):
        sbatch.submit("cnnjob /runs/a 2", "x.sh")


@pytest.mark.usefixtures("settled")
def test_the_second_try_may_go_well(here: Site) -> None:
    here.says(sbatch='[ -e tried ] && echo "Submitted batch job 9" || { : > tried; echo "timed out" >&2; exit 1; }')
    assert sbatch.submit("cnnjob /runs/a 1", "x.sh") == "9"


def test_what_an_answer_without_a_number_means_shows_in_the_queue(here: Site) -> None:
    here.says(sbatch="echo Welcome to our cluster", squeue=f'echo "23{LINE}cnnjob /runs/a 1"')
    assert sbatch.submit("cnnjob /runs/a 1", "x.sh") == "23"


@pytest.mark.usefixtures("here")
def test_a_job_that_was_found_in_the_queue_has_its_pickle(here: Site) -> None:
    """The whole way, with the patience it has."""
    comment = f"cnnjob {Path.cwd()}/runs/toy"
    taken = f"""case "$*" in *user*) [ -e taken ] && echo "23{LINE}$(cat taken)"; true;; esac"""
    told = (
        """grep -o "cnnjob [^']*" "$1" | head -1 > taken; echo "Socket timed out on send/recv operation" >&2; exit 1"""
    )
    here.says(sbatch=told, squeue=taken, grep='exec /bin/grep "$@"', head='exec /usr/bin/head "$@"')
    found = cnnjob("submit", "toy.toml")
    assert ": submitted as job 23: " in found.stdout, found.output
    assert Path("taken").read_text().startswith(comment)
    [run] = Run.all(Path("runs"))
    assert {path.name for path in run.slurm_folder.glob("23_*")} == {"23_submission.sh", "23_submitted.pkl"}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_job_that_was_taken_in_silence_is_completed_by_the_next_submission(here: Site, seeds: int) -> None:
    from submitit.core.utils import DelayedSubmission

    taken = (here.folder / "sbatch").read_text().partition("\n")[2].rpartition("; echo")[0]
    silent = 'echo "Socket timed out on send/recv operation" >&2; exit 1'
    here.says(sbatch=f"{taken}; {silent}", squeue=f"[ ! -e 17.sh ] || {{ {silent}; }}")
    words = ("submit", "toy.toml", "--seeds", str(seeds))
    found = cnnjob(*words)
    assert (found.exit_code, "submitting again looks first" in found.stderr) == (4, True), found.output
    [comment] = re.findall("cnnjob /[^']*[0-9](?=')", Path("17.sh").read_text())
    tasks = ["17"] if seeds == 1 else ["17_0", "17_1"]
    here.says(squeue="".join(f'echo "{task}{LINE}{comment}";' for task in tasks))
    again = cnnjob(*words)
    assert [f": queued as {task}, nothing submitted" in again.stdout for task in tasks] == [True] * seeds
    for run, task in zip(Run.all(Path("runs")), tasks, strict=True):
        log = Path(files.read_json(run.submission_file)["log"])
        assert log.name == f"{task}_0_log.out"
        pickle = log.with_name(f"{task}_submitted.pkl")
        assert isinstance(DelayedSubmission.load(pickle).function, NodeTask)
    assert not Path("18.sh").exists()


def test_a_job_whose_files_cannot_be_written_is_cancelled(here: Site) -> None:
    """It would find nothing to run."""
    taken = "for folder in runs/*/slurm; do /bin/mkdir -p $folder/17_submission.sh; done"
    here.says(sbatch=f'{taken}; echo "Submitted batch job 17"', scancel='echo "$*" >> cancelled')
    assert cnnjob("submit", "toy.toml").exit_code != 0
    assert Path("cancelled").read_text() == "17\n"


@pytest.mark.usefixtures("settled")
def test_no_second_try_where_the_queue_is_not_understood(here: Site) -> None:
    silent = 'echo "Socket timed out on send/recv operation" >&2; exit 1'
    here.says(sbatch=f"echo x >> tried; {silent}", squeue='echo "17|???"')
    with pytest.raises(SchedulerError, match="whether it has the job is not known"):
        sbatch.submit("cnnjob /runs/a 1", "x.sh")
    assert Path("tried").read_text() == "x\n"


def test_a_refused_job_leaves_no_pickle(here: Site) -> None:
    here.says(sbatch='echo "sbatch: error: no" >&2; exit 1')
    assert cnnjob("submit", "toy.toml").exit_code == 4
    [run] = Run.all(Path("runs"))
    assert [path.name for path in run.slurm_folder.iterdir()] == ["request.json"]


def test_a_refused_job_leaves_the_files_of_others(here: Site) -> None:
    """Another submission of the same run is accepted in the meantime."""
    theirs = "for folder in runs/*/slurm; do : > $folder/16_submitted.pkl; : > $folder/16_submission.sh; done"
    here.says(sbatch=f'{theirs}; echo "sbatch: error: no" >&2; exit 1')
    assert cnnjob("submit", "toy.toml").exit_code == 4
    [run] = Run.all(Path("runs"))
    assert {path.name for path in run.slurm_folder.glob("16_*")} == {"16_submitted.pkl", "16_submission.sh"}


NOISE = 'echo "Jobs here run at most as (max. job 48 hours)"; echo "your job 8 is still running"'


@pytest.mark.parametrize(
    "answer",
    [
        f'{NOISE}; echo "Submitted batch job 17"; {NOISE}',
        f'{NOISE}; echo "  Submitted batch job 17 on cluster north  "',
        "echo 17",
        'echo "17;north"',
        f'{NOISE}; echo "Submitted batch job 17" >&2',  # its comment tells
        f"{NOISE}; echo 12",
        'echo "Submitted batch job 8 an hour ago"; echo "Submitted batch job 17"',
        'echo "Submitted batch job 8"; echo "Submitted batch job 17"',
    ],
)
def test_only_the_line_of_sbatch_names_the_job(here: Site, answer: str) -> None:
    """A site's wrapper may print what it likes around it; without the line the queue is asked."""
    here.says(sbatch=answer, squeue=f'echo "8{LINE}other"; echo "17{LINE}cnnjob /runs/a 1"')
    assert sbatch.submit("cnnjob /runs/a 1", "x.sh") == "17"


def test_a_sweep_through_a_wrapper_that_talks(here: Site) -> None:
    here.says(sbatch=f'{NOISE}; echo "Submitted batch job 17"; {NOISE}')
    found = cnnjob("submit", "toy.toml", "--seeds", "2")
    assert found.stdout.count("submitted as job 17_") == 2, found.output


# --- what a site allows, and what would become of a request

PARTITIONS = (
    *("PartitionName=gpu Default=YES DefaultTime=00:05:00 MaxTime=1-00:00:00 State=UP PreemptMode=OFF",),
    *("PartitionName=low MaxTime=UNLIMITED GraceTime=30 PreemptMode=REQUEUE AllowAccounts=us,them",),
    *("PartitionName=spare PreemptMode=CANCEL GraceTime=0",),
)


def looked(here: Site, config: str = "JobRequeue = 1\nMaxArraySize = 5\nKillWait = 20 sec") -> site.Site:
    printed = "; ".join(f'echo "{line}"' for line in PARTITIONS)
    here.says(scontrol=f'case "$*" in *config*) echo "{config}";; *) {printed};; esac')
    return site.query_site()


def test_a_site_is_read(here: Site) -> None:
    found = looked(here)
    both = found.partitions["gpu"], found.partitions["low"]
    assert [partition.is_default for partition in both] == [True, False]
    assert [(partition.max_minutes, partition.default_minutes) for partition in both] == [(1440, 5), (None, None)]
    assert [(partition.preempt_mode, partition.grace_seconds) for partition in both] == [("OFF", 0), ("REQUEUE", 30)]
    assert [partition.accounts for partition in both] == [("ALL",), ("us", "them")]
    assert (found.max_array_size, found.kill_wait_seconds) == (5, 20)
    assert found.requeues
    assert not found.signals_preempted
    assert looked(here, "SlurmctldParameters = a,preempt_send_user_signal").signals_preempted
    assert looked(here, "nothing").max_array_size == 1001


def test_one_partition_of_several_is_enough(here: Site) -> None:
    found = looked(here)
    found.check(Request(partition="gpu,low", time="2-0"))
    found.check(Request(time="1-0", account="anyone"))
    for wrong in (Request(time="25h"), Request(partition="low", account="thm"), Request(partition="lo")):
        with pytest.raises(SchedulerError):
            found.check(wrong)


@pytest.mark.parametrize(
    ("request_", "limit", "preemption"),
    [
        (Request(), "after 5 min: asked 90 s before it", "jobs of gpu are not preempted by partition"),
        (
            Request(partition="low", time="2h"),
            "after 2 h: asked 90 s before it by SLURM, or by its own clock, the job saves and stops; "
            "its batch script requeues it",
            "in low a preempted job gets SIGTERM and 30 s, in which it saves and stops; SLURM requeues it",
        ),
        (
            Request(partition="low", requeue=False),
            "at the site's time limit: ",
            "SLURM does not requeue it (REQUEUE), so its batch script submits a successor",
        ),
        (
            Request(partition="spare", requeue=False),
            "its batch script submits a successor that goes on",
            "in spare a preempted job gets SIGTERM and 20 s, in which it saves and stops; SLURM does not requeue it "
            "(CANCEL), so its batch script submits a successor",
        ),
    ],
)
def test_what_will_happen_is_said(here: Site, request_: Request, limit: str, preemption: str) -> None:
    found = looked(here)
    assert limit in at_the_time_limit(request_, found)
    assert preemption in at_preemption(request_, found)


def test_a_dry_run_asks_slurm(here: Site) -> None:
    looked(here)
    here.says(sbatch='[ "$1" = --test-only ] && echo "sbatch: Job 5 to start at noon" >&2')
    found = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert "\nSLURM: Job 5 to start at noon\n" in found.stdout
    here.says(sbatch='echo "allocation failure: no such node" >&2; exit 1')
    refused = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert refused.exit_code == 4
    assert "this request would be refused: sbatch --test-only: refused, allocation failure: no such" in refused.stderr
    here.says(scontrol='echo "Unable to contact slurm controller" >&2; exit 1')
    silent = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert (silent.exit_code, "\nSLURM: scontrol --all show partition" in silent.stdout) == (0, True)


@pytest.mark.usefixtures("nowhere")
def test_the_time_is_known_from_finished_runs_of_the_same_shape() -> None:
    dry = ("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert "\ntime: unknown, no run of this shape has finished in runs\n" in cnnjob(*dry).stdout
    assert cnnjob("train", "toy.toml").exit_code == 0
    [run] = Run.all(Path("runs"))
    result = json.loads(run.result_file.read_text())
    run.result_file.write_text(json.dumps({**result, "train_seconds": 20.0, "epochs": 2, "device": "GPU"}))
    said = "\ntime: 1 min of training on GPU, by 1 finished run of this shape\n"
    assert said in cnnjob(*dry, "--set", "train.epochs=6", "--set", "seed=9").stdout
    assert "\ntime: unknown" in cnnjob(*dry, "--set", "train.batch_size=9").stdout
    run.result_file.write_text("{}")
    assert "\ntime: unknown" in cnnjob(*dry).stdout


@pytest.mark.usefixtures("here")
def test_a_run_that_is_running_is_left_alone() -> None:
    run = running_run(Path("runs/a"))
    assert [done.why for done in submission.submit([run], Request())] == ["running"]
    with pytest.raises(JobError, match="SLURM reads the %"):
        submission.submit([pending_run(Path("%j"))], Request())


def test_the_code_that_a_job_runs_knows_its_commit(tmp_path: Path) -> None:
    copy = save_snapshot(Run(tmp_path / "any"))
    script = "import json; from cnnjob.runs.environment import commit; print(json.dumps(commit()))"
    known = {**os.environ, "PYTHONPATH": str(copy)}
    said = subprocess.run(
        [sys.executable, "-c", script], env=known, capture_output=True, text=True, check=True, cwd="/"
    )
    assert json.loads(said.stdout) == commit()
    assert json.loads((copy / "cnnjob-commit.json").read_text()) == commit()
