"""Predictions: folders of images, inverted images, and runs that are not finished."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjob.data.dataset import Dataset
from cnnjob.errors import DataError
from cnnjob.runs import checkpoints
from cnnjob.runs.run import Run
from cnnjob.training.inference.predict import Prediction, predict
from cnnjob.training.train import train
from tests.helpers.cli import cnnjob
from tests.helpers.progress import StopsAt
from tests.helpers.toy_jobs import CLASSES, corrupt, dataset, job, run_of, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("made")).run


def save_tests(run: Run, folder: Path, *names: str) -> None:
    """Save the first test images of a run's dataset as image files."""
    images, _ = Dataset.open(Path(run.data()["path"])).load("test")
    for name, image in zip(names, images, strict=False):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(image[..., 0]).save(folder / name, format="PNG")


def probabilities(predictions: list[Prediction]) -> np.ndarray:
    """The probabilities in the order of the classes, (N, K)."""
    return np.array([[prediction.probabilities[name] for name in CLASSES] for prediction in predictions])


def test_a_folder_is_read_in_natural_order_without_what_is_no_image(run: Run, tmp_path: Path) -> None:
    save_tests(run, tmp_path, "2.png", "10.png", "1.png", "more/scan 9.png", "more/scan 10.png", "02.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".DS_Store").write_bytes(b"no image")
    said: list[str] = []
    found = predict(run, [str(tmp_path)], say=said.append)
    names = ["1.png", "02.png", "2.png", "10.png", "more/scan 9.png", "more/scan 10.png"]
    assert [prediction.image for prediction in found] == [str(tmp_path / name) for name in names]
    by_address = predict(run, [f"test:{number}" for number in (2, 5, 0, 1, 3, 4)])
    np.testing.assert_array_equal(probabilities(found), probabilities(by_address))
    assert said == [f"{tmp_path}: 2 files left out (hidden, or not images)"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image files"):
        predict(run, [str(tmp_path / "empty")])


def test_many_images_are_predicted_in_several_batches(run: Run, tmp_path: Path) -> None:
    images, _ = Dataset.open(Path(run.data()["path"])).load("test")
    np.save(tmp_path / "x.npy", np.tile(images, (8, 1, 1, 1)))
    found = predict(run, [str(tmp_path / "x.npy")])
    assert len(found) == 320
    np.testing.assert_allclose(probabilities(found[280:]), probabilities(found[:40]), rtol=1e-5)


def test_inverted_pixels_are_those_of_the_inverted_image(run: Run, tmp_path: Path) -> None:
    images, _ = Dataset.open(Path(run.data()["path"])).load("test")
    np.save(tmp_path / "x.npy", 255 - images)
    inverted = predict(run, [str(tmp_path / "x.npy")], invert=True)
    by_address = predict(run, [f"test:{number}" for number in range(40)])
    np.testing.assert_array_equal(probabilities(inverted), probabilities(by_address))


def test_an_inverted_image_has_a_warning_that_offers_invert(run: Run, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(215, 256, (6, 6), np.uint8)
    np.save(tmp_path / "light.npy", image)
    Image.fromarray(image).save(tmp_path / "light.png")
    Image.fromarray(image).save(tmp_path / "other.png")
    lighter = "the background is much lighter than in the training images. Predict it with --invert"
    said = cnnjob("predict", str(run.path), str(tmp_path / "light.npy"), "test:0")
    assert said.stderr == f"cnnjob: {tmp_path}/light.npy[0]: warning: {lighter}\n"
    (tmp_path / "light.npy").unlink()
    said = cnnjob("predict", str(run.path), str(tmp_path))
    assert said.stderr == f"cnnjob: {tmp_path}/light.png and 1 other image: warning: {lighter}\n"
    as_json = json.loads(cnnjob("predict", str(run.path), str(tmp_path), "--json").stdout)
    assert [row["remarks"] for row in as_json] == [[f"warning: {lighter}"]] * 2
    np.save(tmp_path / "dark.npy", 255 - image)
    wrongly = cnnjob("predict", str(run.path), str(tmp_path / "dark.npy"), "--invert")
    assert "lighter than in the training images. Predict it without --invert" in wrongly.stderr


def test_without_the_dataset_nothing_is_compared(tmp_path: Path) -> None:
    run = trained(tmp_path).run
    np.save(tmp_path / "x.npy", np.full((6, 6), 255, np.uint8))
    assert predict(run, [str(tmp_path / "x.npy")])[0].remarks
    Path(run.data()["path"]).rename(tmp_path / "elsewhere.h5")
    assert not predict(run, [str(tmp_path / "x.npy")])[0].remarks


def test_an_unfinished_run_predicts_with_its_best_weights_so_far(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    with pytest.raises(DataError, match="not finished, and its first epoch has not been saved"):
        predict(run, ["test:0"])
    assert train(run, StopsAt(7)).state == "stopped"
    with pytest.raises(DataError, match="not finished, and its first epoch has not been saved"):
        predict(run, ["test:0"])
    assert train(run, StopsAt(25)).state == "stopped"
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    said: list[str] = []
    found = predict(run, ["test:0", "test:1"], say=said.append)
    assert said == [
        f"{run.path}: not finished; using its best weights so far, those of epoch 1 (from the checkpoint at step 32)"
    ]
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == files
    assert all(sum(prediction.probabilities.values()) == pytest.approx(1) for prediction in found)


def test_the_best_weights_so_far_are_those_of_the_finished_run_if_no_epoch_is_better(tmp_path: Path) -> None:
    settings = {"train__epochs": 6, "train__early_stopping": {"patience": 2}}
    finished = trained(tmp_path, **settings).run
    best = finished.result()["best_epoch"]
    partial = run_of(job(**settings), dataset(tmp_path), tmp_path / "others")
    assert train(partial, StopsAt(best * 20 + 5)).state == "stopped"
    named = ["test:0", "test:7", "train:3"]
    np.testing.assert_array_equal(probabilities(predict(partial, named)), probabilities(predict(finished, named)))


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    for stop in (25, 5):
        assert train(run, StopsAt(stop)).state == "stopped"
    newest = checkpoints.newest_step(run.checkpoints_folder)
    corrupt(run.checkpoints_folder / f"step-{newest:09d}.npz")
    said: list[str] = []
    predict(run, ["test:0"], say=said.append)
    assert "damaged" in said[0]
    assert said[1].endswith("(from the checkpoint at step 25)")
    assert len(list(run.checkpoints_folder.glob("*.npz"))) == 2


def test_the_table_is_at_most_80_columns_wide(run: Run, tmp_path: Path) -> None:
    save_tests(run, tmp_path, "a" * 120 + ".png", "b.png")
    for arguments in ([str(tmp_path)], [str(tmp_path), "test:0"], ["test:0"]):
        printed = cnnjob("predict", str(run.path), *arguments).stdout.splitlines()
        assert max(map(len, printed)) <= 80
    assert any("…" in line for line in cnnjob("predict", str(run.path), str(tmp_path)).stdout.splitlines())
