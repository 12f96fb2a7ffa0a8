"""Tar archives, plain and packed; the checksums of headers are made to fit."""

from pathlib import Path

from cnnjob.data.prepare.archives import read_members
from tests.fuzz.targets import Target
from tests.helpers.hostile_archives import fitting, hostile_archives, usual_archives


def _seeds() -> list[bytes]:
    return [*usual_archives(), *(content for _, _, content in hostile_archives() if len(content) < 20_000)]


def _finish(content: bytes) -> bytes:
    blocks = [content[start : start + 512] for start in range(0, len(content), 512)]
    return b"".join(fitting(block) if block[257:262] == b"ustar" and len(block) == 512 else block for block in blocks)


def _read(content: bytes, folder: Path) -> None:
    path = folder / "archive"
    path.write_bytes(content)
    for name, member in read_members(path, ["a", "b"]):
        assert name in {"a", "b"}
        assert len(member) <= len(content) * 1100


TARGET = Target(_seeds, _read, finish=_finish)
