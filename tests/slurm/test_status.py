"""``status``, ``logs`` and ``cancel`` without a SLURM: small shell scripts answer as one does, or as none should."""

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnjob import files
from cnnjob.cli import status as screen
from cnnjob.cli.screen import fitting
from cnnjob.doctor.cluster import Nodes
from cnnjob.jobs.job import Job
from cnnjob.reporting import record as records
from cnnjob.runs import process, summary
from cnnjob.runs.logs import last_attempt_log, last_error, last_lines, newest_log
from cnnjob.runs.restart_log import cancellation_file, try_read_cancellation
from cnnjob.runs.run import Run
from cnnjob.slurm import diagnosis, next_command, status
from cnnjob.slurm.node.restart import main as restart
from cnnjob.slurm.scheduler import accounting, client, queue
from cnnjob.slurm.scheduler import job_states as words
from cnnjob.slurm.scheduler.site import query_site as look_at_site
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.request import Request
from tests.helpers.run_folders import (
    DATA_DIGEST,
    JOB_FILE,
    change_job,
    change_json,
    finished_run,
    frozen_run,
    lost_run,
    pending_run,
    running_run,
    stopped_run,
)
from tests.slurm.test_submission import ANSWERS, Site, cnnjob

UID = os.getuid()
FULL = """
dataset = "tiny"
[data]
augment = { translate = 2 }
[model]
blocks = [{ conv = 5, batch_norm = { momentum = 0.4 } }, { dense = 8 }]
[train]
epochs = 9
batch_size = 10
learning_rate = 0.05
schedule = { cosine = { end_factor = 0.1 } }
optimiser = { sgd = { momentum = 0.8, nesterov = true } }
lookahead = { every = 2 }
early_stopping = { patience = 3 }
"""
"""A job with a table wherever there may be one."""
ME = pwd.getpwuid(UID).pw_name
LATER = "2999-01-01T00:00:00+00:00"
Make = Callable[[Path], Run]


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder without jobs' files, on a machine whose commands of SLURM note that they were called."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    Path("tiny.toml").write_text(JOB_FILE)
    site = Site(tmp_path / "commands")
    monkeypatch.setenv("PATH", str(site.folder))
    says(site)
    return site


def says(site: Site, squeue: str = "", sacct: str = "", **others: str | None) -> None:
    """Let the queue and the accounts answer these lines."""
    answers = {"squeue": squeue, "sacct": sacct}
    for name, lines in answers.items():
        (site.folder.parent / f"{name}.txt").write_text(f"{lines}\n")
    played = {
        name: f'echo "{name}" >> ../asked; while read -r l; do echo "$l"; done < ../{name}.txt' for name in answers
    }
    site.says(**{**played, "scancel": 'echo "scancel $*" >> ../asked', **others})


def asked(site: Site) -> list[str]:
    path = site.folder.parent / "asked"
    return path.read_text().splitlines() if path.exists() else []


def submitted(run: Run, job_id: str = "17", **facts: Any) -> Run:
    """Say that a job carries a run."""
    run.slurm_folder.mkdir(exist_ok=True)
    log = str(run.slurm_folder / f"{job_id}_0_log.out")
    said = {"job_id": job_id, "comment": f"cnnjob {run.path.resolve()} 1", "log": log, "submitted": LATER}
    files.write_json(run.submission_file, said | facts)
    return run


def elsewhere(run: Run, age_seconds: float, job_id: str = "17") -> Run:
    """Move the last life to another host, where it was heard of some time ago."""
    [*_, last] = run.attempt_files()
    change_json(last, host="n1", job_id=job_id)
    for path in (last, run.heartbeat_file):
        os.utime(path, (time.time() - age_seconds,) * 2)
    return run


def decided(run: Run, **facts: Any) -> Run:
    """Write down what the batch script decided."""
    run.slurm_folder.mkdir(exist_ok=True)
    told = {"job_id": "17", "ended_by": "itself", "code": 1, "step": 100, "restarted": "", "said": "finished"}
    files.write_json(run.slurm_folder / "restarts.json", [told | facts])
    return run


def log(run: Run, text: str, job_id: str = "17") -> Run:
    """Write the job's log."""
    run.slurm_folder.mkdir(exist_ok=True)
    (run.slurm_folder / f"{job_id}_0_log.out").write_text(text)
    return run


def one(run: Run, *, thorough: bool = False) -> status.Status:
    return status.statuses([run], thorough=thorough).statuses[0]


def saved_at_637(root: Path) -> Run:
    run = lost_run(root)
    run.checkpoints_folder.mkdir(exist_ok=True)
    for step in (600, 637):
        (run.checkpoints_folder / f"step-{step:09}.npz").touch()
    return run


def cut_result(run: Run) -> Run:
    run.result_file.write_text(run.result_file.read_text()[:9])
    return run


def cause(run: Run) -> diagnosis.Cause:
    return diagnosis.diagnose(one(run, thorough=True))


# --- states


def waits(root: Path) -> Run:
    return submitted(pending_run(root))


def stopped_in_job(root: Path) -> Run:
    run = submitted(stopped_run(root))
    change_json(run.attempt_files()[-1], job_id="17")
    return run


def lost_in_job(root: Path) -> Run:
    run = submitted(lost_run(root))
    change_json(run.attempt_files()[-1], job_id="17")
    return run


REQUEUED = "job 17 is requeued"
REQUEUED_LINE = f"cnnjob: /runs/x: {REQUEUED}\n"
NO_PYTHON = "cnnjob: /runs/x: /gone/bin/python cannot decide about a restart, exit code"


BATCH_SCRIPT_LOST = (
    "its batch script was killed or lost before it restarted the run, which saved and stopped at step 150"
)


def moved_while_it_ran(root: Path) -> Run:
    run = lost_in_job(root)
    change_json(run.submission_file, **run.identity())
    log(run, f"{BANNER}cnnjob: /tiny/attempts/0001.json: the record of this training was removed (found no record)\n")
    return Run(run.path.rename(run.path.with_name("renamed")))


def requeued_then_ended(root: Path) -> Run:
    """Restarted once; then its batch script was killed, and its process asked to stop."""
    run = decided(stopped_in_job(root), job_restarts=0, said=REQUEUED)
    change_json(run.attempt_files()[-1], job_restarts=1)
    return log(run, REQUEUED_LINE + BANNER)


def failed(root: Path, why: str = "failed: KeyError: 'x'") -> Run:
    run = stopped_in_job(root)
    change_json(run.attempt_files()[-1], why=why)
    return run


def cancelled_by_script(root: Path) -> Run:
    return decided(stopped_in_job(root), ended_by="cancelled", said="cancelled; submit the job again to go on")


def crash_loop(root: Path) -> Run:
    return decided(lost_in_job(root), code=137, said="3 restarts without progress")


def quiet(root: Path) -> Run:
    return elsewhere(submitted(running_run(root)), 200)


def heard(root: Path) -> Run:
    return elsewhere(submitted(running_run(root)), 20)


def row(state: str, reason: str = "None", node: str = "", job: str = "17", comment: str = "") -> str:
    return f"{job}|{state}|{reason}|{node}|N/A|N/A|{comment}\n"


