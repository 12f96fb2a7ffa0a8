"""Logs as they are written."""

from pathlib import Path

from cnnjob.runs import logs


def test_a_character_that_is_written_in_part_is_read_when_it_is_whole(tmp_path: Path) -> None:
    log, whole = tmp_path / "log", "a é\n".encode()
    log.write_bytes(whole[:3])
    text, position = logs._read_rest(log, 0)
    assert (text, position) == ("a ", 2)
    log.write_bytes(whole)
    assert logs._read_rest(log, position) == ("é\n", len(whole))
