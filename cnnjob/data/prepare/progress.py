"""Progress bars on stderr, shown only if stderr is a terminal.

rich takes as long to import as reading 500 small images, so this module is imported only if a bar is shown.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from cnnjob.data.prepare.writer import Chunk, DatasetContents


def counted(contents: DatasetContents, name: str) -> DatasetContents:
    """Return the contents with a progress bar on stderr, which counts the images as they are written.

    Args:
        contents: the contents to be written.
        name: label of the progress bar.

    Returns:
        The contents to pass to the writer.
    """
    return replace(contents, blocks=_counted(contents.blocks, name, contents.n_images))


def _counted(blocks: Iterator[Chunk], name: str, total: int | None) -> Iterator[Chunk]:
    with image_bar(name, total) as advance:
        for block in blocks:
            yield block
            advance(len(block.images))


@contextmanager
def image_bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show the number of images processed, the rate and the remaining time.

    Args:
        label: text shown before the bar.
        total: number of images; None if unknown.

    Yields:
        A function that advances the bar by a number of images.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TextColumn("of {task.total:,.0f} images" if total else "images"),
        _SpeedColumn(),
        TimeRemainingColumn() if total else TimeElapsedColumn(),
    )
    with _bar(*columns) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


class _SpeedColumn(ProgressColumn):
    """A progress column that shows images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


def _bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar on stderr, disabled if stderr is not a terminal."""
    console = Console(stderr=True)
    # Without ``disable``, rich would still print an empty line when stderr is not a terminal.
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class DownloadBar:
    """The progress bar of one download, with the interface that pooch expects."""

    def __init__(self, name: str) -> None:
        """Show a bar labelled with the file's name."""
        columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
        self._progress = _bar(*columns)
        self._task = self._progress.add_task(name, total=None)
        self._progress.start()

    @property
    def total(self) -> float | None:
        """Size of the download, in bytes; None until the server has reported it."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, n_bytes: float) -> None:
        self._progress.update(self._task, total=n_bytes)

    def update(self, n_bytes: int) -> None:
        """Advance the bar by a number of bytes."""
        self._progress.advance(self._task, n_bytes)

    def reset(self) -> None:
        """Reset the bar; pooch calls this at the end of a download, before filling the bar."""
        self._progress.reset(self._task)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()
