"""Whatever a cluster does to a job, it ends with the bits of the unbroken run, by no hand but SLURM's and its own.

    pytest -m slurm_matrix

Each scenario five times (``CNNJOB_REPETITIONS``), at the same time, on a cluster of its kind. At the end a table says
who restarted the jobs: SLURM, the job (it saved and asked its batch script to), or the batch script (its process was
gone).
"""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from cnnjob import files
from cnnjob.runs.restart_log import try_read_restart_log
from cnnjob.runs.run import Run
from tests.cluster import lab
from tests.cluster.conftest import ROWS, Start
from tests.cluster.places import REQUEST, Outcome, Place, toml
from tests.helpers.toy_jobs import outcome_of, trained

pytestmark = pytest.mark.slurm_matrix

REPETITIONS = int(os.environ.get("CNNJOB_REPETITIONS", "5"))
EPOCHS = 300
SEEDS, SWEEP_EPOCHS, STRUCK = 20, 60, (3, 17)
PLAIN = ("--nodes", 3)
GRACE = ("--nodes", 2, "--grace", 20)
USER_SIGNAL = ("--nodes", 2, "--grace", 20, "--user-signal")
CANCEL = ("--nodes", 2, "--preempt", "cancel", "--kill-wait", 30)
FORBIDDING = ("--nodes", 2, "--no-requeue", "--kill-wait", 30)
HOSTS = ("--nodes", 3, "--host-names")
ACCOUNTING = ("--nodes", 2, "--accounting")
FIRST_LIFE = '[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || '
NO_SIGNAL = 'srun() { command srun "${@:1:4}" env --block-signal=USR2 "${@:5}"; }'
Strike = Callable[[Place, str], None]


