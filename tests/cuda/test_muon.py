"""Muon's kernels, run on the CPU, against its formula in float64; not on a GPU."""

import pytest

from cnnjob import nn
from cnnjob.nn.cuda.backend import CudaBackend
from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.nn.muon import KINDS, Matrices, drawn, require_no_division_by_zero

pytestmark = needs_compiler


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("optimiser", KINDS)
def test_an_update_is_its_formula(optimiser: nn.Muon, order: str) -> None:
    shapes = [*drawn(5, 60), (1, 1), (40, 30), (40, 30), (2, 3000)]
    for of_the_update in {not optimiser.normalise_weights, False}:  # weights of 0 have no norm
        matrices = Matrices(shapes, optimiser, CudaBackend(EmulatedDevice(order=order)))
        matrices.require(optimiser, 2e-5, of_the_update=of_the_update)


def test_nothing_is_divided_by_zero() -> None:
    require_no_division_by_zero(CudaBackend(EmulatedDevice()))
