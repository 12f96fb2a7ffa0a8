"""The first block, whose input wants no gradient, writes none; and no thread is woken in vain."""

import threading
from typing import Any

import pytest

from cnnjob import nn
from tests.nn.bench import check_gradients, rig


@pytest.mark.parametrize("how", ["mean", "max"])
def test_a_network_may_start_with_global_pooling(how: Any) -> None:
    check_gradients(rig([nn.GlobalPool(how)]))


def test_more_threads_than_tasks_are_left_alone() -> None:
    workers, ran = nn.Workers(12), []
    for _ in range(20):
        workers.run([lambda: ran.append(threading.get_ident())] * 3)
    assert len(ran) == 60
    assert len(set(ran)) == 3
