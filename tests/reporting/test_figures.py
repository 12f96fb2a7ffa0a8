"""A report's figures: drawn where something has changed, and only there."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cnnjob.errors import JobError
from cnnjob.files import sha256_of
from cnnjob.reporting import figures, plots
from cnnjob.reporting.curve import Curve
from cnnjob.reporting.figures import FORMATS, NOTES, Drawing
from cnnjob.reporting.lines import run_lines
from cnnjob.reporting.plots import Format, Panels

HISTORY = {"epoch": np.array([1.0, 2]), "train_loss": np.array([1.0, 0.5])}


def drawing(curve: Curve) -> Drawing:
    panels = Panels(curve.name, {"loss": run_lines(curve, "loss")}, curve.best_epoch, curve.restarts)
    return Drawing(plots.learning_curves, ([panels],))


CURVES = {"curves": drawing(Curve("run", HISTORY))}
ALL = {f"curves.{kind}" for kind in FORMATS}


def drawn(out: Path, drawings: dict[str, Drawing], formats: Sequence[Format] = FORMATS) -> set[str]:
    """Write the files; the figures' that were drawn anew."""
    found = dict(figures.draw_planned(out, figures.plan_figures(out, drawings, formats)))
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
    assert drawn(out, CURVES) == (ALL if name == NOTES else {name})
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") == (name == NOTES)


@pytest.mark.parametrize(
    "curve",
    [
        Curve("another", HISTORY),
        Curve("run", HISTORY, best_epoch=1),
        Curve("run", HISTORY, restarts=(1.5,)),
        Curve("run", HISTORY | {"train_loss": np.array([1.0, 0.5000001])}),
        Curve("run", HISTORY | {"epoch": np.array([1, 2])}),
    ],
    ids=["name", "best epoch", "restarts", "a value", "a type"],
)
def test_what_says_something_else_is_drawn(out: Path, curve: Curve) -> None:
    assert drawn(out, {"curves": drawing(curve)}) == ALL


def test_what_is_drawn_another_way_is_drawn(out: Path) -> None:
    filters = Drawing(plots.convolution_filters, ([("conv1", np.zeros((1, 1, 1, 1)), (1, 1, 1, 1))], "run"))
    assert drawn(out, {"curves": filters}) == ALL


def test_a_comment_or_a_docstring_redraws_nothing() -> None:
    code = '"""Draw."""\nX = 1\n"""Of lines."""\n\n\ndef draw() -> int:\n    """Draw."""\n    return X  # a line\n'
    reworded = code.replace("Draw.", "Plot.").replace("Of lines.", "Lines.").replace("a line", "the line")
    assert reworded != code
    assert figures.statements_of(reworded) == figures.statements_of(code)
    assert figures.statements_of(code.replace("X = 1", "X = 2")) != figures.statements_of(code)
    assert figures.statements_of(code.replace("return X", "return -X")) != figures.statements_of(code)


def test_what_an_earlier_report_drew_stays_noted(out: Path) -> None:
    other = {"runs/b/curves": drawing(Curve("b", HISTORY))}
    (out / "runs" / "b").mkdir(parents=True)
    assert len(drawn(out, other)) == len(FORMATS)
    assert drawn(out, CURVES | other) == set()


def test_a_report_that_is_broken_off_has_noted_what_it_drew(out: Path) -> None:
    (out / "curves.png").unlink()
    (out / NOTES).unlink()
    both = figures.plan_figures(out, CURVES | {"other": Drawing(plots.learning_curves, (1,))}, FORMATS)
    for name, content in figures.draw_planned(out, both):
        assert content is not None
        (out / name).write_bytes(content)
        if name == NOTES:
            break
    assert drawn(out, CURVES) == set()


def test_what_is_not_asked_for_stays_as_long_as_it_shows_the_same(tmp_path: Path) -> None:
    assert drawn(tmp_path, CURVES, ["svg"]) == {"curves.svg"}
    assert drawn(tmp_path, CURVES, ["png"]) == {"curves.png"}
    (kept,) = figures.plan_figures(tmp_path, CURVES, [])
    assert (kept.formats, kept.drawn) == (("png", "svg"), ())
    assert not figures.plan_figures(tmp_path, {"curves": drawing(Curve("another", HISTORY))}, [])


def test_other_drawing_code_draws_what_is_asked_for_anew_and_keeps_the_rest(tmp_path: Path) -> None:
    drawn(tmp_path, CURVES, ["png", "svg"])
    notes = json.loads((tmp_path / NOTES).read_text())
    notes["curves"]["code"] = "another version's"
    (tmp_path / NOTES).write_text(json.dumps(notes))
    assert len(figures.plan_figures(tmp_path, CURVES, [])) == 1
    assert drawn(tmp_path, CURVES, ["png"]) == {"curves.png"}
    assert drawn(tmp_path, CURVES, ["png", "svg"]) == {"curves.png", "curves.svg"}


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(JobError, match=r"report: not a figure format .found 'jpg'.. Use one or more of png, svg, pdf"):
        figures.check_formats(["png", "jpg"])
    assert figures.check_formats(["svg", "png", "svg"]) == ["png", "svg"]
