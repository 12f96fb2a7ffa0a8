"""``cnnjob submit`` on a real SLURM: whatever ends a life, the run ends with the bits of the unbroken one."""

import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cnnjob.errors import EXIT_STOPPED
from cnnjob.runs.restart_log import try_read_restart_log
from tests.cluster import lab
from tests.cluster.conftest import Start
from tests.cluster.places import REQUEST, SMALL, Outcome, Place
from tests.helpers.toy_jobs import outcome_of, trained

EPOCHS = 120
CHANGES = {"train__epochs": EPOCHS, "train__checkpoint_seconds": 0.2}


def until_finished(place: Place, job: str, whole: Outcome, n_attempts: int) -> None:
    """Wait for the job's end; what it made is what the unbroken run made."""
    place.cluster.wait(job, "COMPLETED", seconds=90)
    assert outcome_of(place.run) == whole
    attempts = place.run.attempts()
    assert len(attempts) == n_attempts
    assert all(attempt["resumed_at_step"] > 0 for attempt in attempts[1:])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the unbroken run makes, here, in this process."""
    return outcome_of(trained(tmp_path_factory.mktemp("whole") / "toy", **CHANGES).run)


@pytest.fixture
def place(cluster: Start, user_python: Path, request: pytest.FixtureRequest) -> Place:
    return Place.make(cluster(*SMALL), user_python, request.node.name, EPOCHS)


@pytest.mark.slurm
def test_it_finishes_and_is_submitted_once(place: Place, whole: Outcome) -> None:
    options = ("submit", "toy.toml", *REQUEST)
    shown = place.cnnjob(*options, "--dry-run", "--no-rehearsal").stdout
    assert not (place.folder / "runs").exists()
    job = place.submit()
    assert f"\n{(place.run.path / 'slurm' / f'{job}_submission.sh').read_text()}\nnothing was submitted\n" in shown
    queued = place.cnnjob(*options).stdout
    assert re.search(rf": (queued as {job}|running), nothing submitted\n$", queued)
    lab.until(lambda: bool(place.run.attempt_files()), 60, "an attempt")
    place.kill(signal.SIGSTOP)  # or it may have finished before the command looks
    assert place.cnnjob(*options).stdout.endswith(": running, nothing submitted\n")
    place.kill(signal.SIGCONT)
    until_finished(place, job, whole, n_attempts=1)
    assert place.cnnjob(*options).stdout.endswith(": finished, nothing submitted\n")
    assert place.said() == ["finished"]
    assert len(list((place.run.path / "slurm").glob("*_submission.sh"))) == 1


@pytest.mark.slurm
def test_a_signal_to_the_step_saves_and_its_batch_script_brings_it_back(place: Place, whole: Outcome) -> None:
    """Of those that by default end a process; all of them in the matrix."""
    job = place.submit()
    place.until_saved()
    place.cluster.run("scancel", "--signal=HUP", f"{job}.0")
    lab.until(lambda: place.run.attempts()[0]["why"] == "stopped: SIGHUP", 30, "the stop")
    until_finished(place, job, whole, n_attempts=2)
    assert try_read_restart_log(place.run)[0]["code"] == EXIT_STOPPED
    assert not list(place.folder.rglob("runs/.code/**/__pycache__"))


@pytest.mark.slurm
def test_a_waiting_job_is_left_alone(place: Place) -> None:
    job = place.submit("--sbatch", "begin=now+1hour")
    assert place.cnnjob("submit", "toy.toml").stdout.endswith(f": queued as {job}, nothing submitted\n")


@pytest.mark.slurm
def test_an_unknown_partition_is_exit_4_with_the_near_one(place: Place) -> None:
    found = place.cnnjob("submit", "toy.toml", "--partition", "hihg", check=False)
    assert found.returncode == 4
    assert (
        "--partition hihg: no such partition. Did you mean 'high'? Valid names for this site: debug, gpu, high, low"
        in found.stderr
    )
    assert found.stderr.count("\n") == 1


@pytest.mark.slurm
def test_a_partition_that_is_down_takes_the_job_with_a_warning(place: Place) -> None:
    try:
        place.cluster.admin("scontrol", "update", "PartitionName=low", "State=DOWN")
        found = place.cnnjob("submit", "toy.toml", *REQUEST)
        assert found.stderr.startswith("cnnjob: warning: --partition low: state DOWN; the job will wait in the queue")
        assert "its partition is down" in place.cnnjob("status", place.run.path).stdout
        place.cluster.admin("scontrol", "update", "PartitionName=low", "State=DRAIN")
        found = place.cnnjob("submit", "toy.toml", *REQUEST, "--set", "seed=5", check=False)
        assert (found.returncode, "state DRAIN; it accepts no jobs" in found.stderr) == (4, True)
    finally:
        place.cluster.admin("scontrol", "update", "PartitionName=low", "State=UP")


@pytest.mark.slurm
def test_what_sbatch_refuses_is_one_message(place: Place) -> None:
    found = place.cnnjob("submit", "toy.toml", "--mem", "9000G", check=False)
    assert found.returncode == 4
    assert re.fullmatch(r"cnnjob: toy-\w{8}: sbatch: refused, sbatch: error: .*\n", found.stderr)


@pytest.mark.slurm
def test_the_limit_of_submitted_jobs_is_said_also_of_a_successor(
    cluster: Start, user_python: Path, request: pytest.FixtureRequest
) -> None:
    enforced = ("--accounting", "--set", "AccountingStorageEnforce=limits")
    place = Place.make(cluster(*SMALL, *enforced), user_python, request.node.name, 20_000)
    place.cluster.admin("sacctmgr", "-i", "modify", "user", "nobody", "set", "MaxSubmitJobs=1")
    limit = "refused by SLURM (AssocMaxSubmitJobLimit): your account allows you at most 1 job in the queue"
    found = place.cnnjob("submit", "toy.toml", *REQUEST, "--seeds", "3", check=False)
    assert found.returncode == 4
    assert f"{limit}, and each of these 3 array tasks counts as a job, so --parallel does not help" in found.stderr
    shutil.rmtree(place.folder / "runs")
    job = place.submit("--no-requeue")
    place.until_saved()
    place.kill()
    place.cluster.wait(job, "FAILED")
    assert place.said()[0].startswith(f"not restarted, {place.run.name}: {limit}")
    said = place.cnnjob("status", place.run.path).stdout
    assert f"its job ended and was not restarted: {limit}; a job that is ending still counts." in said
    [command] = re.findall(r"^next: +cnnjob (submit .*)$", said, re.MULTILINE)
    assert ": submitted as job" in place.cnnjob(*shlex.split(command)).stdout


@pytest.mark.slurm
def test_requeued(place: Place, whole: Outcome) -> None:
    job = place.submit()
    place.until_saved()
    place.cluster.run("scontrol", "requeue", job)
    until_finished(place, job, whole, n_attempts=2)
    assert place.said()[-1] == "finished"


@pytest.mark.slurm
def test_cancelled_stays_cancelled_and_goes_on_when_submitted_again(place: Place, whole: Outcome) -> None:
    job = place.submit()
    place.until_saved()
    place.cluster.run("scancel", job)
    place.until_ended(job, "CANCELLED")
    assert place.said() == ["cancelled; submit the job again to resume it"]
    assert place.run.state() == "stopped"
    until_finished(place, place.submit(), whole, n_attempts=2)


@pytest.mark.slurm
def test_preempted(place: Place, whole: Outcome) -> None:
    job = place.submit()
    place.until_saved()
    place.cluster.submit("--partition=high", "--exclusive", "--wrap", "true")
    until_finished(place, job, whole, n_attempts=2)


@pytest.mark.slurm
def test_killed(place: Place, whole: Outcome) -> None:
    job = place.submit()
    place.until_saved()
    place.kill()
    until_finished(place, job, whole, n_attempts=2)
    assert [told["code"] for told in try_read_restart_log(place.run)] == [137, 0]


@pytest.mark.slurm
def test_killed_where_requeueing_is_forbidden(place: Place, whole: Outcome) -> None:
    job = place.submit("--no-requeue")
    place.until_saved()
    place.kill()
    place.cluster.wait(job, "FAILED")
    found = re.match(r"job (\d+) resumes the run \(", place.said()[0])
    assert found, place.said()
    until_finished(place, found[1], whole, n_attempts=2)


@pytest.mark.slurm
@pytest.mark.parametrize("option", ["--batch", "--full"])
def test_signals_to_the_batch_script(place: Place, whole: Outcome, option: str) -> None:
    """Only the step's end decides: with ``--full`` it is asked to stop, too."""
    job = place.submit()
    place.until_saved()
    for name in ("USR1", "HUP")[: 1 + (option == "--batch")]:
        place.cluster.run("scancel", option, f"--signal={name}", job)
    until_finished(place, job, whole, n_attempts=1 + (option == "--full"))


