"""Schema of the network in a job file: its blocks in order, and the classifier."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from cnnjob.jobs.schema import Fraction, OrFalse, Settings, as_typed, is_older

LARGEST_SIGMA = 10
"""Largest standard deviation of initial weights."""


def _named_or_deviation(*names: str) -> BeforeValidator:
    """Return a validator for one of the names or a standard deviation, with one message for both."""

    # A plain union would report one error per member.
    def checked(value: Any) -> Any:
        if value in names:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_SIGMA:
            return float(value) + 0.0  # -0.0 becomes 0.0
        listed = ", ".join(map(repr, names))
        raise ValueError(f"not {listed} or a standard deviation from 0 to {LARGEST_SIGMA}, found {as_typed(value)}")

    return BeforeValidator(checked)


Initialiser = Annotated[Literal["he"] | float, _named_or_deviation("he")]
"""``"he"``, or the standard deviation of a normal distribution with mean 0."""
ConvInitialiser = Annotated[
    Literal["he", "dirac", "whitening"] | float, _named_or_deviation("he", "dirac", "whitening")
]
"""Also ``"dirac"`` (each filter passes one channel through) and, for the first block only, ``"whitening"`` (filters
computed from patches of the training images)."""

Part = Literal["norm", "activation", "pool"]
Activation = Literal["relu", "gelu", "none"]
Factor = Annotated[float, Field(ge=0, le=1e6)]
_ORDER: tuple[Part, ...] = ("norm", "activation", "pool")


def _require_acting(layer: "Conv | Dense | ClassifierSettings", info: ValidationInfo) -> None:
    """Refuse settings of a layer that have no effect.

    Raises:
        ValueError: a setting has no effect.
    """
    if is_older(info):
        return
    if layer.bias_init and not layer.bias:
        raise ValueError(
            f"bias_init: there is no bias to begin at {layer.bias_init:g}; set bias to true, or leave it out"
        )
    if layer.learning_rate_factor == 0:
        raise ValueError(
            "learning_rate_factor: at 0 nothing of the block is trained; set frozen to true, which keeps its weights "
            "as they start, and bias to false"
        )
    if layer.frozen and not layer.bias and layer.learning_rate_factor != 1 and not getattr(layer, "batch_norm", None):
        raise ValueError("learning_rate_factor: nothing of a frozen block without a bias is trained; leave it out")


class BatchNorm(Settings):
    """Batch normalisation (Ioffe & Szegedy 2015)."""

    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the batch's statistics in the new running ones, as torch's; Keras's is one minus it."""
    eps: Annotated[float, Field(ge=0, le=1)] = 1e-5
    """Added to the variance before its square root is taken."""
    scale: bool = True
    """Add a trainable scale per channel; a trainable shift is always there."""
    learning_rate_factor: Factor = 1.0
    """Factor on the learning rate of scale and shift, on top of the block's; 0 keeps the shift at 0."""

    @model_validator(mode="after")
    def _trains(self, info: ValidationInfo) -> Self:
        if self.scale and self.learning_rate_factor == 0 and not is_older(info):
            raise ValueError("scale: at a learning_rate_factor of 0 it stays at 1; set scale to false")
        return self


