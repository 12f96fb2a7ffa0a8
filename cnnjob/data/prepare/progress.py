"""Progress bars on stderr, for a person who waits at a terminal."""

from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console
from rich.progress import DownloadColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from cnnjob.data.prepare.writer import Chunk, DatasetContents


def counted(contents: DatasetContents, name: str) -> DatasetContents:
    """The same contents, whose images are counted on stderr as they pass.

    Args:
        contents: what is going to be written.
        name: what to call it.

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
    """A bar on stderr; where that is no terminal, nothing, not even an empty line."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class DownloadBar:
    """A progress bar of one download, as pooch wants one."""

    def __init__(self, name: str) -> None:
        """Show a bar for the file of this name."""
        columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
        self._progress = _bar(*columns)
        self._task = self._progress.add_task(name, total=None)
        self._progress.start()

    @property
    def total(self) -> float | None:
        """The bytes to come, once the server has said how many."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, n_bytes: float) -> None:
        self._progress.update(self._task, total=n_bytes)

    def update(self, n_bytes: int) -> None:
        """Move on."""
        self._progress.advance(self._task, n_bytes)

    def reset(self) -> None:
        """Begin again: pooch does so at the end, to fill the bar."""
        self._progress.reset(self._task)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()