@dataclass
class Fleet:
    """The repetitions of a scenario, alive at the same time."""

    places: list[Place]
    barrier: Barrier = field(init=False)

    def __post_init__(self) -> None:
        """Let them wait for each other."""
        self.barrier = Barrier(len(self.places))

    @property
    def cluster(self) -> lab.Cluster:
        """The cluster of all."""
        return self.places[0].cluster

    def at_once(self, do: Callable[[], Any]) -> None:
        """Wait for all; one does it; all go on."""
        if self.barrier.wait(120) == 0:
            do()
        self.barrier.wait(120)

    def each(self, live: Callable[[Place], Any]) -> list[Any]:
        """Do it in all places at the same time."""

        def n_attempts(place: Place) -> Any:
            try:
                return live(place)
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(len(self.places)) as pool:
            return list(pool.map(n_attempts, self.places))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the unbroken run makes, here, in this process."""
    return outcome_of(trained(tmp_path_factory.mktemp("whole") / "toy", train__epochs=EPOCHS).run)


@pytest.fixture
def fleet(cluster: Start, user_python: Path, request: pytest.FixtureRequest) -> Callable[..., Fleet]:
    """Make the places of a scenario on a cluster with these options."""

    def make(*options: object) -> Fleet:
        names = [f"{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())}-{number}" for number in range(REPETITIONS)]
        one = cluster(*options)
        return Fleet([Place.make(one, user_python, name, EPOCHS) for name in names])

    return make


@dataclass
class Told:
    """A line of the table."""

    scenario: str
    repetitions: int
    n_attempts: Counter[int] = field(default_factory=Counter)
    who: Counter[str] = field(default_factory=Counter)
    equal: int = 0

    def cells(self) -> list[str]:
        """For people."""
        lives = "–".join(map(str, sorted({min(self.n_attempts), max(self.n_attempts)}))) if self.n_attempts else "?"
        return [self.scenario, str(self.repetitions), lives, ", ".join(self.who), f"{self.equal} of {self.repetitions}"]


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Iterator[Callable[[str, int], Told]]:
    """Begin a line of the table; it is shown at the end, whatever came of it."""

    def begin(scenario: str, repetitions: int = REPETITIONS) -> Told:
        told.append(Told(scenario, repetitions))
        return told[-1]

    told: list[Told] = []
    yield begin
    request.config.stash[ROWS].extend(one.cells() for one in told)


Begin = Callable[[str], Told]


def survive(
    fleet: Fleet, told: Told, whole: Outcome, strike: Strike, submit: Callable[[Place], str], at_least: int = 2
) -> None:
    """Submit in all places, strike, and wait for the end, which is that of the unbroken run, after so many lives."""

    def live(place: Place) -> None:
        first = submit(place)
        strike(place, first)
        lab.until(place.run.result_file.exists, 300, "the result")
        place.cluster.wait(place.jobs(first)[-1], "COMPLETED", "COMPLETING", seconds=60)
        lab.until(lambda: try_read_restart_log(place.run)[-1]["said"] == "finished", 30, "the last decision")
        lives = place.n_attempts(first)
        assert lives >= at_least
        told.n_attempts[lives] += 1
        told.who.update(place.restarted_by(first))
        assert outcome_of(place.run) == whole
        told.equal += 1
        check_attempts(place.run)

    fleet.each(live)


def check_attempts(run: Run, epochs: int = EPOCHS) -> None:
    """Every life is told, and none went on before the one that it followed had saved."""
    attempts = run.attempts()
    assert [attempt["attempt"] for attempt in attempts] == list(range(1, len(attempts) + 1))
    steps = [attempt.get("resumed_at_step") or 0 for attempt in attempts]
    assert steps == sorted(steps)
    assert attempts[-1]["why"] == "finished"
    assert [record["epoch"] for record in run.history()] == list(range(1, epochs + 1))


def plainly(place: Place) -> str:
    return place.submit()


# --- what strikes


def nothing(place: Place, job: str) -> None:
    """It is left to finish."""


def test_finish(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    survive(fleet(*PLAIN), table("finish"), whole, nothing, plainly, at_least=1)


def test_requeued(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    def strike(place: Place, job: str) -> None:
        place.until_saved()
        place.cluster.run("scontrol", "requeue", job)

    survive(fleet(*PLAIN), table("scontrol requeue"), whole, strike, plainly)


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        ("preempted, REQUEUE, grace 20 s", GRACE),
        ("preempted, REQUEUE, grace 20 s, user signal", USER_SIGNAL),
        ("preempted, REQUEUE, grace 0", PLAIN),
        ("preempted, CANCEL, grace 0", CANCEL),
        ("preempted, CANCEL, grace 20 s", (*CANCEL, "--grace", 20)),
    ],
)
def test_preempted(
    fleet: Callable[..., Fleet], table: Begin, whole: Outcome, scenario: str, options: tuple[object, ...]
) -> None:
    places = fleet(*options)

    def preempt() -> None:
        nodes = f"--nodes={options[1]}"
        places.cluster.submit("--partition=high", "--exclusive", nodes, "--wrap", "sleep 3")

    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        places.at_once(preempt)

    survive(places, table(scenario), whole, strike, plainly)


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        ("kill -9", PLAIN),
        ("kill -9, accounting on", ACCOUNTING),
        ("kill -9, requeue forbidden by the site", FORBIDDING),
    ],
)
def test_killed(
    fleet: Callable[..., Fleet], table: Begin, whole: Outcome, scenario: str, options: tuple[object, ...]
) -> None:
    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        place.kill()

    survive(fleet(*options), table(scenario), whole, strike, plainly)


WRAPPER = """#!/bin/sh
echo "Jobs here run at most as (max. job 48 hours)"
echo "your job 8 is still running"
/usr/bin/sbatch "$@" || exit
echo "job 9 was yours as well"
"""


def test_an_sbatch_that_talks(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    """A site's wrapper names other jobs, at the submission and when a successor is submitted."""

    def strike(place: Place, job: str) -> None:
        place.until_saved()
        assert files.read_json(place.run.submission_file)["job_id"] == job
        place.kill()

    def submit(place: Place) -> str:
        wrapper = place.folder / "sbatch"
        wrapper.write_text(WRAPPER)
        wrapper.chmod(0o755)
        return place.submit(path=f"{place.folder}:{os.environ['PATH']}")

    survive(fleet(*FORBIDDING), table("sbatch's wrapper talks of other jobs"), whole, strike, submit)