@pytest.mark.slurm
@pytest.mark.parametrize("export", ["NONE", "NIL"])
def test_an_environment_that_is_not_exported(place: Place, whole: Outcome, export: str) -> None:
    shown = place.cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal", "--sbatch", f"export={export}").stdout
    assert f"\n#SBATCH --export={export}\n" in shown
    assert " --export=ALL " in shown
    until_finished(place, place.submit("--sbatch", f"export={export}"), whole, n_attempts=1)


@pytest.mark.slurm
def test_an_end_that_has_moved_stops_nobody(place: Place, whole: Outcome) -> None:
    """As after a suspension or a longer limit: the end that was known at the start passes."""
    job = place.submit(setup="export SLURM_JOB_END_TIME=$(($(date +%s) + 5))")
    place.until_saved()
    place.cluster.admin("scontrol", "suspend", job)
    time.sleep(6)
    place.cluster.admin("scontrol", "resume", job)
    until_finished(place, job, whole, n_attempts=1)


@pytest.mark.slurm
def test_a_crash_loop_ends(place: Place) -> None:
    """The task is killed at once, each time."""
    job = place.submit(setup="srun() { sh -c 'kill -9 $$'; }")
    place.until_ended(job, "FAILED")
    assert len(place.said()) == 4
    assert place.said()[-1] == "3 restarts without progress"


