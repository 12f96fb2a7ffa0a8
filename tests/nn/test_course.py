"""The course's algorithm that the benchmark compares with is right: against nested loops."""

from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.checks.benchmarks import course
from tests.nn import oracle
from tests.nn.bench import distance

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(
    "block",
    [
        nn.Conv(filters=3, pool=2),
        nn.Conv(filters=2, kernel=2, stride=2, pad=0, activation="none"),
        nn.Conv(filters=2, kernel=3, pad=2, pool=3),
    ],
)
def test_its_conv_block_is_that_of_nested_loops(block: nn.Conv) -> None:
    random = np.random.default_rng(0)
    x, w = random.normal(size=(2, 7, 6, 2)), random.normal(size=(block.kernel, block.kernel, 2, block.filters))
    b = random.normal(size=(block.filters,))
    z = oracle.conv(x, w, b, block.stride, block.pad)
    active = np.maximum(z, 0) if block.activation == "relu" else z
    y, first = oracle.max_pool(active, block.pool)
    dy: Array = np.asarray(random.normal(size=y.shape))
    dz = oracle.max_pool_backward(z.shape, first, dy, block.pool)
    dz = dz * (z > 0) if block.activation == "relu" else dz
    dx, dw, db = oracle.conv_backward(x, w, dz, block.stride, block.pad)

    by_filter, bias = w.transpose(3, 2, 0, 1).reshape(block.filters, -1), b.copy()
    before = by_filter.copy()
    found, backward = course.conv(x.transpose(0, 3, 1, 2), by_filter, bias, block, rate=1.0)
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), y)
    np.testing.assert_allclose(backward(dy.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1), dx, atol=1e-12)
    assert distance(before - by_filter, dw.transpose(3, 2, 0, 1).reshape(before.shape)) < 1e-12
    assert distance(b - bias, db) < 1e-12


def test_its_dense_block_is_its_formula() -> None:
    random = np.random.default_rng(0)
    x, w, b, dy = (random.normal(size=size) for size in ((4, 2, 3), (6, 5), 5, (4, 5)))
    flat, w0, b0 = x.reshape(4, 6), w.copy(), b.copy()
    y, backward = course.dense(x, w, b, rate=0.5, relu=True)
    dz = dy * (y > 0)
    np.testing.assert_allclose(y, np.maximum(flat @ w0 + b0, 0))
    np.testing.assert_allclose(backward(dy), (dz @ w0.T).reshape(x.shape))
    np.testing.assert_allclose(w, w0 - 0.5 * flat.T @ dz)
    np.testing.assert_allclose(b, b0 - 0.5 * dz.sum(axis=0))
