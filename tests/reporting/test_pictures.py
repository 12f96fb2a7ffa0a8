"""Pictures of networks: filters and feature maps of every layer, saliency maps, and what is shown of many runs."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjob.reporting.examples import Convolution, convolutions_of
from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.page import layers, page, pictures
from cnnjob.reporting.record import Record, read_record
from cnnjob.runs import npz
from cnnjob.runs.run import Run
from tests.helpers import run_folders as folders
from tests.helpers.toy_jobs import corrupt, trained

BLOCKS = [{"conv": 6, "pool": 2}, {"residual": [{"conv": 40}, {"conv": 40, "activation": "none"}]}, {"dense": 8}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("made"), model__blocks=BLOCKS).run


def page_of(*records: Record) -> str:
    return page.render(records, group_runs(records))


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


def test_every_layer_can_be_chosen_without_a_script(run: Run) -> None:
    text = page_of(read_record(run, "toy"))
    names = "conv1", "residual1/conv1", "residual1/conv2", "residual1/projection"
    radios = re.findall(
        r'<input type="radio" name="(.+?)" id="(.+?)"( checked)?><label for="(.+?)">(.+?)</label>', text
    )
    assert tuple(radio[4] for radio in radios) == names
    assert [bool(radio[2]) for radio in radios] == [True, False, False, False]
    assert all(radio[1] == radio[3] for radio in radios)
    assert len({radio[0] for radio in radios}) == 1
    assert "6 filters of 3×3 pixels and 1 channel; each filter on its own scale." in text
    assert "The first 32 of 40 filters of 3×3 pixels (columns) and 6 input channels (rows)" in text
    assert "The first 32 of 40 filters of 3×3 pixels (columns) and the first 16 of 40 input channels (rows)" in text
    assert text.count('alt="Feature maps of residual1/conv2 for this image, of filters ') == 4
    assert "pooling: 6 feature maps" in text
    assert "pooling: the 16 of 40 feature maps that vary most" in text
    assert all(found.startswith("data:image/png;base64,") for found in re.findall(r"url\((.{0,30})", text))


def test_the_pictures_show_the_stored_numbers(run: Run) -> None:
    record, stored = read_record(run, "toy"), npz.read_arrays(run.examples_file)
    shown = layers.build_network_pictures(record, 1)
    assert [each.example.index for each in shown.examples] == stored["indices"].tolist()
    hottest = np.asarray(decoded(shown.examples[0].saliency_url).convert("RGB"), int).sum(axis=-1)
    assert hottest.ravel()[stored["saliency"][0].argmax()] == hottest.max()
    sheet = decoded(shown.layers[0].maps[1].url)
    assert sheet.size == (6 * 25 + 1, 26)  # six maps of 3×3 pixels in a row, eight times as large, each in a frame
    indices = np.asarray(sheet)
    assert (indices[0] == 16).all()
    for at, pair in enumerate(stored["maps/conv1"][1]):
        high, low = (indices[1:25:8, left : left + 24 : 8] for left in (50 * at + 1, 50 * at + 26))
        assert (high * 16 + low == pair).all()


def test_a_sheet_of_filters_has_their_greys() -> None:
    weights = np.arange(2 * 2 * 5 * 3, dtype=np.float32).reshape(2, 2, 5, 3)
    sheet = decoded(pictures.filter_picture(weights).url).convert("RGB")
    assert sheet.size == (5 * 7 + 1, 3 * 7 + 1)  # channels are columns, since there are more of them
    assert [sheet.getpixel(at) for at in ((0, 0), (1, 1), (34, 20))] == [(178, 199, 224), (0, 0, 0), (255, 255, 255)]


def test_a_run_without_examples_says_how_to_get_them(tmp_path: Path) -> None:
    text = page_of(read_record(folders.finished_run(tmp_path), "tiny-1"))
    assert "has no valid <code>examples.npz</code>" in text
    assert "cnnjob evaluate tiny-1 --on tiny</pre>" in text
    assert "Saliency" not in text
    assert "5 filters of 3×3 pixels and 1 channel" in text
    for unfinished in (folders.stopped_run(tmp_path, seed=7), folders.pending_run(tmp_path, seed=8)):
        assert "examples.npz" not in page_of(read_record(unfinished, "tiny-2"))


@pytest.mark.parametrize(
    "change",
    [
        {"indices": np.array([40])},
        {"indices": np.zeros(0, np.int64), "images": np.zeros((0, 6, 6, 1), np.uint8)},
        {"saliency": np.zeros((2, 6, 6), np.uint8)},
        {"saliency": np.zeros((6, 6, 6))},
        {"images": np.zeros((6, 6, 6, 2), np.uint8)},
        {"maps/conv1": np.zeros((3, 3))},
        {"maps/conv1": np.zeros((9, 3, 3, 3), np.uint8)},
        {"maps/more": np.zeros((2, 3, 3, 3), np.uint8)},
        {"filters": np.full((4, 16), -1)},
        {"filters": np.zeros((4, 99), np.int64)},
        {"constant": np.zeros(3, np.int64)},
    ],
)
def test_examples_that_do_not_fit_are_named(change: dict[str, np.ndarray], run: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / run.name)))
    folders.change_arrays(copy.examples_file, lambda arrays: arrays.update(change))
    record = read_record(copy, "toy")
    assert record.reasons == ["examples.npz: not a valid examples file (its arrays do not match each other)"]
    assert (record.row["state"], len(record.convolutions), record.examples) == ("finished", 4, [])
    assert "residual1/conv2" in page_of(record)


def test_damaged_examples_are_named(run: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / run.name)))
    corrupt(copy.examples_file)
    assert read_record(copy, "toy").reasons[0].startswith("examples.npz: damaged")


def test_constant_feature_maps_are_counted(run: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / run.name)))
    counts = {"constant": np.array([0, 1, 7, 0])}
    folders.change_arrays(copy.examples_file, lambda arrays: arrays.update(counts))
    text = page_of(read_record(copy, "toy"))
    assert "that vary most (1 is constant for each of these images) in the order" in text
    assert "that vary most (7 are constant for each of these images) in the order" in text


def test_many_runs_show_less(run: Run) -> None:
    record = read_record(run, "toy")
    few, more, many = (layers.build_network_pictures(record, n) for n in (5, 20, 21))
    assert [len(layer.maps) for layer in few.layers] == [4] * 4
    assert [len(layer.maps) for layer in more.layers] == [2] * 4
    assert (len(many.layers), many.examples, many.layers[0].maps) == (1, [], [])
    text = page_of(*[record] * 21)
    assert "Reports on at most 20 runs show all 4 convolutions" in text
    assert "Saliency" not in text


def test_only_what_is_shown_of_large_layers_is_kept() -> None:
    weights = {"conv1/weights": np.zeros((3, 3, 512, 600), np.float32), "conv1/bias": np.zeros(600, np.float32)}
    [layer] = convolutions_of(weights, {}, "weights.npz")
    assert (layer.shape, layer.weights.shape) == ((3, 3, 512, 600), (3, 3, 16, 32))
    assert layer.weights.base is None
    record = Record(
        "deep", {}, convolutions=[Convolution(f"conv{n}", layer.shape, layer.weights, layer.maps) for n in range(20)]
    )
    shown = layers.build_network_pictures(record, 1)
    assert shown.layers[0].filters_caption.startswith(
        "The first 32 of 600 filters of 3×3 pixels (columns) and the first 16 of 512"
    )
    assert sum(len(each.filters.url) for each in shown.layers) < 40_000
    record.convolutions *= 5
    assert len(layers.build_network_pictures(record, 1).layers) == layers.MAX_LAYERS
