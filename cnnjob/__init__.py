"""Batch jobs for cluster GPUs: pack images, train a CNN written from scratch, report.

The public names are loaded when first used, so that ``import cnnjob`` stays light.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BusyError": "errors",
    "CnnjobError": "errors",
    "DataError": "errors",
    "Dataset": "data.dataset",
    "Job": "jobs.job",
    "JobError": "errors",
    "Network": "nn",
    "Run": "runs.run",
    "SchedulerError": "errors",
    "TrainingError": "errors",
    "prepare": "api",
    "report": "api",
    "submit": "api",
    "train": "api",
}

__all__ = [  # noqa: PLE0604 - computed from the table above, which is sorted
    *_HOMES
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cnnjob' has no attribute {name!r}")
    return getattr(import_module(f"cnnjob.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(_HOMES)
