"""Schema of the network in a job file: its blocks in order, and the classifier.

The blocks are those of :mod:`cnnjob.nn`, and each block's fields are the keys of its table. A job file is stricter:
settings without effect are refused, and different settings with bitwise identical results become the same job.
"""

import re
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from cnnjob import nn
from cnnjob.jobs.schema import Fraction, OrFalse, Settings, Table, format_value, is_older
from cnnjob.nn.blocks import ConvInitialiser, Initialiser, Order, Part

_SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST_DEVIATION = 10
"""Maximum standard deviation of initial weights."""
_ORDER: Order = ("norm", "activation", "pool")


def _named_or_deviation(*names: str) -> BeforeValidator:
    """Return a validator for one of ``names`` or a standard deviation, which raises one error if a value is neither."""

    # A plain union would report one error per alternative.
    def checked(value: Any) -> Any:
        if value in names:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_DEVIATION:
            return float(value) + 0.0  # -0.0 becomes 0.0
        listed = ", ".join(map(repr, names))
        raise ValueError(
            f"input should be {listed} or a standard deviation from 0 to {LARGEST_DEVIATION}, "
            f"found {format_value(value)}"
        )

    return BeforeValidator(checked)


def _require_effect(block: nn.Conv | nn.Dense, info: ValidationInfo) -> Any:
    """Return the block; refuse settings that have no effect.

    Raises:
        ValueError: a setting has no effect.
    """
    if is_older(info):
        return block
    if block.bias_init and not block.bias:
        raise ValueError(
            f"bias_init: there is no bias (found bias_init = {block.bias_init:g}). Set bias = true, or omit bias_init"
        )
    if block.bias_epochs and not block.bias:
        raise ValueError(
            f"bias_epochs: there is no bias (found bias_epochs = {block.bias_epochs}). Set bias = true, or omit "
            "bias_epochs"
        )
    if block.learning_rate_factor == 0:
        raise ValueError(
            "learning_rate_factor: at 0, nothing in the block is trained. To keep the initial weights, set "
            "frozen = true and bias = false"
        )
    is_normalised = isinstance(block, nn.Conv) and block.batch_norm is not None
    if block.frozen and not block.bias and block.learning_rate_factor != 1 and not is_normalised:
        raise ValueError(
            "learning_rate_factor: a frozen block without a bias has nothing to train. Omit learning_rate_factor"
        )
    return block


def _require_trained_scale(norm: nn.BatchNorm, info: ValidationInfo) -> nn.BatchNorm:
    if norm.scale and norm.learning_rate_factor == 0 and not is_older(info):
        raise ValueError("scale: at learning_rate_factor = 0, the scale stays 1. Set scale = false")
    return norm


def _require_each_part(order: Order) -> Order:
    if sorted(order) != sorted(_ORDER):
        raise ValueError(f"input should contain 'norm', 'activation' and 'pool' exactly once each, found {list(order)}")
    return order


def _in_usual_order(conv: nn.Conv) -> nn.Conv:
    """Put a conv block's operations into the usual order unless this would change the results.

    An operation that the block does not have can be placed anywhere, and a ReLU and max-pooling that follow each other
    can be swapped.
    """
    is_present: dict[Part, bool] = {
        "norm": conv.batch_norm is not None,
        "activation": conv.activation != "none",
        "pool": conv.pool > 1,
    }
    present = tuple(part for part in conv.order if is_present[part])
    # ReLU and max-pooling commute bit for bit; GELU and SiLU, which are not monotonic, do not commute with max-pooling.
    if conv.activation not in ("gelu", "silu") and (not conv.batch_norm or present == ("norm", "pool", "activation")):
        return replace(conv, order=_ORDER)
    if present == tuple(part for part in _ORDER if is_present[part]):
        return replace(conv, order=_ORDER)
    return replace(conv, order=(*present, *(part for part in _ORDER if not is_present[part])))


def _without_idle_dropouts(blocks: tuple[Any, ...]) -> tuple[Any, ...]:
    """Remove dropout blocks with rate 0, except before an active one: its random numbers depend on its position."""
    is_idle = [isinstance(block, nn.Dropout) and block.probability == 0 for block in blocks]
    bodies = [block.blocks if isinstance(block, nn.Residual) else (block,) for block in blocks]
    drops = [
        not idle and any(isinstance(inner, nn.Dropout) for inner in body)
        for idle, body in zip(is_idle, bodies, strict=True)
    ]
    last = max((index for index, does_drop in enumerate(drops) if does_drop), default=-1)
    return tuple(block for index, block in enumerate(blocks) if index < last or not is_idle[index])


def _find_kind(block: Any) -> str | None:
    """Return a block's kind: the one key in :data:`KINDS` that the block has; None if it has none or several."""
    if not isinstance(block, dict):
        return getattr(block, "kind", None)
    kinds = [kind for kind in KINDS if kind in block]
    return kinds[0] if len(kinds) == 1 else None


KINDS = ("conv", "dense", "dropout", "global_pool", "residual")
# With a discriminator, pydantic reports problems only for the intended kind of block, not for every kind.
_BY_KIND = Discriminator(_find_kind, custom_error_type="kind", custom_error_message="no such block")

