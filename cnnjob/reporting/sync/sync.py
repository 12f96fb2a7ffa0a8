"""Copy the histories, settings and results of runs to another tool; only what is new is sent.

FOLDER/NAME/        FOLDER is runs/.tensorboard/ or runs/.wandb/ by default, NAME is the name of the run
sent.json           what has been sent: one entry per update
lock                locked while the run is being sent
events.out.…        for TensorBoard: one event file per update
wandb/              for W&B: its own files

Run folders are only read. The history of a resumed run is compared with what has been sent, so that no epoch is sent
twice; measured times are not compared, since they change when an epoch is trained again.
"""

import fcntl
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from cnnjob import files
from cnnjob.errors import BusyError, CnnjobError, DataError, JobError
from cnnjob.jobs import json_files
from cnnjob.jobs.json_files import Count, Fields
from cnnjob.reporting import figures, plots
from cnnjob.reporting.groups import result_settings
from cnnjob.reporting.record import Record, read_record
from cnnjob.reporting.tables import history_rows
from cnnjob.runs.restart_log import cancellation_file, restart_log_file
from cnnjob.runs.run import SYNC_FOLDERS, Run

SENT_FILE = "sent.json"
RESULTS = ("test_accuracy", "test_loss", "precision_macro", "recall_macro", "f1_macro")
"""The results that are sent as metrics: fractions from 0 to 1, and the loss in nats per image."""
_MEASURED_TIMES = {"seconds", "images_per_second", "ended"}


@dataclass(frozen=True)
class Update:
    """The data of one run that a tool has not yet received."""

    run: Run
    record: Record
    number: int
    """Number of the update, from 1."""
    group: str
    """Name of the group of runs that differ only in their seed."""
    generation: int
    """How many times the run's history has changed after it was sent; almost always 0."""
    has_settings: bool
    """True if the settings are sent."""
    first_epoch: int
    """Number of the first epoch that is sent, from 1."""
    epochs: list[dict[str, float]]
    """Metrics of the epochs that are sent, by the tags of :func:`metrics_of`, and ``ended`` (POSIX time) if known."""
    has_result: bool
    """True if the result is sent; this is then the last update of the run."""

    @property
    def last_epoch(self) -> int:
        """Number of the last epoch that has been sent, including this update; 0 if there is none."""
        return self.first_epoch + len(self.epochs) - 1

    @property
    def results(self) -> dict[str, float]:
        """The known results, by their names in ``RESULTS``."""
        return {name: self.record.row[name] for name in RESULTS if isinstance(self.record.row[name], int | float)}