class Conv(Settings):
    """A convolution with its bias, normalisation, activation and max-pooling, as one block."""

    conv: Annotated[int, Field(ge=1, le=65536)]
    """Number of filters."""
    kernel: Annotated[int, Field(ge=1, le=64)] = 3
    """Side of the square kernel, in pixels."""
    stride: Annotated[int, Field(ge=1, le=64)] = 1
    """Stride of the kernel, in pixels."""
    pad: Annotated[int, Field(ge=0, le=64)] | None = None
    """Zero padding on each side, in pixels, less than ``kernel``; the default, kernel // 2, keeps the image's size at
    stride 1 if the kernel is odd."""
    pool: Annotated[int, Field(ge=1, le=64)] = 1
    """Side and stride of the max-pooling window; 1 is none."""
    batch_norm: Annotated[BatchNorm | None, OrFalse] = None
    """Batch normalisation: ``true`` or a table of its settings; ``false`` is none."""
    activation: Activation = "relu"
    """Activation function, at its position in ``order``; ``gelu`` is the exact form with erf."""
    # Not strict: TOML has lists, which pydantic would refuse for a tuple. ``order`` stands after the fields that its
    # validator looks at, since fields are validated in this order.
    order: Annotated[tuple[Part, ...], Field(strict=False)] = _ORDER
    """Order of normalisation, activation and pooling after the convolution and its bias."""
    init: ConvInitialiser = "he"
    """Initial weights: ``he`` is normal with variance 2 / fan-in, a number up to 10 is the standard deviation of a
    normal distribution, ``dirac`` passes channels through, ``whitening`` (first block only) decorrelates patches of
    the training images."""
    bias: bool | None = None
    """Add a bias; by default only without batch normalisation."""
    bias_init: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Initial value of the bias."""
    learning_rate_factor: Factor = 1.0
    """Factor on the learning rate of the block's weights, bias and normalisation."""
    frozen: bool = False
    """Keep the weights at their initial values; bias and normalisation are still trained."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        # The defaults depend on other keys, and are written out so that both spellings give one digest.
        found = dict(values)
        if found.get("pad") is None and isinstance(found.get("kernel", 3), int):
            found["pad"] = found.get("kernel", 3) // 2
        if found.get("bias") is None:
            # An empty table is a batch normalisation with its defaults, although it is falsy.
            found["bias"] = not found.get("batch_norm") and found.get("batch_norm") != {}
        return found

    @field_validator("order", mode="after")
    @classmethod
    def _orders_what_is_there(cls, order: tuple[Part, ...], info: ValidationInfo) -> tuple[Part, ...]:
        """Put absent operations, and a ReLU next to its pooling if the bits are the same, into the usual order."""
        if sorted(order) != sorted(_ORDER):
            raise ValueError(f"not 'norm', 'activation' and 'pool', each once, found {list(order)}")
        normalised, pools = bool(info.data.get("batch_norm")), info.data.get("pool", 1) > 1
        activation = info.data.get("activation", "relu")
        # ReLU and max-pooling commute to the bit; GELU does not, as it is not monotonic.
        if not normalised and activation != "gelu":
            return _ORDER
        there = {"norm": normalised, "activation": activation != "none", "pool": pools}
        acting = [part for part in order if there[part]]
        if activation == "relu" and acting == ["norm", "pool", "activation"]:
            return _ORDER
        if acting == [part for part in _ORDER if there[part]]:
            return _ORDER
        return (*acting, *(part for part in _ORDER if not there[part]))

    @model_validator(mode="after")
    def _acts(self, info: ValidationInfo) -> Self:
        _require_acting(self, info)
        return self


class Dense(Settings):
    """A fully connected layer with its bias and activation, as one block."""

    dense: Annotated[int, Field(ge=1, le=1_000_000)]
    """Number of units."""
    activation: Activation = "relu"
    """Activation function; ``gelu`` is the exact form with erf."""
    init: Initialiser = "he"
    """Initial weights: ``he`` is normal with variance 2 / fan-in, a number up to 10 is the standard deviation of a
    normal distribution."""
    bias: bool = True
    """Add a bias to the outputs."""
    bias_init: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Initial value of the bias."""
    learning_rate_factor: Factor = 1.0
    """Factor on the learning rate of the block's weights and bias."""
    frozen: bool = False
    """Keep the weights at their initial values; a bias is still trained."""

    @model_validator(mode="after")
    def _acts(self, info: ValidationInfo) -> Self:
        _require_acting(self, info)
        return self


class Dropout(Settings):
    """Dropout: sets values to zero at random while training (Srivastava et al. 2014)."""

    dropout: Fraction
    """Probability of setting a value to zero while training; other values are divided by one minus it."""


class GlobalPool(Settings):
    """Global pooling: one number per channel, its mean or maximum over all pixels (Lin et al. 2014)."""

    global_pool: Literal["mean", "max"]
    """Mean or maximum of each channel over all pixels, of which there must be more than one."""


