"""The first block, whose input wants no gradient, writes none."""

from typing import Any

import pytest

from cnnjob import nn
from tests.nn.bench import check_gradients, rig


@pytest.mark.parametrize("how", ["mean", "max"])
def test_a_network_may_start_with_global_pooling(how: Any) -> None:
    check_gradients(rig([nn.GlobalPool(how)]))
