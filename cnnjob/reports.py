"""Runs to a folder of tables and figures.

report/
metrics.csv · .md · .json     a row a run, whatever state it is in
classes.csv                   a row a run and class
curves.png · .svg             the learning curves of all runs
runs/NAME/curves.png · .svg   of one run: learning curves,
          confusion.…         confusion matrix,
          filters.…           filters of the first convolution

Run folders are only read, and nothing but them: a copy on a laptop is enough. Whatever cannot be read is said beside
what can. Equal runs give equal bytes, and a file that would not change is not touched.
"""

import html
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from cnnjob import files, metrics, plots
from cnnjob.errors import CnnjobError, DataError, JobError
from cnnjob.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    *("run", "job", "seed", "state"),
    *("test_accuracy", "test_loss", "precision_macro", "recall_macro", "f1_macro"),
    *("epochs", "best_epoch", "train_seconds", "parameters", "device"),
    *("commit", "data_sha256", "selected_on", "reason"),
)
"""Of the metrics tables; a cell is None where it is not known."""

OPTIMISTIC = "model chosen on the test set: its accuracy is optimistic"

_UNITS = (
    "Accuracy, precision, recall and F1 are shares of one, of the test images; `_macro` is the mean over the classes. "
    "The loss is in nats per image."
)
_TOO_MANY = "These are too many runs for figures of each; name some of them to see theirs."
_OF_RESULT = ("test_accuracy", "test_loss", "epochs", "best_epoch", "train_seconds", "parameters", "selected_on")
_OF_HISTORY = ("epoch", "step", *(f"{s}_{m}" for s in ("train", "validation", "test") for m in ("loss", "accuracy")))
_FORMATS: tuple[plots.Format, ...] = ("png", "svg")
_FIGURES = {"curves": "learning curves", "confusion": "confusion matrix", "filters": "first-layer filters"}
_HASH_LETTERS = 8
_TOLERANCE = 1e-6
_LARGEST = np.finfo(np.float32).max
_UNREADABLE = (OSError, AttributeError, LookupError, TypeError, ValueError)  # a file may say anything


@dataclass
class Record:
    """What one run folder told."""

    name: str
    row: dict[str, Any]
    """The cells of the metrics tables, with the keys ``COLUMNS``."""
    reasons: list[str] = field(default_factory=list)
    """Why something is missing; empty for a finished, sound run."""
    remarks: list[str] = field(default_factory=list)
    """What a reader of the numbers must know."""
    class_names: tuple[str, ...] = ()
    classes: metrics.PerClass | None = None
    counts: np.ndarray | None = None
    """(K, K) int64 confusion matrix; a row is a true class."""
    curve: plots.Curve | None = None
    filters: np.ndarray | None = None
    """(K, K, C, F) floating: the weights of the first convolution."""

    @property
    def folder(self) -> str:
        """Where its own figures go, below the report's folder."""
        return f"runs/{self.name.strip('/').replace('/', '_')}"

    def drawings(self) -> "dict[str, Callable[[], Figure]]":
        """How to draw each of its own figures, by the stem of their files."""
        draw: dict[str, Callable[[], Figure]] = {}
        if (curve := self.curve) is not None:
            draw["curves"] = lambda: plots.learning_curve(curve)
        if (counts := self.counts) is not None:
            draw["confusion"] = lambda: plots.confusion_matrix(counts, self.class_names, self.name)
        if (weights := self.filters) is not None:
            draw["filters"] = lambda: plots.filters(weights, self.name)
        return draw


@dataclass(frozen=True)
class Report:
    """What was reported, and where."""

    rows: list[dict[str, Any]]
    """Of the metrics tables, a dict a run in order of name, with the keys ``COLUMNS``."""
    files: list[Path]
    """Every file of the report."""
    written: list[Path]
    """Those of them that are new or have changed."""
    skipped: list[tuple[str, str]]
    """Runs that are not reported in full, and why."""
    without_figures: list[str]
    """Runs that have no figures of their own, because there are more of them than the limit."""


