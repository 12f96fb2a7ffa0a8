"""What a network is made of: blocks, their shapes and their parameters. No arithmetic here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

Shape = tuple[int, ...]
"""Of one image's values: (H, W, C), or (U,) after a dense block."""

Initialiser = Literal["he", "dirac", "whitening"] | float
Activation = Literal["relu", "gelu", "none"]
Part = Literal["norm", "activation", "pool"]


@dataclass(frozen=True)
class Parameter:
    """An array that learns, or is learnt from the data that pass."""

    shape: Shape
    init: Initialiser
    """How weights are drawn, see :mod:`cnnjob.nn.initialisers`; a number is a standard deviation."""
    fan_in: int
    """Values that flow into one output."""
    constant: float | None = None
    """The initial value, where it is not drawn (biases, running statistics)."""
    learning_rate_factor: float = 1.0
    decays: bool = True
    """Whether weight decay applies."""
    trainable: bool = True
    """Whether the optimiser changes it; not so frozen parameters and running statistics."""
    counts: bool = True
    """Whether it is a parameter of the network; running statistics are not."""


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation: y = scale·(x − mean)/√(variance + eps) + shift (Ioffe & Szegedy 2015, alg. 1).

    Mean and biased variance of each channel are the batch's while training. An evaluation takes the running ones,
    r ← (1 − momentum)·r + momentum·batch's, of which the variance is the unbiased one.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    scale: bool = True
    """Whether it has a scale that learns; 1 otherwise."""
    learning_rate_factor: float = 1.0
    """Factor on the learning rate of scale and shift, beside the block's."""

    def parameters(self, channels: int, *, factor: float, trainable: bool) -> dict[str, Parameter]:
        """Scale, shift, and the running mean and variance, each (C,)."""
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
    """What the blocks with weights and biases have in common."""

    init: Initialiser = "he"
    bias: bool = True
    bias_init: float = 0.0
    learning_rate_factor: float = 1.0
    activation: Activation = "relu"
    frozen: bool = False
    """Whether the weights stay as they were drawn; bias and normalisation learn all the same."""

    def _weights_and_bias(self, shape: Shape) -> dict[str, Parameter]:
        fan_in, factor = prod(shape[:-1]), self.learning_rate_factor
        weights = Parameter(shape, self.init, fan_in, learning_rate_factor=factor, trainable=not self.frozen)
        bias = {"bias": Parameter(shape[-1:], 0.0, fan_in, self.bias_init, factor, decays=False)} if self.bias else {}
        return {"weights": weights, **bias}