@pytest.mark.slurm
def test_the_jobs_own_error_is_not_restarted(place: Place) -> None:
    wrong = (
        "train.learning_rate=900.0",
        "train.optimiser.sgd.momentum=0.99",
        "model.blocks=[{dense=8,activation='none'}]",
    )
    job = place.submit(*(word for change in wrong for word in ("--set", change)))
    place.until_ended(job, "FAILED")
    assert place.said() == ["not restarted after the job's own error"]
    assert place.cluster.job(job)["ExitCode"] == "1:0"
    assert place.run.state() == "failed"


@pytest.mark.slurm
def test_a_job_that_holds_a_gpu_does_not_silently_compute_without(place: Place) -> None:
    job = place.submit("--partition", "gpu", "--set", "resources.backend=auto")
    place.until_ended(job, "FAILED")
    assert place.cluster.job(job)["ExitCode"] == "2:0"
    assert place.said() == ["not restarted after the job's own error"]
    log = (place.run.slurm_folder / f"{job}_0_log.out").read_text()
    held = r"cnnjob: resources\.backend: 'auto', and this SLURM job was allocated GPU 0, but .+. To train without a GPU"
    assert re.search(held, log), log


@pytest.mark.slurm
def test_a_job_that_wants_numpy_may_hold_a_gpu(place: Place, whole: Outcome) -> None:
    until_finished(place, place.submit("--partition", "gpu", "--gpus", "1"), whole, n_attempts=1)


