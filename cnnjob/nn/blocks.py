"""Building blocks of a network as data: their settings, shapes and parameters. The arithmetic is in the backends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

Shape = tuple[int, ...]
"""Shape of the values of one image: (H, W, C), or (U,) after a dense block; also that of a parameter."""

Initialiser = Literal["he", "dirac", "whitening"] | float
Activation = Literal["relu", "gelu", "none"]
Part = Literal["norm", "activation", "pool"]


@dataclass(frozen=True)
class Parameter:
    """Array that the optimiser updates, or a running statistic of the activations."""

    shape: Shape
    init: Initialiser
    """Distribution of the initial values, see :mod:`cnnjob.nn.initialisers`; a number is a standard deviation."""
    fan_in: int
    """Number of inputs of one output."""
    constant: float | None = None
    """Initial value where it is not drawn (biases, scales, running statistics)."""
    learning_rate_factor: float = 1.0
    """Factor on the learning rate of the step."""
    decays: bool = True
    """True if weight decay applies."""
    trainable: bool = True
    """True if the optimiser updates it; False for frozen weights and running statistics."""
    counts: bool = True
    """True if it counts as a parameter of the network; False for running statistics."""


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation: y = scale·(x − mean)/√(variance + eps) + shift (Ioffe & Szegedy 2015, alg. 1).

    A training step uses mean and biased variance of each channel over the batch. An evaluation uses the running
    statistics r ← (1 − momentum)·r + momentum·(statistic of the batch), with the unbiased variance.
    """

    momentum: float = 0.1
    """Weight of the current batch in the running statistics."""
    eps: float = 1e-5
    """Added to the variance."""
    scale: bool = True
    """True if it has a trainable scale; otherwise the scale is 1."""
    learning_rate_factor: float = 1.0
    """Factor on the learning rate of scale and shift, in addition to that of the block."""

    def parameters(self, channels: int, *, factor: float, trainable: bool) -> dict[str, Parameter]:
        """Return scale, shift, and the running mean and variance, each (C,)."""
        factor *= self.learning_rate_factor
        scale = (
            {"scale": Parameter((channels,), 0.0, 1, 1.0, factor, decays=False, trainable=trainable)}
            if self.scale
            else {}
        )
        running = {
            name: Parameter((channels,), 0.0, 1, start, decays=False, trainable=False, counts=False)
            for name, start in {"mean": 0.0, "variance": 1.0}.items()
        }
        return {
            **scale,
            "shift": Parameter((channels,), 0.0, 1, 0.0, factor, decays=False, trainable=trainable),
            **running,
        }


@dataclass(frozen=True)
class _Affine:
    """Fields shared by the blocks with weights and biases."""

    init: Initialiser = "he"
    """Distribution of the initial weights."""
    bias: bool = True
    """True if it has a bias."""
    bias_init: float = 0.0
    """Initial value of the bias."""
    learning_rate_factor: float = 1.0
    """Factor on the learning rate of all its parameters."""
    activation: Activation = "relu"
    frozen: bool = False
    """True if the weights keep their initial values; bias and normalisation are trained nevertheless."""

    def _weights_and_bias(self, shape: Shape) -> dict[str, Parameter]:
        fan_in, factor = prod(shape[:-1]), self.learning_rate_factor
        weights = Parameter(shape, self.init, fan_in, learning_rate_factor=factor, trainable=not self.frozen)
        bias = {"bias": Parameter(shape[-1:], 0.0, fan_in, self.bias_init, factor, decays=False)} if self.bias else {}
        return {"weights": weights, **bias}


