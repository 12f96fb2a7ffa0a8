"""What a network is made of: blocks, their shapes and their parameters. No arithmetic here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

Shape = tuple[int, ...]
"""Of one image's values: (H, W, C), or (U,) after a dense block."""

Initialiser = Literal["he"] | float
Activation = Literal["relu", "none"]


@dataclass(frozen=True)
class Parameter:
    """An array that learns."""

    shape: Shape
    init: Initialiser
    """``"he"``, or the standard deviation of a centred normal distribution (weights)."""
    fan_in: int
    """Values that flow into one output."""
    constant: float | None = None
    """The initial value, where it is not drawn (biases)."""
    learning_rate_factor: float = 1.0
    decays: bool = True
    """Whether weight decay applies."""


@dataclass(frozen=True)
class _Affine:
    """What the blocks with weights and biases have in common."""

    init: Initialiser = "he"
    bias_init: float = 0.0
    learning_rate_factor: float = 1.0
    activation: Activation = "relu"

    def _weights_and_bias(self, shape: Shape) -> dict[str, Parameter]:
        fan_in = prod(shape[:-1])
        factor = self.learning_rate_factor
        return {
            "weights": Parameter(shape, self.init, fan_in, learning_rate_factor=factor),
            "bias": Parameter(shape[-1:], 0.0, fan_in, self.bias_init, factor, decays=False),
        }


@dataclass(frozen=True)
class Conv(_Affine):
    """Convolution, bias, activation, max-pooling: y = pool(activation(x ∗ w + b))."""

    filters: int = 1
    kernel: int = 3
    stride: int = 1
    pad: int = 1
    pool: int = 1

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
        return H // self.pool, W // self.pool, self.filters

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Weights (K, K, C, F) and bias (F,)."""
        return self._weights_and_bias((self.kernel, self.kernel, shape[-1], self.filters))


@dataclass(frozen=True)
class Dense(_Affine):
    """Fully connected layer on all values of an image: y = activation(x w + b)."""

    units: int = 1

    kind = "dense"

    def output_shape(self, shape: Shape) -> Shape:  # noqa: ARG002 - any shape will do
        """Any shape → (U,)."""
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Weights (values of an image, U) and bias (U,)."""
        return self._weights_and_bias((prod(shape), self.units))


@dataclass(frozen=True)
class Dropout:
    """Inverted dropout: y = x·m/(1−p), m ∈ {0, 1} drawn anew each step (Srivastava et al. 2014, §4)."""

    probability: float

    kind = "dropout"

    def output_shape(self, shape: Shape) -> Shape:
        """The same."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:  # noqa: ARG002 - it has none
        """None."""
        return {}


Block = Conv | Dense | Dropout


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
        shapes: list[Shape] = [image_shape]
        names = list(_names(blocks))
        for name, block in zip(names, blocks, strict=True):
            try:
                shapes.append(block.output_shape(shapes[-1]))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        places = zip(names, blocks, pairwise(shapes), strict=True)
        return cls(tuple(Layer(name, block, before, after) for name, block, (before, after) in places))

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
        """All parameters by name, in order."""
        return {name: parameter for layer in self.layers for name, parameter in layer.parameters.items()}

    @property
    def parameter_count(self) -> int:
        """Number of learnt values."""
        return sum(prod(parameter.shape) for parameter in self.parameters.values())


def _names(blocks: Sequence[Block]) -> Iterator[str]:
    """``conv1``, ``conv2``, ``dense1``, …, ``classifier``."""
    seen: dict[str, int] = {}
    for block in blocks[:-1]:
        seen[block.kind] = seen.get(block.kind, 0) + 1
        yield f"{block.kind}{seen[block.kind]}"
    yield "classifier"