@pytest.mark.parametrize("name", ["USR2", "TERM"])
def test_a_signal_before_the_handlers(fleet: Callable[..., Fleet], table: Begin, whole: Outcome, name: str) -> None:
    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        os.kill(place.importing(), signal.Signals[f"SIG{name}"])
        assert not place.run.attempt_files()
        lab.until(lambda: bool(try_read_restart_log(place.run)), 30, "a decision")
        assert try_read_restart_log(place.run)[0]["code"] == 128 + signal.Signals[f"SIG{name}"]

    def submit(place: Place) -> str:
        return place.submit(setup=f"{FIRST_LIFE} sleep 3")  # until it is looked for

    survive(fleet(*PLAIN), table(f"SIG{name} before the handlers"), whole, strike, submit)


@pytest.mark.parametrize("name", ["HUP", "QUIT", "XCPU", "USR2"])
def test_a_signal_to_the_step(fleet: Callable[..., Fleet], table: Begin, whole: Outcome, name: str) -> None:
    def strike(place: Place, job: str) -> None:
        place.until_saved()
        number = signal.Signals[f"SIG{name}"]
        place.cluster.run("scancel", f"--signal={int(number)}", f"{job}.0")
        lab.until(lambda: place.run.attempts()[0]["why"] == f"stopped: {number.name}", 30, "the stop")

    survive(fleet(*PLAIN), table(f"SIG{name} to the step"), whole, strike, plainly)


@pytest.mark.parametrize("name", ["USR1", "HUP", "QUIT", "XCPU", "USR2"])
def test_a_signal_to_the_batch_script(fleet: Callable[..., Fleet], table: Begin, whole: Outcome, name: str) -> None:
    def strike(place: Place, job: str) -> None:
        place.until_saved()
        place.cluster.run("scancel", "--batch", f"--signal={int(signal.Signals[f'SIG{name}'])}", job)
        place.until_saved()  # by the same process

    survive(fleet(*PLAIN), table(f"SIG{name} to the batch script"), whole, strike, plainly, at_least=1)


@pytest.mark.parametrize(("export", "options"), [("NONE", PLAIN), ("NIL", FORBIDDING)], ids=["requeued", "successor"])
def test_an_environment_that_is_not_exported(
    fleet: Callable[..., Fleet], table: Begin, whole: Outcome, export: str, options: tuple[object, ...]
) -> None:
    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        place.kill()

    def submit(place: Place) -> str:
        return place.submit("--sbatch", f"export={export}")

    survive(fleet(*options), table(f"kill -9 with export={export}"), whole, strike, submit)


# --- the time limit


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        ("time limit with a signal", PLAIN),
        ("time limit with a signal, requeue forbidden", FORBIDDING),
    ],
)
def test_the_time_limit_with_a_signal(
    fleet: Callable[..., Fleet], table: Begin, whole: Outcome, scenario: str, options: tuple[object, ...]
) -> None:
    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        place.kill(signal.SIGSTOP)  # until SLURM's signal comes, which lets it go on
        lab.until(lambda: place.run.attempts()[0]["why"] == "stopped: SIGUSR2", 60, "the stop")

    def submit(place: Place) -> str:
        return place.submit("--time", "1m", signal_seconds=25)

    survive(fleet(*options), table(scenario), whole, strike, submit)


