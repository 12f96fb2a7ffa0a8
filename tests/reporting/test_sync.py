"""``cnnjob sync``: what TensorBoard and W&B read of the runs, and that nothing is sent twice."""

import io
import json
import os
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnjob import files
from cnnjob.errors import BusyError, JobError
from cnnjob.reporting.sync.sync import Synced, sync
from cnnjob.reporting.sync.tensorboard_log import TensorBoard
from cnnjob.runs.run import Run
from cnnjob.training.train import train
from tests.helpers import run_folders as folders
from tests.helpers.cli import cnnjob
from tests.helpers.progress import StopsAt
from tests.helpers.toy_jobs import CLASSES, dataset, job, run_of

BLOCK, HEAD = 2**15, struct.Struct("<IHB")
"""A .wandb file is cut into blocks; each fragment has a checksum, its length and its kind."""
NEEDS_TENSORBOARD = "needs tensorboard: pip install -e '.[tensorboard]'"
NEEDS_WANDB = "needs wandb: pip install -e '.[wandb]'"


def scalars(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Read the metrics of a run as TensorBoard does: step, value and time by tag."""
    log = events(folder)
    return {
        tag: [(event.step, event.value, event.wall_time) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
    }  # fmt: skip


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=NEEDS_TENSORBOARD
    )
    log = accumulator.EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0})
    log.Reload()
    return log


def texts(folder: Path) -> dict[str, list[str]]:
    log = events(folder)
    found = {tag: [event.tensor_proto.string_val for event in log.Tensors(tag)] for tag in log.Tags()["tensors"]}
    return {tag: [value.decode() for values in strings for value in values] for tag, strings in found.items()}


def send(run: Run) -> Synced:
    pytest.importorskip("tensorboard", reason=NEEDS_TENSORBOARD)
    [synced] = sync([run], TensorBoard())
    return synced


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_followed_through_a_stop_and_a_resume(tmp_path: Path) -> None:
    run = run_of(job(train__epochs=4), dataset(tmp_path), tmp_path / "runs")
    assert (send(run).state, send(run).epochs) == ("pending", 0)
    steps = train(run, StopsAt(50)).run.history()[-1]["step"]
    first = send(run)
    assert (first.state, first.new_epochs, first.epochs, first.new_result) == ("stopped", 50 // (steps // 2), 2, False)
    assert (send(run).new_epochs, send(run).epochs) == (0, 2)
    train(run)
    before = content(run.path)
    last = send(run)
    assert (last.state, last.new_epochs, last.epochs, last.new_result) == ("finished", 2, 4, True)
    assert content(run.path) == before
    copied = content(tmp_path / "runs" / ".tensorboard")
    again = send(run)
    assert (again.state, again.new_epochs, again.epochs, again.new_result) == ("finished", 0, 4, False)
    assert content(tmp_path / "runs" / ".tensorboard") == copied
    found, history, result = scalars(Path(again.folder)), run.history(), run.result()
    for tag, column in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        assert [step for step, _, _ in found[tag]] == [1, 2, 3, 4]
        assert [value for _, value, _ in found[tag]] == pytest.approx([record[column] for record in history])
    assert set(found) == {
        *("loss/train", "loss/validation", "accuracy/train", "accuracy/validation"),
        *("learning_rate", "seconds", "images_per_second"),
        *("result/test_accuracy", "result/test_loss"),
        *("result/precision_macro", "result/recall_macro", "result/f1_macro"),
    }
    [(step, accuracy, _)] = found["result/test_accuracy"]
    assert step == 4
    assert accuracy == pytest.approx(result["test_accuracy"])
    [text] = texts(Path(again.folder))["job"]
    assert "    train.learning_rate = 0.05\n" in text
    images = events(Path(again.folder))
    assert images.Tags()["images"] == ["confusion", "filters"]
    [picture] = images.Images("confusion")
    assert Image.open(io.BytesIO(picture.encoded_image_string)).size == (picture.width, picture.height)
    assert picture.step == 4
    assert len(CLASSES) == 3


def test_metrics_have_the_time_at_which_the_epoch_ended(tmp_path: Path) -> None:
    found = scalars(Path(send(folders.finished_run(tmp_path)).folder))
    times = [time for _, _, time in found["loss/train"]]
    assert np.diff(times).tolist() == [1, 1, 1]
    assert found["result/f1_macro"][0][2] == times[-1]
    old = folders.stopped_run(tmp_path, seed=1)
    lines = [json.loads(line) for line in old.history_file.read_text().splitlines()]
    for line in lines:
        del line["ended"]
    old.history_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(scalars(Path(send(old).folder))["loss/train"]) == 2


def test_hyperparameters_and_results_are_in_the_hparams_plugin(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    folder = Path(send(run).folder)
    plugin_data_pb2 = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    log = events(folder)
    start, end = (
        plugin_data_pb2.HParamsPluginData.FromString(log.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)
        for tag in ("session_start_info", "session_end_info")
    )
    values = start.session_start_info.hparams
    assert values["train.learning_rate"].number_value == 0.05
    assert values["seed"].number_value == 0
    assert values["dataset"].string_value == "tiny dddddddd"
    assert values["model.blocks"].string_value == "conv 5, dense 8"
    assert not [key for key in values if key == "name" or key.startswith("resources.")]
    assert start.session_start_info.group_name == run.name
    assert end.session_end_info.status == 1  # success


def test_epochs_that_are_repeated_after_a_kill_are_not_sent_again(tmp_path: Path) -> None:
    run = folders.running_run(tmp_path, epochs=3)
    assert send(run).new_epochs == 3
    folders.write_history(run, 2, "validation")  # resumed from a checkpoint after the first epoch
    assert (send(run).new_epochs, send(run).epochs) == (0, 3)
    folders.write_history(run, 4, "validation")
    lines = [json.loads(line) | {"seconds": 9.0, "ended": "2026-02-02T00:00:00+00:00"}
             for line in run.history_file.read_text().splitlines()]  # fmt: skip
    run.history_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    synced = send(run)
    assert (synced.new_epochs, synced.epochs) == (1, 4)
    assert [step for step, _, _ in scalars(Path(synced.folder))["loss/train"]] == [1, 2, 3, 4]


def test_epochs_with_other_values_replace_the_earlier_ones(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    send(run)
    lines = [json.loads(line) for line in run.history_file.read_text().splitlines()]
    lines[2]["train_loss"] = lines[3]["train_loss"] = 0.125
    run.history_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    synced = send(run)
    assert (synced.new_epochs, synced.epochs, synced.new_result) == (4, 4, True)
    found = scalars(Path(synced.folder))
    assert [(step, value) for step, value, _ in found["loss/train"]] == [(1, 1.0), (2, 0.5), (3, 0.125), (4, 0.125)]
    assert len(found["result/test_accuracy"]) == 1


def test_what_is_lost_of_a_copy_is_sent_again(tmp_path: Path) -> None:
    run = folders.running_run(tmp_path, epochs=2)
    send(run)
    folders.write_history(run, 4, "validation")
    folder = Path(send(run).folder)
    first, second = sorted(folder.glob("events.*"))
    second.unlink()  # as after a kill between the two files of an update
    assert (send(run).new_epochs, [step for step, *_ in scalars(folder)["loss/train"]]) == (2, [1, 2, 3, 4])
    first.write_bytes(first.read_bytes()[:-1])
    assert (send(run).new_epochs, [step for step, *_ in scalars(folder)["loss/train"]]) == (4, [1, 2, 3, 4])
    (folder / "sent.json").write_text("{")
    assert (send(run).new_epochs, [step for step, *_ in scalars(folder)["loss/train"]]) == (4, [1, 2, 3, 4])
    assert [len(found) for found in texts(folder).values() if found] == [1]
    assert send(run).new_epochs == 0


def test_damaged_runs_are_named_and_the_others_sent(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=NEEDS_TENSORBOARD)
    good, bad = folders.finished_run(tmp_path / "runs"), folders.finished_run(tmp_path / "runs", seed=1)
    lost = folders.finished_run(tmp_path / "runs", seed=2)
    bad.job_file.write_text("{}")
    lost.history_file.write_text("{")
    found = {each.run: each for each in sync([good, bad, lost], TensorBoard())}
    assert (found[good.name].epochs, found[good.name].problem) == (4, "")
    assert "job.json" in found[bad.name].problem
    assert (found[lost.name].epochs, found[lost.name].new_result) == (0, True)
    said = cnnjob("sync", str(tmp_path / "runs"), "--to", "tensorboard")
    assert said.exit_code == 0
    assert "job.json: damaged" in said.stdout


def test_two_runs_of_one_name_and_two_processes_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=NEEDS_TENSORBOARD)
    one, other = (folders.running_run(tmp_path / name) for name in ("a", "b"))
    with pytest.raises(JobError, match=r"both are named tiny-.*--out"):
        list(sync([one, other], TensorBoard(), tmp_path / "out"))
    assert {Path(each.folder).parent for each in sync([one, other], TensorBoard())} == {
        tmp_path / "a" / ".tensorboard", tmp_path / "b" / ".tensorboard",
    }  # fmt: skip
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    lock = str(tmp_path / "a" / ".tensorboard" / one.name / "lock")
    with subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(BusyError, match="another cnnjob sync is running"):
            send(one)
        process.communicate(b"\n")


def records(folder: Path) -> Iterator[Any]:
    """Read the records of a W&B run in the order in which W&B received them."""
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason=NEEDS_WANDB)
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        assert data[:4] == b":W&B"
        while at < len(data):
            if (left := BLOCK - at % BLOCK) < HEAD.size:
                at += left
                continue
            _, length, kind = HEAD.unpack_from(data, at)
            whole += data[at + HEAD.size : at + HEAD.size + length]
            at += HEAD.size + length
            if kind in {1, 4}:  # the whole record, or its last fragment
                record, whole = protocol.Record.FromString(whole), b""
                yield record


def wandb_run(folder: Path) -> dict[str, Any]:
    """What W&B has received: one entry per run id."""
    runs: dict[str, dict[str, Any]] = defaultdict(lambda: {"history": [], "summary": {}, "exit": []})
    run: dict[str, Any] = {}
    for record in records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = runs[record.run.run_id]
            run["run"] = record.run
            run["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            run["history"].append({item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            run["summary"] |= {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update
            }
        elif kind == "exit":
            run["exit"].append(record.exit.exit_code)
    return dict(runs)


def to_wandb(root: Path, *arguments: str) -> list[dict[str, Any]]:
    """Sync runs to W&B in a process of its own, as W&B starts others."""
    pytest.importorskip("wandb", reason=NEEDS_WANDB)
    settings = {"WANDB_MODE": "offline", "HOME": str(root), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "cnnjob", "sync", "--to", "wandb", "--json", *arguments]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_wandb_receives_a_run_once(tmp_path: Path) -> None:
    run = folders.running_run(tmp_path / "runs", epochs=2)
    digest = run.manifest()["digest"][:16]
    [first] = to_wandb(tmp_path)
    assert (first["state"], first["new_epochs"], first["url"]) == ("running", 2, "")
    folders.write_history(run, 1, "validation")  # resumed from the checkpoint before the second epoch
    assert to_wandb(tmp_path)[0]["new_epochs"] == 0
    run.path.rename(tmp_path / "runs" / ".aside")
    finished = folders.finished_run(tmp_path / "runs")
    assert finished.name == run.name
    [last] = to_wandb(tmp_path)
    assert (last["state"], last["new_epochs"], last["epochs"], last["new_result"]) == ("finished", 2, 4, True)
    assert to_wandb(tmp_path)[0] | {"new_epochs": 2, "new_result": True} == last
    found = wandb_run(Path(last["folder"]) if Path(last["folder"]).is_absolute() else tmp_path / last["folder"])
    assert list(found) == [digest]
    sent = found[digest]
    rows = [row for row in sent["history"] if "epoch" in row]
    assert [(row["_step"], row["epoch"], row["loss/train"]) for row in rows] == [
        (1, 1, 1.0), (2, 2, 0.5), (3, 3, 1 / 3), (4, 4, 0.25),
    ]  # fmt: skip
    assert [row["_timestamp"] for row in rows] == [1767225600 + epoch for epoch in (1, 2, 3, 4)]
    assert sent["config"]["train"]["learning_rate"] == 0.05
    assert sent["config"]["dataset"] == "tiny dddddddd"
    assert (sent["summary"]["test_accuracy"], sent["summary"]["best_epoch"]) == (0.8, 3)
    assert sent["summary"]["state"] == "finished"
    assert {"confusion", "filters"} <= sent["summary"].keys()
    about = sent["run"]
    assert (about.project, about.display_name, about.job_type) == ("cnnjob", run.name, "tiny")
    assert about.run_group.startswith("tiny ")
    assert sorted(about.tags) == ["cnnjob", "tiny"]
    assert about.resumed or sent["exit"] == [0, 0]
    [image] = Path(tmp_path / "runs" / ".wandb").glob("*/wandb/offline-run-*/files/media/images/confusion_*.png")
    assert image.read_bytes().startswith(b"\x89PNG")


def test_wandb_groups_seeds_and_shows_a_changed_history_as_a_new_run(tmp_path: Path) -> None:
    one, other = (folders.finished_run(tmp_path / "runs", seed=seed) for seed in (0, 1))
    assert len(to_wandb(tmp_path, "--project", "mine")) == 2
    lines = one.history_file.read_text().splitlines()
    lines[-1] = files.canonical_json(json.loads(lines[-1]) | {"train_loss": 0.125})
    one.history_file.write_text("\n".join(lines) + "\n")
    to_wandb(tmp_path, "--project", "mine")
    found = {name: wandb_run(tmp_path / "runs" / ".wandb" / name) for name in (one.name, other.name)}
    digest = one.manifest()["digest"][:16]
    assert list(found[one.name]) == [digest, f"{digest}-2"]
    again = found[one.name][f"{digest}-2"]
    assert [row["_step"] for row in again["history"] if "epoch" in row] == [1, 2, 3, 4]
    assert again["config"]["seed"] == 0
    assert again["run"].project == "mine"
    [again_in_another, _] = to_wandb(tmp_path, "--project", "other", "--out", "runs/.wandb")
    assert again_in_another["new_epochs"] == 4
    groups = {sent["run"].run_group for runs in found.values() for sent in runs.values()}
    assert len(groups) == 1


def test_mistaken_options_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, code, message in (
        ([], 2, "sync --to: no tool specified. Choose from tensorboard, wandb"),
        (["--to", "mlflow"], 2, "unknown tool (found mlflow). Choose from tensorboard, wandb"),
        (["--to", "tensorboard", "--project", "x"], 2, "TensorBoard has no projects"),
        (["--to", "tensorboard"], 3, "runs: no runs found"),
    ):
        said = cnnjob("sync", *words)
        assert (said.exit_code, message in said.stderr) == (code, True), said.output


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise ImportError('not installed')")
    folders.finished_run(tmp_path / "runs")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "cnnjob", "sync", "--to", name]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"Install it:\n  pip install 'cnnjob[{name}]'\n")


def test_watching_ends_with_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason=NEEDS_TENSORBOARD)
    monkeypatch.setenv("PATH", "/nowhere")  # no SLURM
    folders.finished_run(tmp_path / "runs")
    folders.stopped_run(tmp_path / "runs", seed=1)
    said = cnnjob("sync", str(tmp_path / "runs"), "--to", "tensorboard", "--watch", "--out", str(tmp_path / "logs"))
    assert said.exit_code == 0, said.output
    assert said.stdout.endswith(f"To see them:\n    tensorboard --logdir {tmp_path / 'logs'}\n")
    assert len(list((tmp_path / "logs").iterdir())) == 2
