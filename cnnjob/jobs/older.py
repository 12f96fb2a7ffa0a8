"""Jobs as older versions wrote them: where each key of an older layout stands now.

Up to format 2 the optimiser's and the schedule's keys lay flat in ``train``. They now lie in the table of the kind
that they act with, as ``optimiser = { sgd = { momentum = 0.9 } }``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cnnjob.jobs.schema import as_typed

_WARMUP = {"warmup": "warmup", "start_factor": "start_factor"}
_FALL = {**_WARMUP, "end_factor": "end_factor"}
_PLACES: dict[str, dict[str, dict[str, str]]] = {
    "optimiser": {
        "sgd": {key: key for key in ("momentum", "nesterov", "decoupled_weight_decay")},
        "adamw": {"momentum": "beta1", "beta2": "beta2", "eps": "eps"},
    },
    "schedule": {"constant": _WARMUP, "cosine": _FALL, "triangular": _FALL},
}
"""For each table of ``train`` and each kind, the default first: the flat keys that act with it, and their new names."""


def translate(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a job file of format 1 or 2 in today's layout.

    Args:
        job: what ``job.json`` held under ``job``.

    Returns:
        The same job; keys that could not act with their optimiser or schedule are left out.
    """
    train = job.get("train")
    if not isinstance(train, dict):
        return dict(job)
    flat = {old for kinds in _PLACES.values() for names in kinds.values() for old in names}
    new = {key: value for key, value in train.items() if key not in flat}
    for table, kinds in _PLACES.items():
        names = kinds.get(kind := _kind_of(table, train), {})
        settings = {new_name: train[old] for old, new_name in names.items() if old in train}
        if settings and not isinstance(train.get(table), dict):
            new[table] = {kind: settings}
    return {**job, "train": new}


def place_now(key: str, train: Mapping[str, Any]) -> str:
    """Return where a key that lay flat in ``train`` stands now.

    Args:
        key: the old key.
        train: the table that it was found in, which says the optimiser and the schedule.

    Returns:
        A sentence with the new spelling, of all that moves to the same table; empty for a key that never lay flat.
    """
    for table, kinds in _PLACES.items():
        homes = [kind for kind, names in kinds.items() if key in names]
        if not homes:
            continue
        kind = _kind_of(table, train)
        if kind in homes:
            spelling = _spelling(table, kind, [old for old in kinds[kind] if old in train], train)
            return f"is now train.{table}.{kind}.{kinds[kind][key]}; in a job file {spelling}"
        spelling = _spelling(table, homes[-1], [key], train)
        others = " or ".join(map(repr, homes))
        return f"cannot act with {table} '{kind}', only with {others}; remove it, or write {spelling}"
    return ""


def _spelling(table: str, kind: str, keys: Iterable[str], train: Mapping[str, Any]) -> str:
    """Return the table of a kind with some keys, as a job file writes it now."""
    settings = ", ".join(f"{_PLACES[table][kind][key]} = {as_typed(train[key])}" for key in keys)
    return f"{table} = {{ {kind} = {{ {settings} }} }}"


def _kind_of(table: str, train: Mapping[str, Any]) -> str:
    """Return which optimiser or schedule a ``train`` table asks for, in the old layout or today's."""
    said = train.get(table)
    kinds = _PLACES[table]
    if isinstance(said, dict):
        return next((kind for kind in said if kind in kinds), next(iter(kinds)))
    return said if isinstance(said, str) else next(iter(kinds))