@pytest.mark.parametrize(
    ("make", "squeue", "sacct", "state", "detail"),
    [
        # in the queue
        (waits, row("PENDING", "Priority"), "", "pending", "jobs of higher priority go first"),
        (waits, row("RUNNING", node="n1"), "", "running", "its job starts"),
        (stopped_in_job, row("PENDING", "BeginTime"), "", "pending", "its earliest start is still to come"),
        (stopped_in_job, row("RUNNING"), "", "running", "its job starts"),
        (stopped_in_job, row("COMPLETING"), "", "stopped", "its job is ending"),
        (lost_in_job, row("RUNNING"), "", "running", "no sign of life for 0 s"),
        (failed, row("RUNNING"), "", "failed", "its job is ending"),
        (failed, row("PENDING", "Resources"), "", "pending", "what it asks for is in use"),
        (running_run, row("PENDING"), "", "running", ""),
        (heard, row("RUNNING"), "", "running", ""),
        (heard, row("PENDING", "BeginTime"), "", "pending", "its earliest start is still to come"),
        (quiet, row("RUNNING"), "", "running", ""),
        (finished_run, row("COMPLETING"), "", "finished", ""),
        # gone from it
        (pending_run, "", "", "pending", "not submitted"),
        (waits, "", "", "lost", "job 17 left the queue before it started (cancelled or purged)"),
        (lambda root: submitted(stopped_in_job(root), "18"), "", "", "stopped",
         "job 18 left the queue before it started (cancelled or purged)"),
        (lambda root: decided(submitted(stopped_in_job(root), "18"), job_id="18", said="not restarted, no"), "", "",
         "stopped", "not restarted, no"),
        (waits, "", "17|CANCELLED by 0|0:0||\n", "cancelled", "job 17 CANCELLED by 0"),
        (waits, row("CANCELLED"), "", "cancelled", "job 17 CANCELLED"),
        (waits, "", "17|FAILED|1:0|n1|\n", "failed", "job 17 FAILED before the run began"),
        (waits, "", "17|NODE_FAIL|1:0|n1|\n", "lost", "job 17 NODE_FAIL before the run began"),
        (stopped_in_job, "", "", "stopped", ""),
        (stopped_in_job, "", "17|CANCELLED by 1000|0:0||\n", "cancelled", "job 17 CANCELLED by 1000"),
        (stopped_in_job, "", "17|TIMEOUT|0:0||\n", "stopped", ""),
        (stopped_run, "", "17|CANCELLED by 1000|0:0||\n", "stopped", ""),
        (lost_in_job, "", "17|FAILED|9:0|n1|\n", "lost", ""),
        (heard, "", "", "running", ""),
        (quiet, "", "", "lost", "job 17 is gone, no sign of life for 3 min 20 s"),
        (quiet, "", "17|NODE_FAIL|0:0|n1|\n", "lost", "job 17 NODE_FAIL"),
        (quiet, "", "17|CANCELLED by 5|0:0|n1|\n", "cancelled", "job 17 CANCELLED by 5"),
        (quiet, "", "17|RUNNING|0:0|n1|\n", "lost", "job 17 is gone, no sign of life for 3 min 20 s"),  # or late
        (quiet, "some words", "17|RUNNING|0:0|n1|\n", "running", "sacct says RUNNING"),
        (waits, row("CANCELLED"), "17|PENDING|0:0||\n", "cancelled", "job 17 CANCELLED"),  # sacct is seconds late
        (running_run, "", "", "running", ""),
        (failed, "", "17|COMPLETED|0:0||\n", "failed", ""),
        # what the batch script said
        (cancelled_by_script, "", "", "cancelled", "job 17"),
        (cancelled_by_script, row("CANCELLED"), "", "cancelled", "job 17 CANCELLED"),
        (cancelled_by_script, row("DEADLINE"), "", "stopped", ""),
        *((cancelled_by_script, "", f"17|{end}|0:0|n1|\n", "stopped", "")
          for end in ("DEADLINE", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")),
        (cancelled_by_script, "", "17|CANCELLED by 5|0:0|n1|\n", "cancelled", "job 17 CANCELLED by 5"),
        # another job that had its number
        (stopped_in_job, "", "17|CANCELLED by 5|0:0|n1|2001-01-01T00:00:00\n", "stopped", ""),
        (waits, row("CANCELLED", comment="another's"), "", "lost",
         "job 17 left the queue before it started (cancelled or purged)"),
        (crash_loop, "", "", "failed", "3 restarts without progress"),
        (lambda root: decided(waits(root), said="the job's own error is not restarted"), "", "", "failed", None),
        (lambda root: decided(stopped_in_job(root), said="not restarted, sbatch: no"), "", "", "stopped", None),
    ],
)  # fmt: skip
def test_states(site: Site, make: Make, squeue: str, sacct: str, state: str, detail: str | None) -> None:
    run = make(Path("runs"))
    says(site, squeue, sacct)
    found = one(run)
    assert found.state == state
    assert detail is None or found.detail == detail
    assert len(asked(site)) <= 2


def test_a_damaged_run_is_shown_as_such() -> None:
    run = stopped_run(Path("runs"))
    run.attempt_files()[-1].write_text("{")
    assert (one(run).state, "not readable as JSON" in cause(run).evidence) == ("damaged", True)
    other = pending_run(Path("others"))
    other.job_file.write_text("[]")
    assert one(other).state == "damaged"
    assert cnnjob("status", "runs", "others").exit_code == 0


def closed(run: Run, what: Path, mode: int = 0) -> str:
    """Close a file or folder of a run to its own user."""
    what.chmod(mode)
    return run.name


def test_runs_that_cannot_be_read_are_listed_with_their_reason() -> None:
    """Root may read anything, unless it gives up the two capabilities to do so."""
    drop = "-dac_override,-dac_read_search"
    as_user = ["/usr/bin/setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"] if os.geteuid() == 0 else []
    if as_user and not Path(as_user[0]).exists():
        pytest.skip("root needs setpriv to see a folder without permission")
    good = stopped_run(Path("runs"), epochs=0)  # without a history no figure is drawn, which takes long
    bad = {number: stopped_run(Path("runs"), epochs=0, seed=number) for number in range(2, 8)}
    for run in bad.values():
        run.slurm_folder.mkdir()
    damaged = {
        closed(bad[2], bad[2].path), closed(bad[3], bad[3].path, 0o444), closed(bad[4], bad[4].attempts_folder),
        closed(bad[5], bad[5].job_file), closed(bad[6], bad[6].attempt_files()[0]),
    }  # fmt: skip
    closed(bad[7], bad[7].slurm_folder)
    words_ = ["report", "--json", *map(str, sorted(Path("runs").iterdir()))]
    script = f"""from typer.testing import CliRunner
from cnnjob.cli.main import app
for words in (["status"], ["status", "--json"], {words_}, ["clean"], ["cancel", "runs"]):
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, (words, found.output)
    print(found.stdout, end="@@")
"""
    done = subprocess.run([*as_user, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    for path in [run.path for run in bad.values()] + [bad[4].attempts_folder]:
        path.chmod(0o755)  # so that the folder can be removed
    assert done.returncode == 0, done.stderr
    table, facts, report, *_ = done.stdout.split("@@")
    states = {one["run"]: (one["state"], one["detail"]) for one in json.loads(facts)}
    assert {name for name, (state, _) in states.items() if state == "damaged"} == damaged
    assert all("Permission denied" in states[name][1] for name in damaged)
    assert table.count("Permission") == len(damaged)
    assert [states[run.name][0] for run in (good, bad[7])] == ["stopped", "stopped"]
    reasons = {row["run"]: row["reason"] for row in json.loads(report)}
    assert all("Permission denied" in reasons[name] for name in damaged)


def test_a_job_is_known_by_its_comment(site: Site) -> None:
    run = pending_run(Path("a place"))
    other = pending_run(Path("a place"), seed=3)
    says(site, row("PENDING", "Priority", comment=f"cnnjob {run.path.resolve()} 4"))
    assert [found.job_id for found in status.statuses([run, other]).statuses] == ["17", None]


def test_an_element_of_an_array(site: Site) -> None:
    runs = [submitted(pending_run(Path("runs"), seed=seed), f"17_{seed}") for seed in range(6)]
    says(site, row("RUNNING", node="n1", job="17_0") + row("PENDING", "Priority", job="17_[1,3-5:2%2]"))
    assert [found.state for found in status.statuses(runs).statuses] == [
        "running", "pending", "lost", "pending", "lost", "pending",
    ]  # fmt: skip


def test_a_later_life_without_a_job_is_not_cancelled_with_the_earlier_one(site: Site) -> None:
    run = submitted(stopped_run(Path("runs")), submitted="2001-01-01T00:00:00+00:00")
    says(site, "", "17|CANCELLED by 0|0:0||\n")
    assert one(run).state == "stopped"


def test_two_questions_for_a_thousand_runs(site: Site) -> None:
    made = submitted(pending_run(Path("runs")))
    for number in range(1, 1000):
        shutil.copytree(made.path, Path("runs") / f"tiny-{number:08x}")
        (Path("runs") / f"tiny-{number:08x}" / "slurm" / "job.json").write_text(json.dumps({"job_id": str(number)}))
    queue = "".join(row("PENDING", "Priority", job=str(number)) for number in range(100, 200))
    says(site, queue, "".join(f"{number}|CANCELLED by 0|0:0||\n" for number in range(500, 600)))
    found = cnnjob("status")
    assert found.exit_code == 0, found.output
    assert asked(site) == ["squeue", "sacct"]
    assert found.stdout.splitlines()[-1] == "1000 runs: 800 lost, 100 pending, 100 cancelled"


def test_the_scheduler_is_left_alone_when_all_is_finished(site: Site) -> None:
    finished_run(Path("runs"))
    assert (cnnjob("status").exit_code, asked(site)) == (0, [])


# --- clocks that differ

AHEAD = "its last sign of life is 2 h in the future, so the clock of n1 or of this machine is wrong"


@pytest.mark.parametrize(
    ("squeue", "sacct", "state", "detail"),
    [
        (row("RUNNING", node="n1"), "", "running", AHEAD),
        ("", "", "lost", f"job 17 is gone; {AHEAD}"),
        ("", "17|TIMEOUT|0:0|n1|\n", "lost", f"job 17 TIMEOUT; {AHEAD}"),
        ("some words", "", "running", AHEAD),
    ],
)
def test_a_sign_of_life_from_the_future(site: Site, squeue: str, sacct: str, state: str, detail: str) -> None:
    run = elsewhere(submitted(running_run(Path("runs"))), -7201)
    says(site, squeue, sacct)
    assert (one(run).state, one(run).detail) == (state, detail)
    assert AHEAD in cnnjob("status", str(run.path)).stdout


def test_an_attempt_that_started_in_the_future(site: Site) -> None:
    """Its clock does not decide which job is the newest."""
    run = submitted(stopped_in_job(Path("runs")), "18", submitted=process.now(), attempt=2)
    change_json(run.attempt_files()[-1], started="2999-01-01T00:00:00+00:00")
    says(site, row("PENDING", "Priority", job="18"))
    assert (one(run).job_id, one(run).state) == ("18", "pending")
    says(site, "", "18|CANCELLED by 5|0:0||\n")
    assert one(run).state == "cancelled"
    assert "in the future, so the clock of" in one(run).detail


# --- a scheduler that does not answer as it should


SILENCE = "exec /bin/sleep 60"


@pytest.mark.parametrize(
    ("squeue", "said"),
    [
        ("exit 1", "squeue: refused, exit code 1; this is what the run folders tell"),
        # https://github.com/fls-bioinformatics-core/auto_process_ngs/issues/1182
        (
            'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1',
            "controller",
        ),
        # https://github.com/NCAR/ncar-python-tutorial/issues/13
        ('echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1', "Socket timed out"),
        (SILENCE, "no answer in 0.3 s"),
        ('printf "\\377\\376|\\000|\\n"', "its answer was not understood"),
        ("echo slurm_load_jobs error: Invalid user", "its answer was not understood"),
        ('echo "17_[1,3,5...]|PENDING|None||N/A|N/A|"', "its answer was not understood"),
        ('echo "17|PENDING"', "its answer was not understood"),
        (None, "squeue: not found; this is what the run folders tell"),
    ],
)
def test_a_queue_that_cannot_be_read_makes_nothing_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch, squeue: str | None, said: str
) -> None:
    if squeue == SILENCE:
        monkeypatch.setattr(status, "ANSWER_SECONDS", 0.5)
    for make in (waits, stopped_in_job, quiet, finished_run):
        make(Path("runs") / make.__name__)
    folders = sorted(Path("runs").iterdir())
    site.says(squeue=squeue, sacct="exit 1")
    found = cnnjob("status", *map(str, folders))
    assert found.exit_code == 0, found.output
    assert said in found.stderr
    assert found.stderr.count("\n") == 1
    states = [line.split()[1] for line in found.stdout.splitlines()[2:6]]
    assert sorted(states) == ["finished", "pending", "running", "stopped"], found.stdout


def test_without_a_slurm_nothing_is_said_of_it(site: Site) -> None:
    site.says(squeue=None, sacct=None)
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
def test_accounts_that_cannot_be_read(site: Site, monkeypatch: pytest.MonkeyPatch, sacct: str | None) -> None:
    if sacct == SILENCE:
        monkeypatch.setattr(status, "ANSWER_SECONDS", 2.0)  # enough for squeue
    run = lost_in_job(Path("runs"))
    site.says(sacct=sacct)
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
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = f'export -p >> {tmp_path}/environment; echo "${{0##*/}}" >> {tmp_path}/called'
    answers = {name: ANSWERS.get(name, "") for name in ("squeue", "sacct", "scontrol", "sbatch", "srun", "sinfo")}
    run = submitted(pending_run(Path("runs")))
    answers["squeue"] = f'echo "17|RUNNING|None|n1|N/A|N/A|cnnjob {run.path.resolve()} 1"'
    site.says(**{name: f"{record}\n{lines}" for name, lines in answers.items()}, scancel=record)
    for name, value in (CHANGING | SELECTING).items():
        monkeypatch.setenv(name, value)
    assert cnnjob("cancel", str(run.path)).exit_code == 0
    assert cnnjob("status", str(submitted(pending_run(Path("runs"), seed=1), "18").path)).exit_code == 0
    assert submission.submit([pending_run(Path("runs"), seed=2)], Request())[0].job_id == "17"
    cnnjob("doctor")
    assert set((tmp_path / "called").read_text().split()) == {*answers, "scancel"} - {"srun"}
    seen = set(re.findall(r"\b(\w+)=", (tmp_path / "environment").read_text()))
    assert seen & {*CHANGING, *SELECTING} == set(SELECTING)


def test_a_command_that_cannot_be_executed(site: Site) -> None:
    (site.folder / "squeue").write_bytes(b"\x00\x01")
    waits(Path("runs"))
    found = cnnjob("status")
    assert (found.exit_code, "squeue: " in found.stderr) == (0, True)


# --- answers of other versions of SLURM


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
    assert words.state_of(text) == state


@pytest.mark.parametrize("state", sorted(words.STATES | {"NEVER_HEARD_OF", "EXPEDITING"}))
def test_no_state_in_the_queue_makes_a_run_fail(site: Site, state: str) -> None:
    run = stopped_in_job(Path("runs"))
    says(site, row(state))
    assert one(run).state in {"pending", "running", "stopped", "cancelled"}
    assert (one(run).state == "cancelled") == (state == "CANCELLED")


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
def test_accounts(site: Site, sacct: str, state: str, by: str | None) -> None:
    says(site, "", sacct)
    fate = accounting.job_outcomes(["17"])["17"]
    assert (fate.state, fate.cancelled_by) == (state, by)


def test_accounts_of_arrays(site: Site) -> None:
    says(site, "", "17_3|FAILED|1:0|n1|x\n17_3.batch|FAILED|1:0|n1|x\n17_[4-6%2]|PENDING|0:0|None assigned|Unknown\n")
    assert {job: fate.state for job, fate in accounting.job_outcomes(["17_3"]).items()} == {
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
def test_queues(site: Site, answer: str, jobs: list[str], whole: bool) -> None:  # noqa: FBT001
    says(site, f"{answer}\n" if answer else "")
    found = queue.listing([0], ["17"])
    assert ([job.job_id for job in found.jobs], found.whole) == (jobs, whole)


def test_a_comment_of_several_lines_is_no_other_job(site: Site) -> None:
    """Whatever it says; squeue writes it as it is."""
    lines = ("18|RUNNING|None|n1|x|y|a", "17|RUNNING|None|n1|x|y|cnnjob /a 1", "1|2", "b\u2028c|d")
    begin = 'for mark; do :; done; printf "%s|" "${mark%%|*}"'
    site.says(squeue=f"{begin}; printf '%s\\n' {' '.join(map(shlex.quote, lines))}")
    found = queue.listing([0])
    assert ([job.job_id for job in found.jobs], found.whole) == (["18"], True)


LONG = "9" * 5000
"""A number that Python refuses to convert."""


def test_numbers_of_5000_digits_are_no_numbers(site: Site) -> None:
    rows = [f"{text}|RUNNING|None|n1|{LONG}|{LONG}|x" for text in (
        LONG, f"17_{LONG}", f"17_[0-{LONG}]", f"17_[{LONG}]", f"17_[0-5:{LONG}]", "17_[1-99999999999999999999]",
    )]  # fmt: skip
    for line in rows:
        says(site, f"{line}\n")
        assert queue.mine() == []
    says(site, "", f"{LONG}|FAILED|1:0|n1|x\n17_{LONG}|FAILED|1:0|n1|x\n17|CANCELLED by {LONG}|1:0|n1|x\n")
    fates = accounting.job_outcomes(["17"])
    assert list(fates) == ["17"]
    assert LONG in diagnosis.user_of(fates["17"].cancelled_by)
    facts = {"JobState": "RUNNING", "Restarts": LONG, "RunTime": f"{LONG}-00:00:00", "TimeLimit": f"{LONG}:00:00"}
    assert client.ended_by(facts, 0) == "itself"


def test_a_site_of_numbers_of_5000_digits(site: Site) -> None:
    partition = f"PartitionName=gpu MaxTime={LONG} DefaultTime={LONG}-00:00:00 GraceTime={LONG} State=UP"
    config = f"MaxArraySize = {LONG}; KillWait = {LONG} sec; SLURM_VERSION = {LONG}"
    site.says(scontrol=f'case "$*" in *config*) echo "{config}";; *) echo "{partition}";; esac')
    found = look_at_site()
    assert (found.max_array_size, found.kill_wait_seconds) == (1001, 30)
    assert found.partitions["gpu"].max_minutes is None
    assert Nodes.parse(f"gpu|{LONG}|4|8000|gpu:2") is None
    nodes = Nodes.parse(f"gpu|2|4|8000|gpu:{LONG}")
    assert nodes is not None
    assert nodes.gpus == ()


def test_a_comment_may_hold_the_separator(site: Site) -> None:
    says(site, row("PENDING", comment="cnnjob /a|b 1"))
    assert queue.mine()[0].comment == "cnnjob /a|b 1"


@pytest.mark.parametrize(
    ("reason", "said", "never"),
    [
        # https://slurm.schedmd.com/job_reason_codes.html, and src/common/job_state_reason.c of SLURM 24.11
        ("Priority", "jobs of higher priority go first", False),
        ("PartitionTimeLimit", "it asks for more time than its partition allows", True),
        ("QOSMaxWallDurationPerJobLimit", "it asks for more time than its QOS allows a job", True),
        ("QOSMaxCpuPerUserLimit", "the cores that its QOS allows a user are in use", False),
        ("QOSMaxGRESPerUser", "the GPUs that its QOS allows a user are in use", False),
        ("QOSMaxMemoryPerJob", "it asks for more memory than its QOS allows a job", True),
        ("QOSGrpNodeLimit", "the nodes that its QOS allows are in use", False),
        ("QOSMinGRES", "it asks for less GPUs than its QOS demands", True),
        ("AssocGrpCPUMinutesLimit", "the cores that its account allows are in use", False),
        ("AssocMaxJobsLimit", "the jobs that its account allows are in use", False),
        ("MaxGRESPerAccount", "the GPUs that its account allows are in use", False),
        ("AccountingPolicy", "AccountingPolicy", False),
        ("BadConstraints", "no node has what it asks for", True),
        ("DependencyNeverSatisfied", "the job that it depends on failed", True),
        # a class repository's fixture of DAS-5's squeue, February 2021
        ("ReqNodeNotAvail, UnavailableNodes:node[028,054,074]",
         "nodes that it asks for are down or drained (node[028,054,074])", False),
        ("(Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions)",
         "nodes that it asks for are down, drained, or kept for jobs of partitions of higher priority", False),
        # 22.05, observed of reservations with and without the flag MAINT; 24.11, observed
        ("ReqNodeNotAvail, Reserved for maintenance",
         "its nodes are reserved, for maintenance or for others, before it could end", False),
        ("ReqNodeNotAvail, May be reserved for other job", "nodes that it asks for may be reserved for another job",
         False),
        ("ReqNodeNotAvail, UnavailableNodes:", "nodes that it asks for are not available", False),
        ("ReqNodeNotAvail", "nodes that it asks for are not available", False),
        ("Reservation", "its reservation has not begun", False),
        ("job_requeued_in_held_state", "it was requeued held", False),  # up to 23.02
        ("launch failed requeued held", "it was requeued held", False),
        ("Never, heard", "Never, heard", False),
        ("", "SLURM does not say why", False),
    ],
)  # fmt: skip
def test_reasons(reason: str, said: str, never: bool) -> None:  # noqa: FBT001
    found = words.waits_for(reason)
    assert (found.words, found.never) == (said, never)


# --- causes

BANNER = "2026-01-01T00:00:00+00:00 --- attempt 1 on n1, cpu\n"
TRACE = """Traceback (most recent call last):
  File "/a/life.py", line 3, in __call__
    self._live()
    ~~~~~~~~~~^^
  File "/a/loops.py", line 12, in _step
    raise KeyError("x")
KeyError: 'x'
"""
OOM = "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0. Some of the step tasks have been OOM Killed.\n"
NAN = "failed: {run}: the loss is nan at step 12 (epoch 1), the step before it was 2.3, learning rate 9; lower it"


@pytest.mark.parametrize(
    ("make", "squeue", "sacct", "sentence", "evidence", "command"),
    [
        (waits, row("PENDING", "PartitionTimeLimit"), "",
         "it asks for more time than its partition allows: it never starts so",
         "squeue: job 17 PENDING, PartitionTimeLimit",
         r"cnnjob cancel runs/\S+ && cnnjob submit tiny.toml --time TIME"),
        (waits, row("PENDING", "JobHeldUser"), "", "its job waits: its user holds it", "squeue: job 17",
         "scontrol release 17"),
        (stopped_in_job, row("PENDING", "Priority"), "",
         "its job waits: jobs of higher priority go first; it goes on at step 150", "Priority", ""),
        (stopped_in_job, "", f"17|CANCELLED by {UID}|0:0||\n", rf"its job 17 was cancelled by {ME} \(user {UID}\)",
         f"sacct: CANCELLED by {UID}", "cnnjob submit tiny.toml"),
        (waits, "", "17|CANCELLED by 987654|0:0||\n", "its job 17 was cancelled by user 987654", "sacct: ",
         "cnnjob submit .*"),
        (cancelled_by_script, "", "", "its job 17 was cancelled", "slurm/restarts.json: ended_by cancelled",
         "cnnjob submit .*"),
        (lambda root: log(lost_in_job(root), BANNER + OOM), "", "", "it ran out of memory",
         "17_0_log.out: slurmstepd: ",
         "cnnjob submit tiny.toml --mem 8G"),
        (lost_in_job, "", "17|FAILED|137:0|n1|\n17.0|OUT_OF_MEMORY|0:125|n1|\n", "it ran out of memory",
         "sacct: job 17 FAILED, a step OUT_OF_MEMORY", "cnnjob submit .* --mem 8G"),
        (lambda root: failed(root, "failed: MemoryError: Unable to allocate 9 GiB"), "", "", "it ran out of memory",
         "attempts/0001.json: ", "cnnjob submit .* --mem 8G"),
        (lambda root: log(failed(root, "failed: OutOfMemoryError: Out of memory allocating 9 bytes"),
         BANNER + "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 9 bytes\n"), "", "",
         "the GPU's memory did not suffice", "cupy", ".*train.batch_size=5"),
        (lambda root: decided(lost_in_job(root), code=137, said="job 17 is requeued"), "", "",
         r"it was killed by signal 9 \(SIGKILL\)", "slurm/restarts.json: code 137", "cnnjob submit .*"),
        (lambda root: decided(stopped_in_job(root), ended_by="time limit", said="not restarted, no"), "", "",
         "its job reached the time limit and was not restarted: no", "slurm/restarts.json", "cnnjob submit .*"),
        (lambda root: decided(stopped_in_job(root), ended_by="unknown",
         said="not restarted, refused by SLURM (X): at most 2 jobs. Wait; to go on: cnnjob submit tiny"), "", "",
         r"its job ended and was not restarted: refused by SLURM \(X\): at most 2 jobs. Wait", "slurm/restarts.json",
         "cnnjob submit tiny.toml"),
        (lost_in_job, "", "17|TIMEOUT|0:0|n1|\n", "its job reached the time limit", "sacct: job 17 TIMEOUT",
         "cnnjob submit .*"),
        (lost_in_job, "", "17|PREEMPTED|0:0|n1|\n", "its job was preempted by one of higher priority", "sacct: ",
         "cnnjob submit .*"),
        (lost_in_job, "", "17|NODE_FAIL|0:0|n7|\n", r"the node of its job failed \(n7\)", "sacct: ",
         "cnnjob submit .*"),
        (lost_in_job, row("NODE_FAIL", node="n7"), "", r"the node of its job failed \(n7\)", "squeue: ",
         "cnnjob submit .*"),
        (lambda root: failed(root, "failed: OSError: [Errno 28] No space left on device"), "", "", "the disk is full",
         "No space left", "df -h runs/.*"),
        (lambda root: failed(root, NAN.format(run=root)), "", "", r".*the loss is nan at step 12 \(epoch 1\), .*",
         "attempts/0001.json", "cnnjob submit tiny.toml --set train.learning_rate=0.005"),
        (lambda root: log(failed(root), BANNER + TRACE), "", "", "KeyError: 'x' at /a/loops.py:12 in _step",
         "attempts/0001.json and runs/", "cnnjob logs .*"),
        (failed, "", "", "KeyError: 'x'", "attempts/0001.json", "cnnjob logs .*"),
        (lambda root: log(crash_loop(root), "srun: error\n"), "", "",
         r"3 restarts without progress, each time killed by signal 9 \(SIGKILL\)", "slurm/restarts.json",
         "cnnjob logs .*"),
        (lambda root: log(decided(waits(root), code=3, said="the job's own error is not restarted"),
         "cnnjob: data/tiny.h5: no such file\ncnnjob: x: the job's own error is not restarted\n"), "", "",
         "data/tiny.h5: no such file", "17_0_log.out", "cnnjob logs .*"),
        (lambda root: log(decided(waits(root), code=127, said="the job's own error is not restarted"),
         "/x/slurm_script: line 9: module: not found\ncnnjob: x: the job's own error is not restarted\n"), "", "",
         "its job ended with exit code 127", "17_0_log.out: /x/slurm_script: line 9: module: not found", ".*"),
        (lambda root: log(lost_in_job(root), TRACE), "", "", "KeyError: 'x' at /a/loops.py:12 in _step",
         "17_0_log.out", "cnnjob logs .*"),
        (lambda root: log(lost_in_job(root), OOM + BANNER.replace("1 on", "2 on")), "", "17|FAILED|1:0|n1|\n",
         "it ran out of memory", "slurmstepd", ".*"),
        (lambda root: log(lost_in_job(root), OOM + BANNER + "epoch 1\n"), "", "17|FAILED|1:0|n1|\n",
         "its job failed without a word in the run's folder", "sacct: job 17 FAILED, exit code 1:0", "cnnjob logs .*"),
        (stopped_in_job, "", "", BATCH_SCRIPT_LOST,
         "attempts/0001.json: stopped: SIGTERM; its batch script decided nothing about a restart", "cnnjob submit .*"),
        (moved_while_it_ran, "", "", r"its folder was moved from /\S+/tiny-\w+ during its training, which stopped",
         "17_0_log.out: /tiny/attempts/0001.json: the record of this training was removed",
         r"mv runs/renamed runs/tiny-\w+ && cnnjob submit tiny.*"),
        (requeued_then_ended, "", "17|FAILED|0:9|n1|\n",
         BATCH_SCRIPT_LOST,
         "attempts/0001.json: stopped: SIGTERM; its batch script decided nothing about a restart", "cnnjob submit .*"),
        (lambda root: log(stopped_in_job(root), f"{REQUEUED_LINE}srun: error\n{NO_PYTHON} 127\n"), "", "",
         "its job had no Python: /gone/bin/python is missing or cannot be executed, so it was not restarted",
         "17_0_log.out: srun: error", "cnnjob submit .*"),
        (lambda root: log(waits(root), f"{TRACE}{NO_PYTHON} 1\n"), "", "",
         "its job had no Python: /gone/bin/python cannot run cnnjob, so it was not restarted",
         "17_0_log.out: KeyError: 'x' at ", "cnnjob submit .*"),
        (lambda root: decided(lost_in_job(root), code=254, said="3 restarts without progress"), "", "",
         "3 restarts without progress, each time not started by srun", "slurm/restarts.json", "cnnjob logs .*"),
        (lambda root: decided(lost_in_job(root), code=142, said=REQUEUED), "", "",
         "it was ended because it did not stop before its job's end", "code 142", "cnnjob submit .*"),
        (stopped_run, "", "", "somebody asked it to end .*", "attempts/0001.json", "cnnjob train tiny.toml"),
        (lost_run, "", "", "its process is gone without a word",
         "attempts/0001.json: no sign of life for ", "cnnjob train tiny.toml"),
        (saved_at_637, "", "", "its process is gone without a word; step 637 is saved", "attempts/0001.json", ".*"),
        (waits, "", "", r"job 17 left the queue before it started \(cancelled or purged\)",
         "neither squeue nor sacct knows it", "cnnjob submit .*"),
        (pending_run, "", "", "it was never submitted", "not submitted", "cnnjob train tiny.toml"),
        (finished_run, "", "", "it is finished", "result.json", r"cnnjob report runs/\S+"),
        (lambda root: cut_result(finished_run(root)), "", "", "its result cannot be read; .*",
         "result.json: not readable as JSON", r"rm runs/\S+/result.json && cnnjob train tiny.toml"),
        (running_run, "", "", "it is in epoch 3 of 4 on .*", "it gives signs of life, began",
         r"cnnjob logs runs/\S+ -f"),
    ],
)  # fmt: skip
def test_causes(site: Site, make: Make, squeue: str, sacct: str, sentence: str, evidence: str, command: str) -> None:
    run = make(Path("runs"))
    says(site, squeue, sacct)
    found = cause(run)
    assert re.fullmatch(sentence, found.sentence), found
    assert evidence in found.evidence, found
    assert re.fullmatch(command, found.command), found
    shown = cnnjob("status", str(run.path))
    assert shown.exit_code == 0, shown.output
    assert f"cause:     {found.sentence}\n" in shown.stdout
    assert (f"next:      {found.command}\n" in shown.stdout) == bool(found.command)


def test_the_next_command_makes_this_very_run() -> None:
    from cnnjob.jobs.job import Job

    assert Job.load("tiny.toml") == pending_run(Path("runs")).job()
    run = submitted(
        pending_run(Path("my runs"), seed=3, optimiser={"sgd": {"momentum": 0.5}}, early_stopping={"patience": 2})
    )
    request = {"partition": "gpu", "time": "2h", "mem": "3G"}
    files.write_json(run.slurm_folder / "request.json", request)
    command = next_command.continue_command(run, change="--mem")
    assert command == (
        "cnnjob submit tiny.toml --set seed=3 --set train.optimiser.sgd.momentum=0.5 "
        "--set train.early_stopping.patience=2 --partition gpu --time 2h --mem 6G --runs 'my runs'"
    )
    more = {"mem": None, "mem_per_cpu": "2G", "gres": "lustre:2", "cpus_per_task": 4, "requeue": False}
    files.write_json(run.slurm_folder / "request.json", {**request, **more, "gpus": 1, "sbatch": {"licenses": "a:1"}})
    assert next_command.continue_command(run, change="--mem").endswith(
        "--partition gpu --time 2h --cpus-per-task 4 --mem-per-cpu 4G --gres lustre:2 --no-requeue "
        "--sbatch licenses=a:1 --runs 'my runs'"
    )
    sets = ("seed=3", "train.optimiser.sgd.momentum=0.5", "train.early_stopping.patience=2")
    assert Job.load("tiny.toml", sets) == run.job()
    other = pending_run(Path("runs"), seed=7)
    changed = files.read_json(other.job_file)
    changed["job"]["model"]["blocks"][1]["activation"] = "none"
    change_job(other, **changed)
    assert (
        "'model.blocks=[{ conv = 5, pad = 1, bias = true }, { dense = 8, activation = \"none\" }]'"
        in next_command.continue_command(other)
    )


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("seed=3",),
        ("train.optimiser=adamw",),
        ("train.optimiser={ adamw = { beta2 = 0.99 } }", "train.weight_decay=0.1"),
        ("train.optimiser={ sgd = { momentum = 0.0 } }",),
        ("train.optimiser=sgd",),
        ("train.optimiser.sgd.momentum=0.5",),
        ("train.schedule=constant",),
        ("train.schedule=cosine", "train.schedule.cosine.warmup=0.1"),
        ("train.schedule={ triangular = { end_factor = 0.5 } }",),
        ("train.lookahead=false",),
        ("train.lookahead=true",),
        ("train.lookahead.every=3",),
        ("train.early_stopping=false",),
        ("train.early_stopping={ patience = 1 }",),
        ("train.early_stopping=false", "train.select_on=last"),
        ("train.epochs=2",),
        ("data.augment=false",),
        ("data.augment={ flip = 'random' }", "data.pixels=unit", "data.validation_fraction=0.5"),
        (
            "model.blocks=[{ residual = [{ conv = 1, batch_norm = true }] }, { dropout = 0.5 }]",
            "model.classifier.bias=false",
        ),
        ("model.blocks.0.batch_norm=false", "model.blocks.0.activation=gelu", "model.blocks.0.init=0.5"),
        ("model.blocks=[]", "model.classifier.init=0.1", "model.classifier.output_scale=0.5"),
        ("resources.backend=numpy", "train.checkpoint_seconds=1"),
        ("train.precision=tf32", "train.label_smoothing=0.1", "train.test_time_augmentation=flip"),
        ("name=of my own",),
        ("dataset=elsewhere/other.h5",),
    ],
    ids=" ".join,
)
def test_the_next_command_of_any_change_makes_this_very_run(sets: tuple[str, ...]) -> None:
    Path("full.toml").write_text(FULL)
    job = Job.load("full.toml", sets)
    run = frozen_run(Path("runs"), job)
    command, verb, name, *options = shlex.split(next_command.continue_command(run))
    assert (command, verb, set(options[::2]) <= {"--set"}) == ("cnnjob", "train", True)
    again = Job.load(name, options[1::2])
    assert (again.digest(DATA_DIGEST), again.resources, again.dataset) == (
        job.digest(DATA_DIGEST), job.resources, job.dataset,
    )  # fmt: skip


def test_the_next_command_says_where_the_data_lies() -> None:
    run = pending_run(Path("runs"))
    data = files.read_json(run.job_file)["data"]
    for place, said in (("data", ""), ("else/where", " --data else/where"), ("/far away", " --data '/far away'")):
        about = {"image_shape": [6, 6, 1], "class_names": ["ant"], "mean": [0.5], "std": [0.5]}
        change_job(run, data={**about, **data, "path": str(Path(place, "tiny.h5").absolute())})
        assert next_command.continue_command(run) == f"cnnjob train tiny.toml{said}"


# --- the command


def test_the_table(site: Site) -> None:
    run = submitted(stopped_run(Path("runs")))
    says(site, row("PENDING", "Priority"))
    [header, _, line, count] = cnnjob("status").stdout.splitlines()
    assert header.split() == ["run", "state", "epoch", "loss", "accuracy", "time", "left", "job", "node"]
    assert re.split(r" {2,}", line.strip())[:7] == [
        run.name, "pending", "2/4", "0.7500", "80.00 %", "2 s", "17",
    ]  # fmt: skip
    assert "jobs of higher priority go first" in line
    assert count == "1 run: 1 pending"


def test_accuracy_is_of_the_training_images_where_nothing_else_is_known() -> None:
    run = stopped_run(Path("runs"), split=None)
    assert "75.00 %" in cnnjob("status").stdout
    assert "accuracy:  75.00 % on the train images" in cnnjob("status", str(run.path)).stdout


def test_time_left_is_unknown_before_the_first_epoch() -> None:
    pending_run(Path("runs"))
    assert " unknown " in cnnjob("status").stdout


def test_json(site: Site) -> None:
    run = submitted(stopped_run(Path("runs")))
    says(site, row("PENDING", "Priority"))
    found = cnnjob("status", "--json")
    [facts] = json.loads(found.stdout)
    documented = cnnjob("status", "--help").stdout
    assert all(key in documented for key in facts)
    expected = {
        "run": run.name, "path": str(run.path), "state": "pending", "epoch": 2, "epochs": 4, "split": "validation",
        "loss": 0.75, "seconds_left": 2.0, "job_id": "17", "restarts": 0, "slurm_state": "PENDING",
        "slurm_reason": "Priority", "command": "",
    }  # fmt: skip
    assert facts | expected == facts
    shutil.rmtree("runs")
    assert json.loads(cnnjob("status", "--json").stdout) == []


def test_no_runs_yet_is_no_mistake() -> None:
    found = cnnjob("status")
    assert (found.exit_code, found.stdout) == (0, "runs/: no runs yet; `cnnjob submit JOB` makes one\n")


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_what_is_no_run_is_a_usage_error(command: str) -> None:
    Path("empty").mkdir()
    for path in ("empty", "nowhere"):
        found = cnnjob(command, path)
        assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
        assert f"{path}: no run, and no folder of runs" in found.stderr
    assert "Example: cnnjob" in cnnjob(command, "--help").stdout


def test_folders_that_are_no_runs_are_left_out() -> None:
    pending_run(Path("runs"))
    Path("runs/notes").mkdir()
    assert cnnjob("status").stdout.endswith("1 run: 1 pending\n")


# --- watching and following: real processes


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command on a pipe; it is ended with the test."""
    children = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cnnjob", *words]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


def read_until(child: subprocess.Popen[str], text: str) -> str:
    assert child.stdout is not None
    seen = ""
    while text not in seen:
        seen += (line := child.stdout.readline())
        assert line, seen
    return seen


def test_watching_on_a_pipe_ends_with_ctrl_c(started: Callable[..., subprocess.Popen[str]]) -> None:
    stopped_run(Path("runs"))
    child = started("status", "--watch")
    assert "stopped" in read_until(child, "1 run: 1 stopped, ")
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 0


def test_watching_looks_less_often_while_nothing_changes() -> None:
    pause = screen.WATCH_SECONDS
    changes = (True, False, False, False, False, True, False)
    pauses = [pause := screen.next_pause(pause, changed=changed) for changed in changes]
    assert pauses == [30, 60, 120, 180, 180, 30, 60]


def test_following_over_a_requeue_and_a_successor(started: Callable[..., subprocess.Popen[str]]) -> None:
    run = submitted(running_run(Path("runs")))
    first = run.slurm_folder / "17_0_log.out"
    first.write_text("".join(f"line {number}\n" for number in range(9)))
    child = started("logs", str(run.path), "-f", "-n", "2")
    assert read_until(child, "line 8") == "line 7\nline 8\n"
    with first.open("a") as file:
        file.write("again\n")
    assert read_until(child, "again") == "again\n"
    first.write_text("new\n")
    assert read_until(child, "new") == "new\n"
    submitted(log(run, "successor\n", "18"), "18")
    assert read_until(child, "successor") == "successor\n"
    files.write_json(run.result_file, {})
    assert child.wait(20) == 0


def test_following_a_run_that_is_over_ends(started: Callable[..., subprocess.Popen[str]]) -> None:
    run = log(failed(Path("runs")), "the end\n")
    child = started("logs", str(run.path), "-f")
    assert child.communicate(timeout=60)[0] == "the end\n"
    assert child.returncode == 0


def test_which_log() -> None:
    run = submitted(stopped_run(Path("runs")))
    assert cnnjob("logs", str(run.path)).stderr.startswith(f"cnnjob: {run.path}: nothing is written yet; ")
    run.log_file.write_text("a\nb\nc\n")
    assert cnnjob("logs", str(run.path), "--lines", "2").stdout == "b\nc\n"
    log(run, "of a job\n", "16")
    assert cnnjob("logs", str(run.path)).stdout == "of a job\n"
    log(run, "of the newest\n", "17")
    os.utime(run.slurm_folder / "16_0_log.out", (time.time() + 9,) * 2)
    assert cnnjob("logs", str(run.path)).stdout == "of the newest\n"
    os.utime(run.log_file, (time.time() + 1000,) * 2)
    assert newest_log(run) == run.log_file
    two = cnnjob("logs", "runs", "-n", "1")
    assert (two.exit_code, "runs: no run folder, it holds 1" in two.stderr) == (2, True)


def test_the_last_lines_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_text("".join(f"{number:>200}\n" for number in range(2000)))
    assert len(last_lines(path, 1500).splitlines()) == 1500
    assert last_lines(path, 0) == ""
    assert len(last_lines(path, 9999).splitlines()) == 2000


NASTY = {
    "progress": b"\r 17 % |####      | 3.1 it/s",
    "one line": b"x",
    "escapes": b"\x1b[2K\x1b[31mepoch\x1b[0m",
    "zeros": b"\x00",
    "short lines": b"\n",
    "brackets": b"[",
    "quotes": b'  File "',
    "frames": b'  File "a", line 1, in x',
    "cupy": b"cupy",
    "out of": b"Out Out of ",
    "attempts": b"--- attempt 1",
    "jobs": b"cnnjob: : job 1",
    "loss": b"the the loss ",
    "not text": b"\xff\xfe",
}
"""What 10 MB of a log may consist of."""


def test_logs_of_10_mb_of_any_shape_take_no_time() -> None:
    """A quadratic scan of 64 KB takes minutes."""
    for place, unit in NASTY.items():
        run = lost_in_job(Path("runs") / place)
        run.log_file.write_bytes(unit * (10_000_000 // len(unit)))
        os.link(run.log_file, run.slurm_folder / "17_0_log.out")
    commands_ = [["status", "--json", *(f"runs/{place}" for place in NASTY)]]
    commands_ += [["logs", str(next(Path("runs", place).iterdir()))] for place in NASTY]
    script = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
    script += "from typer.testing import CliRunner; from cnnjob.cli.main import app\n" + "\n".join(
        f"assert CliRunner().invoke(app, {words_}).exit_code == 0, {words_}" for words_ in commands_
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_only_the_last_life_counts() -> None:
    run = log(submitted(stopped_run(Path("runs"))), f"{BANNER}{TRACE}{BANNER.replace('1 on', '2 on')}epoch 1\n")
    assert last_error(last_attempt_log(run)) == ""


# --- cancelling


def test_cancelling_asks_once_and_cancels_at_once(site: Site) -> None:
    runs = [submitted(pending_run(Path("runs"), seed=seed), str(17 + seed)) for seed in range(3)]
    over = finished_run(Path("runs"), seed=9)
    says(site, row("PENDING", job="17") + row("RUNNING", job="18"))
    found = cnnjob("cancel", *(str(run.path) for run in (*runs, over)))
    assert (found.exit_code, found.stdout.splitlines()) == (0, [
        f"{runs[0].path}: cancelled job 17, which waited",
        f"{runs[1].path}: cancelled job 18, its work is saved as it ends",
        f"{runs[2].path}: nothing to cancel, it is lost",
        f"{over.path}: nothing to cancel, it is finished",
    ])  # fmt: skip
    assert asked(site) == ["squeue", "sacct", "scancel 17 18", "squeue"]
    says(site)
    assert one(runs[0]).state == "cancelled"
    assert cause(runs[0]).sentence == f"it was cancelled by {ME} with cnnjob cancel"
    assert one(submitted(runs[0], "19")).state == "lost"


def test_a_requeue_under_way_does_not_bring_it_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch script reads the record of it, whatever the scheduler says."""
    run = stopped_in_job(Path("runs"))
    says(site, row("COMPLETING"), scontrol='echo "$@" >> ../asked; echo "JobId=17 JobState=RUNNING Restarts=0"')
    assert "cancelled job 17" in cnnjob("cancel", str(run.path)).stdout
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    before = signal.getsignal(signal.SIGTERM)
    restart(str(run.path), "75")
    signal.signal(signal.SIGTERM, before)  # in its own process it ignores the signal from here on
    assert not [line for line in asked(site) if "requeue" in line]
    assert one(run).state == "cancelled"


def test_what_scancel_refuses_is_said(site: Site) -> None:
    run = waits(Path("runs"))
    # gc3pie, gc3libs/backends/tests/test_slurm.py: said with exit code 0
    denied = "scancel: error: Kill job error on job id 17: Access/permission denied"
    says(site, row("PENDING"), scancel=f'echo "{denied}" >&2')
    found = cnnjob("cancel", str(run.path))
    assert (found.exit_code, found.stdout) == (4, f"{run.path}: job 17 was not cancelled: {denied}\n")
    assert one(run).state == "pending"
    gone = "scancel: error: Kill job error on job id 17: Job/step already completing or completed"
    site.says(scancel=f'echo "{gone}" >&2; exit 1')
    assert "cancelled job 17" in cnnjob("cancel", str(run.path)).stdout


@pytest.mark.parametrize("answers", [{"squeue": "exit 1"}, {"scancel": "exit 1"}, {"squeue": None}])
def test_a_scheduler_that_cannot_cancel_is_exit_4(site: Site, answers: dict[str, str | None]) -> None:
    waits(Path("runs"))
    says(site, row("PENDING"))
    site.says(**answers)
    found = cnnjob("cancel", "runs")
    assert (found.exit_code, found.stdout, found.stderr.count("\n")) == (4, "", 1)


@pytest.mark.parametrize("before", [{}, {"by": "me", "jobs": ["9"], "attempt": 0}])
def test_a_cancellation_that_fails_leaves_the_records_as_they_were(site: Site, before: dict[str, Any]) -> None:
    runs = [submitted(pending_run(Path("runs"), seed=seed), str(17 + seed)) for seed in range(2)]
    record = cancellation_file(runs[1])
    if before:
        files.write_json(record, before | runs[1].identity())
    says(site, row("PENDING") + row("RUNNING", job="18"), scancel="exit 1")
    assert cnnjob("cancel", "runs").exit_code == 4
    assert not cancellation_file(runs[0]).exists()
    assert record.exists() == bool(before)
    assert {key: try_read_cancellation(runs[1]).get(key) for key in before} == before


def test_a_run_with_a_link_does_not_keep_the_others_from_their_end(site: Site) -> None:
    runs = [submitted(pending_run(Path("runs"), seed=seed), str(17 + seed)) for seed in range(2)]
    runs[0].slurm_folder.rename("moved")
    runs[0].slurm_folder.symlink_to(Path("moved").resolve())
    says(site, row("PENDING") + row("PENDING", job="18"))
    found = cnnjob("cancel", *(str(run.path) for run in runs))
    lines = found.stdout.splitlines()
    assert lines[0].startswith(f"{runs[0].path}: not cancelled, {runs[0].slurm_folder}: a link")
    assert (found.exit_code, lines[1]) == (3, f"{runs[1].path}: cancelled job 18, which waited")
    assert [line for line in asked(site) if "scancel" in line] == ["scancel 18"]
    assert [cancellation_file(run).exists() for run in runs] == [False, True]


def test_a_finished_run_is_not_cancelled_while_its_job_ends(site: Site) -> None:
    over, other = submitted(finished_run(Path("runs"))), pending_run(Path("runs"), seed=1)
    says(site, row("COMPLETING"))
    assert cnnjob("cancel", str(over.path), str(other.path)).stdout.splitlines() == [
        f"{over.path}: nothing to cancel, it is finished", f"{other.path}: nothing to cancel, it is pending",
    ]  # fmt: skip
    assert not cancellation_file(over).exists()
    assert asked(site) == ["squeue"]


def test_a_job_that_ends_before_its_run_began_does_not_wait(site: Site) -> None:
    run = waits(Path("runs"))
    says(site, row("COMPLETING", "NonZeroExitCode"))
    told = cause(run)
    assert told.sentence == "its job is ending, and the run has not begun"
    assert told.evidence == "squeue: job 17 COMPLETING, NonZeroExitCode"


def test_a_process_of_this_machine_is_asked_to_stop(site: Site) -> None:
    site.says(squeue=None)
    run = running_run(Path("runs"))
    child = subprocess.Popen(["/bin/sleep", "60"])
    change_json(run.attempt_files()[-1], pid=child.pid, pid_started=process._start_of(child.pid))
    found = cnnjob("cancel", str(run.path))
    assert found.stdout == f"{run.path}: asked process {child.pid} to save and stop\n"
    assert child.wait(20) == -signal.SIGTERM
    change_json(run.attempt_files()[-1], ended=process.now(), why="stopped: SIGTERM", step=150)
    assert one(run).state == status.of_folder(run).state == "cancelled"
    assert status.of_folder(run, "no memory").state == "failed"
    assert cnnjob("cancel", str(run.path)).stdout == f"{run.path}: nothing to cancel, it is cancelled\n"


def test_a_process_of_another_machine_is_left_alone() -> None:
    run = running_run(Path("runs"))
    change_json(run.attempt_files()[-1], host="n1")
    said = f"process {os.getpid()} on n1 trains it. To let it save and stop:\n  ssh n1 kill -TERM {os.getpid()}\n"
    found = cnnjob("cancel", str(run.path))
    assert (found.exit_code, found.stdout) == (5, f"{run.path}: not cancelled, {said}")


def test_patience_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "ANSWER_SECONDS", 1.0)
    quiet(Path("runs"))
    site.says(squeue=SILENCE, sacct=SILENCE)
    start = time.monotonic()
    assert cnnjob("status").exit_code == 0
    assert time.monotonic() - start < 10
    assert client.ANSWER_SECONDS > status.ANSWER_SECONDS


def test_a_look_believes_no_file() -> None:
    run = stopped_run(Path("runs"))
    run.history_file.write_text("[" * 5000)
    assert (one(run).state, one(run).summary.epoch) == ("stopped", 0)
    assert summary.RunSummary(Run(Path("x")), "pending", history=[{"epoch": "x", "train_loss": "y"}]).epoch == 0


def test_a_small_screen_goes_without_what_is_spare() -> None:
    run = submitted(stopped_run(Path("runs")), "1234567")
    change_json(run.attempt_files()[-1], job_id="1234567")
    rows = [screen._row(one(run))]
    whole, small = (fitting(screen.HEADER, rows, screen.SPARE, width)[0] for width in (200, 62))
    assert whole == ["run", "state", "epoch", "loss", "accuracy", "time left", "job", "node"]
    assert small == ["run", "state", "epoch", "accuracy", "time left", "job"]


@pytest.mark.parametrize("name", ["job.json", "restarts.json", "cancelled.json"])
def test_a_damaged_record_of_jobs_is_said_of_one_run(name: str) -> None:
    run = decided(submitted(stopped_run(Path("runs"))))
    assert "note:" not in cnnjob("status", str(run.path)).stdout
    (run.slurm_folder / name).write_text("[3")
    said = cnnjob("status", str(run.path))
    assert (said.exit_code, f"note:      {run.slurm_folder / name}: not readable as JSON" in said.stdout) == (0, True)
    assert f"slurm/{name}: not readable as JSON" in records.read_record(run, run.name).remarks[0]
