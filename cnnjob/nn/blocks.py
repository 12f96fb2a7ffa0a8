"""Network building blocks as data: their settings, shapes and parameters. The arithmetic is in the backends.

A block's fields are also the keys of its table in a job file: their types, limits, defaults and docstrings form the
schema and reference of job files (:mod:`cnnjob.jobs.model`). The limits are not checked here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

Shape = tuple[int, ...]
"""Shape of a parameter, or of the values of one image: (H, W, C), or (U,) after a dense block."""

Initialiser = Literal["he"] | float
"""``"he"``, or the standard deviation of a normal distribution with mean 0."""
ConvInitialiser = Literal["he", "dirac", "whitening"] | float
"""Initialiser that may also be ``"dirac"`` (each filter passes one channel through) or, for the first block only,
``"whitening"`` (filters computed from patches of the training images)."""
Activation = Literal["relu", "gelu", "silu", "none"]
Part = Literal["norm", "activation", "pool"]
Order = tuple[Part, ...]
"""Sequence that contains each part exactly once."""
BiasInitialiser = Annotated[float, Ge(-10), Le(10)]
BiasEpochs = Annotated[int, Ge(0), Le(1_000_000)]
Factor = Annotated[float, Ge(0), Le(1e6)]


@dataclass(frozen=True)
class Parameter:
    """An array of trainable or frozen values, or a running statistic of the activations."""

    shape: Shape
    init: ConvInitialiser
    """Distribution of the initial values (see :mod:`cnnjob.nn.initialisers`); a number is a standard deviation."""
    fan_in: int
    """Number of inputs per output."""
    constant: float | None = None
    """Initial value of every element, if not drawn at random (biases, scales, running statistics)."""
    learning_rate_factor: float = 1.0
    """Factor by which the step's learning rate is multiplied."""
    decays: bool = True
    """True if weight decay applies."""
    trainable: bool = True
    """True if the optimiser updates the parameter; False for frozen weights and running statistics."""
    epochs: int = 0
    """Number of epochs after which the optimiser no longer updates the parameter; 0 if it does so in all epochs."""
    counts: bool = True
    """True if the array counts as a parameter of the network; False for running statistics."""


