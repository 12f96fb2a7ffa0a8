"""Neural networks on plain arrays: blocks, plans, optimisers and the NumPy and CUDA backends.

This package imports nothing else from cnnjob. It is independent of run files, SLURM and the command line, and keeps no
global state.

A network is planned once for a given batch size and then run. During planning, every block allocates its buffers and
returns two functions, ``forward()`` and ``backward()``, which take no arguments and allocate nothing.

Shape letters used throughout: **N** images, **H W** pixels, **C** channels, **F** filters, **K** kernel size,
**S** stride, **P** pooling size, **U** units. Images are N×H×W×C, kernels K×K×C×F.
"""

from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import BatchNorm, Block, Conv, Dense, Dropout, GlobalPool, Network, Residual
from cnnjob.nn.cpu.backend import NumPyBackend
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.initialisers import count_whitening_images
from cnnjob.nn.operations import require_trainable
from cnnjob.nn.optimisers import Adam, AdamW, Ema, Lookahead, Muon, Optimiser, Sgd
from cnnjob.nn.pixels import Augmentation, PixelNormalisation
from cnnjob.nn.plan import EvaluationPlan, InspectionPlan, TrainingOptions, TrainingPlan, build_step_inputs
from cnnjob.nn.schedules import Schedule
from cnnjob.nn.state import State
from cnnjob.nn.streaming import ImageSource, ImageStream
from cnnjob.nn.workers import Workers, available_cores

ARITHMETIC = 2
"""Version of the arithmetic, incremented whenever a code change may alter the bits of a run's results.

It is recorded with the environment of each run, to warn when a run is resumed. A change that affects only the initial
values does not count, since a resumed run does not compute them again.
"""

__all__ = [
    "ARITHMETIC",
    "Adam",
    "AdamW",
    "Augmentation",
    "Backend",
    "BatchNorm",
    "Block",
    "Conv",
    "CudaBackend",
    "Dense",
    "Dropout",
    "Ema",
    "EvaluationPlan",
    "GlobalPool",
    "ImageSource",
    "ImageStream",
    "InspectionPlan",
    "Lookahead",
    "Muon",
    "Network",
    "NumPyBackend",
    "Optimiser",
    "PixelNormalisation",
    "Residual",
    "Schedule",
    "Sgd",
    "State",
    "TrainingOptions",
    "TrainingPlan",
    "Workers",
    "available_cores",
    "build_step_inputs",
    "count_whitening_images",
    "require_trainable",
]