@dataclass(frozen=True)
class Conv(_Affine):
    """Convolution, bias, then normalisation, activation and max-pooling in any order."""

    filters: int = 1
    kernel: int = 3
    stride: int = 1
    pad: int = 1
    pool: int = 1
    norm: BatchNorm | None = None
    order: tuple[Part, Part, Part] = ("norm", "activation", "pool")

    kind = "conv"

    def convolved(self, shape: Shape) -> tuple[int, int]:
        """Height and width after the convolution, before the pooling."""
        H, W = ((side + 2 * self.pad - self.kernel) // self.stride + 1 for side in shape[:2])
        return H, W

    def output_shape(self, shape: Shape) -> Shape:
        """(H, W, C) → (H', W', F); rows and columns that fill no pooling window are left out.

        Raises:
            ValueError: the input has no pixels, or too few for the kernel or the pooling.
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
        """Weights (K, K, C, F), bias (F,), and those of the normalisation."""
        own = self._weights_and_bias((self.kernel, self.kernel, shape[-1], self.filters))
        factor = self.learning_rate_factor
        return own | (self.norm.parameters(self.filters, factor=factor, trainable=True) if self.norm else {})


@dataclass(frozen=True)
class Dense(_Affine):
    """Fully connected layer on all values of an image: y = activation(output_scale·(x w + b))."""

    units: int = 1
    output_scale: float = 1.0

    kind = "dense"

    def output_shape(self, shape: Shape) -> Shape:  # noqa: ARG002 - any shape will do
        """Any shape → (U,)."""
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Weights (values of an image, U) and bias (U,)."""
        return self._weights_and_bias((prod(shape), self.units))


@dataclass(frozen=True)
class _Plain:
    """What the blocks that learn nothing and keep the shape have in common."""

    def output_shape(self, shape: Shape) -> Shape:
        """The same."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:  # noqa: ARG002 - it has none
        """None."""
        return {}


@dataclass(frozen=True)
class Dropout(_Plain):
    """Inverted dropout: y = x·m/(1−p), m ∈ {0, 1} drawn anew each step (Srivastava et al. 2014, §4)."""

    probability: float

    kind = "dropout"


@dataclass(frozen=True)
class GlobalPool(_Plain):
    """Mean or maximum of each channel over all pixels of an image (Lin et al. 2014, §3.2)."""

    how: Literal["mean", "max"] = "mean"

    kind = "global_pool"

    def output_shape(self, shape: Shape) -> Shape:
        """(H, W, C) → (C,).

        Raises:
            ValueError: the input is no image.
        """
        if len(shape) != 3:  # noqa: PLR2004 - H, W, C
            raise ValueError("a global_pool block needs an image, found a vector; put it before the dense blocks")
        return shape[-1:]


@dataclass(frozen=True)
class Residual:
    """y = activation(body(x) + shortcut(x)) (He et al. 2016, eq. 1 and 2).

    The shortcut is the identity, or where the shapes differ a convolution 1×1, normalised as the body's last one is.
    It has the stride that makes the shapes equal. Where there is none it has the body's own stride and reads a window
    of the image, from the pixel on which the body's first output is centred to that of the last.
    """

    blocks: tuple["Conv | Dropout", ...]
    activation: Activation = "relu"

    kind = "residual"

    def output_shape(self, shape: Shape) -> Shape:
        """That of the body.

        Raises:
            ValueError: there is no convolution, a block of the body does not fit, or no shortcut leads to its output.
        """
        if not self._convs:
            raise ValueError("a residual block needs a conv block in its body")
        after = self.body(shape)[-1].output_shape
        if shape != after:
            self.projection(shape)
        return after

    def body(self, shape: Shape) -> "tuple[Layer, ...]":
        """The body's layers on an input (H, W, C)."""
        return layers_of(self.blocks, list(_names(self.blocks)), shape)

    def projection(self, shape: Shape) -> "Layer | None":
        """Return the shortcut's layer, whose input is :meth:`window`; None where it is the identity.

        Raises:
            ValueError: there is none.
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
        conv = Conv(filters=after[-1], kernel=1, pad=0, stride=stride, norm=norm, bias=norm is None, activation="none")
        seen = *(side.stop - side.start for side in window), shape[-1]
        return Layer("projection", conv, seen, after)

    def window(self, shape: Shape) -> tuple[slice, slice]:
        """Return the rows and columns of the input (H, W, C) that the shortcut reads."""
        return self._reach(shape, self.body(shape)[-1].output_shape)[1]

    def _reach(self, shape: Shape, after: Shape) -> tuple[int, tuple[slice, slice]]:
        """Return the shortcut's stride, and the rows and columns that it reads."""
        stride = -(-shape[0] // after[0])
        if all(-(-pixels // stride) == outputs for pixels, outputs in zip(shape[:2], after[:2], strict=True)):
            return stride, (slice(0, shape[0]), slice(0, shape[1]))
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
        """The body's layers, and the projection if there is one."""
        projection = self.projection(shape)
        return self.body(shape) + ((projection,) if projection else ())

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Those of the body's blocks, as ``conv1/weights``, and of the projection."""
        return {name: parameter for layer in self.layers(shape) for name, parameter in layer.parameters.items()}


Block = Conv | Dense | Dropout | GlobalPool | Residual


@dataclass(frozen=True)
class Layer:
    """A block at its place in a network."""

    name: str
    """Kind and number within its kind, as ``conv1``; the last is ``classifier``."""
    block: Block
    input_shape: Shape
    output_shape: Shape

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Its parameters by full name, as ``conv1/weights``."""
        return {f"{self.name}/{name}": p for name, p in self.block.parameters(self.input_shape).items()}


@dataclass(frozen=True)
class Network:
    """Blocks in order, with every shape known."""

    layers: tuple[Layer, ...]

    @classmethod
    def build(cls, blocks: Sequence[Block], image_shape: Shape) -> "Network":
        """Put blocks on an image.

        Args:
            blocks: in order; the last is the classifier, a :class:`Dense` without activation.
            image_shape: (H, W, C).

        Returns:
            The network.

        Raises:
            ValueError: a block does not fit where it stands; it is named.
        """
        return cls(layers_of(blocks, [*_names(blocks[:-1]), "classifier"], image_shape))

    @property
    def image_shape(self) -> Shape:
        """(H, W, C) of an input image."""
        return self.layers[0].input_shape

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.layers[-1].output_shape[0]

    @property
    def parameters(self) -> dict[str, Parameter]:
        """All parameters by name, in order, running statistics among them."""
        return {name: parameter for layer in self.layers for name, parameter in layer.parameters.items()}

    @property
    def parameter_count(self) -> int:
        """Number of values that are learnt by the optimiser, or drawn once."""
        return sum(prod(parameter.shape) for parameter in self.parameters.values() if parameter.counts)


def layers_of(blocks: Sequence[Block], names: Sequence[str], shape: Shape) -> tuple[Layer, ...]:
    """Blocks one after the other on an input.

    Raises:
        ValueError: a block does not fit where it stands; it is named.
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
    """``conv1``, ``conv2``, ``dense1``, …."""
    seen: dict[str, int] = {}
    for block in blocks:
        seen[block.kind] = seen.get(block.kind, 0) + 1
        yield f"{block.kind}{seen[block.kind]}"


def _by(shape: Shape) -> str:
    return "×".join(str(side) for side in shape)
