"""Copies of datasets on a node's local disk."""

import multiprocessing
import os
from pathlib import Path

import pytest

from cnnjob.data.dataset import Dataset
from cnnjob.errors import DataError
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.staging import local_folder, stage_dataset
from cnnjob.training.train import train
from tests.helpers.toy_jobs import corrupt, dataset, job, outcome_of, run_of


def test_a_copy_is_made_once_and_trains_with_the_same_bits(tmp_path: Path) -> None:
    data, lines = dataset(tmp_path), list[str]()
    copy = stage_dataset(data, lines.append, tmp_path / "node")
    assert (copy.digest, copy.path.parent) == (data.digest, tmp_path / "node")
    before = copy.path.stat()
    assert stage_dataset(data, lines.append, tmp_path / "node").path == copy.path
    assert copy.path.stat() == before
    assert [line.partition(": ")[2] for line in lines] == [
        f"copying {data.path} (0.0 GB) to this node",
        f"using the copy of {data.path} on this node",
    ]
    plain, staged = (run_of(job(), data, tmp_path / name) for name in ("plain", "staged"))
    train(plain)
    train(staged, setup=TrainingSetup.of_run(staged, dataset=copy), in_memory_bytes=0)
    assert outcome_of(staged) == outcome_of(plain)
    assert staged.data()["path"] == str(data.path)  # not that of the copy, which may be gone tomorrow


def stage(path: Path, folder: Path, lines: "multiprocessing.Queue[str]") -> None:
    """Stage a dataset in a process of its own."""
    stage_dataset(Dataset.open(path), lines.put, folder)


def test_processes_on_one_node_share_a_copy(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    lines: multiprocessing.Queue[str] = context.Queue()
    path = dataset(tmp_path).path
    processes = [context.Process(target=stage, args=(path, tmp_path / "node", lines)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    said = []
    while not lines.empty():
        said.append(lines.get())
    assert sum("copying /" in line for line in said) == 1
    assert sorted(found.suffix for found in (tmp_path / "node").iterdir()) == [".h5", ".lock"]


def test_copies_that_no_process_uses_are_removed_after_a_week(tmp_path: Path) -> None:
    node = tmp_path / "node"
    kept = stage_dataset(dataset(tmp_path), print, node).path  # this process uses it
    recent, old = node / f"{'1' * 16}.h5", node / f"{'2' * 16}.h5"
    for path in (recent, old):
        path.write_bytes(b"x")
        path.with_suffix(".lock").touch()
    for path in (kept, old):
        os.utime(path.with_suffix(".lock"), (0, 0))
    (tmp_path / "other").mkdir()
    lines: list[str] = []
    new = stage_dataset(dataset(tmp_path / "other", images=100), lines.append, node).path
    assert {path.name for path in node.iterdir()} == {
        path.with_suffix(suffix).name for path in (kept, recent, new) for suffix in (".h5", ".lock")
    }
    assert lines[0] == f"{old}: removed, since no process uses this copy"
    os.utime(kept.with_suffix(".lock"), (0, 0))
    assert stage_dataset(dataset(tmp_path), print, node).path == kept
    assert kept.with_suffix(".lock").stat().st_mtime > 0


def test_a_damaged_dataset_is_not_copied(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    corrupt(data.path, data.stored("train").offset + 5)
    with pytest.raises(DataError, match=r"damaged \(train/images has sha256"):
        stage_dataset(data, print, tmp_path / "node")
    assert not list((tmp_path / "node").glob("*.h5*"))


def test_a_copy_that_was_cut_is_made_anew(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    copy = stage_dataset(data, print, tmp_path / "node")
    os.truncate(copy.path, 20_000)
    assert stage_dataset(data, print, tmp_path / "node").path.stat().st_size == data.path.stat().st_size


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir(mode=0o777)
    (tmp_path / "node").chmod(0o777)
    with pytest.raises(DataError, match="not a folder that only this user can write to"):
        stage_dataset(dataset(tmp_path), print, tmp_path / "node")


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot be copied to this node's disk .*Set TMPDIR|Free space there, set TMPDIR"
    ):
        stage_dataset(dataset(tmp_path), print, Path("/proc/cnnjob"))


def test_the_jobs_own_local_folder_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert local_folder() == tmp_path / f"cnnjob-{os.getuid()}"
