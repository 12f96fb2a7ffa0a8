"""Several submissions of the same runs on a real SLURM, and jobs of others: one job per run, no other job cancelled.

    CNNJOB_SUBMISSIONS=50 pytest -m slurm tests/cluster/test_submissions.py -k two_shells

submits the same sweep from two shells so many times, with locks and without.
"""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnnjob.runs import process
from cnnjob.runs.run import Run
from cnnjob.slurm.scheduler import client, queue
from tests.cluster import lab
from tests.cluster.conftest import Start
from tests.cluster.places import REQUEST, Place
from tests.durability.faults import NO_COMPILER, compile_no_locks, compiler

pytestmark = pytest.mark.slurm

TIMES = int(os.environ.get("CNNJOB_SUBMISSIONS", "3"))
LONG = 20_000
SMALL = ("--nodes", 1, "--kill-wait", 5)


@pytest.fixture(scope="module")
def no_locks() -> Iterator[dict[str, str]]:
    """Variables under which a process gets no locks."""
    if not compiler():
        pytest.skip(NO_COMPILER)
    with lab.folder() as folder:
        yield {"LD_PRELOAD": str(compile_no_locks(folder))}


@pytest.fixture
def place(cluster: Start, user_python: Path, request: pytest.FixtureRequest) -> Place:
    return Place.make(cluster(*SMALL), user_python, re.sub(r"\W+", "-", request.node.name), LONG)