def _kind_of(block: Any) -> str | None:
    """Return a block's kind, given by the key that no other kind has; None if there is none or more than one."""
    if isinstance(block, Settings):
        return next((kind for kind, section in _KINDS.items() if isinstance(block, section)), None)
    kinds = [kind for kind in _KINDS if isinstance(block, dict) and kind in block]
    return kinds[0] if len(kinds) == 1 else None


# With a discriminator pydantic reports the problems of the block that was meant, not those of all kinds.
_BY_KIND = Discriminator(_kind_of, custom_error_type="kind", custom_error_message="no such block")

BodyBlock = Annotated[Annotated[Conv, Tag("conv")] | Annotated[Dropout, Tag("dropout")], _BY_KIND]


def _without_idle_dropouts(blocks: tuple[Any, ...]) -> tuple[Any, ...]:
    """Remove dropouts of rate 0, unless another dropout follows: its random numbers depend on its position."""
    rates = [block.dropout if isinstance(block, Dropout) else None for block in blocks]
    bodies = [block.residual if isinstance(block, Residual) else () for block in blocks]
    drops = [
        bool(rate) or any(isinstance(one, Dropout) for one in body) for rate, body in zip(rates, bodies, strict=True)
    ]
    last = max((place for place, does in enumerate(drops) if does), default=-1)
    return tuple(block for place, block in enumerate(blocks) if place < last or rates[place] != 0)


class Residual(Settings):
    """A body of blocks and a shortcut around it (He et al. 2016); the shortcut is a projection if the shapes differ."""

    residual: Annotated[tuple[BodyBlock, ...], Field(strict=False)]
    """Blocks of the body, ``conv`` or ``dropout``; the last ``conv`` is best without activation."""
    activation: Activation = "relu"
    """Activation function after the sum of body and shortcut."""

    _keeps_what_drops = field_validator("residual", mode="after")(_without_idle_dropouts)


class ClassifierSettings(Settings):
    """The implied last layer: one unit per class, no activation."""

    init: Initialiser = "he"
    """Initial weights: ``he`` is normal with variance 2 / fan-in, a number up to 10 is the standard deviation of a
    normal distribution."""
    bias: bool = True
    """Add a bias to the outputs."""
    bias_init: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Initial value of the bias."""
    learning_rate_factor: Factor = 1.0
    """Factor on the learning rate of the layer's weights and bias."""
    frozen: bool = False
    """Keep the weights at their initial values; a bias is still trained."""
    output_scale: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Factor on the outputs before the softmax."""

    @model_validator(mode="after")
    def _acts(self, info: ValidationInfo) -> Self:
        _require_acting(self, info)
        return self


_KINDS: dict[str, type[Settings]] = {
    "conv": Conv,
    "dense": Dense,
    "dropout": Dropout,
    "global_pool": GlobalPool,
    "residual": Residual,
}

Block = Annotated[
    Annotated[Conv, Tag("conv")]
    | Annotated[Dense, Tag("dense")]
    | Annotated[Dropout, Tag("dropout")]
    | Annotated[GlobalPool, Tag("global_pool")]
    | Annotated[Residual, Tag("residual")],
    _BY_KIND,
]


class Model(Settings):
    """The network: its blocks in order; the classifier layer is implied."""

    blocks: Annotated[tuple[Block, ...], Field(strict=False)] = ()
    """Blocks in order, starting at the image; the classifier follows the last."""
    classifier: ClassifierSettings = ClassifierSettings()
    """Initialisation and training of the implied last layer: a table of its settings."""

    _keeps_what_drops = field_validator("blocks", mode="after")(_without_idle_dropouts)

    @property
    def has_convolutions(self) -> bool:
        """True if any block, or any block inside a residual, is a convolution."""
        return any(isinstance(block, Conv | Residual) for block in self.blocks)

    @model_validator(mode="after")
    def _whitens_images(self) -> "Model":
        bodies = [block for outer in self.blocks if isinstance(outer, Residual) for block in outer.residual]
        if any(isinstance(block, Conv) and block.init == "whitening" for block in [*self.blocks[1:], *bodies]):
            raise ValueError(
                "blocks: init 'whitening' is of the first block alone, which sees the images, found in another; "
                "take 'dirac' or 'he'"
            )
        return self