@pytest.mark.slurm
def test_what_cannot_even_start_is_the_jobs_own_error(place: Place) -> None:
    job = place.submit(setup="module load nonsense")
    place.until_ended(job, "FAILED")
    assert place.said() == ["not restarted after the job's own error"]
    assert place.run.state() == "pending"


@pytest.mark.slurm
def test_wait_is_1_for_a_run_that_failed_and_names_its_cause(place: Place) -> None:
    job = ("toy.toml", "--set", "train.epochs=2", "--set", "model.blocks=[{dense=8,activation='none'}]")
    sweep = ("--sweep", "train.learning_rate=0.05,900.0", "--wait")
    found = place.cnnjob("submit", *job, *REQUEST, *sweep, check=False, timeout=120)
    assert found.returncode == 1, found.stderr
    assert re.search(r"^runs/toy-\w{8}: finished, test accuracy [\d.]+ %$", found.stdout, re.MULTILINE)
    assert re.search(r"^runs/toy-\w{8}: failed, the loss is (nan|inf) at step .+$", found.stdout, re.MULTILINE)


@pytest.mark.slurm
def test_waiting_for_a_held_job_says_so_once_and_ends_when_it_is_cancelled(place: Place) -> None:
    path = place.folder / "said.txt"
    command = [str(place.python), "-m", "cnnjob", "submit", "toy.toml", "--sbatch", "hold", "--wait"]
    inside = ["env", f"--chdir={place.folder}", *command]
    with path.open("w") as output:
        child = subprocess.Popen([str(lab.SCRIPT), "run", str(place.cluster.folder), *inside], stdout=output)
    lab.until(lambda: "will not start by itself; it is held by its user" in path.read_text(), 30, "what holds it")
    job = place.run.submission_file.read_text().partition('"job_id": "')[2].partition('"')[0]
    assert f"\n  scontrol release {job}\n" in path.read_text()
    place.cluster.run("scancel", job)
    assert child.wait(60) == 1
    assert path.read_text().splitlines()[-1].endswith(f": cancelled, its job {job} was cancelled")
    assert path.read_text().count("will not start by itself") == 1


@pytest.mark.slurm
def test_variables_that_hide_jobs_do_not_hide_them_here(place: Place) -> None:
    job = place.submit("--sbatch", "begin=now+1hour")
    hiding = ("SQUEUE_STATES=RUNNING", "SQUEUE_PARTITION=high", "SCANCEL_STATE=RUNNING", "SACCT_LOCAL=1")
    command = ("env", *hiding, place.python, "-m", "cnnjob")
    found = place.cluster.run(*command, "submit", "toy.toml", cwd=place.folder)
    assert found.stdout.endswith(f": queued as {job}, nothing submitted\n")
    assert " pending " in place.cluster.run(*command, "status", cwd=place.folder).stdout
    assert "cancelled job" in place.cluster.run(*command, "cancel", "runs", cwd=place.folder).stdout
    place.until_ended(job, "CANCELLED")


@pytest.mark.slurm
def test_a_fine_tuned_run_needs_no_more_than_its_folder_when_its_job_starts(place: Place) -> None:
    place.cnnjob("train", "toy.toml", "--set", "train.epochs=1")
    parent = place.run
    shown = place.cnnjob(
        "submit", "toy.toml", *REQUEST, "--sbatch", "hold", "--set", "model.init_from=latest", "--set",
        "model.blocks.0.frozen=true", "--set", "train.epochs=3",
    ).stdout  # fmt: skip
    found = re.search(r": submitted as job (\d+)", shown)
    assert found, shown
    assert f"initial weights: {parent.name} (SHA-256 " in shown
    assert "  taken: conv1 (frozen), dense1, classifier\n" in shown
    weights = parent.weights()
    shutil.rmtree(parent.path)
    place.cluster.run("scontrol", "release", found[1])
    place.cluster.wait(found[1], "COMPLETED", seconds=90)
    assert place.run.result()["epochs"] == 3
    assert (place.run.weights()["conv1/bias"] == weights["conv1/bias"]).all()
    assert place.run.environment()["initial"]["run"] == parent.name
