"""Chains: a network's operations in order, with the tensors between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Dropout, Layer, Network, Residual, Shape
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.operations import Operation, border_of, operations_of, parameters_of
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Tensor

PLACES = 256
"""Number of places reserved for the layers within a residual block.

A layer's place is part of the address of its random numbers.
"""


@dataclass(frozen=True)
class _Link:
    """One operation of a chain."""

    operation: Operation | Residual
    name: str
    """Name of its layer, the prefix of the names of its parameters."""
    place: int
    """Place of its layer, part of the address of its random numbers."""
    output_shape: Shape
    layer: Layer


@dataclass(frozen=True)
class Chain:
    """Planner of operations that follow each other, with buffers from one arena."""

    arena: Arena
    backend: Backend
    feed: StepInputs
    weights: dict[str, Array]
    """All parameters by name."""
    gradients: dict[str, Array]
    """Gradients of the trainable ones, by name; empty in an evaluation."""
    batch_size: int
    trainable: bool
    """True for a training, False for an evaluation."""

    def network(self, network: Network) -> tuple[Tensor, Tensor, list[ForwardBackward]]:
        """Plan a network; the images themselves get no gradient.

        Returns:
            Input tensor, output tensor, and the two tasks of each operation between them, in forward order.
        """
        links = self._links(network.layers)
        x = self._signal(network.image_shape, border_of(links[0].operation), trainable=False)
        y, steps = self._walk(links, x)
        return x, y, steps

    def _signal(self, shape: Shape, border: int = 0, *, trainable: bool | None = None) -> Tensor:
        """Take a tensor for a batch of values of this shape, trainable in a training unless told otherwise."""
        trainable = self.trainable if trainable is None else trainable
        size, dtype = (self.batch_size, *shape), self.backend.dtype
        return Tensor.take(self.arena, size, dtype, border=border, trainable=trainable)

    def _links(self, layers: Sequence[Layer], prefix: str = "", first_place: int = 0) -> list[_Link]:
        """Return the operations of layers in order; an evaluation leaves dropout out."""
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
        """Plan operations that start from x and end in ``last``, or in a new tensor."""
        steps: list[ForwardBackward] = []
        borders = [border_of(link.operation) for link in links[1:]]
        # Each output has the border that the next operation needs, so a convolution never copies its input to pad it.
        ends = [self._signal(link.output_shape, border) for link, border in zip(links, borders, strict=False)]
        ends.append(last or self._signal(links[-1].output_shape))
        for link, y in zip(links, ends, strict=True):
            steps += self._link(link, x, y)
            x = y
        return x, steps

    def _link(self, link: _Link, x: Tensor, y: Tensor) -> list[ForwardBackward]:
        """Plan one operation from x to y."""
        if isinstance(link.operation, Residual):
            return self._residual(link.operation, link, x, y)
        names = [f"{link.name}/{name}" for name in parameters_of(link.operation)]
        own, gradients = (
            {name.rpartition("/")[2]: arrays[name] for name in names if name in arrays}
            for arrays in (self.weights, self.gradients)
        )
        # A first layer that is frozen or has no parameters would write a gradient that its input has no memory for.
        step = self.backend.block(self.arena, link.operation, x, y, (own, gradients), self.feed, link.place)
        return [step if x.trainable or gradients else ForwardBackward(step.forward, _nothing)]

    def _residual(self, block: Residual, link: _Link, x: Tensor, y: Tensor) -> list[ForwardBackward]:
        """Plan the shortcut, the body and their sum; backward, the gradients of both are added up in that of x."""
        # The gradient of a sum is that of both terms, so the shortcut shares the array of the body's output. No
        # operation writes to the gradient of its own output: the array is still intact after the body's backward.
        shape, name, place = link.layer.input_shape, f"{link.name}/", PLACES * (link.place + 1)
        body, steps = self._walk(self._links(block.body(shape), name, place), x)
        gradient, shortcut = body.gradient, x
        if projection := block.projection(shape):
            gradient, window = (
                self.arena.take(x.gradient.shape, self.backend.dtype),
                (slice(None), *block.window(shape)),
            )
            # Only the window is ever written: pixels outside it keep the gradient 0 of the fresh arena.
            seen, slope = x.value[window], gradient[window] if x.trainable else gradient
            side = Tensor(seen, seen, slope, slope, x.value)
            value = self.arena.take(y.value.shape, self.backend.dtype)
            end = Tensor(value, value, body.gradient, body.gradient)
            # PLACES − 1 is the last place of the block: it does not move with the length of the body.
            shortcut, before = self._walk(self._links([projection], name, place + PLACES - 1), side, end)
            steps = [*before, *steps]
        # Backward runs from the end of the list: the sum into x.gradient stands first, so the body has written it.
        if x.trainable:
            steps = [ForwardBackward(_nothing, self.backend.accumulate(self.arena, gradient, x.gradient)), *steps]
        return [*steps, self.backend.join(self.arena, body, shortcut, y, block.activation)]


def _nothing() -> None:
    """Do nothing: the task of an operation that runs in one direction only."""
