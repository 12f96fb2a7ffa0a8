"""Translation of jobs in older formats to the current layout.

Up to format 2, the optimiser and schedule keys were directly in ``train``. They are now in the table of the optimiser
or schedule that uses them, as in ``optimiser = { sgd = { momentum = 0.9 } }``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cnnjob.jobs.schema import format_value

_WARMUP = {"warmup": "warmup", "start_factor": "start_factor"}
_FALL = {**_WARMUP, "end_factor": "end_factor"}
_MOVED_KEYS: dict[str, dict[str, dict[str, str]]] = {
    "optimiser": {
        "sgd": {key: key for key in ("momentum", "nesterov", "decoupled_weight_decay")},
        "muon": {key: key for key in ("momentum", "nesterov")},
        "adam": {"momentum": "beta1", "beta2": "beta2", "eps": "eps"},
        "adamw": {"momentum": "beta1", "beta2": "beta2", "eps": "eps"},
    },
    "schedule": {"constant": _WARMUP, "cosine": _FALL, "triangular": _FALL},
}
"""Old keys and their new names, by table in ``train`` and by kind; the default kind comes first."""


def translate(job: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a job in format 1 or 2 to the current layout.

    Args:
        job: the value of ``job`` in ``job.json``.

    Returns:
        The same job; keys that had no effect with its optimiser or schedule are left out.
    """
    train = job.get("train")
    if not isinstance(train, dict):
        return dict(job)
    flat = {old for kinds in _MOVED_KEYS.values() for names in kinds.values() for old in names}
    new = {key: value for key, value in train.items() if key not in flat}
    for table, kinds in _MOVED_KEYS.items():
        # A misspelt kind has no keys here; the schema then reports it.
        names = kinds.get(kind := _selected_kind(table, train), {})
        settings = {new_name: train[old] for old, new_name in names.items() if old in train}
        if settings and not isinstance(train.get(table), dict):
            new[table] = {kind: settings}
    return {**job, "train": new}


def explain_moved_key(key: str, train: Mapping[str, Any]) -> str:
    """Return a hint about a key that used to be directly in ``train``.

    Args:
        key: the old key.
        train: the table it was found in, which also selects the optimiser and the schedule.

    Returns:
        The end of an error message. It shows how to write the key now, together with other old keys that belong in the
        same table, or states that the key has no effect with the selected optimiser or schedule. Empty for a key that
        was never directly in ``train``.
    """
    for table, kinds in _MOVED_KEYS.items():
        homes = [kind for kind, names in kinds.items() if key in names]
        if not homes:
            continue
        kind = _selected_kind(table, train)
        if kind in homes:
            spelling = _spelling(table, kind, [old for old in kinds[kind] if old in train], train)
            return f"is now train.{table}.{kind}.{kinds[kind][key]}. In a job file: {spelling}"
        spelling = _spelling(table, homes[-1], [key], train)
        others = " or ".join(map(repr, homes))
        return f"has no effect with {table} '{kind}', only with {others}. Remove it, or write {spelling}"
    return ""


def _spelling(table: str, kind: str, keys: Iterable[str], train: Mapping[str, Any]) -> str:
    """Convert the given old keys of an optimiser or schedule to a table in the current format."""
    settings = ", ".join(f"{_MOVED_KEYS[table][kind][key]} = {format_value(train[key])}" for key in keys)
    return f"{table} = {{ {kind} = {{ {settings} }} }}"


def _selected_kind(table: str, train: Mapping[str, Any]) -> str:
    """Return the optimiser or schedule that a ``train`` table selects, in the old layout or the current one."""
    setting = train.get(table)
    kinds = _MOVED_KEYS[table]
    if isinstance(setting, dict):
        return next((kind for kind in setting if kind in kinds), next(iter(kinds)))
    return setting if isinstance(setting, str) else next(iter(kinds))
