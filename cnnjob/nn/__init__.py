"""The network: arrays in, arrays out. It knows no file, no SLURM, no command line, no global.

A network is planned once for a batch size and then run: every block takes its buffers at planning
and gives back two argument-free functions, ``forward()`` and ``backward()``, that allocate nothing.

Shape letters, everywhere: **N** images, **H W** pixels, **C** channels, **F** filters, **K** kernel
side, **S** stride, **P** pooling side, **U** units. Images are N×H×W×C, kernels K×K×C×F.
"""

from cnnjob.nn.blocks import Conv, Dense, Dropout, Network
from cnnjob.nn.cpu import NumPyBackend
from cnnjob.nn.cuda import CudaBackend
from cnnjob.nn.optimisers import Sgd
from cnnjob.nn.plan import Backend, EvaluationPlan, Pixels, State, TrainingPlan, training_feed
from cnnjob.nn.schedules import learning_rates
from cnnjob.nn.workers import Workers, available_cores

__all__ = [
    "Backend",
    "Conv",
    "CudaBackend",
    "Dense",
    "Dropout",
    "EvaluationPlan",
    "Network",
    "NumPyBackend",
    "Pixels",
    "Sgd",
    "State",
    "TrainingPlan",
    "Workers",
    "available_cores",
    "learning_rates",
    "training_feed",
]
