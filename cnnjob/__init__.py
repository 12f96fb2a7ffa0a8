"""Batch jobs for GPU clusters: prepare image datasets, train a CNN written from scratch, and write reports.

The public names are imported on first use, so that ``import cnnjob`` stays fast.
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
    "evaluate": "api",
    "predict": "api",
    "prepare": "api",
    "report": "api",
    "submit": "api",
    "train": "api",
}

__all__ = [  # noqa: PLE0604 - computed from the table above, which is sorted
    *_HOMES
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module, on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cnnjob' has no attribute {name!r}")
    return getattr(import_module(f"cnnjob.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(_HOMES)
