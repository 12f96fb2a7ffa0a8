"""Optimisers as data: their constants, and the segments of the flat parameter buffer that they update.

The arithmetic is in the backends: :mod:`cnnjob.nn.cpu.updates` and :mod:`cnnjob.nn.cuda.updates`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod, sqrt
from typing import ClassVar, Literal

import numpy as np

from cnnjob.nn.arena import Array, BufferLayout
from cnnjob.nn.blocks import Network, Shape


@dataclass(frozen=True)
class Lookahead:
    """A slow copy of the weights, to which the fast weights are reset at intervals (Zhang et al. 2019, alg. 1).

    Every ``every`` steps, and after the last step of training, slow ← α·slow + (1 − α)·fast and fast ← slow.
    Here α = decay^n · (t / T)^power, where T is the total number of steps, t the number of completed steps, and n the
    number of steps since the previous reset (Jordan 2024, §3.4; in Jordan's version, the final steps are lost unless
    ``every`` divides T).
    """

    every: int = 5
    """Number of steps between resets."""
    decay: float = 0.95
    """Factor applied to α for each step since the last reset."""
    power: float = 3.0
    """Exponent of t / T, the completed fraction of training."""

    def alphas(self, steps: range, total: int) -> Array:
        """Return Lookahead's α for each of the given steps, or −1 for steps after which the weights are not reset.

        Args:
            steps: the steps, counted from the start of training.
            total: total number of training steps.

        Returns:
            α, float64 (len(steps),).
        """
        steps_done = np.asarray(steps) + 1
        steps_since_reset = np.where(steps_done % self.every, steps_done % self.every, self.every)
        alphas = self.decay**steps_since_reset * (steps_done / total) ** self.power
        return np.where((steps_since_reset == self.every) | (steps_done == total), alphas, -1.0)


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of the weights and running statistics, evaluated in their place.

    After each step, and after Lookahead: m ← m + (1 − d)(w − m), with d from :meth:`decays`. This is
    torch.optim.swa_utils.AveragedModel with ``get_ema_multi_avg_fn`` and ``use_buffers``; with warm-up, it is timm's
    ModelEmaV3 with its default warm-up.
    """

    decay: float = 0.999
    """Largest d."""
    warmup: bool = True
    """True to limit d at first, so that the average soon forgets the first steps."""

    def decays(self, steps: range) -> Array:
        """Return d for each of the given steps, which are counted from the start of training.

        After the first step d is 0, so the average starts as a copy and never contains the initial weights. After
        step t it is ``decay``, or min(``decay``, 1 − (1 + t)^(−2/3)) with warm-up.

        Returns:
            d, float64 (len(steps),).
        """
        t = np.asarray(steps, np.float64)
        decays = np.minimum(self.decay, 1 - (1 + t) ** (-2 / 3)) if self.warmup else np.full(t.shape, self.decay)
        return np.where(t == 0, 0.0, decays)


