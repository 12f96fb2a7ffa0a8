"""Texts of messages: durations, plurals; names and logs from outside move no cursor, and no CSV cell is a formula."""

import csv
import gc
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cnnjob.cli.main import app
from cnnjob.cli.screen import Printable
from cnnjob.errors import (
    closest_name,
    format_seconds,
    note_names,
    plural,
    printable,
    printable_json,
    printable_lines,
    spreadsheet_cell,
)
from cnnjob.reporting import tables
from cnnjob.reporting.record import read_record
from cnnjob.reporting.report import report
from cnnjob.runs.run import Run
from tests.helpers import run_folders as folders

HOSTILE = "a\x1b[2J\x9bb\x7f\r\u202ec\udcff"
ESCAPED = r"a\x1b[2J\x9bb\x7f\r\u202ec\udcff"
OBEYED = {*map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])}


@given(st.text() | st.text("\x00\x1b[31m\n\t\r\x9b\u202e\u2028\ud800 aé👩‍🔬"))
def test_what_is_escaped(text: str) -> None:
    assert not OBEYED & set(printable(text))
    assert not (OBEYED - {"\n", "\t"}) & set(printable_lines(text))
    assert printable_lines(text).split("\n") == [printable_lines(line) for line in text.split("\n")]
    printable(text).encode()
    assert json.loads(printable_json(json.dumps([text], ensure_ascii=False))) == [text]