def start(place: Place, *words: object, **variables: str) -> "subprocess.Popen[str]":
    """Start a command in a shell of its own."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "SLURM_", "PYTEST"))}
    setting = [f"{key}={value}" for key, value in variables.items()]
    command = [lab.SCRIPT, "run", place.cluster.folder, "env", f"--chdir={place.folder}", *setting, place.python]
    whole = [str(word) for word in (*command, "-m", "cnnjob", *words)]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=known)


def live(place: Place) -> list[str]:
    """The ids of the jobs that wait or run."""
    return place.cluster.admin("squeue", "--noheader", "--array", "--states=PENDING,RUNNING", "--format=%i").split()


@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "without locks"])
def test_two_shells_submit_one_sweep(place: Place, no_locks: dict[str, str], *, locks: bool) -> None:
    for time in range(TIMES):
        submit_from_two_shells(place, f"runs-{time}", ("3", "3" if time % 2 else "2"), {} if locks else no_locks)


def submit_from_two_shells(place: Place, runs: str, seeds: tuple[str, str], variables: dict[str, str]) -> None:
    """Each run has one job, whichever was first, and cancelling leaves none."""
    options = ("submit", "toy.toml", *REQUEST, "--runs", runs)
    shells = [start(place, *options, "--seeds", count, **variables) for count in seeds]
    said = [shell.communicate(timeout=120) for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], said
    told = [re.findall(r": (?:running|(?:submitted|queued) as (?:job )?([\d_]+))", out) for out, _ in said]
    assert sorted(map(len, told)) == sorted(map(int, seeds)), said
    carriers = {job for jobs in told for job in jobs if job}
    assert len(carriers) == 3, said
    if seeds == ("3", "3"):
        assert len({job.partition("_")[0] for job in carriers}) == 1, said
    lab.until(lambda: set(live(place)) <= carriers, 30, "one job per run")
    found = place.cnnjob("cancel", runs).stdout
    assert found.count("cancelled job ") == 3, found
    lab.until(lambda: not place.cluster.admin("squeue", "--noheader"), 60, "an empty queue")
    states = {run.state() for run in Run.all(place.folder / runs)}
    assert states <= {"pending", "stopped", "lost"}, states  # lost: ended before its handlers were set


# --- cancelling in the moment in which a batch script submits a successor

PAUSE = """#!/bin/sh
wait_at() {{ [ ! -e {folder}/$1 ] || {{ : > {folder}/reached; while [ ! -e {folder}/go ]; do sleep 0.05; done; }}; }}
wait_at before-{name}
{program} "$@"; code=$?
wait_at after-{name}
exit $code
"""


@pytest.mark.parametrize("moment", ["after-squeue", "before-sbatch", "after-sbatch"])
def test_a_successor_is_cancelled_whenever_it_is_submitted(place: Place, moment: str) -> None:
    """While ``cancel`` has read the queue and not yet cancelled; right before and after the whole of ``cancel``."""
    paths = {}
    for name in ("squeue", "sbatch"):  # of the shell that cancels, and of the job
        program = place.folder / name / name
        program.parent.mkdir()
        program.write_text(PAUSE.format(folder=place.folder, name=name, program=shutil.which(name)))
        program.chmod(0o755)
        paths[name] = f"{program.parent}:{os.environ['PATH']}"
    place.folder.chmod(0o777)
    first = place.submit("--no-requeue", path=paths["sbatch"])
    place.until_saved()
    (place.folder / moment).touch()
    if moment == "after-squeue":
        shell = start(place, "cancel", "runs", PATH=paths["squeue"])
        lab.until((place.folder / "reached").exists, 60, "the answer of the queue")
        place.kill(signal.SIGUSR2)
        lab.until(lambda: "resumes the run" in "".join(place.said()), 60, "the successor")
        (place.folder / "go").touch()
        out, error = shell.communicate(timeout=60)
        assert shell.returncode == 0, (out, error)
        assert re.search(
            rf"cancelled job {first}, .*; cancelled job \d+, which was submitted in the meantime\n", out
        ), out
    else:
        place.kill(signal.SIGUSR2)
        lab.until((place.folder / "reached").exists, 60, "the successor")
        assert f"cancelled job {first}" in place.cnnjob("cancel", "runs").stdout
        (place.folder / "go").touch()
    lab.until(lambda: not place.cluster.admin("squeue", "--noheader"), 60, "an empty queue")
    assert json.loads(place.cnnjob("status", "--json").stdout)[0]["state"] == "cancelled"


def test_ctrl_c_while_sbatch_runs(place: Place) -> None:
    """It has submitted the job, and not yet said so."""
    program = place.folder / "sbatch" / "sbatch"
    program.parent.mkdir()
    place.folder.chmod(0o777)
    program.write_text(PAUSE.format(folder=place.folder, name="sbatch", program=shutil.which("sbatch")))
    program.chmod(0o755)
    (place.folder / "after-sbatch").touch()
    shell = start(place, "submit", "toy.toml", *REQUEST, PATH=f"{program.parent}:{os.environ['PATH']}")
    lab.until((place.folder / "reached").exists, 60, "the job")
    [pid] = [pid for pid, line in lab.commands() if line.startswith(f"{place.python} -m cnnjob submit")]
    os.kill(pid, signal.SIGINT)
    _, error = shell.communicate(timeout=60)
    assert shell.returncode == 130, error
    assert error.startswith(f"cnnjob: interrupted; {place.run.name}: SLURM may have accepted the job. "), error
    job = place.cluster.admin("squeue", "--noheader", "--format=%i").strip()
    assert place.cnnjob("submit", "toy.toml", *REQUEST).stdout.endswith(f": queued as {job}, nothing submitted\n")
    place.until_saved()


def test_a_run_folder_that_is_removed_while_its_job_waits(place: Place) -> None:
    job = place.submit("--sbatch", "hold")
    shutil.rmtree(place.run.path)
    assert place.cnnjob("submit", "toy.toml", *REQUEST).stdout.endswith(f": queued as {job}, nothing submitted\n")
    place.cluster.run("scontrol", "release", job)
    place.until_saved()
    assert place.run.attempts()[-1]["job_id"] == job


# --- jobs of the user's own


def test_a_job_that_cnnjob_did_not_submit_is_never_cancelled(cluster: Start, user_python: Path) -> None:
    """A script of the user's trains in the background and in a step; cancelling the runs leaves the script running."""
    place = Place.make(cluster(*SMALL, "--host-names"), user_python, "own-script", LONG)
    train = f"{place.python} -m cnnjob train toy.toml"
    script = f"cd {place.folder}; {train} --runs one & srun --overlap --ntasks=1 {train} --runs two & sleep 300"
    job = place.cluster.submit("--cpus-per-task=2", "--mem=1000", "--wrap", script)
    one, two = (place.folder / name for name in ("one", "two"))
    lab.until(lambda: all(any(path.glob("*/history.jsonl")) for path in (one, two)), 90, "both trainings")
    [first], [second] = Run.all(one), Run.all(two)
    assert place.cnnjob("status", "one").stdout.splitlines()[2].split()[1] == "running"
    cancelled = place.cnnjob("cancel", "one", "two", check=False)
    assert cancelled.returncode == 5, cancelled
    said = cancelled.stdout.splitlines()
    assert f"inside job {job}, which cnnjob did not submit. To make it save and stop:" in said[0]
    assert said[1] == f"  ssh n1 kill -TERM {first.attempts()[-1]['pid']}"
    assert said[2].endswith(f": asked step {job}.0 to save and stop; its job keeps running"), said
    lab.until(lambda: second.state() == "stopped", 30, "the stop")
    assert first.attempts()[-1]["ended"] is None
    assert place.cluster.state(job) == "RUNNING"
    assert json.loads(place.cnnjob("status", "two", "--json").stdout)[0]["state"] == "cancelled"


