"""Schema of all job-file tables except the network: data, training, resources."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from cnnjob.jobs import older
from cnnjob.jobs.schema import Fraction, NumberOrFalse, OneOf, OrFalse, Settings, format_value, is_older


class AugmentSettings(Settings):
    """Random changes to the training images in each epoch, in the order of these keys."""

    flip: Literal["none", "random", "alternating"] = "none"
    """Mirror images left to right: ``random`` decides anew for each image and epoch; ``alternating`` decides once per
    image and mirrors it in every other epoch. Over a single epoch, both are the same."""
    translate: Annotated[int, Field(ge=0, le=64)] = 0
    """Maximum shift along each axis, in pixels; drawn uniformly for each image and epoch. Gaps at the edges are filled
    by reflection, as by torchvision's ``RandomCrop(padding=…, padding_mode="reflect")``."""
    crop: Annotated[int, Field(ge=0, le=64)] = 0
    """As ``translate``, but gaps are filled with zeros (black), as by torchvision's ``RandomCrop(padding=…)``: an image
    is padded by this number of pixels on each side, and cropped to its original size at a random position. Set only
    one of ``translate`` and ``crop``."""
    cutout: Annotated[int, Field(ge=0, le=1024)] = 0
    """Side length in pixels of a square that is cut out of each image, around a pixel drawn uniformly for each image
    and epoch; the part of the square outside the image has no effect. In the square, the network's inputs are 0, which
    is the mean of the training images if ``pixels = "standardised"`` (DeVries & Taylor 2017)."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Mix each image and its label with the previous image of the batch and that image's label, as torchvision's
    ``MixUp`` does with this alpha: in each step, the shares are λ and 1 − λ, with λ drawn from the distribution
    Beta(alpha, alpha) (Zhang et al. 2018). In ``train_accuracy``, a prediction counts as correct if it is the label
    with the larger share. Label smoothing applies to the mixed label. 0 disables mixing."""

    @model_validator(mode="after")
    def _moves_once(self) -> Self:
        if self.translate and self.crop:
            raise ValueError(
                f"crop: moves images, as translate does (found crop = {self.crop} and translate = {self.translate}). "
                "Set only one of the two: crop fills gaps with zeros, and translate fills them by reflection"
            )
        return self


class DataSettings(Settings):
    """Preprocessing and augmentation of the images, and the validation split."""

    pixels: Literal["standardised", "unit"] = "standardised"
    """``unit`` divides pixels by 255; ``standardised`` then subtracts the training images' mean and divides by their
    standard deviation, per channel."""
    validation_fraction: Fraction = 0.1
    """Fraction of each class's training images held out for validation, the same images for every seed. Leave it at its
    default if the dataset has its own validation split."""
    augment: Annotated[AugmentSettings | None, OrFalse] = None
    """Augmentation of the training images: a table of settings, or ``false`` for none."""

    @field_validator("augment", mode="after")
    @classmethod
    def _changes_something(cls, augment: AugmentSettings | None, info: ValidationInfo) -> AugmentSettings | None:
        if augment is None or augment != AugmentSettings():
            return augment
        # An empty table is a mistake; one whose settings are explicitly off may be a point in a sweep.
        if not augment.model_fields_set and not is_older(info):
            raise ValueError("no augmentation is set. Set one, such as { flip = 'random' }, or omit augment")
        return None


class EarlyStoppingSettings(Settings):
    """Stop training when the accuracy on the ``select_on`` split no longer rises."""

    patience: Annotated[int, Field(ge=1)]
    """Stop after this number of epochs without a higher accuracy on the ``select_on`` split."""


