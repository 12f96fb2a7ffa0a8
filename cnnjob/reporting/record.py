"""Records of run folders: the summary of the run, and the other data that a report needs.

A run may be unfinished or damaged, and a folder may not be a run at all, so each file is checked before use. If
something cannot be read, the record states the reason.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.errors import CnnjobError, DataError, printable
from cnnjob.files import short_digest
from cnnjob.jobs import json_files, older
from cnnjob.jobs.dotted_keys import KINDS
from cnnjob.jobs.job import FORMAT
from cnnjob.reporting import crosscheck
from cnnjob.reporting.attempts import Attempt, read_attempts
from cnnjob.reporting.curve import Curve
from cnnjob.reporting.examples import ClassifiedImage, Convolution, classified_images, convolutions_of, examples_of
from cnnjob.reporting.network_table import LayerRow, layer_rows
from cnnjob.runs import metrics, npz
from cnnjob.runs.logs import last_lines, shorten_lines
from cnnjob.runs.process import name_ctrl_c
from cnnjob.runs.run import UNRECORDED, Run, manifest_format
from cnnjob.runs.schemas import EvaluationRecord
from cnnjob.runs.summary import RunSummary, read_summary

COLUMNS = (
    *("run", "job", "group", "seed", "batch_size", "learning_rate", "state"),
    *("test_accuracy", "test_loss", "precision_macro", "recall_macro", "f1_macro"),
    *("epochs", "best_epoch", "train_seconds", "parameters", "device"),
    *("commit", "data_sha256", "selected_on", "test_time_augmentation", "reason"),
)
"""Columns of the metrics tables; cells with unknown values are None."""

INIT_FROM = "model.init_from"
"""Key of the setting that contains the origin of the initial weights and the first digits of their digest."""
BLOCKS = "model.blocks"
"""Key of the setting that describes all blocks on one line; single blocks have keys like ``model.blocks.1.conv``."""
OPTIMISTIC = "model chosen on the test set: its accuracy is optimistic"

_OF_RESULT = ("test_accuracy", "test_loss", "epochs", "best_epoch", "train_seconds", "parameters", "selected_on")
_ESSENTIAL = ("train.epochs", "train.batch_size", "train.learning_rate", "train.optimiser", "train.schedule")
"""Settings that a reader wants to know even if they have their default values."""
_SPLITS = ("train", "validation", "test")
HISTORY_COLUMNS = (
    *("epoch", "step"),
    *(f"{split}_{measure}" for split in _SPLITS for measure in ("loss", "accuracy")),
    *("learning_rate", "seconds", "images_per_second", "ended"),
)
"""Columns of a run's history."""
_SUM_TOLERANCE = 1e-3
"""Maximum deviation from 1 of the sum of an image's probabilities."""
_LARGEST = np.finfo(np.float32).max
"""Maximum plausible magnitude of a number in a history or in weights."""
_MATRIX_BYTES = 2**26
"""Maximum size of the confusion matrix of an evaluation: enough for thousands of classes."""
_COUNT = re.compile("[0-9]{1,15}")
LOG_LINES = 20
_UNREADABLE = (OSError, AttributeError, LookupError, TypeError, ValueError)  # a damaged file may contain anything