DERIVED: Any = None
"""Default of a setting that ``__post_init__`` derives from the other settings of its block."""


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation (Ioffe & Szegedy 2015).

    y = scale·(x − mean)/√(variance + eps) + shift (alg. 1). A training step uses the mean and biased variance of each
    channel over the batch. Evaluation uses running statistics r, which each training step updates:
    r ← (1 − momentum)·r + momentum·(batch statistic), with the unbiased variance.
    """

    momentum: Annotated[float, Gt(0), Le(1)] = 0.1
    """Weight of the batch statistics in the running statistics, as in PyTorch; Keras uses 1 minus this value."""
    eps: Annotated[float, Ge(0), Le(1)] = 1e-5
    """Constant added to the variance before the square root is taken."""
    scale: bool = True
    """Add a trainable scale per channel; a trainable shift is always added."""
    learning_rate_factor: Factor = 1.0
    """Additional multiplier for the learning rate of scale and shift; 0 keeps the scale at 1 and the shift at 0."""

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


def _weights_and_bias(block: "Conv | Dense", shape: Shape) -> dict[str, Parameter]:
    """Return weights of the given shape (..., outputs), and the bias (outputs,) if there is one."""
    fan_in, factor = prod(shape[:-1]), block.learning_rate_factor
    weights = Parameter(shape, block.init, fan_in, learning_rate_factor=factor, trainable=not block.frozen)
    if not block.bias:
        return {"weights": weights}
    trainable = not block.fully_frozen
    bias = Parameter(shape[-1:], 0.0, fan_in, block.bias_init, factor, decays=False, trainable=trainable)
    return {"weights": weights, "bias": replace(bias, epochs=block.bias_epochs)}


@dataclass(frozen=True)
class Conv:
    """A convolution with its bias, normalisation, activation and max-pooling, as one block."""

    # In shapes, F is the number of filters, K the kernel size, S the stride and P the side of the pooling window.
    filters: Annotated[int, Ge(1), Le(65536)]
    """Number of filters."""
    kernel: Annotated[int, Ge(1), Le(64)] = 3
    """Side length of the square kernel, in pixels."""
    stride: Annotated[int, Ge(1), Le(64)] = 1
    """Stride of the kernel, in pixels."""
    pad: Annotated[int, Ge(0), Le(64)] = DERIVED
    """Zero padding on each side, in pixels, less than ``kernel``; the default, kernel // 2, preserves the size of the
    image if the stride is 1 and the kernel is odd."""
    pool: Annotated[int, Ge(1), Le(64)] = 1
    """Side length and stride of the max-pooling window, in pixels; 1 disables pooling."""
    batch_norm: BatchNorm | None = None
    """Batch normalisation: ``true``, a table of its settings, or ``false`` to disable it."""
    activation: Activation = "relu"
    """Activation function, applied at its position in ``order``; ``gelu`` is the exact form, computed with erf;
    ``silu``, also called swish, is u / (1 + exp(−u))."""
    order: Order = ("norm", "activation", "pool")
    """Order of normalisation, activation and pooling after the convolution and its bias."""
    init: ConvInitialiser = "he"
    """Initial weights: ``he`` (normal with variance 2 / fan-in), a number up to 10 (normal with that standard
    deviation), ``dirac`` (passes channels through) or, for the first block only, ``whitening`` (decorrelates patches of
    the training images)."""
    bias: bool = DERIVED
    """Add a bias; by default, only if there is no batch normalisation."""
    bias_init: BiasInitialiser = 0.0
    """Initial value of the bias."""
    bias_epochs: BiasEpochs = 0
    """Number of epochs after which the bias is no longer trained; 0 trains it in all epochs. With whitening filters,
    airbench calls this ``whiten_bias_epochs`` (Jordan 2024)."""
    learning_rate_factor: Factor = 1.0
    """Multiplier for the learning rate of the block's weights, bias and normalisation."""
    frozen: bool = False
    """Keep the weights at their initial values. The bias and the normalisation are still trained, unless the job sets
    ``model.init_from``: then they also keep their values, and the normalisation uses the running statistics."""
    fully_frozen: bool = False
    """Also keep the bias and the normalisation at their initial values; the normalisation then uses the running
    statistics. Requires ``frozen``."""

    kind = "conv"

    def __post_init__(self) -> None:
        """Derive the padding and the bias if they are not specified."""
        # The derived settings are stored, so that a block is equal to one that specifies them explicitly.
        if self.pad is DERIVED:
            object.__setattr__(self, "pad", self.kernel // 2)
        if self.bias is DERIVED:
            # A bias before batch normalisation has no effect: the subtracted mean includes it.
            object.__setattr__(self, "bias", self.batch_norm is None)

    def convolved(self, shape: Shape) -> tuple[int, int]:
        """Return the height and width after the convolution and before pooling."""
        # Rows and columns at the end that the stride does not reach are dropped, as in PyTorch.
        H, W = ((side + 2 * self.pad - self.kernel) // self.stride + 1 for side in shape[:2])
        return H, W

    def output_shape(self, shape: Shape) -> Shape:
        """Return (H', W', F) for (H, W, C); rows and columns that do not fill a pooling window are dropped.

        Raises:
            ValueError: the input is not an image or is too small for the kernel or the pooling window, or the number
                of whitening filters is odd or too large.
        """
        if len(shape) != 3:  # noqa: PLR2004 - H, W, C
            raise ValueError("a conv block needs an image (found a vector, such as the output of a dense block)")
        H, W = self.convolved(shape)
        if min(H, W) < self.pool:
            raise ValueError(
                f"an input of {shape[0]}×{shape[1]} pixels is too small for kernel {self.kernel}, "
                f"stride {self.stride}, pad {self.pad} and pool {self.pool}"
            )
        # A patch of K×K×C values has K²·C eigenvectors; each yields a filter and its negative.
        max_filters = 2 * self.kernel**2 * shape[2]
        if self.init == "whitening" and (self.filters % 2 or self.filters > max_filters):
            raise ValueError(f"whitening needs an even number of filters up to {max_filters} (found {self.filters})")
        return H // self.pool, W // self.pool, self.filters

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Return the weights (K, K, C, F), the bias (F,), and the normalisation's parameters."""
        parameters = _weights_and_bias(self, (self.kernel, self.kernel, shape[-1], self.filters))
        if self.batch_norm:
            factor = self.learning_rate_factor
            trainable = not self.fully_frozen
            parameters |= self.batch_norm.parameters(self.filters, factor=factor, trainable=trainable)
        return parameters


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with its bias and activation, as one block.

    y = activation(output_scale·(x w + b)), where x holds all values of an image.
    """

    units: Annotated[int, Ge(1), Le(1_000_000)]
    """Number of units."""
    activation: Activation = "relu"
    """Activation function; ``gelu`` is the exact form, computed with erf; ``silu``, also called swish, is
    u / (1 + exp(−u))."""
    init: Initialiser = "he"
    """Initial weights: ``he`` (normal with variance 2 / fan-in), or a number up to 10 (normal with that standard
    deviation)."""
    bias: bool = True
    """Add a bias to the outputs."""
    bias_init: BiasInitialiser = 0.0
    """Initial value of the bias."""
    bias_epochs: BiasEpochs = 0
    """Number of epochs after which the bias is no longer trained; 0 trains it in all epochs."""
    learning_rate_factor: Factor = 1.0
    """Multiplier for the learning rate of the layer's weights and bias."""
    frozen: bool = False
    """Keep the weights at their initial values; the bias is still trained, unless the job sets ``model.init_from``."""
    output_scale: Annotated[float, Gt(0), Le(1000)] = 1.0
    """Multiplier for the outputs before the softmax."""
    fully_frozen: bool = False
    """Also keep the bias at its initial values; requires ``frozen``."""

    kind = "dense"

    def output_shape(self, shape: Shape) -> Shape:  # noqa: ARG002 - any shape will do
        """Return (U,), for any input shape."""
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Return the weights (values per image, U) and the bias (U,)."""
        return _weights_and_bias(self, (prod(shape), self.units))


@dataclass(frozen=True)
class _Plain:
    """The base of blocks without parameters; unless overridden, the output has the shape of the input."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return the input's shape."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:  # noqa: ARG002 - it has none
        """Return no parameters."""
        return {}


@dataclass(frozen=True)
class Dropout(_Plain):
    """Dropout: sets values to zero at random during training (Srivastava et al. 2014).

    Inverted dropout: y = x·m/(1−p), with m ∈ {0, 1} drawn anew in each step; m = 0 has probability p (§4).
    """

    probability: Annotated[float, Ge(0), Lt(1)]
    """Probability p of setting a value to zero during training; the other values are divided by 1 − p."""

    kind = "dropout"


@dataclass(frozen=True)
class GlobalPool(_Plain):
    """Global pooling: one number per channel, its mean or maximum over all pixels (Lin et al. 2014)."""

    how: Literal["mean", "max"]
    """Mean or maximum of each channel over all pixels; the image must have more than one pixel."""

    kind = "global_pool"

    def output_shape(self, shape: Shape) -> Shape:
        """Return the output shape (C,) for an input of shape (H, W, C).

        Raises:
            ValueError: the input is not an image.
        """
        if len(shape) != 3:  # noqa: PLR2004 - H, W, C
            raise ValueError("a global_pool block needs an image (found a vector, such as the output of a dense block)")
        return shape[-1:]


@dataclass(frozen=True)
class Residual:
    """A body of blocks and a shortcut around it (He et al. 2016).

    y = activation(body(x) + shortcut(x)) (eq. 1 and 2). If the body keeps the shape, the shortcut is the identity.
    Otherwise, the shortcut is a projection: a 1×1 convolution with the same normalisation settings as the body's last
    convolution, and with the stride that makes the shapes equal. If no such stride exists, the projection has the
    body's stride and reads only a window of the image, from the pixel on which the body's first output is centred to
    the pixel on which the body's last output is centred. The projection is fully frozen if all convolutions of the body
    are fully frozen.
    """

    blocks: tuple[Conv | Dropout, ...]
    """Blocks of the body, each ``conv`` or ``dropout``; the last ``conv`` should normally have no activation. The
    shortcut is the identity or, if the body changes the shape, a 1×1 convolution that is added automatically."""
    activation: Activation = "relu"
    """Activation function applied to the sum of body and shortcut."""

    kind = "residual"

    def output_shape(self, shape: Shape) -> Shape:
        """Return the output shape of the body.

        Raises:
            ValueError: the body has no convolution, one of its blocks is incompatible with its input, or no shortcut
                can produce the body's output shape.
        """
        if not self._convs:
            raise ValueError("a residual block needs a conv block in its body")
        output = self.body(shape)[-1].output_shape
        if shape != output:
            self.projection(shape)
        return output

    def body(self, shape: Shape) -> "tuple[Layer, ...]":
        """Return the layers of the body for an input (H, W, C)."""
        return build_layers(self.blocks, list(_number_names(self.blocks)), shape)

    def projection(self, shape: Shape) -> "Layer | None":
        """Return the layer that computes the shortcut, or None if the shortcut is the identity.

        The layer reads only the part of the image that :meth:`window` returns.

        Raises:
            ValueError: no shortcut can produce the body's output shape.
        """
        output = self.body(shape)[-1].output_shape
        if shape == output:
            return None
        if any(outputs > pixels for outputs, pixels in zip(output[:2], shape[:2], strict=True)):
            raise ValueError(
                f"its padding enlarges the image from {_format_shape(shape)} to {_format_shape(output)}, but a "
                "shortcut cannot enlarge an image"
            )
        stride, window = self._find_window(shape, output)
        if any(side.stop > pixels for side, pixels in zip(window, shape, strict=False)):
            raise ValueError(
                f"its body turns {_format_shape(shape)} into {_format_shape(output)}, but the input has too "
                "few pixels for a shortcut with that output shape"
            )
        norm = self._convs[-1].batch_norm
        frozen = all(block.fully_frozen for block in self._convs)
        conv = Conv(output[-1], 1, stride, batch_norm=norm, activation="none", frozen=frozen, fully_frozen=frozen)
        window_shape = *(side.stop - side.start for side in window), shape[-1]
        return Layer("projection", conv, window_shape, output)

    def window(self, shape: Shape) -> tuple[slice, slice]:
        """Return the rows and columns of the input (H, W, C) that the shortcut reads."""
        return self._find_window(shape, self.body(shape)[-1].output_shape)[1]

    def _find_window(self, shape: Shape, output: Shape) -> tuple[int, tuple[slice, slice]]:
        """Return the shortcut's stride, and the rows and columns that it reads."""
        stride = -(-shape[0] // output[0])
        if all(-(-pixels // stride) == outputs for pixels, outputs in zip(shape[:2], output[:2], strict=True)):
            return stride, (slice(0, shape[0]), slice(0, shape[1]))
        # In pixels of the body's input: `stride` is the distance between adjacent inputs of the current convolution,
        # whose first output is centred on its input with index (K − 1) // 2 − pad.
        first, stride = 0, 1
        for block in self._convs:
            first += stride * ((block.kernel - 1) // 2 - block.pad)
            stride *= block.stride * block.pool
        first = max(0, first)
        rows, columns = (slice(first, first + (outputs - 1) * stride + 1) for outputs in output[:2])
        return stride, (rows, columns)

    @property
    def _convs(self) -> "list[Conv]":
        return [block for block in self.blocks if isinstance(block, Conv)]

    def layers(self, shape: Shape) -> "tuple[Layer, ...]":
        """Return the layers of the body, and the projection if there is one."""
        projection = self.projection(shape)
        return self.body(shape) + ((projection,) if projection else ())

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Return the parameters of the body and of the projection, with names such as ``conv1/weights``."""
        return {name: parameter for layer in self.layers(shape) for name, parameter in layer.parameters.items()}


Block = Conv | Dense | Dropout | GlobalPool | Residual


@dataclass(frozen=True)
class Layer:
    """A block at its position in a network, with its input and output shapes."""

    name: str
    """Kind of block and number within that kind, such as ``conv1``; the last layer is ``classifier``."""
    block: Block
    input_shape: Shape
    output_shape: Shape

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Return the layer's parameters by full name, such as ``conv1/weights``."""
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
            ValueError: a block is incompatible with its input; the message names the block.
        """
        return cls(build_layers(blocks, [*_number_names(blocks[:-1]), "classifier"], image_shape))

    @property
    def image_shape(self) -> Shape:
        """Return (H, W, C) of an input image."""
        return self.layers[0].input_shape

    @property
    def classes(self) -> int:
        """Return the number of classes, which is the number of outputs."""
        return self.layers[-1].output_shape[0]

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Return all parameters by name, in order, including running statistics."""
        return {name: parameter for layer in self.layers for name, parameter in layer.parameters.items()}

    @property
    def parameter_count(self) -> int:
        """Return the total number of parameter values, including frozen ones but not running statistics."""
        return sum(prod(parameter.shape) for parameter in self.parameters.values() if parameter.counts)


def build_layers(blocks: Sequence[Block], names: Sequence[str], shape: Shape) -> tuple[Layer, ...]:
    """Build layers from consecutive blocks, for an input of the given shape.

    Raises:
        ValueError: a block is incompatible with its input; the message names the block.
    """
    layers: list[Layer] = []
    for name, block in zip(names, blocks, strict=True):
        try:
            layers.append(Layer(name, block, shape, block.output_shape(shape)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        shape = layers[-1].output_shape
    return tuple(layers)


def _number_names(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield the names of the blocks, such as ``conv1``, ``conv2`` and ``dense1``."""
    counts: dict[str, int] = {}
    for block in blocks:
        counts[block.kind] = counts.get(block.kind, 0) + 1
        yield f"{block.kind}{counts[block.kind]}"


def _format_shape(shape: Shape) -> str:
    return "×".join(str(side) for side in shape)
