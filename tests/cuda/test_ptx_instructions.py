"""The instructions of PTX that compute values, each in a kernel of its own, against Python's and NumPy's arithmetic."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.cuda.emulation import EmulatedDevice, needs_compiler
from tests.cuda.ptx.library import built
from tests.cuda.ptx_values import ALL, APPROXIMATE, FORMS, bits_of, dtype, name_of

pytestmark = [needs_compiler, pytest.mark.cuda_emulated]

Array = np.ndarray[Any, Any]
THREADS = 512


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return built(ALL)


def drawn(kind: str, random: np.random.Generator) -> Array:
    """Special values and random ones; of integers half are below 70, so that some are shifts or places of bits."""
    is_nonzero, kind = kind.endswith("!"), kind.rstrip("!")
    if kind == "pred":
        return random.integers(0, 2, THREADS, np.uint8)
    unsigned = np.dtype(f"uint{bits_of(kind)}")
    any_bits = random.integers(0, np.iinfo(unsigned).max, THREADS, unsigned, endpoint=True).view(dtype(kind))
    if kind[0] == "f":
        finite = np.finfo(dtype(kind))
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, 2.5, 65519.0, finite.smallest_normal]
        special += [finite.smallest_subnormal, -finite.smallest_normal / 2, finite.max, 255.5, -3e9]
        with np.errstate(over="ignore"):
            moderate = (random.standard_normal(THREADS) * 4.0 ** random.integers(-8, 9, THREADS)).astype(dtype(kind))
            pool = np.concatenate([np.repeat(np.array(special, dtype(kind)), 10), moderate, any_bits[: THREADS // 4]])
    else:
        limits = np.iinfo(dtype(kind))
        extreme = np.array([0, 1, limits.min, limits.max, limits.max - 1], dtype(kind))
        small = random.integers(0, 70, THREADS).astype(dtype(kind))
        pool = np.concatenate([np.repeat(extreme, 20), small, any_bits])
    pool = pool[pool != 0] if is_nonzero else pool
    return random.choice(pool, THREADS)


@pytest.mark.parametrize(("text", "kinds", "function"), FORMS, ids=[text for text, *_ in FORMS])
def test_an_operation_on_values(library: ctypes.CDLL, text: str, kinds: str, function: Callable[..., Any]) -> None:
    random, (to, *of) = np.random.default_rng(len(text)), kinds.split()
    given = [drawn(kind, random) for kind in of]
    result = np.zeros(THREADS, dtype(to))
    EmulatedDevice(library).launch(name_of(text), (1, 1), (THREADS, 1), [result, *given])
    wrap = (1 << bits_of(to)) - 1
    with np.errstate(all="ignore"):
        found = [function(*(one if kind[0] == "f" else int(one) for one, kind in zip(values, of, strict=True)))
                 for values in zip(*given, strict=True)]  # fmt: skip
        expected = (
            np.array(found, dtype(to))
            if to[0] == "f"
            else np.array([int(one) & wrap for one in found], f"uint{bits_of(to)}").view(dtype(to))
        )
    if (text, kinds, function) in APPROXIMATE:
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    else:
        numbers = expected == expected if to[0] == "f" else np.ones(THREADS, bool)  # noqa: PLR0124
        assert to[0] != "f" or np.isnan(result[~numbers]).all()
        unsigned = f"uint{bits_of(to)}"
        np.testing.assert_array_equal(result.view(unsigned)[numbers], expected.view(unsigned)[numbers])