class LookaheadSettings(Settings):
    """Lookahead: slow weights follow the trained weights, which then restart from the slow ones (Zhang et al. 2019)."""

    every: Annotated[int, Field(ge=1)] = 5
    """Number of steps between updates of the slow weights, at most the number of training steps; they are also updated
    after the last step."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """In an update n steps after the previous one, slow weights keep the fraction decay^n · (step / steps)^power."""
    power: Annotated[float, Field(ge=0, le=10)] = 3.0
    """Exponent of step / steps in the fraction that the slow weights keep."""


class EmaSettings(Settings):
    """Exponential moving average of the weights and running statistics, as in PyTorch's ``swa_utils`` and timm.

    It is updated after every step; if ``lookahead`` acts after the same step, it acts first. Evaluation, selection,
    early stopping, the saved weights and everything made from them use the average; training and ``train_loss`` use
    the weights themselves.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Fraction of the average that each step keeps. The average starts as the weights after the first step."""
    warmup: bool = True
    """Keep a smaller fraction at first: at most 1 − (1 + t)^(−2/3) after t steps, as timm's ``ModelEmaV3`` with
    warm-up."""


class SgdSettings(Settings):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, as PyTorch computes it)."""

    momentum: Fraction = 0.9
    """Fraction of the velocity that each step keeps; 0 means no momentum."""
    nesterov: bool = False
    """Use Nesterov's form of momentum; needs ``momentum`` above 0."""
    decoupled_weight_decay: bool = False
    """Shrink weights by the fraction learning_rate · weight_decay, as AdamW always does, instead of adding λw to the
    gradient."""

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs momentum (found momentum = 0). Set momentum, or omit nesterov")
        return self


class AdamSettings(Settings):
    """Adam (Kingma & Ba 2015), with weight decay added to the gradient as in PyTorch's Adam."""

    beta1: Fraction = 0.9
    """Decay rate of the running mean of gradients."""
    beta2: Fraction = 0.999
    """Decay rate of the running mean of squared gradients."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the square root of the mean of squared gradients."""


class AdamWSettings(AdamSettings):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""


class MuonSgdSettings(SgdSettings):
    """SGD for the parameters that Muon does not update, with a separate learning rate and weight decay."""

    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    """Peak learning rate of these parameters, with the same schedule as ``train.learning_rate``."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight decay coefficient of these parameters; ``train.weight_decay`` is Muon's."""

    @model_validator(mode="after")
    def _decay_acts(self) -> Self:
        if self.decoupled_weight_decay and not self.weight_decay:
            raise ValueError(
                "decoupled_weight_decay: has no effect without weight_decay. Set weight_decay in the same table, or "
                "omit this key"
            )
        return self


class MuonAdamWSettings(AdamWSettings):
    """AdamW for the parameters that Muon does not update, with a separate learning rate and weight decay."""

    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 3e-4
    """Peak learning rate of these parameters, with the same schedule as ``train.learning_rate``."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight decay coefficient of these parameters; ``train.weight_decay`` is Muon's."""
    beta2: Fraction = 0.95
    """Decay rate of the running mean of squared gradients."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-10
    """Added to the square root of the mean of squared gradients."""


class MuonOthersSettings(OneOf):
    """Rule for the parameters that Muon does not update: ``"adamw"``, or a table with the rule's name as its key."""

    sgd: Annotated[MuonSgdSettings | None, OrFalse] = None
    """Stochastic gradient descent: a table of settings with a ``learning_rate``."""
    adamw: Annotated[MuonAdamWSettings | None, OrFalse] = None
    """AdamW: ``true`` or a table of settings. The defaults are those of Muon's published code."""


class MuonSettings(Settings):
    """Muon (K. Jordan et al. 2024): momentum, orthogonalised by Newton–Schulz iterations, for the weights of layers.

    The weights of each convolution and dense block are updated as a matrix, except by default those of the first layer
    and the classifier; ``others`` updates all other parameters. ``train.learning_rate`` and ``train.weight_decay``
    (decoupled) apply to the matrices only. The defaults are those of Muon's published code, for which a learning rate
    of 0.02 is usual.
    """

    momentum: Fraction = 0.95
    """Fraction of the velocity that each step keeps; 0 means no momentum."""
    nesterov: bool = True
    """Use Nesterov's form of momentum; needs ``momentum`` above 0."""
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Number of Newton–Schulz iterations per step."""
    adjust_learning_rate: Literal["original", "match_rms_adamw", "none"] = "original"
    """Factor by which the update of a matrix with r inputs and c outputs is multiplied: √max(1, c/r) for ``original``;
    0.2·√max(r, c) for ``match_rms_adamw``, which suits AdamW's learning rates (Liu et al. 2025); 1 for ``none``."""
    normalise_weights: bool = False
    """Before each update, scale every matrix with c outputs to the Frobenius norm √c, as airbench94_muon does
    (K. Jordan 2024)."""
    first_layer: bool = False
    """Also update the weights of the first layer as a matrix, which the authors advise against."""
    classifier: bool = False
    """Also update the weights of the classifier as a matrix, which the authors advise against."""
    others: MuonOthersSettings = MuonOthersSettings(adamw=MuonAdamWSettings())
    """Rule for all other parameters: biases, normalisation, and the weights of the first layer and the classifier
    unless Muon updates them."""

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs momentum (found momentum = 0). Set momentum, or nesterov = false")
        return self


