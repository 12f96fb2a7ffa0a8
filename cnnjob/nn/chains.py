"""A network's operations, one after the other, with the signals between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Dropout, Layer, Network, Residual, Shape
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.operations import Operation, border_of, operations_of, parameters_of
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Tensor

PLACES = 256
"""Of layers within a residual block; a place is part of a random number's address."""


@dataclass(frozen=True)
class _Link:
    """One operation of a chain."""

    operation: Operation | Residual
    name: str
    """Of its layer, which its parameters' names start with."""
    place: int
    output_shape: Shape
    layer: Layer


@dataclass(frozen=True)
class Chain:
    """Plans operations on an arena."""

    arena: Arena
    backend: Backend
    feed: StepInputs
    weights: dict[str, Array]
    """All parameters by name."""
    gradients: dict[str, Array]
    """Of those that learn."""
    batch_size: int
    trainable: bool
    """Whether it is a training."""

    def network(self, network: Network) -> tuple[Tensor, Tensor, list[ForwardBackward]]:
        """Plan a network: input, outputs, and the steps between them; the images themselves need no gradient."""
        links = self._links(network.layers)
        x = self._signal(network.image_shape, border_of(links[0].operation), trainable=False)
        y, steps = self._walk(links, x)
        return x, y, steps

    def _signal(self, shape: Shape, border: int = 0, *, trainable: bool | None = None) -> Tensor:
        trainable = self.trainable if trainable is None else trainable
        size, dtype = (self.batch_size, *shape), self.backend.dtype
        return Tensor.take(self.arena, size, dtype, border=border, trainable=trainable)

    def _links(self, layers: Sequence[Layer], prefix: str = "", first_place: int = 0) -> list[_Link]:
        links: list[_Link] = []
        for place, layer in enumerate(layers, start=first_place):
            shape = layer.input_shape
            for operation in operations_of(layer.block):
                shape = operation.output_shape(shape)
                if self.trainable or not isinstance(operation, Dropout):
                    links.append(_Link(operation, prefix + layer.name, place, shape, layer))
        return links

    def _walk(
        self, links: Sequence[_Link], x: Tensor, last: Tensor | None = None
    ) -> tuple[Tensor, list[ForwardBackward]]:
        """Plan operations from x on; into the last signal, if it is given."""
        steps: list[ForwardBackward] = []
        borders = [border_of(link.operation) for link in links[1:]]
        ends = [self._signal(link.output_shape, border) for link, border in zip(links, borders, strict=False)]
        ends.append(last or self._signal(links[-1].output_shape))
        for link, y in zip(links, ends, strict=True):
            steps += self._link(link, x, y)
            x = y
        return x, steps

    def _link(self, link: _Link, x: Tensor, y: Tensor) -> list[ForwardBackward]:
        if isinstance(link.operation, Residual):
            return self._residual(link.operation, link, x, y)
        names = [f"{link.name}/{name}" for name in parameters_of(link.operation)]
        own, gradients = (
            {name.rpartition("/")[2]: arrays[name] for name in names if name in arrays}
            for arrays in (self.weights, self.gradients)
        )
        step = self.backend.block(self.arena, link.operation, x, y, (own, gradients), self.feed, link.place)
        return [
            step if x.trainable or gradients else ForwardBackward(step.forward, _nothing)
        ]  # there is no gradient to write to

    def _residual(self, block: Residual, link: _Link, x: Tensor, y: Tensor) -> list[ForwardBackward]:
        """The shortcut, the body, and their sum; backward, x gets the gradients of both."""
        shape, name, place = link.layer.input_shape, f"{link.name}/", PLACES * (link.place + 1)
        body, steps = self._walk(self._links(block.body(shape), name, place), x)
        gradient, shortcut = body.gradient, x
        if projection := block.projection(shape):
            gradient, window = (
                self.arena.take(x.gradient.shape, self.backend.dtype),
                (slice(None), *block.window(shape)),
            )
            seen, slope = x.value[window], gradient[window] if x.trainable else gradient
            side = Tensor(seen, seen, slope, slope, x.value)
            value = self.arena.take(y.value.shape, self.backend.dtype)
            end = Tensor(value, value, body.gradient, body.gradient)
            shortcut, before = self._walk(self._links([projection], name, place + PLACES - 1), side, end)
            steps = [*before, *steps]
        if x.trainable:
            steps = [ForwardBackward(_nothing, self.backend.accumulate(self.arena, gradient, x.gradient)), *steps]
        return [*steps, self.backend.join(self.arena, body, shortcut, y, block.activation)]


def _nothing() -> None:
    """The half of what only goes the other way."""
