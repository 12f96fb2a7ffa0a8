"""What an optimiser is told: its constants, and which stretch of the parameters learns how."""

from dataclasses import dataclass

from cnnjob.nn.blocks import Network
from cnnjob.nn.memory import Layout


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, eq. 1, in torch's form).

    g ← g + λw,  v ← μv + g,  w ← w − ηv, with η the learning rate, μ ``momentum`` and λ ``weight_decay``.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        """The arrays it keeps beside the parameters, each of their shape."""
        return ("velocity",) if self.momentum else ()


@dataclass(frozen=True)
class Segment:
    """A stretch of the flat parameter buffer that learns in one way."""

    place: slice
    learning_rate_factor: float
    decays: bool


def segments(network: Network, layout: Layout) -> list[Segment]:
    """One segment a parameter."""
    return [
        Segment(layout.slices(name), parameter.learning_rate_factor, parameter.decays)
        for name, parameter in network.parameters.items()
    ]