class OptimiserSettings(OneOf):
    """Update rule: the name of an optimiser, or a table with the name as its key."""

    sgd: Annotated[SgdSettings | None, OrFalse] = None
    """Stochastic gradient descent: ``true`` or a table of settings."""
    adam: Annotated[AdamSettings | None, OrFalse] = None
    """Adam, with weight decay added to the gradient: ``true`` or a table of settings."""
    adamw: Annotated[AdamWSettings | None, OrFalse] = None
    """Adam with decoupled weight decay: ``true`` or a table of settings."""
    muon: Annotated[MuonSettings | None, OrFalse] = None
    """Muon for the weights of layers, and another rule for all other parameters: ``true`` or a table of settings."""


class ConstantSettings(Settings):
    """A learning rate that stays at its peak after the warm-up."""

    warmup: Fraction = 0.0
    """Fraction of all steps (not epochs) over which the learning rate first rises linearly to its peak."""
    start_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate in the first step of the warm-up, as a fraction of the peak."""

    @model_validator(mode="after")
    def _starts_below(self, info: ValidationInfo) -> Self:
        if is_older(info):
            return self
        if self.start_factor and not self.warmup:
            raise ValueError(
                f"start_factor: needs a warm-up (found start_factor = {self.start_factor:g} without warmup). Set "
                "warmup, or omit start_factor"
            )
        # In a decaying schedule it does have an effect: the peak then lasts through the warm-up.
        if self.start_factor == 1 and not isinstance(self, DecaySettings):
            raise ValueError(
                "start_factor: a warm-up that starts at 1 has no effect. Set a smaller value, or omit both "
                "start_factor and warmup"
            )
        return self


class DecaySettings(ConstantSettings):
    """A learning rate that falls with every step, from its peak to an end value reached just after the last step."""

    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate reached one step after the last step of the last epoch, as a fraction of the peak."""

    @model_validator(mode="after")
    def _falls(self, info: ValidationInfo) -> Self:
        if self.end_factor == 1 and not is_older(info):
            raise ValueError("end_factor: at 1, the learning rate never falls. Set a smaller value, or use 'constant'")
        return self


def _check_milestones(value: Any) -> tuple[int | float, ...]:
    """Return milestones as a tuple; they must be epochs or fractions, in ascending order."""
    milestones = tuple(value) if isinstance(value, list | tuple) else ()
    are_epochs = all(type(milestone) is int and milestone >= 1 for milestone in milestones)
    are_fractions = all(type(milestone) is float and 0 < milestone < 1 for milestone in milestones)
    are_ascending = all(earlier < later for earlier, later in pairwise(milestones))
    if not milestones or not (are_epochs or are_fractions) or not are_ascending:
        raise ValueError(
            "input should be an array of epochs in ascending order, such as [30, 60], or of fractions of the training, "
            f"such as [0.5, 0.75], found {format_value(value)}"
        )
    return milestones


class StepSettings(ConstantSettings):
    """A learning rate that is multiplied by ``gamma`` at each milestone, as in PyTorch's ``MultiStepLR``."""

    milestones: Annotated[tuple[int | float, ...], BeforeValidator(_check_milestones)] = (0.5, 0.75)
    """When the learning rate falls: all as numbers of epochs, such as ``[30, 60]``, or all as fractions of all steps,
    in ascending order, and not before the end of the warm-up. Epochs that training does not reach are left out. The
    default is that of He et al. 2016 (§4.2) for CIFAR-10."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor by which the learning rate is multiplied at each milestone."""