@dataclass(frozen=True)
class _Rule:
    """The fields shared by all optimisers."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    lookahead: Lookahead | None = None
    clip_norm: float = field(default=0.0, kw_only=True)
    """Maximum L2 norm of all gradients together, or 0 for no limit. Gradients of a larger norm n are multiplied by
    ``clip_norm`` / (n + 10⁻⁶) before the update (Pascanu et al. 2013, alg. 1, in PyTorch's form)."""
    ema: Ema | None = field(default=None, kw_only=True)

    @property
    def slots(self) -> tuple[str, ...]:
        """Return the names of the optimiser's own flat buffers, each as large as the parameter buffer."""
        averages = {"slow": self.lookahead, "ema": self.ema}
        return (*self._rule_slots, *(name for name, average in averages.items() if average))

    @property
    def _rule_slots(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()


@dataclass(frozen=True)
class Sgd(_Rule):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, eq. 1 and 3, in PyTorch's form).

    g ← g + λw,  v ← μv + g,  w ← w − ηv, with η the learning rate, μ ``momentum`` and λ ``weight_decay``.
    With Nesterov momentum, the last formula is w ← w − η(g + μv). Decoupled decay leaves g unchanged and starts with
    w ← w − ηλw (Loshchilov & Hutter 2019, alg. 1).
    """

    nesterov: bool = False
    decoupled: bool = False


@dataclass(frozen=True)
class Adam(_Rule):
    """Adam with weight decay added to the gradient (Kingma & Ba 2015, alg. 1, in PyTorch's form).

    g ← g + λw,  m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  w ← w − η·m̂/(√v̂ + eps), with m̂ = m/(1 − β₁ᵗ) and
    v̂ = v/(1 − β₂ᵗ) at the t-th step; β₁ is ``momentum``.
    """

    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decoupled: ClassVar[bool] = False

    @property
    def _rule_slots(self) -> tuple[str, ...]:
        return ("first_moment", "second_moment")


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, alg. 2, in PyTorch's form).

    It leaves g unchanged, and starts with w ← w − ηλw; the other formulas are those of :class:`Adam`.
    """

    decoupled: ClassVar[bool] = True


@dataclass(frozen=True)
class Muon(_Rule):
    """Momentum orthogonalised by Newton–Schulz iterations (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Only the weights of layers are trained in this way: those of a dense block as the matrix (inputs, units), and those
    of a convolution as the matrix (K·K·C, F). PyTorch's matrices are the transposes of these, and so are its updates.
    With g and w the gradient and the weights, ‖·‖ the Frobenius norm and (a, b, c) = :data:`NEWTON_SCHULZ`:

    v ← μv + g,  X ← u / (‖u‖ + 10⁻⁷) with u = v, or u = g + μv with Nesterov momentum;  ``ns_steps`` times
    X ← aX + (bA + cA²)X with A = XXᵀ;  w ← w − ηλw,  w ← w − ηsX, with s from :meth:`scale`.

    All other parameters, and by default also the first and the last layer's weights, are updated by ``others``.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust_learning_rate: Literal["original", "match_rms_adamw", "none"] = "original"
    normalise_weights: bool = False
    """True to first multiply w by √(columns of w) / ‖w‖, as in airbench94_muon (K. Jordan 2024)."""
    first_layer: bool = False
    classifier: bool = False
    others: Sgd | Adam = AdamW(beta2=0.95, eps=1e-10)
    """Rule for all other parameters; it has a separate weight decay."""
    others_factor: float = 1.0
    """Learning rate of the others as a fraction of the step's learning rate."""

    @property
    def _rule_slots(self) -> tuple[str, ...]:
        return ("velocity", *(slot for slot in self.others.slots if slot != "velocity"))

    def scale(self, shape: Shape) -> float:
        """Return s for a matrix of this shape, (rows, columns), as torch.optim.Muon's ``adjust_lr_fn`` does.

        It is √max(1, columns / rows) for ``original`` (Jordan et al. 2024), 0.2·√max(columns, rows) for
        ``match_rms_adamw`` (Liu et al. 2025, §2.2), and 1 for ``none``.
        """
        rows, columns = shape
        scales = {"original": sqrt(max(1, columns / rows)), "match_rms_adamw": 0.2 * sqrt(max(shape)), "none": 1.0}
        return scales[self.adjust_learning_rate]


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of Muon's iterations, chosen for a steep slope at 0 (Jordan et al. 2024)."""
NEWTON_SCHULZ_EPS = 1e-7
"""Added to the norm of Muon's momentum before dividing by it, as in the published code."""
Optimiser = Sgd | Adam | Muon
CLIP_EPS = 1e-6
"""Added to the gradients' norm before dividing by it, as torch.nn.utils.clip_grad_norm_ does."""


SegmentKind = Literal["vector", "first", "hidden", "classifier"]


@dataclass(frozen=True)
class Segment:
    """A segment of the flat parameter buffer with a single learning rate factor and decay setting."""

    elements: slice
    """Slice of the buffer that the segment covers."""
    learning_rate_factor: float
    """Factor by which the step's learning rate is multiplied."""
    decays: bool
    """True if weight decay applies."""
    kind: SegmentKind = "vector"
    """The position of the layer whose weights the segment holds; ``vector`` for biases and normalisation parameters."""
    shape: Shape = ()
    """Shape of a layer's weights as a matrix: (inputs, units) or (K·K·C, F)."""


def trainable_segments(network: Network, layout: BufferLayout) -> list[Segment]:
    """Return one segment per trainable parameter."""
    matrices = [name for name, parameter in network.parameters.items() if len(parameter.shape) > 1]
    segments = []
    for name, parameter in network.parameters.items():
        segment = Segment(layout.slice_of(name), parameter.learning_rate_factor, parameter.decays)
        if name in matrices:
            kind: SegmentKind = {matrices[0]: "first", matrices[-1]: "classifier"}.get(name, "hidden")  # type: ignore[assignment]
            segment = replace(segment, kind=kind, shape=(prod(parameter.shape[:-1]), parameter.shape[-1]))
        if parameter.trainable:
            segments.append(segment)
    return segments


def split_segments(optimiser: Optimiser, segments: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
    """Return the segments that Muon updates as matrices, and those that another rule updates.

    The learning rate factors of the latter include :attr:`Muon.others_factor`.
    """
    if not isinstance(optimiser, Muon):
        return [], list(segments)
    is_matrix = {"vector": False, "first": optimiser.first_layer, "hidden": True, "classifier": optimiser.classifier}
    others = [
        replace(segment, learning_rate_factor=segment.learning_rate_factor * optimiser.others_factor)
        for segment in segments
        if not is_matrix[segment.kind]
    ]
    return [segment for segment in segments if is_matrix[segment.kind]], others