def report(runs: Iterable[Run], out: Path = Path("report"), *, figures_limit: int = 50) -> Report:
    """Report runs as tables and figures.

    An unfinished, damaged or foreign run is listed with its reason and what can be read of it.

    Args:
        runs: in any order; the same folder counts once, and ``out`` is none of them.
        out: the folder to write to; made where there is none. Other files in it are left alone.
        figures_limit: more runs than this get no figures of their own, only tables and overlaid curves.

    Returns:
        The rows, the files, and what was left out.

    Raises:
        DataError: there is no run.
        JobError: ``out`` cannot be written.
    """
    records = [read(run, name) for name, run in _named(runs, out).items()]
    if not records:
        raise DataError("report: no runs to report, none were found; train one with `cnnjob train JOB`")
    drawn = records if len(records) <= figures_limit else []
    contents = ((out / name, content) for name, content in _contents(records, drawn))
    changed = {path: _update(path, content) for path, content in contents}
    _remove_stale(out, records, changed)
    return Report(
        rows=[record.row for record in records],
        files=list(changed),
        written=[path for path, is_new in changed.items() if is_new],
        skipped=[(record.name, record.row["reason"]) for record in records if record.reasons],
        without_figures=[] if drawn else [record.name for record in records],
    )


def _named(runs: Iterable[Run], out: Path) -> dict[str, Run]:
    """Each folder once, by its name, or by its path where several share the name; in order of name."""
    folders = {run.path.resolve(): run for run in runs}
    folders.pop(out.resolve(), None)
    names = [path.name for path in folders]
    titles = (path.name if names.count(path.name) == 1 else str(path) for path in folders)
    return dict(sorted(zip(map(_text, titles), folders.values(), strict=True)))


def read(run: Run, name: str) -> Record:
    """Read of a run folder what can be read.

    Args:
        run: in any state; nothing in it is changed.
        name: what to call it.

    Returns:
        Its numbers, and the reasons why some are missing. Never raises for what the folder holds.
    """
    record = Record(name, dict.fromkeys(COLUMNS) | {"run": name, "state": "foreign"})
    if _try(_check_kind, run, record):
        vital = [_try(step, run, record) for step in (_read_job, _read_state, _read_result)]
        if not all(vital):
            record.row["state"] = "damaged"
        for step in (_read_environment, _read_history, _read_restarts, _read_predictions, _read_filters):
            _try(step, run, record)
    record.reasons = [_in_the_run(reason, run) for reason in record.reasons]
    record.row["reason"] = "; ".join(record.reasons) or None
    record.row = {column: _cell(value) for column, value in record.row.items()}
    return record


def _try(step: Callable[[Run, Record], None], run: Run, record: Record) -> bool:
    try:
        step(run, record)
    except CnnjobError as error:
        record.reasons.append(str(error))
    except _UNREADABLE as error:
        record.reasons.append(f"{run.path}: not readable as a run, {type(error).__name__}: {error}")
    else:
        return True
    return False


def _in_the_run(reason: str, run: Run) -> str:
    """A reason in one line, its file named from the run folder on: the row names the run."""
    return " ".join(reason.removeprefix(f"{run.path}/").removeprefix(f"{run.path}: ").split())


def _cell(value: Any) -> str | int | float | None:
    """A value that CSV and JSON can both hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, int | float) else _text(str(value))


def _text(text: str) -> str:
    """Text that can be written: a folder's name, or a word in JSON, may hold what is no character."""
    return text.encode(errors="backslashreplace").decode()


def _check_kind(run: Run, _: Record) -> None:
    if not run.job_file.exists():
        raise DataError("not a run of cnnjob, it has no job.json")


def _read_job(run: Run, record: Record) -> None:
    job = run.frozen()["job"]  # not checked: a job of another version of cnnjob has other keys
    record.row |= {"job": job["name"], "seed": job["seed"]}


