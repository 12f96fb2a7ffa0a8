"""Conversion of a job's settings to :mod:`cnnjob.nn` objects, such as the network, optimiser and schedule.

For fine-tuning, this includes which layers take the weights of another run or file, and which are new.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cnnjob import nn
from cnnjob.errors import JobError, plural
from cnnjob.files import short_digest
from cnnjob.jobs.job import Job
from cnnjob.jobs.model import Model
from cnnjob.jobs.settings import AdamSettings, AdamWSettings, DataSettings, MuonSettings, SgdSettings, TrainSettings
from cnnjob.nn.blocks import Layer
from cnnjob.runs.initial import Arrays, InitialWeights, describe_shapes, read_initial

_SHOWN_REASONS = 3
"""Maximum number of layers whose reasons an error lists."""


def build_network(model: Model, image_shape: tuple[int, int, int], classes: int) -> nn.Network:
    """Build a job's network for a dataset.

    Args:
        model: the job's model.
        image_shape: (H, W, C).
        classes: number of classes; the final classifier has one output per class.

    Returns:
        The network.

    Raises:
        JobError: a block does not match the output of the preceding block.
    """
    blocks: list[nn.Block] = [*model.blocks, replace(model.classifier, units=classes)]
    if model.init_from:
        blocks = list(map(_freeze_fully, blocks))
    try:
        return nn.Network.build(blocks, image_shape)
    except ValueError as error:
        raise JobError(f"model.blocks: {error}. Change the block or its position") from error


def _freeze_fully(block: nn.Block) -> nn.Block:
    """Return a block of a fine-tuned network, with its bias and normalisation frozen if its weights are frozen."""
    if isinstance(block, nn.Residual):
        inner = (replace(one, fully_frozen=one.frozen) if isinstance(one, nn.Conv) else one for one in block.blocks)
        return replace(block, blocks=tuple(inner))
    return replace(block, fully_frozen=block.frozen) if isinstance(block, nn.Conv | nn.Dense) else block


def build_optimiser(train: TrainSettings) -> nn.Optimiser:
    """Build the optimiser that a job selects."""
    chosen = getattr(train.optimiser, train.optimiser.kind)
    lookahead = nn.Lookahead(**dict(train.lookahead)) if train.lookahead else None
    ema = nn.Ema(**dict(train.ema)) if train.ema else None
    common: dict[str, Any] = {"lookahead": lookahead, "clip_norm": train.clip_norm or 0.0, "ema": ema}
    if not isinstance(chosen, MuonSettings):
        return _build_rule(chosen, train.weight_decay, common)
    others = getattr(chosen.others, chosen.others.kind)
    return nn.Muon(
        weight_decay=train.weight_decay,
        others=_build_rule(others, others.weight_decay, {}),
        others_factor=others.learning_rate / train.learning_rate,
        **chosen.model_dump(exclude={"others"}),
        **common,
    )


def _build_rule(settings: SgdSettings | AdamSettings, decay: float, common: dict[str, Any]) -> nn.Sgd | nn.Adam:
    if isinstance(settings, SgdSettings):
        nesterov, decoupled = settings.nesterov, settings.decoupled_weight_decay
        return nn.Sgd(settings.momentum, decay, nesterov=nesterov, decoupled=decoupled, **common)
    kind = nn.AdamW if isinstance(settings, AdamWSettings) else nn.Adam
    # In nn, β₁ is called momentum, and every optimiser has that field.
    return kind(settings.beta1, decay, beta2=settings.beta2, eps=settings.eps, **common)


def build_schedule(train: TrainSettings) -> nn.Schedule:
    """Build a job's learning rate schedule."""
    kind = train.schedule.kind
    settings = dict(getattr(train.schedule, kind))
    if kind == "step":
        epochs = train.epochs
        settings["milestones"] = tuple(m / epochs if m >= 1 else m for m in settings["milestones"])
    return nn.Schedule(train.learning_rate, kind, **settings)  # type: ignore[arg-type]


def build_training_options(job: Job) -> nn.TrainingOptions:
    """Build a job's training options: image augmentation and label smoothing."""
    augmentation = nn.Augmentation(**dict(job.data.augment)) if job.data.augment else None
    return nn.TrainingOptions(augmentation, job.train.label_smoothing)


