"""A report's figures: drawn where something has changed, and only there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cnnjob.files import sha256_of
from cnnjob.reporting import figures, plots
from cnnjob.reporting.curve import Curve
from cnnjob.reporting.figures import FORMATS, NOTES, Drawing

HISTORY = {"epoch": np.array([1.0, 2]), "train_loss": np.array([1.0, 0.5])}
CURVES = {"curves": Drawing(plots.learning_curve, (Curve("run", HISTORY),))}
ALL = {f"curves.{kind}" for kind in FORMATS}


def drawn(out: Path, drawings: dict[str, Drawing]) -> set[str]:
    """Write the files; the figures' that were drawn anew."""
    found = dict(figures.draw_changed(out, drawings))
    for name, content in found.items():
        if content is not None:
            (out / name).write_bytes(content)
    return {name for name, content in found.items() if content is not None} - {NOTES}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which a picture was replaced, and noted."""
    folder = tmp_path_factory.mktemp("report")
    assert drawn(folder, CURVES) == ALL
    (folder / "curves.png").write_bytes(b"no figure")
    notes = json.loads((folder / NOTES).read_text())
    notes["curves"]["png"] = sha256_of(b"no figure")
    (folder / NOTES).write_text(json.dumps(notes))
    return folder


@pytest.fixture
def out(changed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(changed, tmp_path / "out")


def test_what_is_as_noted_is_not_drawn(out: Path) -> None:
    assert drawn(out, CURVES) == set()
    assert (out / "curves.png").read_bytes() == b"no figure"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("curves.svg", ""),
        ("curves.pdf", None),
        (NOTES, None),
        (NOTES, "{"),
        (NOTES, '{"curves": 1}'),
        (NOTES, '{"curves": {"source": 1}}'),
    ],
)
def test_what_is_not_as_noted_is_drawn(out: Path, name: str, content: str | None) -> None:
    (out / name).unlink()
    if content is not None:
        (out / name).write_text(content)
    assert drawn(out, CURVES) == ALL
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "curve",
    [
        Curve("another", HISTORY),
        Curve("run", HISTORY, best_epoch=1),
        Curve("run", HISTORY, restarts=(1.5,)),
        Curve("run", HISTORY | {"train_loss": np.array([1.0, 0.5000001])}),
        Curve("run", HISTORY | {"epoch": np.array([1, 2])}),
        Curve("run", HISTORY | {"train_accuracy": np.array([0.5, 0.6])}),
    ],
    ids=["name", "best epoch", "restarts", "a value", "a type", "more values"],
)
def test_what_says_something_else_is_drawn(out: Path, curve: Curve) -> None:
    assert drawn(out, {"curves": Drawing(plots.learning_curve, (curve,))}) == ALL


def test_what_is_drawn_another_way_is_drawn(out: Path) -> None:
    assert drawn(out, {"curves": Drawing(plots.overlaid_curves, ([Curve("run", HISTORY)],))}) == ALL


def test_a_comment_or_a_docstring_redraws_nothing() -> None:
    code = '"""Draw."""\nX = 1\n"""Of lines."""\n\n\ndef draw() -> int:\n    """Draw."""\n    return X  # a line\n'
    reworded = code.replace("Draw.", "Plot.").replace("Of lines.", "Lines.").replace("a line", "the line")
    assert reworded != code
    assert figures.statements_of(reworded) == figures.statements_of(code)
    assert figures.statements_of(code.replace("X = 1", "X = 2")) != figures.statements_of(code)
    assert figures.statements_of(code.replace("return X", "return -X")) != figures.statements_of(code)


def test_what_an_earlier_report_drew_stays_noted(out: Path) -> None:
    other = {"runs/b/curves": Drawing(plots.learning_curve, (Curve("b", HISTORY),))}
    (out / "runs" / "b").mkdir(parents=True)
    assert len(drawn(out, other)) == len(FORMATS)
    assert drawn(out, CURVES | other) == set()


def test_a_report_that_is_broken_off_has_noted_what_it_drew(out: Path) -> None:
    (out / "curves.png").unlink()
    (out / NOTES).unlink()
    for name, content in figures.draw_changed(out, CURVES | {"other": Drawing(plots.learning_curve, (1,))}):
        assert content is not None
        (out / name).write_bytes(content)
        if name == NOTES:
            break
    assert drawn(out, CURVES) == set()
