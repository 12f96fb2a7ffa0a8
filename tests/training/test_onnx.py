"""Runs as ONNX files: onnxruntime gives the probabilities of the run, for every kind of block."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from cnnjob import nn
from cnnjob.cli.main import app
from cnnjob.errors import JobError
from cnnjob.nn.blocks import Block
from cnnjob.runs import npz
from cnnjob.runs.run import Run
from cnnjob.training.onnx import build_onnx_model, export
from tests.helpers.toy_jobs import corrupt, dataset, trained

Array = np.ndarray[Any, Any]
NORM = nn.BatchNorm(eps=1e-3)
BODY = nn.Conv(filters=4, batch_norm=NORM, bias=False), nn.Dropout(0.2), nn.Conv(filters=4, activation="none")
NETWORKS: dict[str, list[Block]] = {
    "classifier": [],
    "conv": [nn.Conv(filters=3, kernel=4, stride=2, pad=1, pool=2), nn.Conv(filters=2, bias=False, activation="none")],
    "dense": [nn.Dense(units=6, activation="gelu"), nn.Dropout(0.5), nn.Dense(units=5, bias=False)],
    "norm": [nn.Conv(filters=3, batch_norm=NORM, bias=True, activation="gelu", pool=3)],
    "no scale": [
        nn.Conv(
            filters=3, batch_norm=nn.BatchNorm(scale=False), bias=True, order=("pool", "norm", "activation"), pool=2
        )
    ],
    "norm last": [
        nn.Conv(filters=3, batch_norm=NORM, bias=True, order=("activation", "pool", "norm"), pool=2, activation="gelu")
    ],
    "gelu": [nn.Conv(filters=3, activation="gelu", pool=2, order=("activation", "pool", "norm"), init="dirac")],
    "silu": [
        nn.Conv(filters=3, activation="silu", batch_norm=NORM),
        nn.Residual((nn.Conv(filters=4, activation="silu", pool=2),), "silu"),
        nn.Dense(units=5, activation="silu"),
    ],
    "frozen": [nn.Conv(filters=6, kernel=2, pad=0, init="whitening", frozen=True), nn.GlobalPool("mean")],
    "residual": [nn.Conv(filters=4), nn.Residual(BODY, "gelu"), nn.GlobalPool("max"), nn.Dense(units=4)],
    "window": [nn.Residual((nn.Conv(filters=4, pool=4),)), nn.Residual((nn.Conv(filters=4, kernel=2, pad=0),))],
    "projection": [
        nn.Residual((nn.Conv(filters=4, stride=2, batch_norm=NORM, bias=True), replace(BODY[0], activation="none"))),
        nn.Residual((nn.Conv(filters=5, kernel=5, pad=2),), "none"),
    ],
}


def made(
    blocks: list[Block], shape: tuple[int, int, int] = (12, 9, 3)
) -> tuple[nn.Network, nn.State, nn.PixelNormalisation, Array]:
    """A network with parameters and running statistics that are none of the first ones, and images."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, *shape), np.uint8)
    pixels = nn.PixelNormalisation.standardised((0.4,) * shape[2], (0.3,) * shape[2])
    network = nn.Network.build([*blocks, nn.Dense(units=4, activation="none", output_scale=0.7)], shape)
    state = nn.State(network, nn.Sgd(), nn.NumPyBackend(nn.Workers(1)))
    state.initialise(network, 1, images, pixels)
    for name, view in state.weights.items():
        if name.endswith(("bias", "shift", "mean")):
            view[...] = random.normal(size=view.shape) / 3
        elif name.endswith(("scale", "variance")):
            view[...] = random.uniform(0.5, 2, view.shape)
    return network, state, pixels, images


def session(model: bytes) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[judge]'")
    return runtime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_agrees(name: str) -> None:
    network, state, pixels, images = made(NETWORKS[name])
    plan = nn.EvaluationPlan(state._backend, network, state, pixels, 20)
    expected = plan.probabilities(images, np.arange(20))
    opened = session(build_onnx_model(network, state.weights, pixels, {}))
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(opened.run(None, {"images": images})[0], expected, atol=1e-5)
    np.testing.assert_allclose(opened.run(None, {"images": images[3:4]})[0], expected[3:4], atol=1e-5)


