"""What trainings compute has a number, :data:`cnnjob.nn.ARITHMETIC`, that is raised when it changes.

When a test fails here because of a change to ``cnnjob/nn``, raise that number and put the new figures, which the failed
test prints, in the place of these.
"""

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.training.backend import describe_environment
from tests.cuda.shop import WORKS, Array, Work, normed

ROOT = Path(__file__).parent.parent.parent
ARITHMETIC = 2
WIDE = Work([nn.Conv(16, pool=2), normed(24, activation="gelu"), nn.Conv(32)], (16, 16, 3), count=8)
"""Convolutions that Winograd's method suits, in float32."""
NAMES = (
    *("baseline", "stride, pool 3", "dropout everywhere", "nesterov, decoupled, lookahead", "adamw", "frozen"),
    *("label smoothing", "norm, activation and pool in every order", "residual", "residual of a window", "augmented"),
)
NETWORKS = {name: WORKS[name] for name in NAMES} | {"many channels": WIDE}
FIGURES: dict[str, list[float]] = {
    "baseline": [4.934299161401, 1.311593054144, 45.2018339299, 5.159721645697],
    "stride, pool 3": [1.01263409358, 4.252283651696, 21.57375202822, 5.78764932891],
    "dropout everywhere": [5.357225326115, 1.929686103468, 19.56323084583, 4.477189424109],
    "nesterov, decoupled, lookahead": [1.651379443703, 1.099565179644, 10.53537472144, 3.598913686393],
    "adamw": [1.228003519373, 1.675620928039, 28.3131090534, 4.261554793566],
    "frozen": [0.8372098498066, 1.884941233395, 31.93162735252, 4.122918238381],
    "label smoothing": [1.576920464906, 1.149081710446, 11.78906164332, 3.696001797994],
    "norm, activation and pool in every order": [1.631214370647, 0.9815166242377, 47.14050025539, 4.770979048014],
    "residual": [0.9995265733183, 1.251852151927, 89.84403481099, 4.333104790458],
    "residual of a window": [1.202031161663, 3.448865063162, 52.91331227494, 3.46335385635],
    "many channels": [1.391907012816, 7.50170450904, 197.1682722916, 14.77886365852],
    "augmented": [0.773658409577, 2.382770158158, 14.4390965109, 3.600036274839],
}
"""Of two steps in float64: both losses, and the sums of the weights' and the probabilities' squares."""
DIGESTS = {
    "x86_64, glibc 2.36, numpy 2.4.6, openblas 0.3.31.188.0 Haswell": "6607c06df0a07ecb",
}
"""Of all that two steps give in float32, by :func:`place`, which most machines can be."""
HASWELL = {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "1"}


def figures(result: dict[str, Array]) -> list[float]:
    weights = sum(float((array**2).sum()) for name, array in result.items() if name.startswith("weights/"))
    return [*map(float, result["losses"]), weights, float((result["probabilities"] ** 2).sum())]


def place() -> str:
    """What decides the bits, but for the code."""
    bits: dict[str, Any] = describe_environment(nn.NumPyBackend(nn.Workers(1)))["bits"]
    return f"{bits['machine']}, {' '.join(platform.libc_ver())}, numpy {bits['numpy']}, {bits['blas']}"


def digest() -> str:
    found = hashlib.sha256()
    for work in NETWORKS.values():
        for key, array in sorted(work.result(nn.NumPyBackend(nn.Workers(1))).items()):
            found.update(key.encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def test_figures_and_their_number_change_together() -> None:
    backend = nn.NumPyBackend(nn.Workers(1), np.float64)
    found = {name: figures(work.result(backend)) for name, work in NETWORKS.items()}
    changed = [name for name in NETWORKS if found[name] != pytest.approx(FIGURES[name], rel=1e-9)]
    assert (nn.ARITHMETIC, changed) == (ARITHMETIC, []), found


def test_bits_and_their_number_change_together() -> None:
    command = [sys.executable, "-m", "tests.nn.test_arithmetic"]
    done = subprocess.run(command, env={**os.environ, **HASWELL}, check=True, capture_output=True, text=True, cwd=ROOT)
    where, bits = done.stdout.splitlines()
    if where not in DIGESTS:
        pytest.skip(f"the bits of {where!r} are not known; here they are {bits!r}")
    assert (nn.ARITHMETIC, bits) == (ARITHMETIC, DIGESTS[where])


if __name__ == "__main__":
    sys.stdout.write(f"{place()}\n{digest()}\n")