class OneCycleSettings(Settings):
    """A learning rate that rises to its peak, then falls to almost 0 (Smith & Topin 2018; PyTorch's ``OneCycleLR``)."""

    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Fraction of all steps (not epochs) over which the learning rate rises; PyTorch's ``pct_start``."""
    start_factor: Annotated[float, Field(ge=0, lt=1)] = 0.04
    """Learning rate in the first step, as a fraction of the peak: 1 / ``div_factor`` in PyTorch."""
    end_factor: Annotated[float, Field(ge=0, lt=1)] = 4e-6
    """Learning rate in the last step, as a fraction of the peak: 1 / (``div_factor`` · ``final_div_factor``) in
    PyTorch."""
    anneal: Literal["cosine", "linear"] = "cosine"
    """Shape of the rise and of the fall: half a cosine each, or straight lines; PyTorch's ``anneal_strategy``."""
    base_momentum: Fraction | None = None
    """Momentum (``beta1`` of Adam) at the peak of the learning rate: it falls to this value from the optimiser's own
    setting while the rate rises, and returns to that setting while the rate falls. By default the momentum stays the
    same, as with ``cycle_momentum=False`` in PyTorch. PyTorch's defaults are 0.85 at the peak and 0.95 otherwise."""


class ScheduleSettings(OneOf):
    """Learning rate per step: the name of a schedule, or a table with the name as its key."""

    constant: Annotated[ConstantSettings | None, OrFalse] = None
    """The learning rate stays at its peak after the warm-up."""
    cosine: Annotated[DecaySettings | None, OrFalse] = None
    """The learning rate falls along half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    triangular: Annotated[DecaySettings | None, OrFalse] = None
    """The learning rate falls linearly after the warm-up."""
    step: Annotated[StepSettings | None, OrFalse] = None
    """The learning rate is multiplied by a factor at each milestone."""
    one_cycle: Annotated[OneCycleSettings | None, OrFalse] = None
    """The learning rate rises to its peak and then falls to almost 0."""


class TrainSettings(Settings):
    """Settings for training the network.

    The ``train_loss`` of an epoch is the mean of the batch losses, each computed with the weights before that batch's
    update; it includes dropout, augmentation and label smoothing, but not weight decay. All other losses are computed
    with the weights at the end of the epoch, or with their moving average (``ema``), and include none of these four.
    """

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    """Maximum number of passes over the training images, each in a different order."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    """Images per step; the last partial batch of an epoch is dropped, so each epoch leaves out different images."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    """Peak learning rate, applied to the gradient of the batch's mean loss."""
    schedule: ScheduleSettings = ScheduleSettings(constant=ConstantSettings())
    """Learning rate per step: the name of a schedule, or a table with the name as its key."""
    optimiser: OptimiserSettings = OptimiserSettings(sgd=SgdSettings())
    """Update rule: the name of an optimiser, or a table with the name as its key."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight decay coefficient λ (½λw² in the loss of SGD and Adam); biases and normalisation parameters are not
    decayed."""
    clip_norm: Annotated[float | None, Field(gt=0, le=1_000_000_000), NumberOrFalse] = None
    """Maximum L2 norm of the gradients of all parameters together: gradients with a larger norm are scaled down to it,
    before weight decay is added (Pascanu et al. 2013, as PyTorch's ``clip_grad_norm_``); ``false`` for no limit."""
    lookahead: Annotated[LookaheadSettings | None, OrFalse] = None
    """Lookahead around the optimiser: ``true`` or a table of settings; ``false`` for none."""
    ema: Annotated[EmaSettings | None, OrFalse] = None
    """Exponential moving average of the weights, which is evaluated and saved in place of the weights: ``true`` or a
    table of settings; ``false`` for none."""
    label_smoothing: Fraction = 0.0
    """Fraction of each label spread evenly over all classes, in the training loss only."""
    precision: Literal["float32", "tf32", "float16"] = "float32"
    """Precision of matrix products on a GPU: ``tf32`` rounds the operands to 10 bits of mantissa; ``float16`` also
    computes convolutions in float16, where training fails at values above 65504. Everything else is float32, as on a
    CPU."""
    select_on: Literal["validation", "test", "last"] = "validation"
    """Split whose accuracy decides which epoch's weights are kept; ``last`` keeps those of the last epoch."""
    test_time_augmentation: Literal["none", "flip", "flip_translate"] = "none"
    """Average the outputs for an image and its mirror image (``flip``), or also for both shifted by one pixel along a
    diagonal in either direction (``flip_translate``)."""
    early_stopping: Annotated[EarlyStoppingSettings | None, OrFalse] = None
    """Stop before the last epoch when the accuracy no longer rises: a table of settings, or ``false`` for never."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between checkpoints; does not affect the result."""

    @classmethod
    def explain_moved_key(cls, key: str, table: Mapping[str, Any]) -> str:
        """Return the new spelling of a key that was directly in ``train`` up to format 2; empty for other keys."""
        return older.explain_moved_key(key, table)

    @field_validator("schedule", mode="after")
    @classmethod
    def _without_idle_milestones(cls, schedule: ScheduleSettings, info: ValidationInfo) -> ScheduleSettings:
        """Drop milestones that training does not reach; refuse one during the warm-up."""
        if not (step := schedule.step):
            return schedule
        epochs = info.data.get("epochs", math.inf)
        milestones = tuple(milestone for milestone in step.milestones if milestone < epochs)
        fractions = [milestone / epochs if milestone >= 1 else milestone for milestone in milestones]
        if fractions and fractions[0] < step.warmup:
            raise ValueError(
                f"step.milestones: the learning rate would fall during the warm-up, which takes {step.warmup:g} of all "
                f"steps (found {milestones[0]}). Set a later milestone, or a shorter warmup"
            )
        if not milestones:
            return ScheduleSettings(constant=ConstantSettings(warmup=step.warmup, start_factor=step.start_factor))
        return ScheduleSettings(step=step.model_copy(update={"milestones": milestones}))

    @field_validator("early_stopping", mode="after")
    @classmethod
    def _can_stop(cls, stopping: EarlyStoppingSettings | None, info: ValidationInfo) -> EarlyStoppingSettings | None:
        """Drop early stopping if it could not end training early even if the first epoch were the best."""
        # pydantic leaves epochs out of info.data if its value is not valid.
        return stopping if stopping and stopping.patience <= info.data.get("epochs", math.inf) - 2 else None

    def _check_cycled_momentum(self) -> None:
        """Refuse ``base_momentum`` with Muon, or if it is not less than the optimiser's momentum."""
        cycle, optimiser = self.schedule.one_cycle, self.optimiser
        if not cycle or cycle.base_momentum is None:
            return
        if optimiser.muon:
            raise ValueError(
                "schedule.one_cycle.base_momentum: needs optimiser 'sgd', 'adam' or 'adamw' (found 'muon'). Omit it"
            )
        rule = optimiser.adam or optimiser.adamw
        key, momentum = ("beta1", rule.beta1) if rule else ("momentum", optimiser.sgd.momentum if optimiser.sgd else 0)
        if cycle.base_momentum >= momentum:
            raise ValueError(
                f"schedule.one_cycle.base_momentum: should be less than optimiser.{optimiser.kind}.{key} (found "
                f"{cycle.base_momentum:g} and {momentum:g}). Lower it, or omit it to keep the momentum the same"
            )

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> Self:
        if self.early_stopping and self.select_on == "last":
            raise ValueError(
                "early_stopping: needs a split to watch (found select_on = 'last'). Set select_on = 'validation' or "
                "'test'"
            )
        muon = self.optimiser.muon
        if muon and muon.normalise_weights and self.weight_decay:
            raise ValueError(
                f"weight_decay: has no effect but to change the learning rate, since optimiser.muon.normalise_weights "
                f"fixes the norms of the weights (found {self.weight_decay:g}). Set weight_decay = 0, or "
                "normalise_weights = false; the other parameters have a weight_decay of their own"
            )
        self._check_cycled_momentum()
        decoupled = self.optimiser.sgd and self.optimiser.sgd.decoupled_weight_decay
        if decoupled and not self.weight_decay and not is_older(info):
            raise ValueError(
                "optimiser.sgd.decoupled_weight_decay: has no effect without weight_decay. Set weight_decay, or omit "
                "this key"
            )
        return self


class ResourceSettings(Settings):
    """Where the job runs; not part of the run's name."""

    backend: Literal["auto", "numpy", "cuda"] = "auto"
    """``auto`` uses a GPU if there is one; a run keeps the backend of its first attempt."""
