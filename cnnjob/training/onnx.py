"""Export of a finished run's network as an ONNX file for use in other programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import __version__, files, nn
from cnnjob.errors import CnnjobError, JobError, printable, printable_json
from cnnjob.nn.blocks import Activation, Dense, Layer, Residual, Shape
from cnnjob.nn.operations import Activate, MaxPool, Norm, Operation, split_block
from cnnjob.runs.run import Run
from cnnjob.training.build import build_pixels
from cnnjob.training.inference.classifier import load_classifier

OPSET = 20
"""The first operator set that includes ``Gelu``, from ONNX 1.15 (2023)."""
IR_VERSION = 9
"""The file format version of ONNX 1.15; the onnx package's default is newer, and older programs refuse it."""
_MOST_BYTES = 2**31 - 2**24
"""Maximum size of the weights, in bytes: protobuf limits a file to 2 GiB, and 16 MiB are left for the graph."""
INPUT, OUTPUT = "images", "probabilities"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Exported:
    """An exported file, and the model's input and output."""

    path: Path
    bytes: int
    image_shape: Shape
    """(H, W, C) of the input ``images``, uint8 (N, H, W, C) for any N."""
    class_names: tuple[str, ...]
    """Names of the columns of the output ``probabilities``, float32 (N, classes)."""
    parameters: int
    """Number of the network's parameters."""
    left_out: str
    """The run's test-time augmentation, which is not exported; ``none`` if the run has none."""


def export(run: Run, path: Path) -> Exported:
    """Write a finished run's network as ONNX, with the chosen weights and the pixel normalisation.

    Args:
        run: a finished run.
        path: the file to write; an existing file is replaced.

    Returns:
        A description of the file.

    Raises:
        CnnjobError: the onnx package is not installed.
        DataError: the run is unfinished or damaged.
        JobError: the file cannot be written.
    """
    try:
        import onnx  # noqa: F401, PLC0415 - an optional dependency
    except ImportError as error:
        raise CnnjobError(f"export: needs the onnx package ({error}). Install it:\n  pip install onnx") from error
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
        raise JobError(f"{path}: cannot be written ({error}). Choose another file with --output") from error
    network, left_out = classifier.network, job.train.test_time_augmentation
    names = tuple(data["class_names"])
    return Exported(path, len(content), network.image_shape, names, network.parameter_count, left_out)