def test_the_time_limit_by_the_clock(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    """The signal does not come through."""

    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        place.hold(32)
        place.kill(signal.SIGCONT)
        lab.until(lambda: place.run.attempts()[0]["why"] == "stopped: time limit", 30, "the stop")

    def submit(place: Place) -> str:
        return place.submit("--time", "1m", setup=NO_SIGNAL)

    survive(fleet(*PLAIN), table("time limit without a signal: the clock"), whole, strike, submit)


def test_the_time_limit_without_a_word(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    """No signal, and no answer about when the job will end: SLURM ends it."""

    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        place.hold(40)
        lab.until(lambda: place.run.attempts()[0]["why"] == "stopped: SIGTERM", 90, "the stop")

    def submit(place: Place) -> str:
        deaf = 'case "$IN_STEP $*" in "1 show job"*) exit 1;; esac'
        step = NO_SIGNAL.replace("=USR2", "=USR2 IN_STEP=1")  # the batch script is answered
        (place.folder / "scontrol").write_text(f'#!/bin/sh\n{deaf}\nexec /usr/bin/scontrol "$@"\n')
        (place.folder / "scontrol").chmod(0o755)
        return place.submit("--time", "1m", setup=f"export PATH={place.folder}:$PATH; {step}")

    survive(fleet(*PLAIN), table("time limit without a signal: SIGTERM only"), whole, strike, submit)


def test_suspended_past_its_end(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    def strike(place: Place, job: str) -> None:
        place.until_saved()
        place.cluster.admin("scontrol", "suspend", job)
        time.sleep(125)
        place.cluster.admin("scontrol", "resume", job)
        place.until_saved()  # by the same process

    def submit(place: Place) -> str:
        return place.submit("--time", "2m", signal_seconds=25)

    survive(fleet(*PLAIN), table("suspended past its end, resumed"), whole, strike, submit, at_least=1)


def test_the_time_limit_is_extended(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    def strike(place: Place, job: str) -> None:
        place.until_saved()
        place.cluster.admin("scontrol", "update", f"JobId={job}", "TimeLimit=10")
        place.hold(125)
        place.kill(signal.SIGCONT)
        place.until_saved()  # by the same process

    def submit(place: Place) -> str:
        return place.submit("--time", "2m", signal_seconds=25)

    survive(fleet(*PLAIN), table("time limit extended"), whole, strike, submit, at_least=1)


def test_the_time_limit_is_shortened(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    def strike(place: Place, job: str) -> None:
        place.until_saved()
        place.cluster.admin("scontrol", "update", f"JobId={job}", "TimeLimit=1")
        place.kill(signal.SIGSTOP)  # until SLURM's signal comes, which lets it go on
        lab.until(lambda: place.run.attempts()[0]["why"] == "stopped: SIGUSR2", 90, "the stop")

    def submit(place: Place) -> str:
        return place.submit("--time", "10m", signal_seconds=25)

    survive(fleet(*PLAIN), table("time limit shortened"), whole, strike, submit)


HANG = """
import ctypes, os, sys, threading, time
from pathlib import Path

def hang():
    while not (len(sys.argv) > 1 and list(Path(sys.argv[1]).parent.glob("checkpoints/step-*"))):
        time.sleep(0.01)
    lock = ctypes.create_string_buffer(256)
    ctypes.PyDLL(None).pthread_mutex_lock(lock)
    ctypes.PyDLL(None).pthread_mutex_lock(lock)  # for ever, and no other thread runs

if "SLURM_RESTART_COUNT" not in os.environ:
    threading.Thread(target=hang, daemon=True).start()
"""


def test_the_time_limit_of_a_process_that_does_not_react(
    fleet: Callable[..., Fleet], table: Begin, whole: Outcome
) -> None:
    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        lab.until(lambda: bool(try_read_restart_log(place.run)), 120, "a decision")
        assert try_read_restart_log(place.run)[0]["code"] == 128 + signal.SIGALRM

    def submit(place: Place) -> str:
        (place.folder / "hang").mkdir()
        (place.folder / "hang" / "sitecustomize.py").write_text(HANG)
        srun = f'srun() {{ PYTHONPATH={place.folder}/hang:$PYTHONPATH command srun "$@"; }}'
        return place.submit("--time", "1m", setup=srun, signal_seconds=25)

    survive(fleet(*PLAIN), table("time limit of a process that does not react"), whole, strike, submit)


# --- nodes and daemons


LOST, SPARE = ("n1", "n2"), "n3"


def on_two_nodes(cluster: lab.Cluster) -> None:
    """Keep the third for later."""
    cluster.admin("scontrol", "update", f"nodename={SPARE}", "state=drain", "reason=later")


def lose(cluster: lab.Cluster, verb: str) -> None:
    """Take the two nodes away, and give the third."""
    for node in LOST:
        cluster.daemon(verb, node)
    cluster.admin("scontrol", "update", f"nodename={SPARE}", "state=resume")


def bring_back(cluster: lab.Cluster) -> None:
    """Give the two nodes back."""
    for node in LOST:
        cluster.daemon("start", node)
    lab.until(lambda: "*" not in cluster.admin("sinfo", "-hp", "debug", "-o", "%t"), 60, "an answer of the nodes")
    for node in LOST:
        if "down" in cluster.admin("sinfo", "-hn", node, "-p", "debug", "-o", "%t"):
            cluster.admin("scontrol", "update", f"nodename={node}", "state=resume")
    lab.until(lambda: cluster.admin("sinfo", "-hp", "debug", "-o", "%T").split() == ["idle"], 60, "idle nodes")


def test_a_node_goes_down(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    places = fleet(*HOSTS)
    on_two_nodes(places.cluster)

    def go_down() -> None:
        lose(places.cluster, "kill")
        for node in LOST:
            places.cluster.admin("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        places.at_once(go_down)

    survive(places, table("node down"), whole, strike, plainly)
    bring_back(places.cluster)


def test_a_node_comes_back_from_the_dead(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    """SLURM hears nothing of the node and starts the job on another, while the first copy still lives."""
    places = fleet(*HOSTS)
    on_two_nodes(places.cluster)

    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        first = place.task
        place.kill(signal.SIGSTOP)  # or it would have finished before SLURM misses its node
        places.at_once(lambda: lose(places.cluster, "stop"))
        lab.until(lambda: len(place.run.attempt_files()) > 1, 150, "the second copy")
        record = place.run.attempt_files()[0].read_bytes()
        assert Path(f"/proc/{first}").exists()
        os.kill(first, signal.SIGCONT)
        lab.until(lambda: not Path(f"/proc/{first}").exists(), 60, "the end of the first copy")
        assert place.run.attempt_files()[0].read_bytes() == record
        assert "this process was presumed dead, and attempt 2 now owns the run" in log_of(place)

    survive(places, table("node back from the dead, two live copies"), whole, strike, plainly)
    bring_back(places.cluster)


def log_of(place: Place) -> str:
    return Path(files.read_json(place.run.submission_file)["log"]).read_text()


def test_slurmctld_is_away_while_a_life_ends(fleet: Callable[..., Fleet], table: Begin, whole: Outcome) -> None:
    places = fleet(*PLAIN)

    def strike(place: Place, job: str) -> None:  # noqa: ARG001
        place.until_saved()
        places.at_once(lambda: places.cluster.daemon("stop", "slurmctld"))
        place.kill(signal.SIGUSR2)
        lab.until(lambda: "trying again in" in log_of(place), 60, "patience")
        places.at_once(lambda: places.cluster.daemon("start", "slurmctld"))

    survive(places, table("slurmctld restarted while a life ends"), whole, strike, plainly)


# --- arrays


def test_an_array_of_which_two_are_requeued(fleet: Callable[..., Fleet], table: Begin, tmp_path: Path) -> None:
    """Twenty seeds, one job array; each repetition is a sweep."""
    wholes = {
        seed: outcome_of(trained(tmp_path / str(seed), train__epochs=SWEEP_EPOCHS, seed=seed).run)
        for seed in range(SEEDS)
    }
    places, told = fleet(*PLAIN), table(f"array of {SEEDS}, two of them requeued")

    def live(place: Place) -> None:
        (place.folder / "toy.toml").write_text(toml(SWEEP_EPOCHS))
        place.cnnjob("submit", "toy.toml", *REQUEST, "--seeds", SEEDS)
        runs = {run.manifest()["job"]["seed"]: run for run in Run.all(place.folder / "runs")}
        assert runs.keys() == wholes.keys()
        for seed in STRUCK:
            requeue(place, runs[seed])
        for seed, run in runs.items():
            lab.until(lambda run=run: job_is_over(run), 400, f"the end of seed {seed}")  # type: ignore[misc]
            assert outcome_of(run) == wholes[seed]
            assert len(run.attempts()) == 1 + (seed in STRUCK)
            check_attempts(run, SWEEP_EPOCHS)
        told.n_attempts.update(len(run.attempts()) for run in runs.values())
        told.who["SLURM"] += len(STRUCK)
        told.equal += 1

    places.each(live)


def job_is_over(run: Run) -> bool:
    """Return whether a run is finished, and its last attempt has recorded that, which it does after the result."""
    return run.result_file.exists() and bool(run.attempts()[-1]["why"])


def requeue(place: Place, run: Run) -> None:
    """Requeue an element of the array when it has saved."""
    lab.until(lambda: any(run.checkpoints_folder.glob("step-*")), 200, "a checkpoint")
    os.kill(run.attempts()[-1]["pid"], signal.SIGSTOP)  # SLURM lets it go on when it ends it
    element = files.read_json(run.submission_file)["job_id"]
    assert "_" in element
    place.cluster.run("scontrol", "requeue", element)


# --- what is not restarted


def restart_script(place: Place) -> bool:
    return any("cnnjob.slurm.node.restart" in line and str(place.folder) in line for _, line in lab.commands())


def in_setup(place: Place) -> None:
    lab.until((place.folder / "setup").exists, 40, "setup")


def while_importing(place: Place) -> None:
    place.importing()


def in_training(place: Place) -> None:
    place.until_saved()


def in_the_restart_script(place: Place) -> None:
    place.until_saved()
    place.kill()
    lab.until(lambda: restart_script(place), 40, "the restart script")


def in_the_queue_again(place: Place) -> None:
    place.until_saved()
    place.kill()
    lab.until(lambda: bool(try_read_restart_log(place.run)), 40, "a decision")
    lab.until(lambda: not restart_script(place), 40, "the end of the script")


@pytest.mark.parametrize(
    ("where", "until"),
    [
        ("in its setup lines", in_setup),
        ("while Python imports", while_importing),
        ("in training", in_training),
        ("in the restart script", in_the_restart_script),
        ("between requeue and next start", in_the_queue_again),
    ],
)
def test_scancel_stays_and_submitting_again_goes_on(
    fleet: Callable[..., Fleet], table: Begin, whole: Outcome, where: str, until: Callable[[Place], None]
) -> None:
    def submit(place: Place) -> str:
        setup = f"touch {place.folder}/setup; sleep 30" if until is in_setup else ""
        job = place.submit(setup=setup)
        until(place)
        place.cluster.run("scancel", job)
        place.cluster.wait(job, "CANCELLED", seconds=40)
        lab.until(lambda: not restart_script(place) and not place.cluster.admin("squeue", "-hj", job), 40, "the end")
        time.sleep(6)  # a requeued job starts again after 5 s
        assert place.cluster.state(job) == "CANCELLED"
        assert not place.cluster.admin("squeue", "--noheader", f"--name={place.run.name}", f"--jobs={job}")
        return place.submit()

    told = table(f"scancel {where} stays; submit again")
    places = fleet(*PLAIN)
    survive(places, told, whole, nothing, submit, at_least=1)
    told.who = Counter({"a person": REPETITIONS})
    told.n_attempts = Counter(len(place.run.attempt_files()) for place in places.places)