def test_what_a_user_writes_is_not_read_as_what_slurm_says(cluster: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the name, comment, paths and folder of a job, in one line and in several."""
    here = cluster(*SMALL)
    monkeypatch.setenv("SLURM_CONF", str(here.folder / "etc" / "slurm.conf"))
    words = "x JobState=FAILED Restarts=9 EndTime=Unknown"
    lines = "x\n   JobState=FAILED Reason=None Dependency=(null)\n   Requeue=0 Restarts=9\n17|RUNNING|None||N/A|N/A|"
    for name, text in (("a", words), (words, words), ("a", lines), (lines, lines)):
        folder = here.home / text.replace("/", "-")
        here.run("mkdir", "-p", folder)
        options = (f"--job-name={name}", f"--comment={text}", f"--chdir={folder}", f"--output={folder}/log")
        job = here.submit("--hold", *options, "--wrap=true")
        holder = {"job_id": job, "cluster": client.current_cluster(), "started": process.now()}
        assert not client.job_is_over(holder, 0)
        if name != lines:  # ours have no line end in their names
            facts = client.query_job(job)
            assert (facts["JobState"], facts["Restarts"], facts["Requeue"]) == ("PENDING", "0", "1")
        listing = queue.list_queue([pwd.getpwnam("nobody").pw_uid])
        assert (listing.complete, job in {one.job_id for one in listing.jobs}) == (True, True)
        assert "17" not in {one.job_id for one in listing.jobs}


# --- several users


def as_another(place: Place, *words: object) -> "subprocess.CompletedProcess[str]":
    """Run a command of cnnjob as another user, whose files others may write."""
    user = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", "--", "sh", "-c", 'umask 0; "$@"', "sh")
    known = {"PATH": os.environ["PATH"], "SLURM_CONF": str(place.cluster.folder / "etc" / "slurm.conf"), "HOME": "/tmp"}
    command = [*user, place.python, "-m", "cnnjob", *words]
    return subprocess.run(
        [str(word) for word in command], cwd=place.folder, env=known, capture_output=True, text=True, check=False
    )


def shared(place: Place) -> str:
    """Let a run be made by its user, and be submitted by another; the job's id."""
    place.cluster.run("mkdir", "-m", "777", place.folder / "runs")
    options = (*REQUEST, "--sbatch", "begin=now+1hour")
    words = ("-m", "cnnjob", "submit", "toy.toml", *options)
    place.cluster.run("sh", "-c", 'umask 0; "$@"', "sh", place.python, *words, cwd=place.folder)
    assert "cancelled job" in place.cnnjob("cancel", "runs").stdout
    submitted = as_another(place, "submit", "toy.toml", *options)
    found = re.search(r": submitted as job (\d+)", submitted.stdout)
    assert found, submitted
    return found[1]


def test_a_folder_of_several_users(place: Place) -> None:
    job = shared(place)
    [told] = json.loads(place.cnnjob("status", "--json").stdout)
    assert (told["state"], told["job_id"]) == ("pending", job)
    assert place.cnnjob("submit", "toy.toml", *REQUEST).stdout.endswith(f": queued as {job}, nothing submitted\n")
    refused = place.cnnjob("cancel", "runs", check=False)
    assert refused.returncode == 4, refused
    assert f": job {job} was not cancelled: scancel: error: " in refused.stdout
    assert f": cancelled job {job}, which was waiting\n" in as_another(place, "cancel", "runs").stdout
    assert not place.cluster.admin("squeue", "--noheader")


def test_a_site_that_hides_the_jobs_of_others(cluster: Start, user_python: Path) -> None:
    place = Place.make(cluster(*SMALL, "--set", "PrivateData=jobs"), user_python, "hidden", LONG)
    job = shared(place)
    told = place.cnnjob("status", "--json")
    assert [(one["state"], one["job_id"]) for one in json.loads(told.stdout)] == [("pending", job)]
    assert "this site hides the jobs of other users" in told.stderr
    again = place.cnnjob("submit", "toy.toml", *REQUEST, check=False)
    assert again.returncode == 5
    assert (
        f"another user's job {job} may belong to this run, and this site hides the jobs of other users" in again.stderr
    )
    as_another(place, "cancel", "runs")
    assert not place.cluster.admin("squeue", "--noheader")