def test_ordinary_names_stay() -> None:
    for name in ("cat", "Größe 3", "日本語", "👩‍🔬", "a, b", "עברית"):
        assert printable(name) == printable_lines(name) == name
    assert (printable(HOSTILE), printable("p\nq\tr"), printable_lines("p\nq\tr")) == (ESCAPED, r"p\nq\tr", "p\nq\tr")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of runs whose name, class names, job ids, host and log are hostile."""
    for name, make in (("done", folders.finished_run), ("open", folders.stopped_run)):
        run = make(tmp_path / "made", name=name, why=f"failed: {HOSTILE}")
        folders.change_json(run.attempt_files()[-1], host=HOSTILE, job_id=HOSTILE)
        run.slurm_folder.mkdir()
        run.submission_file.write_text(json.dumps({"job_id": HOSTILE, "log": f"/{HOSTILE}"}))
        run.log_file.write_bytes(f"1\r\n{HOSTILE}\nlast\n".encode(errors="surrogateescape"))
        if run.result_file.exists():
            names = np.array([HOSTILE, "=1+1", "-x", "@y"])
            folders.change_arrays(run.predictions_file, lambda old: old.update(class_names=names))  # noqa: B023
        run.path.rename(tmp_path / f"{name}{HOSTILE}")
    (tmp_path / "made").rmdir()
    return tmp_path


COMMANDS = {
    "status": ["status", "."],
    "status of one": ["status", "done*"],
    "status of a failed one": ["status", "open*"],
    "status of none": ["status", HOSTILE],
    "logs": ["logs", "open*"],
    "report": ["report", "open*", "--out", "report"],
    "export": ["export", "open*"],
    "predict": ["predict", "done*", f"test:{HOSTILE}"],
    "cancel": ["cancel", "open*"],
    "train": ["train", HOSTILE],
    "status as JSON": ["status", ".", "--json"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_prints_a_control_character(hostile: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    command = COMMANDS[name]
    monkeypatch.chdir(hostile)
    words = [str(next(Path().glob(word))) if word.endswith("*") else word for word in command]
    done = CliRunner().invoke(app, words)
    assert done.exit_code in {0, 2, 3, 4}, done.output
    assert not (OBEYED - {"\n", "\t"}) & set(done.stdout + done.stderr)
    said = done.stdout + done.stderr
    assert r"\x9b" in said or r"\u009b" in said or "squeue" in said
    if "--json" in words:
        assert r"\x9b" in repr(json.loads(done.stdout))
    for path in Path().glob("report/*.[chmt]*"):
        assert not (OBEYED - {"\n", "\t"}) & set(path.read_text()), path


def test_a_stream_that_is_printed_to_is_neither_flushed_nor_closed_at_the_end() -> None:
    stream = io.StringIO()
    printing = Printable(stream)
    printing.write("a\x1b")
    stream.close()
    printing.close()
    del printing  # an error here would be a warning
    gc.collect()


def test_a_log_is_shown_line_by_line(hostile: Path) -> None:
    done = CliRunner().invoke(app, ["logs", str(next(hostile.glob("open*")))])
    assert done.stdout.startswith("1\na\\x1b[2J")
    assert done.stdout.endswith("\nlast\n")


def test_no_cell_of_a_csv_file_is_a_formula(hostile: Path) -> None:
    runs = [Run(path) for path in hostile.iterdir()]
    report(runs, hostile / "report")
    rows = list(csv.DictReader(io.StringIO((hostile / "report" / "classes.csv").read_text())))
    assert [row["class"] for row in rows] == [ESCAPED, "'=1+1", "'-x", "'@y"]
    assert float(rows[0]["precision"]) == pytest.approx(2 / 3)
    cells = ["=1", "+1", "-1", "@x", "\t=1", "\r=1", "x=1", "", "a b", -1.5, None, True]
    assert [spreadsheet_cell(cell) for cell in cells] == [f"'{cell}" for cell in cells[:6]] + cells[6:]
    assert tables.csv([{"=a": "-b", "n": -1.5}]) == b"'=a,n\n'-b,-1.5\n"
    assert read_record(runs[0], "x").row["state"] in {"finished", "failed"}


BROKEN = "line\nbreak\tand tab"


@pytest.mark.parametrize(
    "command",
    [
        ["status", BROKEN], ["status", f"{BROKEN}/done"], ["status", f"{BROKEN}/open"], ["logs", f"{BROKEN}/done"],
        ["train", f"{BROKEN}/done"], ["train", f"{BROKEN}/none.toml"], ["predict", f"{BROKEN}/open", "x.png"],
        ["predict", f"{BROKEN}/done", f"{BROKEN}.png"], ["export", f"./{BROKEN}/open"], ["show", f"{BROKEN}/none.h5"],
        ["cancel", f"{BROKEN}/open"], ["report", BROKEN, f"--out={BROKEN}/report"], ["clean", BROKEN],
        ["submit", f"{BROKEN}/done"], ["prepare", "folder", f"{BROKEN}/none"], ["report", f"{BROKEN}/none"],
    ],
    ids=str,
)  # fmt: skip
def test_a_line_break_in_a_name_breaks_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, make in (("done", folders.finished_run), ("open", folders.stopped_run)):
        make(Path("made"), name=name, why=f"failed: {BROKEN}/x is gone").path.rename(name)
        Path(BROKEN).mkdir(exist_ok=True)
        Path(name).rename(Path(BROKEN, name))
    done = CliRunner().invoke(app, command)
    said = done.stdout + done.stderr
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert not any(line.startswith("break") for line in said.splitlines()), said
    assert "\t" not in said
    for path in Path(BROKEN).glob("report/*.[chmt]*"):
        assert BROKEN not in path.read_text()


def test_names_are_escaped_where_they_stand_in_a_text() -> None:
    note_names("runs/it\nis/--out=a\tb")
    assert printable_lines("runs/it\nis: gone. See\n  rm it\nis/a\tb") == "runs/it\\nis: gone. See\n  rm it\\nis/a\\tb"
    note_names("runs/\n/x")
    assert printable_lines("one/\ntwo") == "one/\ntwo"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (59.7, "1 min"),
        (90, "1 min 30 s"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (86_399.9, "1 d"),
        (60 * 2165, "1 d 12 h"),
    ],
)
def test_durations_in_two_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.integers(0, 10**7))
def test_a_duration_is_right_to_a_tenth(seconds: int) -> None:
    words = format_seconds(seconds).split()
    units = {"d": 86_400, "h": 3600, "min": 60, "s": 1}
    shown = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(shown - seconds) <= 0.025 * seconds


def test_plurals_and_similar_names() -> None:
    assert (plural(0, "run"), plural(1, "run"), plural(2, "run")) == ("0 runs", "1 run", "2 runs")
    assert closest_name("mnsit", ["mnist", "cifar10"]) == "mnist"
    assert closest_name("photos", ["mnist", "cifar10"]) is None
