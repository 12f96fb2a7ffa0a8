"""A finished run as an ONNX file: the same network in a form that other programs run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import __version__, files, nn
from cnnjob.errors import CnnjobError, JobError, printable, printable_json
from cnnjob.nn.blocks import Activation, Dense, Layer, Residual, Shape
from cnnjob.nn.operations import Activate, MaxPool, Norm, Operation, operations_of
from cnnjob.runs.run import Run
from cnnjob.training.build import build_pixels
from cnnjob.training.predict import load_classifier

OPSET = 20
"""The first that has ``Gelu``; of ONNX 1.15, 2023."""
IR_VERSION = 9
_MOST_BYTES = 2**31 - 2**24
"""Of weights in a file, which protobuf limits to 2 GiB; the rest is for the graph."""
INPUT, OUTPUT = "images", "probabilities"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    bytes: int
    image_shape: Shape
    """(H, W, C) of the input ``images``, uint8 (N, H, W, C); N is free."""
    class_names: tuple[str, ...]
    """Of the output ``probabilities``, float32 (N, classes)."""
    parameters: int
    left_out: str
    """The test-time augmentation that the run was evaluated with, which is no part of the network; or ``none``."""


def export(run: Run, path: Path) -> Exported:
    """Write a finished run's network, with its chosen weights and its pixels' normalisation, as ONNX.

    Args:
        run: finished.
        path: the file; one that is there is written anew.

    Returns:
        What was written.

    Raises:
        CnnjobError: the onnx package is not installed.
        DataError: the run is not finished, or damaged.
        JobError: the file cannot be written.
    """
    try:
        import onnx  # noqa: F401, PLC0415 - not everybody exports
    except ImportError as error:
        raise CnnjobError(f"export: needs the onnx package, {error}; pip install onnx") from error
    classifier, job, data = load_classifier(run), run.job(), run.data()
    content = build_onnx_model(
        classifier.network,
        classifier.state.weights,
        build_pixels(job.data, tuple(data["mean"]), tuple(data["std"])),
        {
            "run": printable(run.name),
            "class_names": printable_json(json.dumps(data["class_names"], ensure_ascii=False)),
        },
    )
    try:
        files.write_whole(path, content)
    except OSError as error:
        raise JobError(f"{path}: cannot be written, {error}; give another file with --output") from error
    network, left_out = classifier.network, job.train.test_time_augmentation
    names = tuple(data["class_names"])
    return Exported(path, len(content), network.image_shape, names, network.parameter_count, left_out)


def build_onnx_model(
    network: nn.Network, weights: dict[str, Array], pixels: nn.PixelNormalisation, properties: dict[str, str]
) -> bytes:
    """A network as the bytes of an ONNX model.

    Args:
        network: what to write.
        weights: its parameters by name, running statistics among them.
        pixels: how it sees an image.
        properties: what the file says of itself.

    Returns:
        The model: uint8 images (N, H, W, C) to float32 probabilities (N, classes); channels lie first inside, and a
        normalisation takes its running statistics.

    Raises:
        JobError: the weights are more than such a file holds.
    """
    if (size := sum(array.nbytes for array in weights.values())) > _MOST_BYTES:
        raise JobError(
            f"export: an ONNX file holds less than 2 GiB (found weights of {size / 1e9:.1f} GB); use cnnjob predict"
        )
    from onnx import TensorProto, checker, helper  # noqa: PLC0415

    graph = _Graph(weights)
    graph.probabilities(network, pixels)
    around = [
        helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", *network.image_shape]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", network.classes]),
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "cnnjob", around[:1], around[1:], graph.constants),
        producer_name="cnnjob",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, properties)
    checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@dataclass
class _Graph:
    """Nodes and constants, as they are added; every node's output is named by the node."""

    weights: dict[str, Array]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def probabilities(self, network: nn.Network, pixels: nn.PixelNormalisation) -> None:
        """All of it: from the bytes of images to the probabilities."""
        scale, shift = self.constant("pixels/scale", pixels.scale), self.constant("pixels/shift", pixels.shift)
        x = self.add("Cast", "pixels/cast", INPUT, to=1)  # float32
        x = self.add("Mul", "pixels/scaled", x, scale)
        x = self.add("Add", "pixels/shifted", x, shift)
        x = self.add("Transpose", "pixels/channels_first", x, perm=[0, 3, 1, 2])
        x = self.chain(network.layers, x)
        self.add("Softmax", OUTPUT, x, axis=-1)

    def chain(self, layers: Sequence[Layer], x: str, prefix: str = "") -> str:
        """Layers one after the other; the name of what comes out."""
        for layer in layers:
            for number, operation in enumerate(operations_of(layer.block)):
                x = self.operation(operation, layer, prefix + layer.name, number, x)
        return x

    def operation(self, operation: Operation | Residual, layer: Layer, name: str, number: int, x: str) -> str:
        """One of a layer's operations."""
        y = x  # of a dropout
        match operation:
            case Residual():
                y = self.residual(operation, layer, name, x)
            case nn.Conv():
                y = self.conv(operation, name, x)
            case Dense():
                y = self.dense(operation, layer.input_shape, name, x)
            case Norm():
                y = self.activation(operation.activation, f"{name}/{number}", self.norm(operation, name, x))
            case Activate():
                y = self.activation(operation.activation, f"{name}/{number}", x)
            case MaxPool():
                y = self.max_pool(operation.side, name, x)
            case nn.GlobalPool():
                kind = {"mean": "GlobalAveragePool", "max": "GlobalMaxPool"}[operation.how]
                y = self.add("Flatten", f"{name}/flat", self.add(kind, f"{name}/pool", x))
        return y

    def residual(self, block: Residual, layer: Layer, name: str, x: str) -> str:
        """The body's chain, the shortcut's, their sum."""
        body = self.chain(block.body(layer.input_shape), x, f"{name}/")
        projection = block.projection(layer.input_shape)
        shortcut = self.chain([projection], self.window(block, layer, name, x), f"{name}/") if projection else x
        return self.activation(block.activation, name, self.add("Add", f"{name}/sum", body, shortcut))

    def window(self, block: Residual, layer: Layer, name: str, x: str) -> str:
        """The rows and columns that the shortcut reads."""
        sides = block.window(layer.input_shape)
        if [(side.start, side.stop) for side in sides] == [(0, pixels) for pixels in layer.input_shape[:2]]:
            return x
        ends = {
            "starts": [side.start for side in sides],
            "ends": [side.stop for side in sides],
            "axes": [2, 3],  # channels lie first
        }
        inputs = (self.constant(f"{name}/{key}", np.array(values), np.int64) for key, values in ends.items())
        return self.add("Slice", f"{name}/window", x, *inputs)

    def conv(self, block: nn.Conv, name: str, x: str) -> str:
        """Kernels (K, K, C, F) → (F, C, K, K)."""
        kernels = self.constant(f"{name}/weights", self.weights[f"{name}/weights"].transpose(3, 2, 0, 1))
        sides, edges = [block.stride] * 2, [block.pad] * 4
        x = self.add("Conv", f"{name}/conv", x, kernels, *self.bias(name), strides=sides, pads=edges)
        x = self.activation(block.activation, name, x)
        return self.max_pool(block.pool, name, x) if block.pool > 1 else x

    def max_pool(self, side: int, name: str, x: str) -> str:
        """Rows and columns that fill no window are left out."""
        return self.add("MaxPool", f"{name}/pool", x, kernel_shape=[side] * 2, strides=[side] * 2)

    def norm(self, block: Norm, name: str, x: str) -> str:
        """With the running statistics; the scale is 1 where none was learnt."""
        ones = np.ones_like(self.weights[f"{name}/shift"])
        arrays = [
            self.constant(f"{name}/{part}", self.weights.get(f"{name}/{part}", ones))
            for part in ("scale", "shift", "mean", "variance")
        ]
        return self.add("BatchNormalization", f"{name}/norm", x, *arrays, epsilon=block.settings.eps)

    def dense(self, block: Dense, shape: Shape, name: str, x: str) -> str:
        """Rows of the weights are of pixels (H, W, C); what comes in has its channels first."""
        weights = self.weights[f"{name}/weights"]
        if len(shape) == 3:  # noqa: PLR2004 - H, W, C
            weights = weights.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(weights.shape)
            x = self.add("Flatten", f"{name}/flat", x)
        matrix, scale = self.constant(f"{name}/weights", weights), block.output_scale
        x = self.add("Gemm", f"{name}/gemm", x, matrix, *self.bias(name), alpha=scale, beta=scale)
        return self.activation(block.activation, name, x)

    def bias(self, name: str) -> list[str]:
        """The bias, if there is one."""
        bias = self.weights.get(f"{name}/bias")
        return [] if bias is None else [self.constant(f"{name}/bias", bias)]

    def activation(self, kind: Activation, name: str, x: str) -> str:
        """ReLU, GELU or nothing."""
        return x if kind == "none" else self.add({"relu": "Relu", "gelu": "Gelu"}[kind], f"{name}/{kind}", x)

    def add(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        from onnx import helper  # noqa: PLC0415

        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Array, dtype: Any = np.float32) -> str:
        """Add an array; its name."""
        from onnx import numpy_helper  # noqa: PLC0415

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name