class Tool(Protocol):
    """A tool that receives runs."""

    name: str
    project: str
    """The project to which the runs are sent; empty if the tool has none."""

    def send(self, folder: Path, update: Update, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send an update.

        Args:
            folder: the folder of the run's copy.
            update: what to send.
            entry: the update's entry for ``sent.json``.

        Yields:
            The entry, completed by the tool, each time that the entry must be written to ``sent.json``.
        """


class _Entry(Fields):
    """An update in ``sent.json``."""

    number: Count
    generation: Count
    settings: bool
    first_epoch: Count
    epochs: list[str]
    """A digest of each epoch's metrics."""
    result: bool
    project: str = ""
    """For W&B: the project that received the update; everything is sent again if another project is specified."""
    file: str = ""
    """For TensorBoard: the event file."""
    bytes: Count = 0
    """For TensorBoard: size of the event file."""
    received: bool = False
    """For W&B: whether its library has accepted the whole update."""
    url: str = ""
    """For W&B: address of the run; empty in offline mode."""


class _Sent(Fields):
    """The content of ``sent.json``."""

    run: dict[str, list[int]] = Field(default_factory=dict)
    """Modification time and size of the run's files when the run was last read."""
    state: str = ""
    updates: list[_Entry] = Field(default_factory=list)


@dataclass(frozen=True)
class Synced:
    """The result of :func:`sync` for one run."""

    run: str
    state: str
    new_epochs: int
    epochs: int
    """Number of epochs that have been sent in all."""
    new_result: bool
    """True if this call of :func:`sync` has sent the result."""
    problem: str
    """Why nothing can be sent, if the run is damaged; otherwise empty."""
    folder: str
    """Folder of the run's copy."""
    url: str
    """Address of the run in W&B; empty if unknown."""


def sync(runs: Iterable[Run], tool: Tool, out: Path | None = None) -> Iterator[Synced]:
    """Send the new data of runs to a tool.

    Args:
        runs: runs in any state.
        tool: the tool.
        out: folder of the copies; by default, the folder in ``SYNC_FOLDERS`` for this tool, in the folder that contains
            the run.

    Yields:
        The result for each run, as soon as the run has been sent.

    Raises:
        JobError: two runs with the same name would be copied to the same folder.
        BusyError: another process is sending one of the runs.
        CnnjobError: the tool rejects the runs, or the copies cannot be written.
    """
    folders = {}
    for run in runs:
        path = run.path if run.path.name else run.path.resolve()  # "." has no name
        folders[run] = (out or path.parent / SYNC_FOLDERS[tool.name]) / path.name
    twice = [folder for folder, count in Counter(folders.values()).items() if count > 1]
    if twice:
        first, second, *_ = (run.path for run, folder in folders.items() if folder == twice[0])
        raise JobError(f"{first} and {second}: both are named {first.name}. Sync them to different folders with --out")
    for run, folder in folders.items():
        with files.disk_errors_as_cnnjob_error(folder), _locked(folder):
            synced = _sync_run(run, tool, folder)
        yield synced


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder of a run's copy, so that two processes do not send the same epochs.

    Raises:
        BusyError: another process has locked the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{folder}: another cnnjob sync is running. Wait until it has ended") from None
        yield


def _sync_run(run: Run, tool: Tool, folder: Path) -> Synced:
    sent, stamps = _read_sent(folder / SENT_FILE), _file_stamps(run)
    received = _received(sent.updates, folder, tool.project)
    entries = [entry.model_dump() for entry in received]
    nothing = Synced(
        folder.name, sent.state, new_epochs=0, epochs=len(_epochs(received)), new_result=False, problem="",
        folder=str(folder), url=_url(entries),
    )  # fmt: skip
    if stamps == sent.run and len(received) == len(sent.updates):
        return nothing
    record = read_record(run, folder.name)
    state = str(record.row["state"])
    if state in {"foreign", "damaged"}:
        return replace(nothing, state=state, problem=str(record.row["reason"]))
    update, digests = _unsent_part(run, record, received)
    if update.has_settings or update.epochs or update.has_result:
        entry = {
            "number": update.number, "generation": update.generation, "settings": update.has_settings,
            "first_epoch": update.first_epoch, "epochs": digests, "result": update.has_result,
            "project": tool.project,
        }  # fmt: skip
        for written in tool.send(folder, update, entry):
            files.write_json(folder / SENT_FILE, {"run": {}, "state": state, "updates": [*entries, written]})
            entry = written
        entries.append(entry)
    files.write_json(folder / SENT_FILE, {"run": stamps, "state": state, "updates": entries})
    return replace(
        nothing, state=state, new_epochs=len(update.epochs), epochs=update.last_epoch, new_result=update.has_result,
        url=_url(entries),
    )  # fmt: skip


def _read_sent(path: Path) -> _Sent:
    """Return what has been sent; nothing if the file is missing or damaged, so that everything is sent again."""
    try:
        return _Sent.model_validate(json_files.read_checked(path, _Sent))
    except DataError:
        return _Sent()


def _file_stamps(run: Run) -> dict[str, list[int]]:
    """Return the modification time and size of the files whose content is sent or determines the run's state."""
    try:
        attempts = run.attempt_files()[-1:]
    except DataError:
        attempts = []
    stamps = {}
    decisions = (restart_log_file(run), cancellation_file(run))
    for path in (run.job_file, run.history_file, run.result_file, *decisions, *attempts):
        if path.exists():
            status = path.stat()
            stamps[path.name] = [status.st_mtime_ns, status.st_size]
    return stamps


def _received(entries: Sequence[_Entry], folder: Path, project: str) -> list[_Entry]:
    """Return the updates that the tool has received, up to the first one that is missing."""
    received: list[_Entry] = []
    for entry in entries:
        path = folder / entry.file
        is_file = bool(entry.file) and path.is_file() and path.stat().st_size == entry.bytes
        if not (is_file or entry.received) or entry.project != project:
            break
        received.append(entry)
    return received


def _url(entries: Sequence[dict[str, Any]]) -> str:
    return next((str(entry["url"]) for entry in reversed(entries) if entry.get("url")), "")


def _epochs(received: Sequence[_Entry]) -> list[str]:
    """Return the digests of the epochs that the tool has received, in order."""
    epochs: list[str] = []
    for entry in received:
        epochs[entry.first_epoch - 1 :] = entry.epochs
    return epochs


def _unsent_part(run: Run, record: Record, received: Sequence[_Entry]) -> tuple[Update, list[str]]:
    """Return the part of a run that has not been sent, and the digests of the epochs in that part."""
    before, rows = _epochs(received), history_rows(record.curve) if record.curve else []
    digests = [_digest_of({key: value for key, value in row.items() if key not in _MEASURED_TIMES}) for row in rows]
    # After a kill, epochs since the last checkpoint are trained again. Normally they have the same bits, so the history
    # is only shorter for a while. If they differ, everything is sent again.
    has_changed = any(old != new for old, new in zip(before, digests, strict=False))
    generation = received[-1].generation if received else 0
    first = 0 if has_changed else len(before)
    has_result = bool(record.result) and (has_changed or not any(entry.result for entry in received))
    update = Update(
        run=run,
        record=record,
        number=len(received) + 1,
        group=f"{record.row['job']} {_digest_of(result_settings(record))}",
        generation=generation + has_changed,
        has_settings=has_changed or not received,
        first_epoch=first + 1,
        epochs=[metrics_of(row) for row in rows[first:]],
        has_result=has_result,
    )
    return update, digests[first:]


def _digest_of(value: Any) -> str:
    return files.short_digest(files.sha256_of(files.canonical_json(value).encode()))


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    """Return an epoch's metrics by tag, from a row of the history.

    Both tools group metrics by the part of the tag before the slash, so ``train_loss`` becomes ``loss/train``.
    """
    metrics = {}
    for column, value in row.items():
        split, _, measure = column.rpartition("_")
        is_score = split in {"train", "validation", "test"}
        if column not in {"epoch", "step"}:
            metrics[f"{measure}/{split}" if is_score else column] = value
    return metrics


def figures_of(record: Record) -> dict[str, bytes]:
    """Return the confusion matrix and the filters of a finished run as PNG files, by title."""
    drawings = {stem.rpartition("/")[2]: drawing for stem, drawing in figures.drawings([record], []).items()}
    return {
        title: plots.to_bytes(drawings[title].draw(*drawings[title].arguments), "png")
        for title in ("confusion", "filters")
        if title in drawings
    }


def require_package(name: str) -> None:
    """Check that an optional package is installed.

    Raises:
        CnnjobError: the package is not installed; the message contains the command that installs it.
    """
    try:
        import_module(name)
    except ImportError as error:
        raise CnnjobError(
            f"sync --to {name}: needs the {name} package ({error}). Install it:\n  pip install 'cnnjob[{name}]'"
        ) from error