def build_pixels(data: DataSettings, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.PixelNormalisation:
    """Build a job's pixel normalisation.

    Args:
        data: the job's data settings.
        mean: per-channel mean of the training images' pixels, scaled to 0..1.
        std: per-channel standard deviation of the same pixels.

    Returns:
        The normalisation to mean 0 and standard deviation 1 per channel, or to the range 0..1.
    """
    return (
        nn.PixelNormalisation.standardised(mean, std)
        if data.pixels == "standardised"
        else nn.PixelNormalisation.unit(len(mean))
    )


@dataclass(frozen=True)
class InitialLayers:
    """The layers of a network, divided by where their initial values come from."""

    weights: InitialWeights
    arrays: Arrays
    """The arrays that are taken, by name, float32."""
    taken: tuple[str, ...]
    """Names of the layers that take all their arrays from the weights."""
    frozen: dict[str, str]
    """The layers in ``taken`` that keep the taken values: ``frozen``, or ``frozen in part`` for a residual block."""
    new: dict[str, str]
    """Names of the layers that are initialised as usual, each with the reason."""
    left_out: tuple[str, ...]
    """Layers (or arrays outside a layer) in the weights that the network does not have."""

    @classmethod
    def of(cls, job: Job, network: nn.Network) -> "InitialLayers | None":
        """Read a job's initial weights and compare them with its network.

        Args:
            job: a job from :func:`cnnjob.runs.initial.find_initial`.
            network: the job's network.

        Returns:
            The layers; None if the job has no ``model.init_from``.

        Raises:
            DataError: the weights are missing or damaged.
            JobError: the weights do not fit any layer, or they do not fit a frozen layer.
        """
        if not job.model.init_from:
            return None
        weights = read_initial(job)
        layers = [layer for layer in network.layers if layer.parameters]
        reasons = {layer.name: _why_new(layer, weights.arrays, network) for layer in layers}
        new = {name: reason for name, reason in reasons.items() if reason}
        frozen = {layer.name: part for layer in layers if (part := _frozen_part(layer.block))}
        if len(new) == len(layers):
            raise JobError(
                f"model.init_from: the weights in {weights.origin['source']} do not fit any layer (found "
                f"{_describe_misfit(weights.arrays, network)}). Use the same blocks as the network that these weights "
                "come from, or an .npz file whose arrays have the needed names and shapes"
            )
        if unfit := {name: reason for name, reason in new.items() if name in frozen}:
            raise JobError(
                f"model.blocks: a frozen block would keep random weights, since those of {weights.source} do not fit "
                f"(found {_join(unfit)}). Set frozen = false there, or change the block"
            )
        names = [name for layer in layers if layer.name not in new for name in layer.parameters]
        present = dict.fromkeys(name.partition("/")[0] for name in weights.arrays)
        left_out = tuple(name for name in present if name not in reasons)
        taken = tuple(name for name in reasons if name not in new)
        return cls(weights, {name: weights.arrays[name] for name in names}, taken, frozen, new, left_out)

    def describe(self) -> Iterator[str]:
        """Yield lines that describe where the weights come from, which layers take them, and which do not."""
        yield f"initial weights: {self.weights.source} (SHA-256 {short_digest(self.weights.sha256)})"
        taken = {name: self.frozen.get(name, "") for name in self.taken}
        yield f"  taken: {_join(taken, len(taken))}"
        if self.new:
            yield f"  new: {_join(self.new, len(self.new))}"
        if self.left_out:
            yield f"  not in this network: {', '.join(self.left_out)}"

    def as_json(self) -> dict[str, Any]:
        """Return the information in :meth:`describe` as a dict for JSON."""
        return {
            **self.weights.origin,
            "taken": list(self.taken),
            "frozen": [name for name in self.taken if name in self.frozen],
            "new": self.new,
            "left_out": list(self.left_out),
        }


def _describe_misfit(arrays: Arrays, network: nn.Network) -> str:
    """Return the first array whose shape differs from what the network needs; if no name matches, return all names."""
    needed = {name: parameter.shape for name, parameter in network.parameters.items()}
    unfit = [name for name in needed if name in arrays and arrays[name].shape != needed[name]]
    if not unfit:
        shapes = {name: array.shape for name, array in arrays.items()}
        return f"{describe_shapes(shapes)}; the network needs {describe_shapes(needed)}"
    first, *others = unfit
    found, expected = ("×".join(map(str, shape)) for shape in (arrays[first].shape, needed[first]))
    more = f", and {plural(len(others), 'other array')} of another shape" if others else ""
    return f"{first} {found} instead of {expected}{more}"


def _frozen_part(block: nn.Block) -> str:
    """Return ``frozen`` if the block is frozen, and an empty string if it is not.

    Return ``frozen in part`` for a residual block in which only some convolutions are frozen.
    """
    if isinstance(block, nn.Residual):
        parts = {inner.frozen for inner in block.blocks if isinstance(inner, nn.Conv)}
        return "" if True not in parts else "frozen in part" if False in parts else "frozen"
    return "frozen" if isinstance(block, nn.Conv | nn.Dense) and block.frozen else ""


def _why_new(layer: Layer, arrays: Arrays, network: nn.Network) -> str:
    """Return why a layer cannot take its weights, in a few words; empty if it can."""
    expected = {name: parameter.shape for name, parameter in layer.parameters.items()}
    found = {name: array.shape for name, array in arrays.items() if name.startswith(f"{layer.name}/")}
    if not found:
        return "not in the weights"
    if layer is network.layers[-1]:
        classes = {shape[-1] for shape in found.values() if shape}
        if len(classes) == 1 and classes != {network.classes}:
            return f"{classes.pop()} classes in the weights, {network.classes} here"
    for name in dict.fromkeys([*expected, *found]):
        if expected.get(name) != found.get(name):
            return f"{name} has {_shape_text(found, name)} in the weights, {_shape_text(expected, name)} here"
    return ""


def _shape_text(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return f"shape {'×'.join(map(str, shapes[name]))}" if name in shapes else "no array"


def _join(reasons: Mapping[str, str], limit: int = _SHOWN_REASONS) -> str:
    """Return the names of layers on one line, with any reason in brackets; layers beyond ``limit`` are only counted."""
    shown = [f"{name} ({reason})" if reason else name for name, reason in reasons.items()]
    more = [f"and {len(shown) - limit} more"] if len(shown) > limit else []
    return ", ".join([*shown[:limit], *more])
