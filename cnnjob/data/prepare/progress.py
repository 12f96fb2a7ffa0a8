"""Progress bars on stderr, shown only if stderr is a terminal."""

from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console
from rich.progress import DownloadColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from cnnjob.data.prepare.writer import Chunk, DatasetContents


def counted(contents: DatasetContents, name: str) -> DatasetContents:
    """Wrap contents so that their images are counted on stderr as they are written.

    Args:
        contents: the contents to be written.
        name: label of the progress bar.

    Returns:
        The contents to write instead.
    """
    return replace(contents, blocks=_counted(contents.blocks, name))


def _counted(blocks: Iterator[Chunk], name: str) -> Iterator[Chunk]:
    columns = (TextColumn("{task.description} {task.completed:,.0f} images"), TimeElapsedColumn())
    with _bar(*columns) as bar:
        task = bar.add_task(name, total=None)
        for block in blocks:
            yield block
            bar.advance(task, len(block.images))


def _bar(*columns: ProgressColumn) -> Progress:
    """Create a bar on stderr, disabled if that is no terminal."""
    console = Console(stderr=True)
    # Without ``disable``, rich would still print an empty line where there is no terminal.
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class DownloadBar:
    """Progress bar of one download, with the interface that pooch expects."""

    def __init__(self, name: str) -> None:
        """Show a bar labelled with the file's name."""
        columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
        self._progress = _bar(*columns)
        self._task = self._progress.add_task(name, total=None)
        self._progress.start()

    @property
    def total(self) -> float | None:
        """Size of the download in bytes; None until the server has stated it."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, n_bytes: float) -> None:
        self._progress.update(self._task, total=n_bytes)

    def update(self, n_bytes: int) -> None:
        """Advance the bar by some bytes."""
        self._progress.advance(self._task, n_bytes)

    def reset(self) -> None:
        """Reset the bar; pooch does so at the end, and then fills it."""
        self._progress.reset(self._task)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()