def build_onnx_model(
    network: nn.Network, weights: dict[str, Array], pixels: nn.PixelNormalisation, properties: dict[str, str]
) -> bytes:
    """Return a network as the bytes of an ONNX model.

    Args:
        network: the network to export.
        weights: the network's parameters by name, with the running statistics.
        pixels: the pixel normalisation.
        properties: metadata to store in the file.

    Returns:
        The model, which maps uint8 images (N, H, W, C) to float32 probabilities (N, classes). Inside the model, arrays
        are (N, C, H, W), as ONNX requires, and batch normalisation uses the running statistics.

    Raises:
        JobError: the weights exceed the maximum size of an ONNX file.
    """
    if (size := sum(array.nbytes for array in weights.values())) > _MOST_BYTES:
        raise JobError(
            f"export: an ONNX file must be smaller than 2 GiB (found {size / 1e9:.1f} GB of weights). "
            "Use cnnjob predict instead"
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
    checker.check_model(model, full_check=True)  # full: also infers the shapes of all arrays and compares them
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@dataclass
class _Graph:
    """The nodes and constants of a graph under construction; a node's output has the same name as the node."""

    weights: dict[str, Array]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def probabilities(self, network: nn.Network, pixels: nn.PixelNormalisation) -> None:
        """Add the whole network, from the image bytes to the probabilities."""
        scale, shift = self.constant("pixels/scale", pixels.scale), self.constant("pixels/shift", pixels.shift)
        x = self.add("Cast", "pixels/cast", INPUT, to=1)  # float32
        x = self.add("Mul", "pixels/scaled", x, scale)
        x = self.add("Add", "pixels/shifted", x, shift)
        x = self.add("Transpose", "pixels/channels_first", x, perm=[0, 3, 1, 2])
        x = self.chain(network.layers, x)
        self.add("Softmax", OUTPUT, x, axis=-1)

    def chain(self, layers: Sequence[Layer], x: str, prefix: str = "") -> str:
        """Add layers in sequence; return the name of the last output."""
        for layer in layers:
            for number, operation in enumerate(split_block(layer.block)):
                x = self.operation(operation, layer, prefix + layer.name, number, x)
        return x

    def operation(self, operation: Operation | Residual, layer: Layer, name: str, number: int, x: str) -> str:
        """Add one of a layer's operations; return the name of its output."""
        y = x  # dropout does nothing during evaluation
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
        """Add a residual block: its body, its shortcut and their sum; return the name of the output."""
        body = self.chain(block.body(layer.input_shape), x, f"{name}/")
        projection = block.projection(layer.input_shape)
        shortcut = self.chain([projection], self.window(block, layer, name, x), f"{name}/") if projection else x
        return self.activation(block.activation, name, self.add("Add", f"{name}/sum", body, shortcut))

    def window(self, block: Residual, layer: Layer, name: str, x: str) -> str:
        """Add a slice if the shortcut does not read all rows and columns; return the name of the shortcut's input."""
        sides = block.window(layer.input_shape)
        if [(side.start, side.stop) for side in sides] == [(0, pixels) for pixels in layer.input_shape[:2]]:
            return x
        ends = {
            "starts": [side.start for side in sides],
            "ends": [side.stop for side in sides],
            "axes": [2, 3],  # channels come first
        }
        inputs = (self.constant(f"{name}/{key}", np.array(values), np.int64) for key, values in ends.items())
        return self.add("Slice", f"{name}/window", x, *inputs)

    def conv(self, block: nn.Conv, name: str, x: str) -> str:
        """Add a convolution with its activation and pooling; return the name of the output."""
        # (K, K, C, F) → (F, C, K, K)
        kernels = self.constant(f"{name}/weights", self.weights[f"{name}/weights"].transpose(3, 2, 0, 1))
        sides, edges = [block.stride] * 2, [block.pad] * 4
        x = self.add("Conv", f"{name}/conv", x, kernels, *self.bias(name), strides=sides, pads=edges)
        x = self.activation(block.activation, name, x)
        return self.max_pool(block.pool, name, x) if block.pool > 1 else x

    def max_pool(self, side: int, name: str, x: str) -> str:
        """Add max-pooling, which drops rows and columns that do not fill a window; return the name of the output."""
        return self.add("MaxPool", f"{name}/pool", x, kernel_shape=[side] * 2, strides=[side] * 2)

    def norm(self, block: Norm, name: str, x: str) -> str:
        """Add batch normalisation with the running statistics; return the name of the output.

        A block without a trainable scale is added with a scale of 1.
        """
        ones = np.ones_like(self.weights[f"{name}/shift"])
        arrays = [
            self.constant(f"{name}/{part}", self.weights.get(f"{name}/{part}", ones))
            for part in ("scale", "shift", "mean", "variance")
        ]
        return self.add("BatchNormalization", f"{name}/norm", x, *arrays, epsilon=block.settings.eps)

    def dense(self, block: Dense, shape: Shape, name: str, x: str) -> str:
        """Add a dense layer; return the name of the output."""
        weights = self.weights[f"{name}/weights"]  # (inputs, units)
        if len(shape) == 3:  # noqa: PLR2004 - H, W, C
            # The rows are in (H, W, C) order; the graph's Flatten yields values in (C, H, W) order.
            weights = weights.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(weights.shape)
            x = self.add("Flatten", f"{name}/flat", x)
        # Gemm computes alpha·(x w) + beta·b, so alpha = beta is the block's output_scale.
        matrix, scale = self.constant(f"{name}/weights", weights), block.output_scale
        x = self.add("Gemm", f"{name}/gemm", x, matrix, *self.bias(name), alpha=scale, beta=scale)
        return self.activation(block.activation, name, x)

    def bias(self, name: str) -> list[str]:
        """Add a layer's bias, if it has one; return a list with the bias's name, or an empty list."""
        bias = self.weights.get(f"{name}/bias")
        return [] if bias is None else [self.constant(f"{name}/bias", bias)]

    def activation(self, kind: Activation, name: str, x: str) -> str:
        """Add an activation; return the name of the output."""
        if kind == "silu":  # a single node, Swish, exists only from operator set 24 on
            return self.add("Mul", f"{name}/silu", x, self.add("Sigmoid", f"{name}/sigmoid", x))
        return x if kind == "none" else self.add({"relu": "Relu", "gelu": "Gelu"}[kind], f"{name}/{kind}", x)

    def add(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        from onnx import helper  # noqa: PLC0415

        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Array, dtype: Any = np.float32) -> str:
        """Add a constant array; return its name."""
        from onnx import numpy_helper  # noqa: PLC0415

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name