@dataclass(frozen=True)
class Conv(_Affine):
    """Convolution, bias, then normalisation, activation and max-pooling in any order."""

    filters: int = 1
    """F: channels of the output."""
    kernel: int = 3
    """K: side of the kernel, in pixels."""
    stride: int = 1
    """S: pixels from one output to the next."""
    pad: int = 1
    """Pixels of zeros around the input."""
    pool: int = 1
    """P: side of a pooling window, in outputs of the convolution; 1 for no pooling."""
    norm: BatchNorm | None = None
    order: tuple[Part, Part, Part] = ("norm", "activation", "pool")
    """Order of what follows the convolution; absent parts are skipped."""

    kind = "conv"

    def convolved(self, shape: Shape) -> tuple[int, int]:
        """Return height and width after the convolution, before the pooling."""
        H, W = ((side + 2 * self.pad - self.kernel) // self.stride + 1 for side in shape[:2])
        return H, W

    def output_shape(self, shape: Shape) -> Shape:
        """Return (H', W', F) for (H, W, C); rows and columns that do not fill a pooling window are dropped.

        Raises:
            ValueError: the input is not an image, or too small for the kernel or the pooling; or the number of
                whitening filters is odd or too large.
        """
        if len(shape) != 3:  # noqa: PLR2004 - H, W, C
            raise ValueError("a conv block needs an image, found a vector; put it before the dense blocks")
        H, W = self.convolved(shape)
        if min(H, W) < self.pool:
            raise ValueError(
                f"kernel {self.kernel}, stride {self.stride}, pad {self.pad} and pool {self.pool} leave nothing "
                f"of {shape[0]}×{shape[1]} pixels"
            )
        most = 2 * self.kernel**2 * shape[2]
        if self.init == "whitening" and (self.filters % 2 or self.filters > most):
            raise ValueError(f"whitening takes an even number of filters up to {most}, found {self.filters}")
        return H // self.pool, W // self.pool, self.filters

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Return weights (K, K, C, F), bias (F,), and the parameters of the normalisation."""
        own = self._weights_and_bias((self.kernel, self.kernel, shape[-1], self.filters))
        factor = self.learning_rate_factor
        return own | (self.norm.parameters(self.filters, factor=factor, trainable=True) if self.norm else {})


@dataclass(frozen=True)
class Dense(_Affine):
    """Fully connected layer on all values of an image: y = activation(output_scale·(x w + b))."""

    units: int = 1
    """U: number of outputs."""
    output_scale: float = 1.0
    """Constant factor before the activation."""

    kind = "dense"

    def output_shape(self, shape: Shape) -> Shape:  # noqa: ARG002 - any shape will do
        """Return (U,), for any input shape."""
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Return weights (values per image, U) and bias (U,)."""
        return self._weights_and_bias((prod(shape), self.units))


@dataclass(frozen=True)
class _Plain:
    """Methods shared by the blocks without parameters; by default they keep the shape."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return the input's shape."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:  # noqa: ARG002 - it has none
        """Return no parameters."""
        return {}


@dataclass(frozen=True)
class Dropout(_Plain):
    """Inverted dropout: y = x·m/(1−p), m ∈ {0, 1} drawn anew in each step (Srivastava et al. 2014, §4)."""

    probability: float
    """p: probability of m = 0, in [0, 1)."""

    kind = "dropout"


@dataclass(frozen=True)
class GlobalPool(_Plain):
    """Mean or maximum of each channel over all pixels of an image (Lin et al. 2014, §3.2)."""

    how: Literal["mean", "max"] = "mean"

    kind = "global_pool"

    def output_shape(self, shape: Shape) -> Shape:
        """Return (C,) for (H, W, C).

        Raises:
            ValueError: the input is not an image.
        """
        if len(shape) != 3:  # noqa: PLR2004 - H, W, C
            raise ValueError("a global_pool block needs an image, found a vector; put it before the dense blocks")
        return shape[-1:]


@dataclass(frozen=True)
class Residual:
    """Residual block: y = activation(body(x) + shortcut(x)) (He et al. 2016, eq. 1 and 2).

    The shortcut is the identity; where the shapes differ it is a 1×1 convolution with the normalisation of the body's
    last convolution. Its stride is the one that makes the shapes equal. Where no stride does, it has the stride of the
    body and reads a window of the image, from the pixel at the centre of the body's first output to that of the last.
    """

    blocks: tuple["Conv | Dropout", ...]
    activation: Activation = "relu"

    kind = "residual"

    def output_shape(self, shape: Shape) -> Shape:
        """Return the output shape of the body.

        Raises:
            ValueError: the body has no convolution, one of its blocks does not fit, or no shortcut has the shape of its
                output.
        """
        if not self._convs:
            raise ValueError("a residual block needs a conv block in its body")
        after = self.body(shape)[-1].output_shape
        if shape != after:
            self.projection(shape)
        return after

    def body(self, shape: Shape) -> "tuple[Layer, ...]":
        """Return the layers of the body for an input (H, W, C)."""
        return layers_of(self.blocks, list(_names(self.blocks)), shape)

    def projection(self, shape: Shape) -> "Layer | None":
        """Return the layer of the shortcut, whose input is :meth:`window`; None if the shortcut is the identity.

        Raises:
            ValueError: no shortcut has the shape of the body's output.
        """
        after = self.body(shape)[-1].output_shape
        if shape == after:
            return None
        if any(outputs > pixels for outputs, pixels in zip(after[:2], shape[:2], strict=True)):
            raise ValueError(
                f"its body enlarges the image from {_by(shape)} to {_by(after)}, which no shortcut does; lower its pads"
            )
        stride, window = self._reach(shape, after)
        if any(side.stop > pixels for side, pixels in zip(window, shape, strict=False)):
            raise ValueError(
                f"its body leads from {_by(shape)} to {_by(after)}, for which no shortcut has enough pixels"
            )
        norm = self._convs[-1].norm
        # A bias before a normalisation has no effect: the mean that is subtracted contains it.
        conv = Conv(filters=after[-1], kernel=1, pad=0, stride=stride, norm=norm, bias=norm is None, activation="none")
        seen = *(side.stop - side.start for side in window), shape[-1]
        return Layer("projection", conv, seen, after)

    def window(self, shape: Shape) -> tuple[slice, slice]:
        """Return the rows and columns of the input (H, W, C) that the shortcut reads."""
        return self._reach(shape, self.body(shape)[-1].output_shape)[1]

    def _reach(self, shape: Shape, after: Shape) -> tuple[int, tuple[slice, slice]]:
        """Return the stride of the shortcut, and the rows and columns that it reads."""
        stride = -(-shape[0] // after[0])
        if all(-(-pixels // stride) == outputs for pixels, outputs in zip(shape[:2], after[:2], strict=True)):
            return stride, (slice(0, shape[0]), slice(0, shape[1]))
        # In pixels of the body's input: `stride` is the distance between two inputs of the current convolution, whose
        # first output is centred on its input number (K − 1) // 2 − pad.
        first, stride = 0, 1
        for block in self._convs:
            first += stride * ((block.kernel - 1) // 2 - block.pad)
            stride *= block.stride * block.pool
        first = max(0, first)
        rows, columns = (slice(first, first + (outputs - 1) * stride + 1) for outputs in after[:2])
        return stride, (rows, columns)

    @property
    def _convs(self) -> "list[Conv]":
        return [block for block in self.blocks if isinstance(block, Conv)]

    def layers(self, shape: Shape) -> "tuple[Layer, ...]":
        """Return the layers of the body, and the projection if there is one."""
        projection = self.projection(shape)
        return self.body(shape) + ((projection,) if projection else ())

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Return the parameters of the body's blocks, named like ``conv1/weights``, and of the projection."""
        return {name: parameter for layer in self.layers(shape) for name, parameter in layer.parameters.items()}


Block = Conv | Dense | Dropout | GlobalPool | Residual


@dataclass(frozen=True)
class Layer:
    """Block at its place in a network, with its shapes."""

    name: str
    """Kind and number within its kind, like ``conv1``; the last layer is ``classifier``."""
    block: Block
    input_shape: Shape
    output_shape: Shape

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Return its parameters by full name, like ``conv1/weights``."""
        return {f"{self.name}/{name}": p for name, p in self.block.parameters(self.input_shape).items()}


@dataclass(frozen=True)
class Network:
    """Layers in order, with all shapes known."""

    layers: tuple[Layer, ...]

    @classmethod
    def build(cls, blocks: Sequence[Block], image_shape: Shape) -> "Network":
        """Build a network from blocks.

        Args:
            blocks: blocks in order; the last is the classifier, a :class:`Dense` without activation.
            image_shape: (H, W, C) of an input image.

        Returns:
            The network.

        Raises:
            ValueError: a block does not fit its input; the message names the block.
        """
        return cls(layers_of(blocks, [*_names(blocks[:-1]), "classifier"], image_shape))

    @property
    def image_shape(self) -> Shape:
        """Return (H, W, C) of an input image."""
        return self.layers[0].input_shape

    @property
    def classes(self) -> int:
        """Return the number of outputs."""
        return self.layers[-1].output_shape[0]

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Return all parameters by name, in order, running statistics included."""
        return {name: parameter for layer in self.layers for name, parameter in layer.parameters.items()}

    @property
    def parameter_count(self) -> int:
        """Return the number of values of all parameters, frozen ones included, without running statistics."""
        return sum(prod(parameter.shape) for parameter in self.parameters.values() if parameter.counts)


def layers_of(blocks: Sequence[Block], names: Sequence[str], shape: Shape) -> tuple[Layer, ...]:
    """Return the layers of blocks that follow each other, on an input of the given shape.

    Raises:
        ValueError: a block does not fit its input; the message names the block.
    """
    layers: list[Layer] = []
    for name, block in zip(names, blocks, strict=True):
        try:
            layers.append(Layer(name, block, shape, block.output_shape(shape)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        shape = layers[-1].output_shape
    return tuple(layers)


def _names(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield the names of blocks: ``conv1``, ``conv2``, ``dense1``, …."""
    seen: dict[str, int] = {}
    for block in blocks:
        seen[block.kind] = seen.get(block.kind, 0) + 1
        yield f"{block.kind}{seen[block.kind]}"


def _by(shape: Shape) -> str:
    return "×".join(str(side) for side in shape)