@dataclass
class Record:
    """Everything that could be read from one run folder."""

    name: str
    row: dict[str, Any]
    """The run's row in the metrics tables, with the keys ``COLUMNS``."""
    reasons: list[str] = field(default_factory=list)
    """Reasons why something is missing; empty for a finished, undamaged run."""
    remarks: list[str] = field(default_factory=list)
    """Caveats that a reader needs to interpret the numbers."""
    contradictions: list[str] = field(default_factory=list)
    """Remarks on values that differ between two of the run's files."""
    digest: str | None = None
    """The run's digest; None if the manifest cannot be read."""
    parent: str = ""
    """Name of the run that trained the initial weights, or of their file if unknown; empty if they were drawn."""
    parent_digest: str | None = None
    """Digest of the run that trained the initial weights; None if it is not known."""
    n_classes: int | None = None
    """The dataset's number of classes, from the manifest; None if the manifest has no class names."""
    class_names: tuple[str, ...] = ()
    classes: metrics.PerClass | None = None
    correct: np.ndarray | None = None
    """True for each test image that was classified correctly, (N,) bool."""
    counts: np.ndarray | None = None
    """Confusion matrix, (K, K) int64; one row per true class, one column per predicted class."""
    curve: Curve | None = None
    convolutions: list[Convolution] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """The job's settings by dotted key; ``dataset`` is the dataset's name and the first digits of its digest."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """The essential settings, and those of ``data`` and ``train`` whose value is not a default, by key."""
    layers: tuple[LayerRow, ...] = ()
    """The layers of the network; empty if the job cannot be read."""
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    log_tail: str = ""
    mistakes: list[ClassifiedImage] = field(default_factory=list)
    """Misclassified test images, most confident first."""
    examples: list[ClassifiedImage] = field(default_factory=list)
    """Test images with saliency maps; the first of them also have feature maps."""
    example_arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """The content of ``examples.npz``; empty if the run has no valid one."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Metrics on other datasets or splits, each as described by :class:`cnnjob.runs.schemas.EvaluationRecord`, with the
    confusion matrix as ``counts``, (K, K) int64."""

    @property
    def folder(self) -> str:
        """Path of the run's figure folder, relative to the report folder."""
        return f"runs/{self.name.strip('/')}"


def read_record(run: Run, name: str, *, pictures: bool = True) -> Record:
    """Return the record of a run folder, with everything that can be read; no folder content causes an error.

    Args:
        run: a run in any state; nothing in its folder is changed.
        name: the run's name in the report.
        pictures: whether to read the filters, feature maps and test images, which are shown as images.

    Returns:
        The run's numbers, and the reasons why some are missing.
    """
    record = Record(name, dict.fromkeys(COLUMNS) | {"run": name, "state": "foreign"})
    summary = read_summary(run)
    if _try_step(_check_kind, summary, record):
        # A list, not a generator passed to all(): each step is tried even if an earlier one failed.
        vital = [_try_step(step, summary, record) for step in (_read_job, _read_state, _read_result)]
        if not all(vital):
            record.row["state"] = "damaged"
        # _mark_restarts needs the history and the attempts.
        steps = (
            *(_read_environment, _read_history, _read_attempts, _mark_restarts),
            partial(_read_predictions, pictures=pictures),
            *(_read_evaluations, _read_design),
        )
        for step in (*steps, _read_convolutions) if pictures else steps:
            _try_step(step, summary, record)
        _try_step(_check_result, summary, record)  # last, since it compares what the other steps have read
    # Duplicates are removed, since the summary and the step that needs a file may both report the same damage.
    record.reasons = list(dict.fromkeys(_shorten_reason(reason, run) for reason in record.reasons))
    record.remarks = list(map(printable, record.remarks))
    record.row["reason"] = "; ".join([*record.reasons, *record.contradictions]) or None
    record.row = {column: _convert_cell(value) for column, value in record.row.items()}
    return record


def _try_step(step: Callable[[RunSummary, Record], None], summary: RunSummary, record: Record) -> bool:
    """Perform one step of reading a run and return whether it succeeded; if not, add the reason to the record."""
    try:
        step(summary, record)
    except CnnjobError as error:
        record.reasons.append(str(error))
    except _UNREADABLE as error:
        record.reasons.append(f"{summary.run.path}: cannot be read as a run ({type(error).__name__}: {error})")
    else:
        return True
    return False


def _shorten_reason(reason: str, run: Run) -> str:
    """Return a reason on one line, without the path of the run folder at its beginning.

    The report shows the reason next to the name of the run, so the path would add nothing.
    """
    return printable(" ".join(reason.removeprefix(f"{run.path}/").removeprefix(f"{run.path}: ").split()))


