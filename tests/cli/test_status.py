"""The commands ``status`` and ``logs``: tables, JSON, watching and following."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cnnjob.cli import status as screen
from cnnjob.cli.screen import fit_columns
from cnnjob.reporting import record as records
from cnnjob.runs.logs import last_lines, newest_log
from cnnjob.runs.run import Run
from tests.helpers.cli import JOB, cnnjob
from tests.helpers.fake_slurm import FakeSlurm, queue_row, set_answers
from tests.helpers.run_folders import change_json, finished_run, pending_run, running_run, stopped_run
from tests.helpers.slurm_runs import failed_run, lost_in_job, status_of, with_decision, with_job, with_log

pytestmark = pytest.mark.usefixtures("idle_slurm")


def test_the_table(idle_slurm: FakeSlurm) -> None:
    run = with_job(stopped_run(Path("runs")))
    set_answers(idle_slurm, queue_row("PENDING", "Priority"))
    [header, _, line, count] = cnnjob("status").stdout.splitlines()
    assert header.split() == ["run", "state", "epoch", "loss", "val", "acc", "time", "left", "job", "node"]
    assert re.split(r" {2,}", line.strip())[:7] == [
        run.name, "pending", "2/4", "0.7500", "80.00 %", "2 s", "17",
    ]  # fmt: skip
    assert "jobs of higher priority start first" in line
    assert count == "1 run: 1 pending"


def test_accuracy_is_of_the_training_images_where_nothing_else_is_known() -> None:
    run = stopped_run(Path("runs"), split=None)
    assert "75.00 %" in cnnjob("status").stdout
    assert "train acc: 75.00 % on the train images" in cnnjob("status", str(run.path)).stdout


def test_time_left_is_unknown_before_the_first_epoch() -> None:
    pending_run(Path("runs"))
    assert " unknown " in cnnjob("status").stdout


def test_json(idle_slurm: FakeSlurm) -> None:
    run = with_job(stopped_run(Path("runs")))
    set_answers(idle_slurm, queue_row("PENDING", "Priority"))
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
    assert (found.exit_code, found.stdout) == (0, "runs/: no runs yet. To start one:\n  cnnjob submit JOB\n")


MISSING = {
    "a run": [
        "status gone", "logs gone", "cancel gone", "clean gone", "predict gone test:0", "evaluate gone --on toy",
        "export gone", "report gone", "status runs/gone", "logs runs/gone", "cancel runs/gone", "clean runs/gone",
        "predict runs/gone test:0", "evaluate runs/gone --on toy", "export runs/gone", "report runs/gone",
        "logs latest", "show runs/gone",
    ],
    "a run in a folder": [
        "status empty", "logs empty", "cancel empty", "clean empty", "predict empty test:0", "evaluate empty --on toy",
        "export empty", "report empty",
    ],
    "a job": [
        "train gone", "train gone.toml", "submit gone", "submit gone.toml", "submit gone --local",
        "submit gone --dry-run", "show gone", "show gone.toml", "verify-resume gone", "verify-resume gone.toml",
    ],
    "a dataset": [
        "new gone", "show data/gone.h5", "prepare gone", "prepare x --source gone", "prepare folder gone",
        "train toy.toml --data gone", "submit toy.toml --data gone", "submit toy.toml --local --data gone",
        "verify-resume toy.toml --data gone", "train data/gone.h5",
    ],
    "another file": ["submit toy.toml --profile gone", "submit toy.toml --profile gone.toml"],
}  # fmt: skip
"""Commands that name something that does not exist."""


@pytest.mark.parametrize("words", [words for commands in MISSING.values() for words in commands])
def test_what_is_missing_has_one_exit_code_and_is_not_called_damaged(words: str) -> None:
    Path("empty").mkdir()
    Path("toy.toml").write_text(JOB)
    found = cnnjob(*words.split())
    assert found.exit_code == 3, found.output
    assert "damaged" not in found.output
    assert found.stdout == ""
    assert re.search(r"\b(gone|latest|empty|toy)\b", found.stderr)
    assert Path("toy.toml").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize("words", ["evaluate {} --on gone", "evaluate {} --on gone.h5"])
def test_what_is_missing_besides_a_run_has_the_same_exit_code(words: str) -> None:
    run = finished_run(Path("runs"))
    found = cnnjob(*words.format(run.path).split())
    assert (found.exit_code, found.stdout, "damaged" in found.stderr) == (3, "", False)
    assert "gone" in found.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["status"], ["logs"], ["cancel"], ["report"], ["clean"], ["export"], ["predict", "test:0"],
        ["evaluate", "--on", "toy"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_missing_run_has_a_suggestion(command: list[str]) -> None:
    name = finished_run(Path("runs")).name
    words = [command[0], f"x{name}", *command[1:]]
    said = cnnjob(*words)
    assert (said.exit_code, said.stderr.split(".")[0]) == (3, f"cnnjob: x{name}: no such run")
    assert f" Did you mean {name}? " in said.stderr
    words[1] = f"runs/x{name}"
    assert f" Did you mean runs/{name}? " in cnnjob(*words).stderr


def test_runs_are_named_by_folder_name_beginning_or_latest() -> None:
    first, second = (stopped_run(Path("runs"), name=name) for name in ("first", "second"))
    pending_run(Path("runs"), name="pending")
    for given in (str(first.path), first.name, "fir"):
        assert f"cnnjob: {first.path}: the log is still empty" in cnnjob("logs", given).stderr, given
    twin = stopped_run(Path("runs"), name="first", seed=1)
    both = cnnjob("cancel", "first")
    assert (both.exit_code, "first: not a unique name (found 2 runs in runs/: " in both.stderr) == (2, True)
    assert {first.name, twin.name} <= set(re.findall(r"first-\w+", both.stderr))
    assert cnnjob("show", "second").stdout == cnnjob("show", str(second.path)).stdout
    assert cnnjob("clean", "second", "--yes").exit_code == 0
    assert not second.path.exists()


def test_latest_is_the_run_with_the_most_recent_attempt_unless_a_folder_has_this_name() -> None:
    pending_run(Path("runs"))
    assert cnnjob("logs", "latest").exit_code == 3
    for name in ("b", "c", "a"):
        newest = stopped_run(Path("runs"), name=name)
        day = {"b": 1, "c": 9, "a": 5}[name]
        change_json(newest.attempt_files()[-1], started=f"2026-01-0{day}T00:00:00+00:00")
    assert "runs/c-" in cnnjob("logs", "latest").stderr
    stopped_run(Path(), name="own").path.rename("latest")
    assert "cnnjob: latest: the log is still empty" in cnnjob("logs", "latest").stderr


def test_folders_that_are_no_runs_are_left_out() -> None:
    pending_run(Path("runs"))
    Path("runs/notes").mkdir()
    assert cnnjob("status").stdout.endswith("1 run: 1 pending\n")


def test_a_small_screen_goes_without_what_is_spare() -> None:
    run = with_job(stopped_run(Path("runs")), "1234567")
    change_json(run.attempt_files()[-1], job_id="1234567")
    rows = [screen._row(status_of(run))]
    whole, small = (fit_columns(screen.HEADER, rows, screen.SPARE, width)[0] for width in (200, 62))
    assert whole == ["run", "state", "epoch", "loss", "val acc", "time left", "job", "node"]
    assert small == ["run", "state", "epoch", "val acc", "time left", "job"]


def test_the_table_has_the_test_accuracy_of_finished_runs() -> None:
    finished, stopped = finished_run(Path("runs")), stopped_run(Path("runs"), name="stopped")
    header, _, *lines, _ = cnnjob("status", "--wide").stdout.splitlines()
    accuracy = f"{100 * finished.result()['test_accuracy']:.2f} %"
    at = header.index("test acc")
    assert {line.split()[0]: line[at:].startswith(accuracy) for line in lines} == {
        finished.name: True, stopped.name: False,
    }  # fmt: skip
    [facts, _] = json.loads(cnnjob("status", str(finished.path), str(stopped.path), "--json").stdout)
    assert facts["test_accuracy"] == finished.result()["test_accuracy"]


@pytest.mark.parametrize("name", ["job.json", "restarts.json", "cancelled.json"])
def test_a_damaged_record_of_jobs_is_said_of_one_run(name: str) -> None:
    run = with_decision(with_job(stopped_run(Path("runs"))))
    assert "note:" not in cnnjob("status", str(run.path)).stdout
    (run.slurm_folder / name).write_text("[3")
    said = cnnjob("status", str(run.path))
    assert (said.exit_code, f"note:      {run.slurm_folder / name}: not readable as JSON" in said.stdout) == (0, True)
    assert f"slurm/{name}: not readable as JSON" in records.read_record(run, run.name).remarks[0]


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
    run = with_job(running_run(Path("runs")))
    first = run.slurm_folder / "17_0_log.out"
    first.write_text("".join(f"line {number}\n" for number in range(9)))
    child = started("logs", str(run.path), "-f", "-n", "2")
    assert read_until(child, "line 8") == "line 7\nline 8\n"
    with first.open("a") as file:
        file.write("again\n")
    assert read_until(child, "again") == "again\n"
    first.write_text("new\n")
    assert read_until(child, "new") == "new\n"
    with_job(with_log(run, "successor\n", "18"), "18")
    assert read_until(child, "successor") == "successor\n"
    shutil.copy(finished_run(Path("other")).result_file, run.result_file)
    assert f"cnnjob: {run.path}: finished, test accuracy " in read_until(child, "finished")
    assert child.wait(20) == 0


def test_following_a_run_that_is_over_ends(started: Callable[..., subprocess.Popen[str]]) -> None:
    run = with_log(failed_run(Path("runs")), "the end\n")
    child = started("logs", str(run.path), "-f")
    log, how = child.communicate(timeout=60)[0].splitlines()
    assert (log, how.startswith(f"cnnjob: {run.path}: failed, "), child.returncode) == ("the end", True, 1)


@pytest.mark.parametrize(
    ("make", "state", "code"),
    [(finished_run, "finished", 0), (stopped_run, "stopped", 75), (pending_run, "pending", 75)],
)
@pytest.mark.parametrize(
    "squeue", [":", 'echo "squeue: fatal: Could not establish a configuration source" >&2; exit 1']
)
def test_following_ends_without_slurm_too(
    idle_slurm: FakeSlurm, make: Callable[[Path], Run], state: str, code: int, squeue: str
) -> None:
    idle_slurm.install(squeue=squeue)
    run = make(Path("runs"))
    run.log_file.write_text("the end\n")
    said = cnnjob("logs", str(run.path), "-f")
    assert (said.exit_code, said.stdout) == (code, "the end\n")
    assert re.fullmatch(rf"cnnjob: {run.path}: {state}, [^\n]+\n", said.stderr)


def test_following_goes_on_while_a_job_waits(
    idle_slurm: FakeSlurm, started: Callable[..., subprocess.Popen[str]]
) -> None:
    run = with_log(with_job(stopped_run(Path("runs"))), "so far\n")
    set_answers(idle_slurm, queue_row("PENDING", "Priority"))
    child = started("logs", str(run.path), "-f")
    waits = read_until(child, "waiting for job 17: jobs of higher priority start first")
    assert waits.splitlines()[0] == "so far"
    assert child.poll() is None
    shutil.copy(finished_run(Path("other")).result_file, run.result_file)
    assert child.wait(60) == 0


def test_which_log() -> None:
    run = with_job(stopped_run(Path("runs")))
    assert cnnjob("logs", str(run.path)).stderr.startswith(f"cnnjob: {run.path}: the log is still empty. ")
    run.log_file.write_text("a\nb\nc\n")
    assert cnnjob("logs", str(run.path), "--lines", "2").stdout == "b\nc\n"
    with_log(run, "of a job\n", "16")
    assert cnnjob("logs", str(run.path)).stdout == "of a job\n"
    with_log(run, "of the newest\n", "17")
    os.utime(run.slurm_folder / "16_0_log.out", (time.time() + 9,) * 2)
    assert cnnjob("logs", str(run.path)).stdout == "of the newest\n"
    os.utime(run.log_file, (time.time() + 1000,) * 2)
    assert newest_log(run) == run.log_file
    two = cnnjob("logs", "runs", "-n", "1")
    assert (two.exit_code, "runs: not a run but a folder of runs (found 1 run, " in two.stderr) == (2, True)


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