def _read_state(run: Run, record: Record) -> None:
    state = record.row["state"] = run.state()
    if state != "finished":
        record.reasons.append(_why_unfinished(run, state))


def _why_unfinished(run: Run, state: str) -> str:
    if state == "pending":
        return "pending: not started yet"
    last = run.attempts()[-1]
    if state == "running":
        return f"running on {last['host']} since {last['started']}"
    return str(last["why"]) if last["why"] else "lost: its process is gone without a word; submit it again to go on"


def _read_result(run: Run, record: Record) -> None:
    if not run.result_file.exists():
        return
    result = run.result()
    if not isinstance(result.get("test_accuracy"), int | float):
        raise DataError(f"{run.result_file}: not the result of a run, it has no test_accuracy")
    record.row |= {key: result.get(key) for key in (*_OF_RESULT, "device")}
    if result.get("selected_on") == "test":
        record.remarks.append(OPTIMISTIC)
    if (step := result.get("bits_may_differ_from_step")) is not None:
        record.remarks.append(f"bits may differ from step {step}: it went on with other versions or threads")


def _read_environment(run: Run, record: Record) -> None:
    environment = run.environment()
    commit = environment.get("commit")
    record.row["commit"] = f"{commit}-dirty" if commit and environment.get("dirty") else commit
    record.row["data_sha256"] = environment.get("data_sha256")
    record.row["device"] = record.row["device"] or environment.get("device")


def _read_history(run: Run, record: Record) -> None:
    epochs = [dict(epoch) for epoch in run.history()]
    if not epochs:
        return
    table = pd.DataFrame(epochs).reindex(columns=_OF_HISTORY).astype(np.float64)
    table = table.mask(table.abs() > _LARGEST)
    if not (np.diff(table["epoch"], prepend=0) > 0).all():
        raise DataError(f"{run.history_file}: damaged, its epochs are not 1, 2, 3, …")
    history = {column: table[column].to_numpy() for column in _OF_HISTORY}
    best = record.row["best_epoch"]
    record.curve = plots.Curve(record.name, history, best if isinstance(best, int) else None)
    record.row["epochs"] = record.row["epochs"] or int(history["epoch"][-1])


def _read_restarts(run: Run, record: Record) -> None:
    """Where each life but the first went on, in epochs."""
    steps = [attempt.get("resumed_at_step") for attempt in run.attempts()[1:]]
    if record.curve and (pace := record.curve.history["step"][-1] / record.curve.history["epoch"][-1]) > 0:
        restarts = tuple(step / pace for step in steps if step is not None)
        record.curve = replace(record.curve, restarts=restarts)


def _read_predictions(run: Run, record: Record) -> None:
    if not run.result_file.exists():
        return
    arrays = run.predictions()
    probabilities, labels, names = (arrays[name] for name in ("probabilities", "labels", "class_names"))
    if not _are_predictions(probabilities, labels, names):
        raise DataError(f"{run.predictions_file}: not the predictions of a run, its arrays do not fit each other")
    summary = metrics.summary(probabilities, labels)
    said = record.row["test_accuracy"]
    if said is not None and abs(said - summary.test_accuracy) > _TOLERANCE:
        record.reasons.append(
            f"{run.result_file}: not of these predictions, it says a test accuracy of {said} and they give "
            f"{summary.test_accuracy}"
        )
    record.row |= summary._asdict()
    record.class_names = tuple(_text(str(name)) for name in names)
    record.classes = metrics.per_class(probabilities, labels)
    record.counts = metrics.confusion(probabilities, labels)


def _are_predictions(probabilities: np.ndarray, labels: np.ndarray, names: np.ndarray) -> bool:
    N, K = probabilities.shape
    return (
        N > 0
        and labels.shape == (N,)
        and names.shape == (K,)
        and labels.dtype.kind in "iu"
        and probabilities.dtype.kind == "f"
        and 0 <= labels.min() <= labels.max() < K
        and bool(np.isfinite(probabilities).all())
    )