def _convert_cell(value: Any) -> str | int | float | None:
    """Return a value in a form that both CSV and JSON can represent."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, int | float) else printable(str(value))


def _check_kind(summary: RunSummary, _: Record) -> None:
    if not summary.run.job_file.exists():
        raise DataError("not a cnnjob run: it has no job.json")


def _read_job(summary: RunSummary, record: Record) -> None:
    frozen = summary.manifest or summary.run.manifest()  # raises with the reason if it is damaged
    written_as, job = manifest_format(frozen), frozen["job"]
    if written_as != FORMAT:
        job = older.translate(job)
        record.settings["format"] = written_as
    with suppress(CnnjobError, *_UNREADABLE):  # a job of another version may have other keys
        # Keys that were added after the run was created get their defaults. Otherwise, later runs with the same
        # settings would be in another group.
        job = summary.job.model_dump(mode="json")
    record.row |= {"job": job["name"], "seed": job["seed"]}
    data = frozen["data"]
    record.n_classes = len(data["class_names"]) if data.get("class_names") else None
    named = {"dataset": f"{data['name']} {short_digest(data['digest'])}"}
    record.digest = frozen["digest"]
    settings = {
        printable(key): value for key, value in _flatten_settings(job) if key not in {INIT_FROM, "model.init_sha256"}
    }
    if origin := frozen.get("initial"):
        record.parent = printable(origin.get("run") or Path(origin["source"]).name)
        record.parent_digest = origin.get("digest")
        named[INIT_FROM] = f"{record.parent} {short_digest(origin['sha256'])}"
    record.settings |= settings | named
    record.row |= {name: record.settings.get(f"train.{name}") for name in ("batch_size", "learning_rate")}
    if isinstance(blocks := job["model"]["blocks"], list):
        record.settings[BLOCKS] = ", ".join(map(_describe_block, blocks))


def _describe_block(block: dict[str, Any]) -> str:
    """Return a description of a block, such as ``conv 32`` or ``residual (conv 32 + conv 32)``."""
    (kind, value), *_ = block.items()
    return f"{kind} ({' + '.join(map(_describe_block, value))})" if isinstance(value, list) else f"{kind} {value}"


def _flatten_settings(value: Any, above: str = "") -> Iterator[tuple[str, str | int | float | None]]:
    """Yield each setting with its dotted key.

    Tables in a list are numbered from 1; a list of scalars is one value.
    """
    members = value.items() if isinstance(value, dict) else enumerate(value, start=1)
    for key, member in members:
        if above + str(key) in KINDS and isinstance(member, dict) and len(member) == 1:
            yield f"{above}{key}", next(iter(member))
        if isinstance(member, list) and member and not any(isinstance(one, dict | list) for one in member):
            yield f"{above}{key}", _convert_cell(" ".join(map(str, member)))
        elif isinstance(member, dict | list) and member:
            yield from _flatten_settings(member, f"{above}{key}.")
        else:
            yield f"{above}{key}", _convert_cell(member)


def _read_state(summary: RunSummary, record: Record) -> None:
    record.row["state"] = summary.recorded_state
    record.remarks += (_shorten_reason(note, summary.run) for note in summary.notes if note != UNRECORDED)
    if summary.state == "damaged":
        raise DataError(summary.damage)
    if summary.state != "finished":
        record.reasons.append(_explain_unfinished(summary))
        if summary.is_older and summary.state != "running":
            record.reasons.append("created by another version of cnnjob, so it is not resumed")


def _explain_unfinished(summary: RunSummary) -> str:
    state, why = summary.recorded_state, summary.attempt.get("why")
    if state == "cancelled":
        reason = "cancelled; submit it again to resume it"
    elif state == "failed" and not why:
        reason = f"failed: {summary.given_up}; cnnjob status RUN shows the error"
    elif state == "pending":
        reason = "pending: not started yet"
    elif UNRECORDED in summary.notes:
        reason = UNRECORDED
    elif state == "running":
        reason = f"running on {summary.attempt['host']} since {summary.attempt['started']}"
    elif why:
        reason = name_ctrl_c(why)
    elif summary.original:
        copied = f"a copy of {summary.original}, made while that run was being trained"
        reason = f"lost: {copied}; run the same command to resume the copy"
    else:
        reason = "lost: the process died without recording why; run the same command to resume"
    return reason


def _read_result(summary: RunSummary, record: Record) -> None:
    run = summary.run
    if not run.result_file.exists():
        return
    result = record.result = run.result()
    record.row |= {key: result.get(key) for key in (*_OF_RESULT, "device")}
    if result.get("selected_on") == "test":
        record.remarks.append(OPTIMISTIC)
    record.row["test_time_augmentation"] = views = str(result.get("test_time_augmentation", "none"))
    if views != "none":
        record.remarks.append(f"test-time augmentation: {views}; the metrics use the mean over the transformed images")
    if (step := result.get("bits_may_differ_from_step")) is not None:
        record.remarks.append(f"bits may differ from step {step} onwards: resumed with different versions or threads")


def _read_environment(summary: RunSummary, record: Record) -> None:
    environment = record.environment = summary.run.environment()
    commit = environment.get("commit")
    record.row["commit"] = f"{commit}-dirty" if commit and environment.get("dirty") else commit
    record.row["data_sha256"] = environment.get("data_sha256")
    record.row["device"] = record.row["device"] or environment.get("device")


def _read_history(summary: RunSummary, record: Record) -> None:
    run = summary.run
    epochs = [dict(epoch) for epoch in run.history()]
    if not epochs and run.result_file.exists():
        raise DataError(f"{run.history_file}: missing or empty, so there are no learning curves")
    if not epochs:
        return
    for epoch in epochs:
        if epoch.get("ended"):
            epoch["ended"] = datetime.fromisoformat(epoch["ended"]).timestamp()
    cells = ([epoch.get(key) for key in HISTORY_COLUMNS] for epoch in epochs)
    table = np.array([[math.nan if cell is None else float(cell) for cell in row] for row in cells])  # (E, columns)
    table[~(np.abs(table) <= _LARGEST)] = math.nan  # implausible numbers would ruin the scales of the figures
    history = dict(zip(HISTORY_COLUMNS, table.T, strict=True))
    if not (np.diff(history["epoch"], prepend=0) == 1).all():
        raise DataError(f"{run.history_file}: damaged (its epochs are not 1, 2, 3, …)")
    best = record.row["best_epoch"]
    record.curve = Curve(record.name, history, best if isinstance(best, int) else None)
    record.row["epochs"] = record.row["epochs"] or int(history["epoch"][-1])


def _read_attempts(summary: RunSummary, record: Record) -> None:
    log_tail = shorten_lines(last_lines(summary.run.log_file, LOG_LINES)).expandtabs()
    record.log_tail = "\n".join(map(printable, log_tail.splitlines()))
    record.attempts = read_attempts(summary)


def _mark_restarts(_: RunSummary, record: Record) -> None:
    """Mark on the curve, in epochs, where each attempt except the first resumed."""
    steps = [attempt.resumed_at for attempt in record.attempts[1:]]
    if record.curve and (pace := record.curve.history["step"][-1] / record.curve.history["epoch"][-1]) > 0:
        restarts = tuple(step / pace for step in steps if step is not None)
        record.curve = replace(record.curve, restarts=restarts)


def _read_predictions(summary: RunSummary, record: Record, *, pictures: bool) -> None:
    run = summary.run
    if not run.result_file.exists():
        return
    arrays = run.predictions()
    probabilities, labels, names = (arrays[name] for name in ("probabilities", "labels", "class_names"))
    if not _are_predictions(probabilities, labels, names, record.n_classes):
        raise DataError(f"{run.predictions_file}: not a valid predictions file (its arrays do not match each other)")
    counts = record.counts = metrics.confusion(probabilities, labels)
    record.correct = metrics.predicted(probabilities) == labels
    classes = record.classes = metrics.per_class(counts)
    overall = metrics.summarise(probabilities, labels, classes)
    record.row |= overall._asdict()
    record.class_names = tuple(printable(str(name)) for name in names)
    data = summary.manifest.get("data") or {}
    _add_remarks(
        record, crosscheck.check_predictions(arrays, data.get("class_names") or (), data.get("image_shape") or ())
    )
    if not pictures:
        return
    if {"wrong_images", "wrong_indices"} <= arrays.keys():
        wrong = arrays["wrong_images"], arrays["wrong_indices"]
        record.mistakes = classified_images(*wrong, arrays, record.class_names)
    if run.examples_file.exists():
        found = npz.read_arrays(run.examples_file)
        record.examples = examples_of(found, arrays, record.class_names, str(run.examples_file))
        record.example_arrays = found


def _check_result(summary: RunSummary, record: Record) -> None:
    """Add remarks on contradictions between a finished run's files."""
    if not record.result:
        return
    result, checks = record.result, [*crosscheck.check_result(record.result, record.settings, record.environment)]
    if record.counts is not None:
        figures = {name: record.row[name] for name in ("test_accuracy", "test_loss")}
        checks += crosscheck.check_figures(result, figures)
    checks += crosscheck.check_attempts(result, summary.run.attempts())
    if record.curve:
        checks += crosscheck.check_history(result, record.curve.history, str(record.settings.get("train.select_on")))
    if record.curve and not summary.is_older:
        checks += crosscheck.check_epochs(record.curve.history, summary.job)
    _add_remarks(record, checks)


