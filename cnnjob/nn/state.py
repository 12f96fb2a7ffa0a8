"""What learns: flat buffers of parameters, gradients and the optimiser's slots, with named views."""

from collections.abc import Mapping

import numpy as np

from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Network
from cnnjob.nn.initialisers import WHITENING_IMAGES, initial, whitening_filters
from cnnjob.nn.memory import Array, Layout, shape_only_array
from cnnjob.nn.optimisers import Optimiser
from cnnjob.nn.pixels import PixelNormalisation


class State:
    """Everything of a network that changes while it learns.

    The running statistics of batch normalisations lie among the parameters: they are kept, copied and
    chosen with them, and only the optimiser leaves them alone.
    """

    def __init__(self, network: Network, optimiser: Optimiser, backend: Backend, *, hollow: bool = False) -> None:
        """Zeroes everywhere, see :meth:`initialise`; or no memory at all, to count with."""
        self._backend, dtype = backend, backend.dtype
        shapes = {name: parameter.shape for name, parameter in network.parameters.items()}
        self.layout = Layout.of(shapes, dtype.itemsize)
        take = shape_only_array if hollow else backend.zeros
        self.parameters: Array = take((self.layout.size,), dtype)
        self.gradients: Array = take((self.layout.size,), dtype)
        self.slots: dict[str, Array] = {name: take((self.layout.size,), dtype) for name in optimiser.slots}

    @property
    def weights(self) -> dict[str, Array]:
        """Parameters by name."""
        return self.layout.views(self.parameters)

    @property
    def kept(self) -> dict[str, Array]:
        """The flat buffers that a training goes on from, by name."""
        return {"weights": self.parameters, **self.slots}

    @property
    def size_bytes(self) -> int:
        """Memory of all buffers."""
        return self.gradients.nbytes + sum(flat.nbytes for flat in self.kept.values())

    def read(self, flat: Array) -> dict[str, Array]:
        """The named arrays of one of the buffers, where NumPy can read them."""
        return self.layout.views(self._backend.host(flat))

    def write(self, arrays: Mapping[str, Array], flat: Array) -> None:
        """Fill one of the buffers with named arrays of NumPy."""
        self._backend.copy(self.layout.filled(arrays, flat.dtype), flat)

    def initialise(
        self, network: Network, seed: int, images: Array | None = None, pixels: PixelNormalisation | None = None
    ) -> None:
        """Draw the initial parameters, with NumPy for every backend.

        Each parameter's numbers depend on the seed and its place in the network only; those of a whitening on the data.

        Args:
            network: what the state is of.
            seed: the job's.
            images: uint8 (N, H, W, C) of NumPy, to train on; looked at by a whitening alone.
            pixels: how the network sees them.
        """
        first = next(iter(network.parameters.values()))
        whitening = np.zeros(0)
        if first.init == "whitening" and images is not None and pixels is not None:
            seen = images[:WHITENING_IMAGES] * pixels.scale + pixels.shift
            whitening = whitening_filters(seen, first.shape)
        drawn = {
            name: initial(parameter, seed, place, whitening)
            for place, (name, parameter) in enumerate(network.parameters.items())
        }
        self.write(drawn, self.parameters)
        if "slow" in self.slots:
            self.write(drawn, self.slots["slow"])
