"""Training state: flat buffers of parameters, gradients and optimiser slots, with named views."""

from collections.abc import Mapping

import numpy as np

from cnnjob.nn.arena import Array, BufferLayout, shape_only_array
from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Network
from cnnjob.nn.initialisers import count_whitening_images, draw_initial_values, whitening_filters
from cnnjob.nn.optimisers import Optimiser
from cnnjob.nn.pixels import PixelNormalisation


class State:
    """A network's parameters, gradients and optimiser slots.

    The running statistics of batch normalisation are stored among the parameters, and are saved, copied and selected
    with them. The optimiser does not update the running statistics.
    """

    def __init__(self, network: Network, optimiser: Optimiser, backend: Backend, *, shape_only: bool = False) -> None:
        """Allocate zeroed buffers, which :meth:`initialise` fills.

        With ``shape_only``, the buffers have shapes but no memory, for counting bytes.
        """
        self._backend, dtype = backend, backend.dtype
        shapes = {name: parameter.shape for name, parameter in network.parameters.items()}
        self.layout = BufferLayout.of(shapes, dtype.itemsize)
        new_array = shape_only_array if shape_only else backend.zeros
        self.parameters: Array = new_array((self.layout.size,), dtype)
        self.gradients: Array = new_array((self.layout.size,), dtype)
        self.slots: dict[str, Array] = {name: new_array((self.layout.size,), dtype) for name in optimiser.slots}

    @property
    def weights(self) -> dict[str, Array]:
        """Return the parameters by name, as views."""
        return self.layout.views(self.parameters)

    @property
    def evaluated(self) -> Array:
        """Return the flat buffer of the parameters that are evaluated: the moving average, if there is one."""
        return self.slots.get("ema", self.parameters)

    @property
    def saved_buffers(self) -> dict[str, Array]:
        """Return the flat buffers that a checkpoint saves, by name."""
        return {"weights": self.parameters, **self.slots}

    @property
    def size_bytes(self) -> int:
        """Return the total size of all buffers, in bytes."""
        return self.gradients.nbytes + sum(flat.nbytes for flat in self.saved_buffers.values())

    def read(self, flat: Array) -> dict[str, Array]:
        """Return the named arrays in one of the buffers, as NumPy arrays."""
        return self.layout.views(self._backend.host(flat))

    def write(self, arrays: Mapping[str, Array], flat: Array) -> None:
        """Fill one of the buffers with named NumPy arrays."""
        self._backend.copy(self.layout.flatten(arrays, flat.dtype), flat)

    def initialise(
        self,
        network: Network,
        seed: int,
        images: Array | None = None,
        pixels: PixelNormalisation | None = None,
        given: Mapping[str, Array] | None = None,
    ) -> None:
        """Draw the initial parameters that are not given, using NumPy for every backend.

        A parameter's values depend only on the seed and on the parameter's index in the network; whitening filters
        depend only on the images.

        Args:
            network: the network that this state belongs to.
            seed: the job's seed.
            images: training images, NumPy uint8 (N, H, W, C), needed only by the whitening initialiser.
            pixels: normalisation of the images.
            given: initial values of some parameters by name, each in the shape of its parameter; none by default.
        """
        given = given or {}
        first_name, first = next(iter(network.parameters.items()))
        whitening = np.zeros(0)
        if first.init == "whitening" and first_name not in given and images is not None and pixels is not None:
            whitening = whitening_filters(images[: count_whitening_images(images.shape[1:])], first.shape, pixels)
        values = {
            name: given[name] if name in given else draw_initial_values(parameter, seed, parameter_index, whitening)
            for parameter_index, (name, parameter) in enumerate(network.parameters.items())
        }
        self.write(values, self.parameters)
        # Lookahead's slow weights start as a copy of the fast ones (Zhang et al. 2019, alg. 1), and so does an average.
        for name in ("slow", "ema"):
            if name in self.slots:
                self.write(values, self.slots[name])