# Tuples are not strict: TOML arrays are read as lists, which a strict tuple would refuse.
_BatchNorm = Annotated[nn.BatchNorm, Table(nn.BatchNorm), AfterValidator(_require_trained_scale)]
_Conv = Annotated[
    nn.Conv,
    Table(
        nn.Conv,
        fixed={"fully_frozen": False},
        annotations={
            "batch_norm": Annotated[_BatchNorm | None, OrFalse],
            "order": Annotated[Order, Field(strict=False), AfterValidator(_require_each_part)],
            "init": Annotated[ConvInitialiser, _named_or_deviation("he", "dirac", "whitening")],
        },
    ),
    AfterValidator(_in_usual_order),
    AfterValidator(_require_effect),
    Tag("conv"),
]
_DENSE = {"init": Annotated[Initialiser, _named_or_deviation("he")]}
_Dense = Annotated[
    nn.Dense,
    Table(nn.Dense, fixed={"output_scale": 1.0, "fully_frozen": False}, annotations=_DENSE),
    AfterValidator(_require_effect),
    Tag("dense"),
]
_Dropout = Annotated[nn.Dropout, Table(nn.Dropout, annotations={"probability": Fraction}), Tag("dropout")]
_GlobalPool = Annotated[nn.GlobalPool, Table(nn.GlobalPool), Tag("global_pool")]
_BodyBlock = Annotated[_Conv | _Dropout, _BY_KIND]
_Body = Annotated[tuple[_BodyBlock, ...], Field(strict=False), AfterValidator(_without_idle_dropouts)]
_Residual = Annotated[nn.Residual, Table(nn.Residual, annotations={"blocks": _Body}), Tag("residual")]
_Block = Annotated[_Conv | _Dense | _Dropout | _GlobalPool | _Residual, _BY_KIND]
_Classifier = Annotated[
    nn.Dense,
    Table(
        nn.Dense,
        about="The implied last layer: one unit per class, no activation.",
        fixed={"units": 1, "activation": "none", "fully_frozen": False},
        annotations=_DENSE,
    ),
    AfterValidator(_require_effect),
]


def _require_sha256(digits: str) -> str:
    if not _SHA256.fullmatch(digits):
        raise ValueError(
            f"input should be a SHA-256 of 64 hexadecimal digits in lower case, found {format_value(digits)}"
        )
    return digits


# ``false``, as in a sweep, means no weights.
_Source = Annotated[str, Field(min_length=1)]
_OrNone = BeforeValidator(lambda value: None if value is False else value)


class Model(Settings):
    """The network: its blocks in order; the classifier layer is implied."""

    blocks: Annotated[tuple[_Block, ...], Field(strict=False), AfterValidator(_without_idle_dropouts)] = ()
    """Blocks in order, starting at the image; the classifier follows the last."""
    classifier: _Classifier = nn.Dense(units=1, activation="none")
    """Initialisation and training of the implied last layer: a table of settings."""
    init_from: Annotated[_Source | None, _OrNone] = None
    """Fine-tuning: take initial weights from a finished run (its folder, its name or the beginning of its name, or
    ``latest``) or from an ``.npz`` file; ``false`` for none. A layer takes its weights from there if its name and its
    shapes are the same; all other layers are initialised as usual. The weights are copied to the run's folder when the
    run is created."""
    init_sha256: Annotated[str, AfterValidator(_require_sha256)] | None = None
    """SHA-256 of the weights of ``init_from``. It is set when the run is created; if it is set in a job file, weights
    with another SHA-256 are refused."""

    def without_idle_epochs(self, epochs: int) -> Self:
        """Return the model without each ``bias_epochs`` that has no effect if training takes ``epochs`` epochs."""

        def trimmed(block: Any) -> Any:
            if isinstance(block, nn.Residual):
                return replace(block, blocks=tuple(map(trimmed, block.blocks)))
            return replace(block, bias_epochs=0) if getattr(block, "bias_epochs", 0) >= epochs else block

        return self.model_copy(
            update={"blocks": tuple(map(trimmed, self.blocks)), "classifier": trimmed(self.classifier)}
        )

    @property
    def has_convolutions(self) -> bool:
        """True if any block, including those inside residual blocks, is a convolution."""
        return any(isinstance(block, nn.Conv | nn.Residual) for block in self.blocks)

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if self.init_sha256 and not self.init_from:
            raise ValueError("init_sha256: has no effect without init_from. Set init_from, or omit init_sha256")
        return self

    @model_validator(mode="after")
    def _whitens_images(self) -> Self:
        bodies = [block for outer in self.blocks if isinstance(outer, nn.Residual) for block in outer.blocks]
        if any(isinstance(block, nn.Conv) and block.init == "whitening" for block in [*self.blocks[1:], *bodies]):
            raise ValueError(
                "blocks: only the first block, which reads the images, can have init = 'whitening' (found in another "
                "block). Set 'dirac' or 'he'"
            )
        return self