def _read_evaluations(summary: RunSummary, record: Record) -> None:
    for path in sorted(summary.run.evaluations_folder.glob("*.json")):
        evaluation = json_files.read_checked(path, EvaluationRecord)
        evaluation["dataset"]["name"] = printable(evaluation["dataset"]["name"])
        evaluation["split"] = printable(evaluation["split"])
        evaluation["counts"] = _read_counts(path.with_suffix(".csv"), evaluation["images"])
        record.evaluations.append(evaluation)


def _read_counts(path: Path, n_images: int) -> np.ndarray:
    """Return the confusion matrix, (K, K) int64, from the CSV file of an evaluation.

    Raises:
        DataError: the file is missing or is not a confusion matrix of ``n_images`` images.
    """
    # Without its first row and column, which contain the names of the classes.
    rows = [row[1:] for row in csv.reader(io.StringIO(files.read_text(path, _MATRIX_BYTES), newline=""))][1:]
    if not all(len(row) == len(rows) and all(map(_COUNT.fullmatch, row)) for row in rows):
        raise DataError(f"{path}: damaged (not a confusion matrix). Run the evaluation again")
    counts = np.array(rows, np.int64).reshape(len(rows), len(rows))
    if not rows or counts.sum() != n_images:
        raise DataError(f"{path}: damaged (its counts do not add up to {n_images:,} images). Run the evaluation again")
    return counts