def _read_filters(run: Run, record: Record) -> None:
    if not run.result_file.exists():
        return
    kernels = (
        array for name, array in run.weights().items() if name.endswith("/weights") and array.ndim == len("KKCF")
    )
    first = next(kernels, None)  # a network without convolutions has none
    if first is not None and not _are_filters(first):
        raise DataError(f"{run.weights_file}: damaged, the first layer does not hold square filters of numbers")
    record.filters = first


def _are_filters(weights: np.ndarray) -> bool:
    square = weights.size > 0 and weights.shape[0] == weights.shape[1]
    return square and weights.dtype.kind == "f" and bool((np.abs(weights) <= _LARGEST).all())


def _contents(records: Sequence[Record], drawn: Sequence[Record]) -> Iterator[tuple[str, bytes]]:
    """Every file of the report: its name and its content."""
    yield "metrics.csv", _csv([record.row for record in records], COLUMNS)
    yield "metrics.json", _json([record.row for record in records])
    yield "metrics.md", _markdown(records, drawn).encode()
    yield "classes.csv", _csv(_class_rows(records), ("run", "class", *metrics.PerClass._fields))
    curves = [record.curve for record in records if record.curve]
    if curves:
        yield from _files_of("curves", plots.overlaid_curves(curves))
    for record in drawn:
        for stem, draw in record.drawings().items():
            yield from _files_of(f"{record.folder}/{stem}", draw())


def _files_of(stem: str, figure: "Figure") -> Iterator[tuple[str, bytes]]:
    for kind in _FORMATS:
        yield f"{stem}.{kind}", plots.to_bytes(figure, kind)


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> bytes:
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)  # object: a whole number beside None stays whole
    return table.to_csv(index=False, lineterminator="\n").encode()


def _json(rows: Sequence[dict[str, Any]]) -> bytes:
    return (json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _class_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"run": record.name, "class": name} | dict(zip(metrics.PerClass._fields, numbers, strict=True))
        for record in records
        if record.classes
        for name, *numbers in zip(record.class_names, *(values.tolist() for values in record.classes), strict=True)
    ]


def _markdown(records: Sequence[Record], drawn: Sequence[Record]) -> str:
    """The metrics for a reader: rounded, with what they must know beside them."""
    header = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"
    rows = (f"| {' | '.join(_readable(*cell) for cell in record.row.items())} |" for record in records)
    remarks = (f"- {_escaped(record.name)}: {remark}" for record in records for remark in record.remarks)
    overlay = "![Learning curves of all runs](curves.svg)" if any(record.curve for record in records) else ""
    links = "\n".join(_links(record) for record in drawn)
    parts = ["# Runs", "\n".join([header, *rows]), "\n".join(remarks), _UNITS, overlay, links or _TOO_MANY]
    return "\n\n".join(part for part in parts if part) + "\n"


def _readable(column: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if column == "train_seconds" else f"{value:.4f}"
    if column in {"commit", "data_sha256"} and value:
        digits, *dirty = str(value).split("-")
        return _escaped("-".join([digits[:_HASH_LETTERS], *dirty]))
    return "" if value is None else _escaped(str(value))


def _escaped(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _links(record: Record) -> str:
    links = (f"[{_FIGURES[stem]}]({quote(f'{record.folder}/{stem}.svg')})" for stem in record.drawings())
    return f"- {_escaped(record.name)}: {' · '.join(links) or 'no figures'}"


def _update(path: Path, content: bytes) -> bool:
    """Write a file if it would change; say whether it did."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, content)
    except OSError as error:
        raise JobError(f"{path}: cannot be written, {error}; give another folder for the report") from error
    return True


def _remove_stale(out: Path, records: Sequence[Record], kept: Iterable[Path]) -> None:
    """Remove the figures that an earlier report of these runs had and this one has not."""
    stems = ["curves", *(f"{record.folder}/{stem}" for record in records for stem in _FIGURES)]
    for path in {out / f"{stem}.{kind}" for stem in stems for kind in _FORMATS} - set(kept):
        path.unlink(missing_ok=True)
