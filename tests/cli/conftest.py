"""Fixtures of the tests of commands."""

from pathlib import Path

import pytest

from tests.helpers.cli import JOB
from tests.helpers.toy_jobs import dataset


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the toy dataset and job."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    dataset(tmp_path / "data")
    (tmp_path / "toy.toml").write_text(JOB)
    return tmp_path