def test_weights_beyond_what_a_file_holds_are_refused() -> None:
    network, state, pixels, _ = made([])
    large = state.weights | {"classifier/weights": np.broadcast_to(np.float32(0), (2**15, 2**14))}
    with pytest.raises(JobError, match=r"an ONNX file must be smaller than 2 GiB .found 2.1 GB of weights.. Use"):
        build_onnx_model(network, large, pixels, {})


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_is_a_valid_model_of_all_parameters(name: str) -> None:
    network, state, pixels, _ = made(NETWORKS[name])
    content = build_onnx_model(network, state.weights, pixels, {"run": "toy"})
    model = onnx.load_from_string(content)
    assert content == build_onnx_model(network, state.weights, pixels, {"run": "toy"})
    assert (model.producer_name, model.opset_import[0].version) == ("cnnjob", 20)
    sizes = {constant.name: int(np.prod(constant.dims)) for constant in model.graph.initializer}
    for parameter, array in state.weights.items():
        assert sizes[parameter] == array.size
    [given], [taken] = model.graph.input, model.graph.output
    sides = [side.dim_param or side.dim_value for side in given.type.tensor_type.shape.dim]
    assert (given.name, sides, given.type.tensor_type.elem_type) == ("images", ["N", 12, 9, 3], onnx.TensorProto.UINT8)
    assert taken.name == "probabilities"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a shortcut, evaluated with views."""
    root = tmp_path_factory.mktemp("exports")
    body = [{"conv": 4, "batch_norm": True}, {"conv": 4, "batch_norm": True, "activation": "none"}]
    return trained(
        root, model__blocks=[{"conv": 4, "activation": "gelu"}, {"residual": body}, {"dense": 6}],
        model__classifier={"output_scale": 0.5}, train__test_time_augmentation="flip",
    ).run.path  # fmt: skip


def cnnjob(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = cnnjob("export", finished)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        f"{finished.name}.onnx: 1,235 parameters, opset 20; images uint8 N×6×6×1 in, probabilities float32 N×3 out\n"
        "the run's test-time augmentation (flip) is not included in the file\n"
    )
    told = cnnjob("export", finished, "--output", "net.onnx", "--json")
    said = json.loads(told.stdout)
    assert (said["path"], said["bytes"]) == ("net.onnx", Path("net.onnx").stat().st_size)
    assert said["input"] == {"name": "images", "dtype": "uint8", "shape": ["N", 6, 6, 1]}
    assert (said["class_names"], said["left_out"]) == (["row", "column", "corner"], "flip")
    properties = {one.key: one.value for one in onnx.load("net.onnx").metadata_props}
    assert properties == {"run": finished.name, "class_names": '["row", "column", "corner"]'}


def test_a_run_is_exported_as_it_was_chosen(finished: Path, tmp_path: Path) -> None:
    """Its recorded probabilities are the softmax of the mean output for an image and its mirror image."""
    run, (images, _) = Run(finished), dataset(finished.parent.parent).load("test")
    written = export(run, tmp_path / "net.onnx")
    opened = session(written.path.read_bytes())
    views = [np.log(opened.run(None, {"images": x})[0]) for x in (images, np.ascontiguousarray(images[:, :, ::-1]))]
    mean = np.exp(np.mean(views, axis=0))
    found = mean / mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, run.predictions()["probabilities"], atol=1e-4)


def test_names_from_outside_are_in_the_file_as_text(tmp_path: Path) -> None:
    run = trained(tmp_path).run
    moved = run.path.rename(run.path.with_name("a\x1b\udcffb"))
    export(Run(moved), tmp_path / "net.onnx")
    properties = {one.key: one.value for one in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert properties["run"] == r"a\x1b\udcffb"


def test_what_cannot_be_exported_is_said(finished: Path, tmp_path: Path) -> None:
    nothing = cnnjob("export", tmp_path / "nothing")
    assert (nothing.exit_code, "no such run" in nothing.stderr) == (3, True)
    (tmp_path / "open").mkdir()
    unfinished = cnnjob("export", tmp_path / "open")
    assert (unfinished.exit_code, "not a run folder, since it has no job.json" in unfinished.stderr) == (3, True)
    nowhere = cnnjob("export", finished, "-o", tmp_path / "gone" / "net.onnx")
    assert (nowhere.exit_code, "cannot be written" in nowhere.stderr) == (2, True)


def test_damaged_weights_are_not_exported(tmp_path: Path) -> None:
    run = trained(tmp_path).run
    corrupt(run.weights_file)
    damaged = cnnjob("export", run.path, "-o", tmp_path / "net.onnx")
    assert (damaged.exit_code, (tmp_path / "net.onnx").exists()) == (3, False)


@pytest.mark.parametrize("kind", ["S4", np.int32, np.float64])
def test_weights_of_another_kind_are_not_used(tmp_path: Path, kind: Any) -> None:
    run = trained(tmp_path).run
    arrays = npz.read_arrays(run.weights_file)
    arrays["classifier/bias"] = arrays["classifier/bias"].astype(kind)
    npz.write_arrays(run.weights_file, arrays)
    for found in (cnnjob("export", run.path, "-o", tmp_path / "net.onnx"), cnnjob("predict", run.path, "test:0")):
        message = "weights.npz: not a file that cnnjob wrote" if kind == "S4" else "weights.npz: damaged"
        assert (found.exit_code, message in found.stderr) == (3, True)


def of_the_past(run: Run, changes: str) -> None:
    """Make of a finished run one that was finished although its last update overflowed."""
    if changes == "weights":
        arrays = npz.read_arrays(run.weights_file)
        arrays["classifier/bias"][1] = np.nan
        npz.write_arrays(run.weights_file, arrays)
    elif changes == "result":
        run.result_file.write_text('{"test_accuracy": 0.3, "test_loss": NaN}')
    else:  # finite, and some outputs infinite
        arrays = {name: array * np.float32(1e25) for name, array in npz.read_arrays(run.weights_file).items()}
        npz.write_arrays(run.weights_file, arrays)


@pytest.mark.parametrize("what", ["weights", "result", "outputs"])
def test_a_network_that_gives_no_numbers_is_refused(tmp_path: Path, what: str) -> None:
    run = trained(tmp_path).run
    of_the_past(run, what)
    commands = [("predict", run.path, "test:0"), ("predict", run.path, "test:0", "--json")]
    if what != "outputs":
        commands.append(("export", run.path, "-o", tmp_path / "net.onnx"))
    for command in commands:
        refused = cnnjob(*command)
        assert (refused.exit_code, refused.stdout) == (3, ""), refused.output
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "net.onnx").exists()


def test_without_the_onnx_package_its_name_is_said(finished: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None; from cnnjob.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", str(finished)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cnnjob: export: needs the onnx package (")
    assert "pip install onnx" in done.stderr
    assert "Traceback" not in done.stderr