def _add_remarks(record: Record, checks: Iterable[crosscheck.Check]) -> None:
    """Add a remark for each check that fails."""
    found = [printable(str(check)) for check in checks if not check.agrees]
    record.contradictions += found
    record.remarks += found


def _are_predictions(probabilities: np.ndarray, labels: np.ndarray, names: np.ndarray, n_classes: int | None) -> bool:
    if probabilities.ndim != len("NK"):
        return False
    N, K = probabilities.shape
    return (
        N > 0
        and n_classes in {None, K}
        and labels.shape == (N,)
        and names.shape == (K,)
        and labels.dtype.kind in "iu"
        and probabilities.dtype.kind == "f"
        and 0 <= labels.min() <= labels.max() < K
        and bool((probabilities >= 0).all())  # False for NaN
        and bool((np.abs(probabilities.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())
    )


def _read_design(summary: RunSummary, record: Record) -> None:
    """Set the record's notable settings and its layers.

    If the job cannot be read, nothing is set; an earlier step has already reported the error.
    """
    with suppress(CnnjobError, *_UNREADABLE):
        job, data = summary.job, summary.manifest["data"]
        changed = dict(_flatten_settings(job.model_dump(mode="json", exclude_defaults=True, include={"data", "train"})))
        changed[INIT_FROM] = record.parent
        record.chosen = {key: value for key, value in record.settings.items() if key in changed or key in _ESSENTIAL}
        record.layers = layer_rows(job.model, tuple(data["image_shape"]), len(data["class_names"]))


def _read_convolutions(summary: RunSummary, record: Record) -> None:
    run = summary.run
    if not run.result_file.exists():
        return
    weights = run.weights()
    _add_remarks(record, crosscheck.check_weights(record.result, weights))
    record.convolutions = convolutions_of(weights, record.example_arrays, str(run.weights_file))
