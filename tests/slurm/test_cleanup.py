"""``cnnjob clean``: what is left over, what is never touched, and that it lists first."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.runs.run import Run
from cnnjob.slurm import cleanup
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.submit import code_snapshot
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm
from tests.helpers.run_folders import finished_run, lost_run, pending_run, running_run, stopped_run

GONE = 2**22 + 1
"""No process has this number."""
LONG_AGO = time.time() - 2 * cleanup.FOREIGN_SECONDS


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A folder of runs on a machine without a SLURM."""
    site = FakeSlurm(tmp_path / "commands")
    (tmp_path / "here" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", str(site.folder))
    return site


def made(path: Path, *, old: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(1000))
    if old:
        aged(path)
    return path


def aged(path: Path) -> Path:
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def listed(*words: str) -> dict[str, str]:
    """What would be removed, and why."""
    said = cnnjob("clean", "--json", *words)
    assert said.exit_code == 0, said.output
    return {row["path"]: row["reason"] for row in json.loads(said.stdout)}


def tree() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


@pytest.mark.usefixtures("nowhere")
def test_copies_of_removed_runs_for_other_tools() -> None:
    run = finished_run(Path("runs"))
    for folder in ("runs/.tensorboard", "runs/.wandb"):
        made(Path(folder, run.name, "sent.json"))
        made(Path(folder, "gone-12345678", "sent.json"))
    assert listed() == {
        "runs/.tensorboard/gone-12345678": "copy for tensorboard of a run that has been removed",
        "runs/.wandb/gone-12345678": "copy for wandb of a run that has been removed",
    }


@pytest.mark.usefixtures("nowhere")
def test_temporary_files_of_processes_that_are_gone() -> None:
    here, host = socket.gethostname(), "another.host-2"
    run = stopped_run(Path("runs"))
    gone = [
        made(Path(f"data/.pets.h5.{here}-{GONE}-0badcafe.tmp")),
        made(run.checkpoints_folder / f".step-000000001.npz.{here}-{GONE}-0badcafe.tmp"),
        made(Path(f"runs/.toy-12345678.{here}-{GONE}-0badcafe.tmp/job.json")).parent,
        made(Path(f"data/.mnist.h5.{host}-17-0badcafe.tmp"), old=True),
    ]
    made(Path(f"data/.live.h5.{here}-{os.getpid()}-0badcafe.tmp"))
    made(Path(f"data/.young.h5.{host}-17-0badcafe.tmp"))
    made(Path("data/mine.tmp"), old=True)
    assert set(listed()) == set(map(str, gone))
    assert set(listed().values()) == {"unfinished file of a process that has ended"}
    before = tree()
    said = cnnjob("clean")
    assert said.stdout.endswith("\nnothing was removed; use --yes to remove these items\n")
    assert tree() == before
    assert cnnjob("clean", "--yes").stdout.endswith(f"\nremoved {len(gone)} items, 0.0 MB\n")
    assert before - tree() >= set(map(str, gone))
    assert not listed()
    assert cnnjob("clean").stdout == "nothing to remove\n"


@pytest.mark.usefixtures("nowhere")
def test_a_real_process_that_died_as_it_wrote() -> None:
    script = """
import os
from pathlib import Path
from cnnjob.files import whole
with whole(Path("data/pets.h5")) as new:
    new.write_bytes(bytes(1000))
    os._exit(9)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    [left] = Path("data").iterdir()
    assert set(listed()) == {str(left)}


def copied(run: Run, name: str, *, sweep: Path | None = None) -> Path:
    """An old copy of the code, with which a run, or a sweep, was submitted."""
    code = Path("runs/.code") / name
    (code / "cnnjob").mkdir(parents=True)
    place = sweep or run.slurm_folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "17_submission.sh").write_text(f"export PYTHONPATH='{Path.cwd()}/runs/.code/{name}'\n")
    return aged(code)


@pytest.mark.usefixtures("nowhere")
def test_code_of_unfinished_runs_stays() -> None:
    root = Path("runs")
    for seed, make in enumerate((stopped_run, running_run, pending_run, lost_run, finished_run), start=1):
        copied(make(root, seed=seed), f"0000000{seed}")
    done = finished_run(root, seed=6)
    copied(done, "0000000a")
    aged(done.result_file)
    code_snapshot.save_snapshot(done)
    aged(code_snapshot.snapshot_folder(done))
    (root / ".code" / "0000000b").mkdir()  # just made: its script will come
    assert listed() == {"runs/.code/0000000a": "code that no unfinished run uses"}
    sweep = JobArray.of([done, Run(root / "gone-12345678")])
    sweep.write()
    copied(done, "0000000c", sweep=sweep.folder)
    assert set(listed()) == {"runs/.code/0000000a", "runs/.code/0000000c"}
    sweep = JobArray.of([done, pending_run(root, seed=7)])
    sweep.write()
    copied(done, "0000000d", sweep=sweep.folder)
    aged(sweep.folder)
    assert set(listed()) == {"runs/.code/0000000a", "runs/.code/0000000c"}
    assert cnnjob("clean", "-y").exit_code == 0
    kept = {path.name for path in (root / ".code").iterdir()}
    assert kept == {*(f"0000000{digit}" for digit in "12345bd"), code_snapshot.snapshot_folder(done).name}


@pytest.mark.usefixtures("nowhere")
def test_sweeps_of_no_run() -> None:
    gone = [Run(Path.cwd() / "runs" / f"gone-{number}2345678") for number in range(2)]
    for runs in (gone, [gone[0], pending_run(Path("runs"))]):
        batch = JobArray.of(runs)
        batch.write()
        aged(batch.folder)
    damaged = made(Path("runs/.sweeps/0badcafe/runs.json")).parent
    aged(damaged)
    young = JobArray.of([gone[1], gone[0]])
    young.write()
    [path] = listed()
    assert Path(path).resolve() == JobArray.of(gone).folder


def test_a_named_run_goes_whatever_its_state_and_no_other(nowhere: FakeSlurm) -> None:
    nowhere.install(squeue="exit 0", sacct="exit 0")
    root = Path("runs")
    wanted = [finished_run(root, seed=1), stopped_run(root, seed=2), lost_run(root, seed=3), pending_run(root, seed=4)]
    other = finished_run(root, seed=5)
    assert not listed()
    names = [str(run.path) for run in wanted]
    assert listed(*names) == dict(
        zip(names, map("selected by name, {}".format, ("finished", "stopped", "lost", "pending")), strict=True)
    )
    assert cnnjob("clean", *names).stdout.endswith("nothing was removed; use --yes to remove these items\n")
    assert all(run.path.exists() for run in wanted)
    assert cnnjob("clean", "--yes", *names).exit_code == 0
    assert list(root.iterdir()) == [other.path]


@pytest.mark.usefixtures("nowhere")
def test_a_run_that_lives_is_refused_and_nothing_is_removed() -> None:
    live, done = running_run(Path("runs")), finished_run(Path("runs"), seed=1)
    before = tree()
    said = cnnjob("clean", "--yes", str(done.path), str(live.path))
    assert (said.exit_code, "not removed because it is running on " in said.stderr) == (5, True), said.output
    assert f"Cancel the run first:\n  cnnjob cancel {live.path}" in said.stderr
    assert tree() == before


def test_a_run_whose_job_waits_or_may_wait_is_refused(nowhere: FakeSlurm) -> None:
    run = stopped_run(Path("runs"))
    run.slurm_folder.mkdir()
    files.write_json(
        run.submission_file, {"job_id": "17", "submitted": "2026-01-01T00:00:00+00:00", "log": "", "comment": ""}
    )
    nowhere.install(squeue=f'echo "17|PENDING|Resources|(null)|N/A|N/A|cnnjob {run.path.resolve()} 2"')
    said = cnnjob("clean", "--yes", str(run.path))
    assert (said.exit_code, "not removed because job 17 belongs to it" in said.stderr) == (5, True), said.output
    nowhere.install(squeue="echo slurm_load_jobs error: Unable to contact >&2; exit 1")
    said = cnnjob("clean", "--yes", str(run.path))
    assert (said.exit_code, "not removed because its job may be in the queue" in said.stderr) == (4, True), said.output
    assert run.job_file.exists()
    nowhere.install(squeue="exit 0", sacct="exit 0")
    assert cnnjob("clean", "--yes", str(run.path)).exit_code == 0
    assert not run.path.exists()


@pytest.mark.usefixtures("nowhere")
def test_only_runs_are_removed_by_name() -> None:
    made(Path("data/mnist.h5"))
    refusals = dict.fromkeys(("data", "data/mnist.h5"), "not a run; only runs can be") | {"gone": "no such run"}
    for place, refusal in refusals.items():
        said = cnnjob("clean", "--yes", place)
        assert (said.exit_code, f"cnnjob: {place}: {refusal}" in said.stderr) == (3, True), said.output
    assert Path("data/mnist.h5").exists()


def test_a_link_and_a_point_name_the_run_itself_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(tmp_path)
    (tmp_path / "link").symlink_to(run.path)
    monkeypatch.chdir(run.path)
    [one] = cleanup.check_removable([Run(Path()), Run(tmp_path / "link"), Run(run.path), Run(Path("../link"))])
    assert one.path.resolve() == run.path
    [one] = cleanup.check_removable([Run(tmp_path / "link")])
    one.remove()
    assert not run.path.exists()
