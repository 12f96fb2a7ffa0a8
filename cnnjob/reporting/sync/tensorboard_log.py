"""TensorBoard: event files with the metrics, hyperparameters, settings and figures of a run.

The records are the same as those of TensorBoard's own writers; neither TensorFlow nor PyTorch is needed.
"""

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjob import files
from cnnjob.errors import printable_lines
from cnnjob.reporting.groups import setting_text
from cnnjob.reporting.sync.sync import Update, figures_of, require_package

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_NO_HYPERPARAMETERS = ("name", "resources.", "train.checkpoint_seconds")
"""Prefixes of the keys of settings that do not affect the result."""


class TensorBoard:
    """Writes one event file per update."""

    name = "tensorboard"
    project = ""

    def __init__(self) -> None:
        """Check that the tensorboard package is installed.

        Raises:
            CnnjobError: the package is not installed.
        """
        require_package(self.name)

    def send(self, folder: Path, update: Update, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Write an event file; the arguments are those of :meth:`cnnjob.reporting.sync.sync.Tool.send`."""
        content = _event_file(update)
        earlier = list(folder.glob("events.out.tfevents.*.cnnjob.*"))
        # TensorBoard reads the files of a folder in the order of their names.
        at = max(int(time.time()), *(int(other.name.split(".")[3]) + 1 for other in earlier), 0)
        path = folder / f"events.out.tfevents.{at:010}.{socket.gethostname()}.cnnjob.{update.number:06}"
        # The entry counts only when the file exists, so a kill between the two does not lose or repeat an epoch.
        yield entry | {"file": path.name, "bytes": len(content)}
        files.write_whole(path, content)
        if update.has_settings:  # the new file replaces what an earlier sync sent
            for other in earlier:
                other.unlink()


def _event_file(update: Update) -> bytes:
    """Return the content of the event file for an update."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    content = io.BytesIO()
    writer = RecordWriter(content)
    now = time.time()

    def write(wall_time: float, step: int, summary: Summary) -> None:
        writer.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())

    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    # This record makes TensorBoard discard what earlier files say about these steps.
    start = SessionLog(status=SessionLog.START)
    first = 0 if update.has_settings else update.first_epoch
    writer.write(Event(wall_time=now, step=first, session_log=start).SerializeToString())
    if update.has_settings:
        for summary in _settings_summaries(update, now):
            write(now, 0, summary)
    for epoch, metrics in enumerate(update.epochs, start=update.first_epoch):
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items() if tag != "ended"]
        write(metrics.get("ended", now), epoch, Summary(value=values))
    if update.has_result:
        ended = update.epochs[-1].get("ended", now) if update.epochs else now
        for summary in _result_summaries(update, ended):
            write(ended, update.last_epoch, summary)
    return content.getvalue()


def _settings_summaries(update: Update, now: float) -> Iterator["Summary"]:
    """Yield the hyperparameters of a run, and its settings as text."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.text.summary_v2 import text_pb

    settings = update.record.settings
    hyperparameters = {
        key: value for key, value in settings.items()
        if value is not None and not key.startswith(_NO_HYPERPARAMETERS)
    }  # fmt: skip
    # Runs with the same trial id would be averaged, and the seeds would no longer be visible.
    yield hparams_pb(hyperparameters, trial_id=update.record.name, start_time_secs=now)
    lines = (f"    {key} = {setting_text(value)}" for key, value in settings.items() if value is not None)
    yield text_pb("job", printable_lines("\n".join([f"{update.record.name}, group {update.group}", "", *lines])))


def _result_summaries(update: Update, ended: float) -> Iterator["Summary"]:
    """Yield the result of a finished run: metrics on the test images, figures and remarks."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.plugins.text.summary_v2 import text_pb

    record = update.record
    yield Summary(value=[Summary.Value(tag=f"result/{name}", simple_value=x) for name, x in update.results.items()])
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=ended)
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end, version=metadata.PLUGIN_DATA_VERSION)
    tag = metadata.SESSION_END_INFO_TAG
    tensor = metadata.NULL_TENSOR
    yield Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=tensor)])
    for title, png in figures_of(record).items():
        width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        yield Summary(value=[Summary.Value(tag=title, image=image)])
    if record.remarks:
        yield text_pb("remarks", printable_lines("\n".join(f"- {remark}" for remark in record.remarks)))
