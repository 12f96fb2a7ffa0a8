"""Fine-tuning: runs that begin with the weights of another run or file, and blocks that keep them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnjob as api
from cnnjob.checks.comparison import digests
from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.errors import CnnjobError, DataError, JobError
from cnnjob.files import sha256_of
from cnnjob.jobs.job import Job
from cnnjob.runs import checkpoints, npz
from cnnjob.runs.initial import find_initial
from cnnjob.runs.run import Run
from cnnjob.training.inference.classifier import load_classifier
from cnnjob.training.inference.predict import predict
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train
from tests.helpers.progress import Recorder, StopsAt
from tests.helpers.toy_jobs import blots, corrupt, dataset, job, outcome_of, trained

NORM = {"batch_norm": True}
BLOCKS: list[dict[str, Any]] = [{"conv": 4, "pool": 2, **NORM}, {"conv": 3, "bias": True}, {"dense": 8}]
FROZEN = [{**block, "frozen": True} for block in BLOCKS[:2]] + BLOCKS[2:]
FEW = {"train__epochs": 2, "train__batch_size": 54, "train__checkpoint_seconds": 0.0}
"""Three steps per epoch."""


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("parent"), model__blocks=BLOCKS).run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def child_job(source: Run | Path | str, root: Path = Path("nowhere"), **changes: Any) -> Job:
    given = str(source.path if isinstance(source, Run) else source)
    return find_initial(job(**{"model__blocks": BLOCKS, "model__init_from": given, **FEW, **changes}), root)


def child(source: Run | Path | str, root: Path, data: Dataset | None = None, **changes: Any) -> Run:
    root.parent.mkdir(exist_ok=True)
    packed = data or dataset(root.parent)
    return TrainingSetup.checked(child_job(source, root, **changes), packed).create_run(root)


def pair(folder: Path) -> Dataset:
    """The toy images of two classes."""
    path = folder / "pair.h5"
    chunks = [
        Chunk("pair", one.split, 0, one.images[one.labels < 2], one.labels[one.labels < 2], int((one.labels < 2).sum()))
        for one in blots({"train": 240, "test": 40})
    ]
    write(path, "pair", DatasetContents(("row", "column"), {"pair": "0" * 64}, iter(chunks)), {})
    return Dataset.open(path)


def at_step(run: Run, step: int) -> dict[str, np.ndarray]:
    """The weights at a step, from the checkpoint."""
    arrays = npz.read_arrays(run.checkpoints_folder / f"step-{step:09d}.npz")
    return {name.removeprefix("weights/"): array for name, array in arrays.items() if name.startswith("weights/")}


def test_layers_that_fit_are_taken_and_a_classifier_for_other_classes_is_new(parent: Run, root: Path) -> None:
    run, said = child(parent, root, pair(root.parent)), Recorder()
    train(run, StopsAt(1))
    weights, first = parent.weights(), at_step(run, 0)
    plain = TrainingSetup.checked(job(model__blocks=BLOCKS, **FEW), pair(root.parent)).create_run(root)
    train(plain, StopsAt(1))
    drawn = at_step(plain, 0)
    assert first.keys() == weights.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, (drawn if name.startswith("classifier/") else weights)[name], name)
    assert (first["conv1/mean"] != 0).all()
    log = run.log_file.read_text()
    assert f"initial weights: {parent.name} (SHA-256 " in log
    assert "  taken: conv1, conv2, dense1\n" in log
    assert "  new: classifier (3 classes in the weights, 2 here)\n" in log
    train(run, said)
    assert not any("taken" in line for line in said.lines)  # it is said once, not when the run is resumed
    assert run.state() == "finished"


def test_the_same_weights_by_another_path_are_the_same_run(parent: Run, tmp_path: Path) -> None:
    shutil.copy(parent.weights_file, tmp_path / "other.npz")
    shutil.copytree(parent.path, tmp_path / "copy")
    digest = "0" * 64
    jobs = [child_job(source) for source in (parent, parent.weights_file, tmp_path / "other.npz", tmp_path / "copy")]
    assert len({one.digest(digest) for one in jobs}) == 1
    assert jobs[0].model.init_sha256 == sha256_of(parent.weights_file.read_bytes())
    by_name = child_job(parent.name[:9], parent.path.parent)
    assert by_name.digest(digest) == jobs[0].digest(digest)
    assert by_name.model.init_from == str(parent.path)
    assert jobs[0].digest(digest) != job(model__blocks=BLOCKS, **FEW).digest(digest)
    other = {**parent.weights(), "dense1/bias": np.ones(8, np.float32)}
    npz.write_arrays(tmp_path / "other.npz", other)
    assert child_job(tmp_path / "other.npz").digest(digest) != jobs[0].digest(digest)
    unread = job(model__blocks=BLOCKS, model__init_from="x.npz")
    with pytest.raises(JobError, match=r"model.init_from: the weights have not been read yet"):
        unread.digest(digest)


def test_a_run_has_all_it_needs_and_says_where_it_came_from(parent: Run, root: Path, tmp_path: Path) -> None:
    """Its folder may be moved, and the source removed, before it is trained."""
    shutil.copytree(parent.path, tmp_path / parent.name)
    run = child(tmp_path / parent.name, root)
    shutil.rmtree(tmp_path / parent.name)
    moved = Run(tmp_path / "elsewhere" / run.name)
    moved.path.parent.mkdir()
    run.path.rename(moved.path)
    assert train(moved).state == "finished"
    origin = {
        "source": str(tmp_path / parent.name / "weights.npz"),
        "run": parent.name,
        "digest": parent.manifest()["digest"],
        "sha256": sha256_of(parent.weights_file.read_bytes()),
    }
    assert moved.manifest()["initial"] == moved.environment()["initial"] == origin
    assert moved.manifest()["job"]["model"]["init_from"] == "initial.npz"
    assert moved.job().model.init_from == str(moved.path / "initial.npz")
    assert moved.initial_file.read_bytes() == parent.weights_file.read_bytes()
    # A run from its job is from the same parent.
    grandchild = find_initial(Job.load(str(moved.path), ["train.epochs=1"]), root)
    again = TrainingSetup.checked(grandchild, dataset(tmp_path)).create_run(root)
    assert again.name != moved.name
    assert again.manifest()["initial"] == origin
    same = find_initial(Job.load(str(moved.path)), root)
    assert Run.of(same, dataset(tmp_path).digest, moved.path.parent) == moved


def test_frozen_blocks_keep_everything(parent: Run, root: Path) -> None:
    run = child(parent, root, model__blocks=FROZEN, train__weight_decay=0.01, train__lookahead={"every": 2})
    assert train(run).state == "finished"
    before, after = parent.weights(), run.weights()
    for name in before:
        is_kept = name.startswith(("conv1/", "conv2/"))
        assert np.array_equal(before[name], after[name]) == is_kept, name
    assert "  taken: conv1 (frozen), conv2 (frozen), dense1, classifier\n" in run.log_file.read_text()
    assert len(predict(run, ["test:0", "test:1"])) == 2
    assert load_classifier(run).network.parameters["conv1/shift"].trainable is False


def test_without_initial_weights_a_frozen_block_trains_its_bias_as_before(tmp_path: Path) -> None:
    run = trained(tmp_path, model__blocks=FROZEN).run
    assert run.weights()["conv2/bias"].any()
    assert "init_from" in run.manifest()["job"]["model"]
    assert not run.initial_file.exists()
    assert "initial" not in {**run.manifest(), **run.environment()}


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(parent: Run, tmp_path: Path) -> None:
    blocks = [*FROZEN[:2], {"dropout": 0.2}, FROZEN[2]]
    runs = [child(parent, tmp_path / str(step) / "runs", model__blocks=blocks) for step in range(7)]
    train(runs[0])
    for step, run in enumerate(runs[1:], start=1):
        train(run, StopsAt(step))
        assert train(run).state in {"finished", "was finished"}
        assert outcome_of(run) == outcome_of(runs[0])
    # On a machine where only a few images fit into memory, too.
    streamed = child(parent, tmp_path / "streamed" / "runs", model__blocks=blocks)
    train(streamed, in_memory_bytes=0)
    assert outcome_of(streamed) == outcome_of(runs[0])
    assert digests(streamed) == digests(runs[0])


def test_a_resumed_run_does_not_need_the_initial_weights_any_more(parent: Run, root: Path) -> None:
    run = child(parent, root)
    train(run, StopsAt(2))
    run.initial_file.unlink()
    assert train(run).state == "finished"


def test_damaged_initial_weights_are_refused_before_an_attempt_and_replaced_by_the_same_command(
    parent: Run, root: Path
) -> None:
    run = child(parent, root)
    for place in (0, 40, 1000, -1, -70):
        corrupt(run.initial_file, place)
        with pytest.raises(DataError, match=r"initial.npz: damaged .* train or submit the job file again") as refused:
            train(run)
        assert refused.value.exit_code == 3
        assert not run.attempts()
        assert child(parent, root) == run
        assert run.initial_file.read_bytes() == parent.weights_file.read_bytes()
    shutil.copy(trained(root.parent / "else", model__blocks=BLOCKS, seed=1).run.weights_file, run.initial_file)
    with pytest.raises(DataError, match=r"initial.npz: does not match model.init_sha256 .found \w{8}, expected"):
        train(run)
    run.initial_file.unlink()
    with pytest.raises(DataError, match=r"initial.npz: no such file"):
        train(run)


def test_a_layer_of_other_shape_or_name_is_new_and_said(parent: Run, root: Path) -> None:
    blocks = [BLOCKS[0], {**BLOCKS[1], "bias": False}, {"dense": 9}, {"dense": 5}]
    setup = TrainingSetup.checked(child_job(parent, model__blocks=blocks), dataset(root.parent))
    initial = setup.initial_layers()
    assert initial
    assert initial.taken == ("conv1",)
    assert initial.new == {
        "conv2": "conv2/bias has shape 3 in the weights, no array here",
        "dense1": "dense1/weights has shape 27×8 in the weights, shape 27×9 here",
        "dense2": "not in the weights",
        "classifier": "classifier/weights has shape 8×3 in the weights, shape 5×3 here",
    }
    fewer = TrainingSetup.checked(child_job(parent, model__blocks=BLOCKS[:1]), dataset(root.parent))
    assert [*fewer.describe_initial()][1:] == [
        "  taken: conv1",
        "  new: classifier (classifier/weights has shape 8×3 in the weights, shape 36×3 here)",
        "  not in this network: conv2, dense1",
    ]
    with pytest.raises(
        JobError, match=r"a frozen block would keep random weights.*found dense1 .dense1/weights has sh"
    ):
        TrainingSetup.checked(
            child_job(parent, model__blocks=[*BLOCKS[:2], {"dense": 9, "frozen": True}]), dataset(root.parent)
        )
    with pytest.raises(
        JobError,
        match=r"do not fit any layer .found dense1/weights \d+×8 instead of 36×2, and 2 other arrays of another",
    ):
        TrainingSetup.checked(child_job(parent, model__blocks=[{"dense": 2}]), dataset(root.parent))


def test_residual_blocks_are_taken_and_frozen_as_a_whole(tmp_path: Path) -> None:
    body: list[dict[str, Any]] = [{"conv": 3, "stride": 2, **NORM}, {"conv": 3, "activation": "none", **NORM}]
    frozen = [{**block, "frozen": True} for block in body]
    source = trained(tmp_path, model__blocks=[{"conv": 2}, {"residual": body}, {"global_pool": "max"}]).run
    conv = {"conv": 2, "frozen": True}
    run = child(source, tmp_path / "runs", model__blocks=[conv, {"residual": frozen}, {"global_pool": "max"}])
    train(run)
    before, after = source.weights(), run.weights()
    assert {name.split("/")[0] for name in before if not np.array_equal(before[name], after[name])} == {"classifier"}
    part = [*frozen[:1], *body[1:]]
    run = child(source, tmp_path / "runs", model__blocks=[conv, {"residual": part}, {"global_pool": "max"}])
    train(run)
    assert "conv1 (frozen), residual1 (frozen in part), classifier" in run.log_file.read_text()
    changed = {name for name, array in run.weights().items() if not np.array_equal(before[name], array)}
    assert not any(name.startswith("residual1/conv1/") for name in changed)
    assert {name.rpartition("/")[0] for name in changed} == {
        "residual1/conv2",
        "residual1/projection",
        "classifier",
    }


def test_whitening_filters_are_taken_as_they_are(tmp_path: Path) -> None:
    blocks = [{"conv": 8, "kernel": 2, "pad": 0, "init": "whitening", "frozen": True}, {"dense": 8}]
    source = trained(tmp_path, model__blocks=blocks).run
    run = child(source, tmp_path / "runs", model__blocks=blocks, data__validation_fraction=0.5)
    train(run)
    for name in ("conv1/weights", "conv1/bias"):
        np.testing.assert_array_equal(run.weights()[name], source.weights()[name])


def test_arrays_of_another_program_are_weights_if_their_names_and_shapes_fit(
    parent: Run, root: Path, tmp_path: Path
) -> None:
    weights = parent.weights()
    doubles: dict[str, Any] = {name: array.astype(np.float64) for name, array in weights.items()}
    floats: dict[str, Any] = {**weights, "steps": np.arange(3)}
    np.savez(tmp_path / "plain.npz", **doubles)
    np.savez_compressed(tmp_path / "small.npz", **floats)
    expected = child_job(parent).model.init_sha256
    for name in ("plain.npz", "small.npz"):
        assert child_job(tmp_path / name).model.init_sha256 == expected
    run = child(tmp_path / "plain.npz", root)
    assert run.initial_file.read_bytes() == parent.weights_file.read_bytes()
    assert run.manifest()["initial"]["run"] is None
    train(run, StopsAt(1))
    assert "initial weights: plain.npz (SHA-256 " in run.log_file.read_text()


WRONG: dict[str, tuple[Any, str]] = {
    "torch": (
        {"conv1.weight": np.zeros((4, 1, 3, 3))},
        r"do not fit any layer .found conv1.weight 4×1×3×3; the network needs",
    ),
    "labels": ({"labels": np.arange(3)}, r"not weights .found no arrays.. Pass a finished run or its weights.npz"),
    "nan": ({"conv1/bias": np.full(4, np.nan)}, "conv1/bias is not finite"),
    "large": ({"conv1/bias": np.full(4, 1e300)}, "conv1/bias is not finite"),
    "objects": ({"conv1/bias": np.array([{}])}, "conv1/bias.npy: an array of Python objects"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_weights_is_refused_with_what_was_found(name: str, root: Path, tmp_path: Path) -> None:
    arrays, message = WRONG[name]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CnnjobError, match=message):
        child(tmp_path / "x.npz", root)
    assert not root.exists()


def test_other_files_and_runs_are_refused_with_the_reason(parent: Run, root: Path, tmp_path: Path) -> None:
    shutil.copytree(parent.path.parent, root)
    unfinished = child(parent, root, seed=7)
    train(unfinished, StopsAt(4))
    [checkpoint, _] = sorted(unfinished.checkpoints_folder.glob("*.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "weights.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for given, message in {
        tmp_path / "text.npz": "text.npz: not an .npz file",
        tmp_path / "none.npz": "none.npz: no such file. Pass a finished run or an .npz file of weights",
        tmp_path
        / "weights.pt": "weights.pt: not an .npz file .File is not a zip file.. Save it again with numpy.savez",
        tmp_path / "empty": "empty: not a run folder or an .npz file",
        tmp_path: "not a run folder or an .npz file",
        unfinished.path: r"not finished, so its weights may still change .found state stopped.. Finish training it",
        unfinished.weights_file: r"not finished, so its weights may still change",
        checkpoint: "a checkpoint, whose run may still change",
        parent.predictions_file: r"not weights .found probabilities 40×3, labels 40, class_names 3",
        "toy-": r"not a unique name .found 2 runs",
        "toy-zzz": "no such run",
        "other": "no such run",
    }.items():
        with pytest.raises(CnnjobError, match=rf"^model.init_from: .*{message}"):
            child_job(str(given), root)
    pinned = job(model__blocks=BLOCKS, model__init_from=str(parent.path), model__init_sha256="0" * 64)
    with pytest.raises(DataError, match=r"does not match model.init_sha256 .found \w+, expected 00000000"):
        find_initial(pinned, root)
    (parent_copy,) = (run for run in (Run(path) for path in root.iterdir()) if run.name == parent.name)
    corrupt(parent_copy.weights_file)
    with pytest.raises(DataError, match=r"weights.npz: damaged"):
        child_job(parent_copy)
    parent_copy.weights_file.unlink()
    with pytest.raises(DataError, match=r"weights.npz: missing. Restore it, or train the run again"):
        child_job(parent_copy)


def test_the_same_command_resumes_and_finds_the_run_after_the_source_is_gone(parent: Run, root: Path) -> None:
    shutil.copytree(parent.path.parent, root)
    first = child("latest", root)
    train(first, StopsAt(3))
    assert child("latest", root) == first  # though it is the latest by now
    train(first)
    assert child("latest", root) == first
    assert child("latest", root, seed=5).manifest()["initial"]["run"] == parent.name
    assert child("latest", root, seed=5, name="other").manifest()["initial"]["run"] == first.name
    by_name = child(parent.name, root, seed=1)
    train(by_name, StopsAt(3))
    shutil.rmtree(root / parent.name)
    assert child(parent.name, root, seed=1) == by_name
    assert child(parent.name[:8], root, seed=1) == by_name
    assert train(by_name).state == "finished"
    with pytest.raises(DataError, match=r"no such run"):
        child(parent.name, root, seed=2)


def test_the_checkpoint_of_a_fine_tuned_run_is_like_any_other(parent: Run, root: Path) -> None:
    run = child(parent, root, model__blocks=FROZEN)
    train(run, StopsAt(2))
    checkpoint, damaged = checkpoints.find_newest(run.checkpoints_folder, run.manifest()["digest"])
    assert checkpoint
    assert not damaged
    assert json.loads(run.job_file.read_text())["initial"]["run"] == parent.name


def test_a_few_images_of_known_digits_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of ten digits, fine-tuned on 40 images of five of them, against one trained on these images alone."""
    monkeypatch.chdir(tmp_path)
    digits = api.prepare("digits")
    images, labels = digits.load("train")
    few = np.flatnonzero(labels < 5)[:40]
    tests, truth = (array[digits.load("test")[1] < 5] for array in digits.load("test"))
    api.prepare(
        "few",
        images={"train": images[few], "test": tests},
        labels={"train": labels[few], "test": truth},
        class_names=list("01234"),
    )
    quick = ["train.epochs=4", "train.batch_size=8", "train.learning_rate=0.005", "train.select_on=last"]
    parent = api.train(Job.load("digits", ["train.epochs=3"]))
    frozen = ["model.blocks.0.frozen=true", "model.blocks.1.frozen=true"]
    accuracies = [
        api.train(Job.load("digits", ["dataset=few", "name=few", *quick, *more])).result()["test_accuracy"]
        for more in ([], [f"model.init_from={parent.name}"], [f"model.init_from={parent.name}", *frozen])
    ]
    assert min(accuracies[1:]) > accuracies[0] + 0.05, accuracies
