"""TOML from users: a job file and a profile are read by one reader, so that both accept and refuse the same text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.slurm.submit import profiles

JOB = "dataset = 'digits'\n[model]\nblocks = []\n[train]\nepochs = 1\nbatch_size = 8\nlearning_rate = 0.1\n"
PROFILE = "partition = 'gpu'\n"


def load_profile(path: str) -> Any:
    return profiles.load_request(path, {})


READERS = pytest.mark.parametrize(("load", "text"), [(Job.load, JOB), (load_profile, PROFILE)], ids=["job", "profile"])


@READERS
@pytest.mark.parametrize("before", ["\ufeff", "# made on Windows\r\n", "\ufeff# made on Windows\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_are_read(
    tmp_path: Path, load: Callable[[str], Any], text: str, before: str
) -> None:
    plain, marked = tmp_path / "plain.toml", tmp_path / "marked" / "plain.toml"
    marked.parent.mkdir()
    plain.write_text(text)
    marked.write_bytes((before + text).encode())
    assert load(str(marked)) == load(str(plain))


@READERS
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (f"x = {'[' * 3000}{']' * 3000}\n", r"not readable as TOML \(its tables or arrays are nested too deeply\)"),
        (f"x = {'{a=' * 3000}1{'}' * 3000}\n", r"not readable as TOML \(its tables or arrays are nested too deeply\)"),
        (f"{'a.' * 70}b = 1\n", r"not readable as TOML \(a dotted key has more than 64 parts\)"),
        ("x = \n", r"not readable as TOML \(Invalid value"),
        ("\ufeff\ufeffx = 1\n", r"not readable as TOML \(Invalid "),
    ],
)
def test_what_is_not_read_has_one_message(
    tmp_path: Path, load: Callable[[str], Any], text: str, broken: str, message: str
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(broken + text)
    with pytest.raises(JobError, match=f"x.toml: {message}"):
        load(str(path))


@READERS
@pytest.mark.parametrize("depth", [40, 60])
def test_deep_tables_that_are_read_are_shown_in_a_short_message(
    tmp_path: Path, load: Callable[[str], Any], text: str, depth: int
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"nested = {'[' * depth}{']' * depth}\n{text}")
    with pytest.raises(JobError, match="nested: no such key") as error:
        load(str(path))
    assert max(map(len, str(error.value).splitlines())) < 400
