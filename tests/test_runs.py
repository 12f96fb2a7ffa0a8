"""A run's folder: its state, and the claim that exactly one process can hold."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.errors import BusyError, DataError
from cnnjob.processes import HEARTBEAT_LIMIT_SECONDS, is_alive, process_identity
from cnnjob.runs import Run, claim
from cnnjob.training import train
from tests.toys import dataset, job, trained

ROOT = Path(__file__).parent.parent


def dead_process() -> dict[str, object]:
    """The identity of a process of this host that has ended."""
    code = "import json; from cnnjob.processes import process_identity; print(json.dumps(process_identity()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    identity: dict[str, object] = json.loads(done.stdout)
    return identity


def test_states_follow_the_folder(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    assert run.state() == "pending"
    held = claim(run)
    assert run.state() == "running"
    held.end("stopped: SIGTERM", 3)
    assert run.state() == "stopped"
    claim(run).end("failed: no reason", 4)
    assert run.state() == "failed"
    gone = claim(run)
    gone.note(**dead_process())
    assert run.state() == "lost"
    again = claim(run)
    assert again.number == 4
    files.write_json(run.result_file, {})
    assert run.state() == "finished"
    assert [attempt["attempt"] for attempt in run.attempts()] == [1, 2, 3, 4]


def test_a_held_run_is_left_alone(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    claim(run)
    before = {path: path.read_bytes() for path in run.path.rglob("*.json")}
    with pytest.raises(BusyError, match=rf"process {os.getpid()} on .* since .*; wait for it, or stop it"):
        claim(run)
    assert before == {path: path.read_bytes() for path in run.path.rglob("*.json")}


def test_a_killed_holder_frees_the_run_at_once(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from cnnjob.runs import Run, claim; "
    code += "claim(Run(Path(sys.argv[1]))); print('held', flush=True); time.sleep(60)"
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError):
            claim(Run(tmp_path))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert claim(Run(tmp_path)).number == 2


def test_a_holder_on_another_host_lives_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    held = claim(run)
    held.note(host="elsewhere")
    record = files.read_json(held.path)
    assert is_alive(record, held.path)
    old = time.time() - HEARTBEAT_LIMIT_SECONDS - 1
    os.utime(held.path, (old, old))
    assert not is_alive(record, held.path)
    held.beat()
    assert is_alive(record, held.path)


def test_a_process_is_told_from_a_later_one_of_the_same_number(tmp_path: Path) -> None:
    mine = process_identity()
    assert is_alive(mine, tmp_path)
    assert not is_alive({**mine, "pid_started": "1"}, tmp_path)
    assert not is_alive({**mine, "boot": "another"}, tmp_path)


def test_runs_are_found_in_folders_and_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", ".code"):
        (tmp_path / "runs" / name / "attempts").mkdir(parents=True)
    (tmp_path / "runs" / "foreign").mkdir()
    (tmp_path / "runs" / "file").touch()
    runs = tmp_path / "runs"
    assert [run.name for run in Run.all(runs)] == ["a", "b", "foreign"]
    assert [run.name for run in Run.all(runs / "b", runs)] == ["b", "a", "foreign"]
    assert Run.all(tmp_path / "gone") == []


def test_damaged_and_foreign_folders_are_said(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        run.frozen()
    files.write_json(run.job_file, {"a": 1})
    with pytest.raises(DataError, match="damaged, it is not an object with job, data, digest"):
        run.frozen()
    assert run.history() == []
    assert run.environment() == {}
    run.history_file.write_text("{}\n{")
    with pytest.raises(DataError, match="damaged"):
        run.history()


def test_the_folder_is_named_by_what_the_job_says(tmp_path: Path) -> None:
    packed = dataset(tmp_path)
    one = Run.of(job(), packed.digest, tmp_path)
    assert one.name == f"toy-{job().digest(packed.digest)[:8]}"
    assert Run.of(job(seed=1), packed.digest, tmp_path) != one


def test_the_environment_is_frozen_at_the_first_start(tmp_path: Path) -> None:
    run = trained(tmp_path).run
    found = run.environment()
    assert found["data_sha256"] == dataset(tmp_path).digest
    assert found["packages"].keys() >= {"cnnjob", "numpy", "h5py"}
    assert found["bits"].keys() == {"backend", "cnnjob", "numpy", "machine", "blas", "simd"}
    assert found["device"].startswith("cpu: ")
    assert {"command", "commit", "dirty", "python", "host", "cores"} <= found.keys()
    assert run.job() == job()


@pytest.mark.parametrize("content", ["{}", "[]", "3", "null"])
@pytest.mark.parametrize("name", ["job.json", "environment.json", "attempts/0001.json"])
def test_valid_json_that_is_no_record_is_said(tmp_path: Path, name: str, content: str) -> None:
    run = trained(tmp_path).run
    run.result_file.unlink()
    (run.path / name).write_text(content)
    if name == "environment.json" and content == "{}":
        assert train(run).state == "finished"  # what it first ran with is not known, so the bits may differ
        assert run.result()["bits_may_differ_from_step"] is not None
        return
    with pytest.raises(DataError, match=f"{name}: damaged, it is not an object"):
        train(run)
