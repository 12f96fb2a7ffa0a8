"""A run's folder: its state, and the claim that exactly one process can hold."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cnnjob import files, nn
from cnnjob.errors import BusyError, DataError
from cnnjob.jobs import json_files
from cnnjob.reporting.record import read_record
from cnnjob.runs import environment
from cnnjob.runs.claims import Claim, claim
from cnnjob.runs.process import HEARTBEAT_LIMIT_SECONDS, is_alive, is_same_job_start, now, process_identity
from cnnjob.runs.run import UNRECORDED, UNSEALED, Run
from cnnjob.runs.summary import read_summary
from cnnjob.slurm import cleanup
from cnnjob.training.backend import describe_environment
from cnnjob.training.inference.classifier import load_classifier
from cnnjob.training.onnx import export
from cnnjob.training.progress import NoProgress
from cnnjob.training.train import train
from tests.helpers.run_folders import pending_run
from tests.helpers.slurm_runs import set_job
from tests.helpers.toy_jobs import dataset, job, run_of, trained

ROOT = Path(__file__).parents[2]


def dead_process() -> dict[str, object]:
    """The identity of a process of this host that has ended."""
    code = "import json; from cnnjob.runs.process import process_identity; print(json.dumps(process_identity()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    identity: dict[str, object] = json.loads(done.stdout)
    return identity


def new_folder(path: Path) -> Run:
    """Return a run whose folder is empty."""
    path.mkdir(exist_ok=True)
    return Run(path)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sign_of_life_from_the_future_counts_from_when_it_is_seen(tmp_path: Path) -> None:
    run = new_folder(tmp_path / "a")
    held = claim(run)
    files.write_json(held.path, {**held.record, "host": "elsewhere"})
    for sign in (held.path, run.heartbeat_file):
        os.utime(sign, (time.time() + 7200,) * 2)
    with pytest.raises(BusyError, match=r"Its last heartbeat is 120 min in the future: .* again in 5 min$"):
        claim(run)
    with pytest.raises(BusyError, match=r"Wait for it, or stop it$"):
        claim(run)
    os.utime(held.path, (held.path.stat().st_mtime - HEARTBEAT_LIMIT_SECONDS - 1,) * 2)
    os.utime(run.heartbeat_file, (held.path.stat().st_mtime,) * 2)
    assert claim(run).number == 2


def test_a_heartbeat_from_the_future_of_no_recorded_attempt_counts_from_when_it_is_seen(tmp_path: Path) -> None:
    run = new_folder(tmp_path / "a")
    claim(run).end("stopped: SIGTERM", 5)
    os.utime(run.heartbeat_file, (time.time() + 7200,) * 2)
    with pytest.raises(BusyError, match=r"without a record in attempts/ .* 120 min in the future: .* again in 5 min$"):
        claim(run)
    assert run.heartbeat_file.stat().st_mtime <= time.time()


def test_states_follow_the_folder(tmp_path: Path) -> None:
    run = new_folder(tmp_path / "a")
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
    run = new_folder(tmp_path / "a")
    claim(run)
    before = tree(tmp_path)
    with pytest.raises(BusyError, match=rf"process {os.getpid()} on .* since .*\. Wait for it, or stop it"):
        claim(run)
    assert tree(tmp_path) == before


def test_a_killed_holder_frees_the_run_at_once(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from cnnjob.runs.run import Run; "
    code += (
        "from cnnjob.runs.claims import claim; claim(Run(Path(sys.argv[1]))); print('held', flush=True); time.sleep(60)"
    )
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
    run = new_folder(tmp_path / "a")
    held = claim(run)
    held.note(host="elsewhere")
    record = files.read_json(held.path)
    assert is_alive(record, held.path)
    old = time.time() - HEARTBEAT_LIMIT_SECONDS - 1
    os.utime(held.path, (old, old))
    assert not is_alive(record, held.path)
    held.beat()
    assert is_alive(record, held.path)


def held_by(run: Run, **facts: object) -> Path:
    """Let the run be held by a process of another host; its record."""
    held = claim(run)
    held.note(**{"host": "elsewhere", **facts})
    return held.path


@pytest.mark.parametrize(
    ("holder", "mine", "free"),
    [
        (("17", 0), ("17", 1), True),
        (("17", None), ("17", 1), True),  # an older version recorded no number
        (("17", None), ("17", 0), False),
        (("17", 1), ("17", 3), True),
        (("17", 1), ("17", 1), False),
        (("17", 2), ("17", 1), False),
        (("16", 0), ("17", 1), False),
        ((None, 0), ("17", 1), False),
    ],
)
def test_a_later_life_of_a_job_takes_over_from_an_earlier_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    holder: tuple[str | None, int | None],
    mine: tuple[str, int],
    *,
    free: bool,
) -> None:
    """Wherever the earlier one is: SLURM starts a job again when its node seems dead."""
    run = Run(tmp_path)
    for where in ("elsewhere", process_identity()["host"]):
        record = held_by(run, host=where, job_id=holder[0], job_restarts=holder[1])
        with monkeypatch.context() as context:
            set_job(context, *mine)
            if free:
                claim(run).end("stopped", 0)
            else:
                with pytest.raises(BusyError):
                    claim(run)
        files.write_json(record, files.read_json(record) | {"ended": now()})


@pytest.mark.parametrize("number", [{}, {"job_restarts": None}, {"job_restarts": 0}])
def test_an_attempt_without_a_number_of_restarts_is_of_the_first_start(
    monkeypatch: pytest.MonkeyPatch, number: dict[str, int | None]
) -> None:
    for restarts, expected in ((0, True), (1, False)):
        set_job(monkeypatch, "17", restarts)
        assert is_same_job_start({"job_id": "17", "cluster": None, **number}) == expected


def test_the_superseded_life_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_job(monkeypatch, "17", 0)
    first = claim(Run(tmp_path))
    set_job(monkeypatch, "17", 1)
    second = claim(Run(tmp_path))
    second.check()
    for write in (first.check, lambda: first.end("stopped: SIGTERM", 5)):
        with pytest.raises(BusyError, match="this process was presumed dead, and attempt 2 now owns the run"):
            write()
    assert Run(tmp_path).attempts()[0]["ended"] is None


@pytest.mark.parametrize(("job_id", "over", "asked"), [("17", True, 1), ("17_3", False, 1), (None, True, 0)])
def test_the_scheduler_may_know_that_a_holder_has_ended(
    tmp_path: Path, job_id: str | None, asked: int, *, over: bool
) -> None:
    run, questions = Run(tmp_path), list[str]()

    def job_is_over(holder: Mapping[str, Any], silent_seconds: float) -> bool:
        assert silent_seconds < HEARTBEAT_LIMIT_SECONDS
        questions.append(holder["job_id"])
        return over

    held_by(run, job_id=job_id)
    before = tree(tmp_path)
    assert run.state() == "running"
    if over and job_id:
        assert run.state(lambda *_: over) == "lost"
        assert claim(run, job_is_over).number == 2
    else:
        with pytest.raises(BusyError):
            claim(run, job_is_over)
        assert tree(tmp_path) == before
    assert questions == [job_id] * asked


def test_nobody_is_asked_about_a_holder_that_is_gone(tmp_path: Path) -> None:
    def job_is_over(holder: Mapping[str, Any], silent_seconds: float) -> bool:
        raise AssertionError(holder, silent_seconds)

    run = Run(tmp_path)
    record = held_by(run, job_id="17")
    old = time.time() - HEARTBEAT_LIMIT_SECONDS - 1
    for path in (record, run.heartbeat_file):
        os.utime(path, (old, old))
    claim(run, job_is_over).note(**{**dead_process(), "job_id": "17"})
    claim(run, job_is_over).end("stopped: SIGTERM", 3)
    assert claim(run, job_is_over).number == 4


def test_a_process_is_told_from_a_later_one_of_the_same_number(tmp_path: Path) -> None:
    mine = process_identity()
    assert is_alive(mine, tmp_path)
    assert not is_alive({**mine, "pid_started": "1"}, tmp_path)
    silent(tmp_path, HEARTBEAT_LIMIT_SECONDS + 1)
    assert is_alive(mine, tmp_path)
    assert not is_alive({**mine, "boot": "another"}, tmp_path)


@pytest.mark.parametrize("other", [{"boot": "another"}, {"pid_namespace": "pid:[1]"}, {"pid_namespace": None}])
def test_a_process_of_another_table_is_known_by_its_heartbeat(tmp_path: Path, other: dict[str, Any]) -> None:
    """Another container's, or another machine's of the same name: the same number is another process here."""
    for facts in ({}, {"pid": 1}, {"pid": 2**22 + 1, "pid_started": "1"}):
        run = new_folder(tmp_path / str(len(facts)))
        record = held_by(run, **{**process_identity(), **facts, **other})
        assert run.state() == "running"
        with pytest.raises(BusyError):
            claim(run)
        silent(record, HEARTBEAT_LIMIT_SECONDS + 1)
        silent(run.heartbeat_file, HEARTBEAT_LIMIT_SECONDS + 1)
        assert run.state() == "lost"
        assert claim(run).number == 2


def test_a_machine_that_was_booted_again_frees_its_runs_at_once(tmp_path: Path) -> None:
    run = new_folder(tmp_path / "a")
    record = held_by(run, host=process_identity()["host"], boot="another")
    for sign in (record, run.heartbeat_file):
        silent(sign, min(time.clock_gettime(time.CLOCK_BOOTTIME) + 91, HEARTBEAT_LIMIT_SECONDS + 1))
    assert run.state() == "lost"


def silent(path: Path, seconds: float) -> None:
    """Let a sign of life be so old."""
    os.utime(path, (time.time() - seconds,) * 2)


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
        run.manifest()
    files.write_json(run.job_file, {"a": 1})
    with pytest.raises(DataError, match=r"damaged \(job is missing\)\. Restore it, or remove it if"):
        run.manifest()
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
    assert found["bits"].keys() == {"backend", "arithmetic", "cnnjob", "numpy", "machine", "blas", "simd"}
    assert found["device"].startswith("cpu: ")
    assert {"command", "commit", "dirty", "python", "host", "cores"} <= found.keys()
    assert run.job() == job()


def test_only_numpys_blas_decides_the_bits() -> None:
    """SciPy and scikit-learn load another: a script that has them and a command that has not are the same."""
    blas = []
    for imports in ("os", "scipy.linalg, sklearn.linear_model"):
        code = (
            f"import {imports}; from cnnjob.training.backend import describe_environment; from cnnjob import nn;"
            "print(describe_environment(nn.NumPyBackend(nn.Workers(1)))['bits']['blas'])"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        blas.append(done.stdout.strip())
    assert blas[0] == blas[1]
    assert blas[0]
    assert ", " not in blas[0]


def test_environments_that_may_compute_other_bits() -> None:
    bits = describe_environment(nn.NumPyBackend(nn.Workers(1)))["bits"]
    now = {"bits": bits}
    assert environment.environment_differences(now, now) == []
    several = {"bits": {**bits, "blas": f"openblas 0.1 Zen, {bits['blas']}"}}  # as it was frozen once
    assert environment.environment_differences(several, now) == []
    other = {"bits": {**bits, "blas": "openblas 0.1 Zen", "arithmetic": 0}}
    assert environment.environment_differences(other, now) == [
        f"arithmetic {nn.ARITHMETIC} instead of 0",
        f"blas {bits['blas']} instead of openblas 0.1 Zen",
    ]
    older = {"bits": {name: value for name, value in bits.items() if name != "arithmetic"}}
    assert environment.environment_differences(older, now) == [
        f"arithmetic {nn.ARITHMETIC} instead of an unknown value"
    ]


@pytest.mark.parametrize("content", ["{}", "[]", "3", "null"])
@pytest.mark.parametrize("name", ["job.json", "environment.json", "attempts/0001.json"])
def test_valid_json_that_is_no_record_is_said(tmp_path: Path, name: str, content: str) -> None:
    run = trained(tmp_path).run
    run.result_file.unlink()
    (run.path / name).write_text(content)
    if name == "environment.json" and content == "{}":
        assert train(run).state == "finished"  # the environment of the first attempt is unknown, so the bits may differ
        assert run.result()["bits_may_differ_from_step"] is not None
        return
    with pytest.raises(DataError, match=rf"{name}: damaged \((it is not an object|job is missing|attempt is missing)"):
        train(run)


def test_a_flipped_bit_of_a_job_file_is_found(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    content, before, refused = run.job_file.read_bytes(), run.manifest(), 0
    assert before["sha256"] == json_files.compute_seal(before)
    bits = range(0, 8 * len(content), 29)
    for bit in bits:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        run.job_file.write_bytes(changed)
        try:
            assert run.manifest() == before  # 1E-08 is 1e-08
        except DataError:
            refused += 1
    assert refused >= len(bits) - 1


def test_an_edited_job_is_neither_trained_nor_used_and_an_unsealed_one_is_said(tmp_path: Path) -> None:
    finished = trained(tmp_path).run
    content = finished.job_file.read_text()
    mean = str(finished.data()["mean"][0])
    finished.job_file.write_text(content.replace(mean, "0.5"))
    for use in (finished.job, finished.data, lambda: load_classifier(finished), lambda: export(finished, tmp_path)):
        with pytest.raises(DataError, match=r"job\.json: damaged or edited \(its SHA-256 does not match"):
            use()
    finished.result_file.unlink()
    for begin in (lambda: train(finished), lambda: run_of(job(), dataset(tmp_path), tmp_path / "runs")):
        with pytest.raises(DataError, match=r"job\.json: damaged or edited"):
            begin()
    unsealed = files.parse_json(content)
    del unsealed["sha256"]
    files.write_json(finished.job_file, unsealed)
    with pytest.raises(DataError, match=r"job\.json: damaged or edited \(its SHA-256 is missing"):
        finished.job()
    del unsealed["format"]
    files.write_json(finished.job_file, unsealed)
    assert UNSEALED in read_record(finished, "old").remarks
    assert read_summary(finished).notes[0] == UNSEALED


# --- what is removed or replaced while a run trains


def live(root: Path, seconds: float = 3600) -> Claim:
    """A training of this process, whose claim is so old."""
    held = claim(Run(root) if root.exists() else pending_run(root))
    for path in (held.path, held.run.heartbeat_file):
        os.utime(path, (time.time() - seconds,) * 2)
    held.beat()
    return held


def test_a_training_whose_record_was_removed_writes_no_more_and_is_not_joined(tmp_path: Path) -> None:
    held = live(tmp_path / "run")
    held.check()
    shutil.rmtree(held.run.attempts_folder)
    for write in (
        held.check,
        lambda: held.end("stopped: SIGTERM", 5),
        lambda: files.write_json(tmp_path / "a", 1, fence=held.check),
    ):
        with pytest.raises(DataError, match=r"0001\.json: the record of this attempt was removed \(found no record\)"):
            write()
    with suppress(OSError):
        held.beat()
    assert held.run.state() == "running"
    assert read_summary(held.run).notes == (UNRECORDED,)
    assert read_record(held.run, "run").reasons == [UNRECORDED]
    with pytest.raises(BusyError, match="a process without a record in attempts/ is training this run"):
        claim(held.run)
    with pytest.raises(BusyError, match="not removed because an unknown process may be writing to it"):
        cleanup.check_removable([held.run])
    old = time.time() - HEARTBEAT_LIMIT_SECONDS - 1
    os.utime(held.run.heartbeat_file, (old, old))
    claim(held.run).note(**dead_process())
    with pytest.raises(BusyError, match="was replaced by that of process"):
        held.check()


def test_the_removed_record_of_the_newest_attempt_is_missed(tmp_path: Path) -> None:
    claim(new_folder(tmp_path / "run")).end("stopped: SIGTERM", 0)
    for path in (tmp_path / "run" / "attempts" / "0001.json", tmp_path / "run" / "heartbeat"):
        os.utime(path, (time.time() - 3600,) * 2)
    held = live(tmp_path / "run")
    assert held.number == 2
    held.path.unlink()
    with pytest.raises(DataError, match=r"0002\.json: the record of this attempt was removed \(found 0001\.json\)"):
        held.check()
    assert held.run.state() == "running"
    with pytest.raises(BusyError):
        claim(held.run)


def test_a_training_stops_at_its_next_save_when_its_records_are_removed(tmp_path: Path) -> None:
    class Removes(NoProgress):
        def step(self, epoch: int, step: int) -> None:
            if epoch == 2:
                shutil.rmtree(run.attempts_folder, ignore_errors=True)

    run = run_of(job(train__epochs=9), dataset(tmp_path), tmp_path / "runs")
    with pytest.raises(DataError, match="the record of this attempt was removed"):
        train(run, Removes())
    assert len(run.history()) == 1
    assert not run.attempts_folder.exists()
    assert not run.result_file.exists()


@pytest.mark.parametrize("name", ["attempts", "checkpoints", "slurm", "log.txt", "heartbeat"])
def test_nothing_is_written_through_a_link_in_a_run_folder(tmp_path: Path, name: str) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "step-000000001.npz").write_bytes(b"another's")
    before = tree(outside)
    (run.path / name).symlink_to(outside)
    with pytest.raises(DataError, match=rf"{name}: must not be a symbolic link \(found one to {outside}\)"):
        train(run)
    assert tree(outside) == before
    (run.path / name).unlink()
    (tmp_path / "link").symlink_to(run.path)
    assert train(Run(tmp_path / "link")).state == "finished"


def test_a_log_is_not_appended_through_a_link_or_to_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name):
            files.append_text(tmp_path / name, "x\n")
    files.append_text(tmp_path / "file", "x\udcff\n")
    assert (tmp_path / "file").read_text() == "mine\nx\\udcff\n"


# --- odd records of attempts


def test_attempts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """As text 10000 is before 9999."""
    run = Run(tmp_path)
    claim(run).end("stopped: SIGTERM", 0)
    shutil.copy(run.attempt_files()[0], run.attempts_folder / "9999.json")
    held = claim(run)
    assert (held.number, run.state()) == (10_000, "running")
    with pytest.raises(BusyError):
        claim(run)
    held.end("stopped: SIGTERM", 0)
    shutil.copy(held.path, run.attempts_folder / "999999999.json")
    held = claim(run)
    assert (held.number, run.state()) == (10**9, "running")
    held.check()


def test_an_attempt_is_superseded_by_any_later_one(tmp_path: Path) -> None:
    """The record between them was removed."""
    held = claim(Run(tmp_path))
    shutil.copy(held.path, held.path.with_name("0003.json"))
    with pytest.raises(BusyError, match="presumed dead, and attempt 3 now owns the run"):
        held.check()


def test_a_copy_by_hard_links_has_a_heartbeat_of_its_own(tmp_path: Path) -> None:
    run = new_folder(tmp_path / "run")
    claim(run).end("stopped: SIGTERM", 0)
    copy = Run(tmp_path / "copy")
    subprocess.run(["cp", "--archive", "--link", run.path, copy.path], check=True)
    held = claim(copy)
    for path in (run.heartbeat_file, *run.attempt_files()):
        silent(path, 500)
    held.beat()
    assert (copy.state(), run.state()) == ("running", "stopped")


def linked_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Path.touch, "not readable as JSON"),
        (Path.mkdir, "found a folder"),
        (os.mkfifo, "found a pipe"),
        (linked_nowhere, "no such file"),
    ],
)
def test_what_is_no_record_of_an_attempt_frees_no_run(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    run = Run(tmp_path)
    claim(run).end("stopped: SIGTERM", 0)
    for path in (run.attempts_folder / "0002.json", run.attempts_folder / "0001.json"):
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(DataError, match=rf"{path.name}: .*{said}"):
            claim(run)
        assert read_summary(run).state == "damaged"
        (path.rmdir if said == "found a folder" else path.unlink)()


CLAIMS = """
import json, multiprocessing, sys
from pathlib import Path
from cnnjob.runs.claims import claim
from cnnjob.errors import BusyError
from cnnjob.runs.run import Run
def race(start, answers):
    for number in range(20):
        start.wait()
        try:
            answers.put((number, claim(Run(Path(sys.argv[1], str(number)))).number))
        except BusyError:
            answers.put((number, "busy"))
    start.wait()  # a process that has ended has no run any more
forks = multiprocessing.get_context("fork")
start, answers = forks.Barrier(4), forks.Queue()
racers = [forks.Process(target=race, args=(start, answers), daemon=True) for _ in range(4)]
for number in range(20):
    Path(sys.argv[1], str(number)).mkdir()
for racer in racers:
    racer.start()
print(json.dumps([answers.get(timeout=60) for _ in range(80)]))
"""


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_of_several_that_begin_at_once_one_has_the_run(tmp_path: Path, kind: str) -> None:
    for name in ("runs", "upper", "work", "lower"):
        (tmp_path / name).mkdir()
    options = [] if kind == "tmpfs" else ["-o", "lowerdir=lower,upperdir=upper,workdir=work"]
    if subprocess.run(["mount", "-t", kind, *options, kind, "runs"], cwd=tmp_path, check=False).returncode:
        pytest.skip(f"no {kind} can be mounted here")
    try:
        words = [sys.executable, "-c", CLAIMS, str(tmp_path / "runs")]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        counts = Counter(map(tuple, json.loads(done.stdout)))
    finally:
        subprocess.run(["umount", "runs"], cwd=tmp_path, check=True)
    assert counts == {(number, answer): count for number in range(20) for answer, count in ((1, 1), ("busy", 3))}
