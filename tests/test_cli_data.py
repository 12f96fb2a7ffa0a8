"""``cnnjob prepare`` and ``cnnjob show`` as typed: what they refuse, and what they say of what is not there yet."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cnnjob.cli import app


def cnnjob(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("out", "code", "message"),
    [
        ("", 2, "cnnjob: --out '': no name of a file"),
        ("new/", 2, "cnnjob: --out new/: no name of a file"),
        (".", 2, "cnnjob: .: not a file, found a folder"),
        ("paper.pdf", 2, "cnnjob: paper.pdf: already there, found no dataset of this program; give another --out"),
        ("paper.pdf/x.h5", 3, "cnnjob: paper.pdf/x.h5: cannot be written, found "),
    ],
)
def test_an_out_that_cannot_be(here: Path, out: str, code: int, message: str) -> None:
    (here / "paper.pdf").write_text("%PDF")
    refused = cnnjob("prepare", "digits", "--out", out)
    assert (refused.exit_code, refused.stdout) == (code, "")
    assert refused.stderr.startswith(message)
    assert refused.stderr.count("\n") == 1
    assert [path.read_text() for path in here.iterdir()] == ["%PDF"]
    assert cnnjob("prepare", "digits", "--out", "paper.pdf", "--force").exit_code == 0
