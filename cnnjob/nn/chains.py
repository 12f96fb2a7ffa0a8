"""Chains: the operations of a network in order, with the tensors between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Dropout, Layer, Network, Residual, Shape
from cnnjob.nn.operations import (
    LAYERS_PER_RESIDUAL,
    Norm,
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
    """A planner for consecutive operations, with buffers from one arena."""

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
    inspects: bool = False
    """True for evaluation that also computes the gradient of the images; ``trainable`` must then be True, too."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """The output of each planned layer by the layer's name, such as ``conv1`` or ``residual1/conv2``."""

    def plan_network(self, network: Network) -> tuple[Tensor, Tensor, list[ForwardBackward]]:
        """Plan a network; the gradient of the images is computed only if ``inspects`` is True.

        Returns:
            The input tensor, the output tensor, and the tasks of each operation between them, in forward order.
        """
        links = self._build_links(network.layers)
        x = self._take_tensor(network.image_shape, border_of(links[0].operation), trainable=self.inspects)
        y, steps = self._plan_links(links, x)
        return x, y, steps

    def _take_tensor(self, shape: Shape, border: int = 0, *, trainable: bool | None = None) -> Tensor:
        """Allocate a tensor for a batch of images of this shape; by default, it is trainable if the chain is."""
        trainable = self.trainable if trainable is None else trainable
        size, dtype = (self.batch_size, *shape), self.backend.dtype
        return Tensor.take(self.arena, size, dtype, border=border, trainable=trainable)

    def _build_links(self, layers: Sequence[Layer], prefix: str = "", first_index: int = 0) -> list[_Link]:
        """Return the operations of the layers in order; for evaluation and inspection, dropout is left out."""
        links: list[_Link] = []
        for layer_index, layer in enumerate(layers, start=first_index):
            shape = layer.input_shape
            for operation in split_block(layer.block):
                shape = operation.output_shape(shape)
                if self.inspects and isinstance(operation, Norm):
                    operation = replace(operation, fixed=True)  # noqa: PLW2901
                if not isinstance(operation, Dropout) or (self.trainable and not self.inspects):
                    links.append(_Link(operation, prefix + layer.name, layer_index, shape, layer))
        return links

    def _plan_links(
        self, links: Sequence[_Link], x: Tensor, last: Tensor | None = None
    ) -> tuple[Tensor, list[ForwardBackward]]:
        """Plan consecutive operations that read ``x`` and write to ``last``, or to a new tensor by default.

        No gradient is computed for the outputs of operations before the first one that has parameters to train.
        """
        steps: list[ForwardBackward] = []
        trainable = x.trainable or (last is not None and last.trainable)
        for link, following in zip(links, [*links[1:], None], strict=True):
            trainable = trainable or self._has_gradients(link)
            # A normalisation that is trained keeps intermediate results in its input's gradient.
            is_scratch = following and isinstance(following.operation, Norm) and self._has_gradients(following)
            if following or last is None:
                # Each output has the border that the next operation needs: no convolution copies its input to pad it.
                border = border_of(following.operation) if following else 0
                y = self._take_tensor(link.output_shape, border, trainable=trainable or bool(is_scratch))
            else:
                y = last
            steps += self._plan_link(link, x, y)
            self.outputs[link.name] = x = y  # of a layer's operations, the last one's output remains
        return x, steps

    def _has_gradients(self, link: _Link) -> bool:
        """Return whether an operation, or any operation inside a residual block, has parameters that are trained."""
        if isinstance(link.operation, Residual):
            return any(name.startswith(f"{link.name}/") for name in self.gradients)
        return any(f"{link.name}/{name}" in self.gradients for name in parameters_of(link.operation))

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
        # A layer with nothing to train would write a gradient for which an input that needs none has no memory.
        return [step if x.trainable or gradients else ForwardBackward(step.forward, _nothing)]

    def _plan_residual(self, block: Residual, link: _Link, x: Tensor, y: Tensor) -> list[ForwardBackward]:
        """Plan the shortcut, the body and their sum; ``x.gradient`` receives the sum of their input gradients."""
        shape, prefix, first_index = link.layer.input_shape, f"{link.name}/", first_inner_index(link.layer_index)
        body_output = self._take_tensor(link.output_shape, trainable=y.trainable)
        body, steps = self._plan_links(self._build_links(block.body(shape), prefix, first_index), x, body_output)
        # Both terms of a sum have the sum's gradient, so the shortcut shares the gradient array of the body's output.
        # No operation writes to its output's gradient: the array is still intact after the body's backward tasks.
        dx_of_shortcut, shortcut = body.gradient, x
        if projection := block.projection(shape):
            dx_of_shortcut = self.arena.take(x.gradient.shape, self.backend.dtype)
            window = slice(None), *block.window(shape)
            # Only the window is ever written: pixels outside it keep their initial gradient of 0.
            x_window, dx_window = x.value[window], dx_of_shortcut[window] if x.trainable else dx_of_shortcut
            offset = window[1].start, window[2].start
            source = Tensor(x_window, x_window, dx_window, dx_window, window_of=x.value, offset=offset)
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
        add = self.backend.residual_add(self.arena, body, shortcut, y, block.activation)
        return [*steps, add if y.trainable else ForwardBackward(add.forward, _nothing)]


def _nothing() -> None:
    """Do nothing; takes the place of a missing forward or backward task."""
