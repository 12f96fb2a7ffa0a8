"""Chains: the operations of a network in order, with the tensors between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Dropout, Layer, Network, Residual, Shape
from cnnjob.nn.operations import (
    LAYERS_PER_RESIDUAL,
    Operation,
    border_of,
    first_inner_index,
    parameters_of,
    split_block,
)
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Tensor


@dataclass(frozen=True)
class _Link:
    """One operation of a chain."""

    operation: Operation | Residual
    name: str
    """Name of the layer, which is the prefix of its parameters' names."""
    layer_index: int
    """Index of the layer, part of the address of its random numbers."""
    output_shape: Shape
    layer: Layer


@dataclass(frozen=True)
class Chain:
    """Planner for consecutive operations, with buffers from one arena."""

    arena: Arena
    backend: Backend
    inputs: StepInputs
    weights: dict[str, Array]
    """All parameters by name."""
    gradients: dict[str, Array]
    """Gradients of the trainable parameters by name; empty for evaluation."""
    batch_size: int
    trainable: bool
    """True for training, False for evaluation."""

    def plan_network(self, network: Network) -> tuple[Tensor, Tensor, list[ForwardBackward]]:
        """Plan a network; no gradient is computed for the images.

        Returns:
            The input tensor, the output tensor, and the tasks of each operation between them, in forward order.
        """
        links = self._build_links(network.layers)
        x = self._take_tensor(network.image_shape, border_of(links[0].operation), trainable=False)
        y, steps = self._plan_links(links, x)
        return x, y, steps

    def _take_tensor(self, shape: Shape, border: int = 0, *, trainable: bool | None = None) -> Tensor:
        """Allocate a tensor for a batch of images of this shape; by default, it is trainable if the chain is."""
        trainable = self.trainable if trainable is None else trainable
        size, dtype = (self.batch_size, *shape), self.backend.dtype
        return Tensor.take(self.arena, size, dtype, border=border, trainable=trainable)

    def _build_links(self, layers: Sequence[Layer], prefix: str = "", first_index: int = 0) -> list[_Link]:
        """Return the operations of the layers in order; for evaluation, dropout is left out."""
        links: list[_Link] = []
        for layer_index, layer in enumerate(layers, start=first_index):
            shape = layer.input_shape
            for operation in split_block(layer.block):
                shape = operation.output_shape(shape)
                if self.trainable or not isinstance(operation, Dropout):
                    links.append(_Link(operation, prefix + layer.name, layer_index, shape, layer))
        return links

    def _plan_links(
        self, links: Sequence[_Link], x: Tensor, last: Tensor | None = None
    ) -> tuple[Tensor, list[ForwardBackward]]:
        """Plan consecutive operations that read x and write the result to ``last`` or to a new tensor."""
        steps: list[ForwardBackward] = []
        borders = [border_of(link.operation) for link in links[1:]]
        # Each output has the border that the next operation needs, so a convolution never copies its input to pad it.
        outputs = [self._take_tensor(link.output_shape, border) for link, border in zip(links, borders, strict=False)]
        outputs.append(last or self._take_tensor(links[-1].output_shape))
        for link, y in zip(links, outputs, strict=True):
            steps += self._plan_link(link, x, y)
            x = y
        return x, steps

    def _plan_link(self, link: _Link, x: Tensor, y: Tensor) -> list[ForwardBackward]:
        """Plan one operation from x to y."""
        if isinstance(link.operation, Residual):
            return self._plan_residual(link.operation, link, x, y)
        names = [f"{link.name}/{name}" for name in parameters_of(link.operation)]
        weights, gradients = (
            {name.rpartition("/")[2]: arrays[name] for name in names if name in arrays}
            for arrays in (self.weights, self.gradients)
        )
        step = self.backend.plan_operation(
            self.arena, link.operation, x, y, (weights, gradients), self.inputs, link.layer_index
        )
        # A first layer that is frozen or has no parameters would write a gradient for which its input has no memory.
        return [step if x.trainable or gradients else ForwardBackward(step.forward, _nothing)]

    def _plan_residual(self, block: Residual, link: _Link, x: Tensor, y: Tensor) -> list[ForwardBackward]:
        """Plan the shortcut, the body and their sum; ``x.gradient`` receives the sum of their input gradients."""
        shape, prefix, first_index = link.layer.input_shape, f"{link.name}/", first_inner_index(link.layer_index)
        body, steps = self._plan_links(self._build_links(block.body(shape), prefix, first_index), x)
        # Both terms of a sum have the sum's gradient, so the shortcut shares the gradient array of the body's output.
        # No operation writes to its output's gradient: the array is still intact after the body's backward tasks.
        dx_of_shortcut, shortcut = body.gradient, x
        if projection := block.projection(shape):
            dx_of_shortcut = self.arena.take(x.gradient.shape, self.backend.dtype)
            window = (slice(None), *block.window(shape))
            # Only the window is ever written: pixels outside it keep their initial gradient of 0.
            x_window, dx_window = x.value[window], dx_of_shortcut[window] if x.trainable else dx_of_shortcut
            source = Tensor(x_window, x_window, dx_window, dx_window, window_of=x.value)
            value = self.arena.take(y.value.shape, self.backend.dtype)
            target = Tensor(value, value, body.gradient, body.gradient)
            # The block's last index, which does not depend on the length of the body.
            links = self._build_links([projection], prefix, first_index + LAYERS_PER_RESIDUAL - 1)
            shortcut, projection_steps = self._plan_links(links, source, target)
            steps = [*projection_steps, *steps]
        # Backward tasks run from the end of the list, so this one adds to x.gradient after the body has written it.
        if x.trainable:
            add_shortcut = self.backend.accumulate(self.arena, dx_of_shortcut, x.gradient)
            steps = [ForwardBackward(_nothing, add_shortcut), *steps]
        return [*steps, self.backend.residual_add(self.arena, body, shortcut, y, block.activation)]


def _nothing() -> None:
    """Do nothing; takes the place of a missing forward or backward task."""
