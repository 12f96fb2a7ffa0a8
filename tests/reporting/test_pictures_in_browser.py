"""The pictures of a network in a real browser: the layer is chosen by keyboard, with and without scripts."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.page import page as pages
from cnnjob.reporting.record import read_record
from tests.helpers.chromium import CHROMIUM, Tab, chromium_tab
from tests.helpers.toy_jobs import trained

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
SHOWN = """[...document.querySelectorAll(".layer")].map((layer) => Number(layer.checkVisibility())).join("")"""
PICTURED = """[...document.querySelectorAll(".maps > .input")].filter((input) =>
    getComputedStyle(input).backgroundImage.startsWith('url("data:image/png')).length"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium_tab(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a single run with four convolutions."""
    residual = {"residual": [{"conv": 9}, {"conv": 9, "activation": "none"}]}
    run = trained(tmp_path_factory.mktemp("runs"), model__blocks=[{"conv": 6, "pool": 2}, residual]).run
    record = read_record(run, run.name)
    file = run.path.parent / "page.html"
    file.write_text(pages.render([record], group_runs([record])))
    return file


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_layer_is_chosen_by_keyboard(page: Path, tab: Tab, width: int, *, scripts: bool) -> None:
    tab.open(page, width=width, scripts=scripts)
    assert tab.evaluate(SHOWN) == "1000"
    for _ in range(100):
        tab.press("Tab")
        if tab.evaluate("document.activeElement.type === 'radio'"):
            break
    tab.press("ArrowDown", "ArrowDown")
    assert tab.evaluate(SHOWN) == "0010"
    assert tab.evaluate("document.querySelector('.layers :checked + label').textContent") == "residual1/conv2"
    assert tab.evaluate(PICTURED) == 16
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert not tab.faults()


@pytest.mark.parametrize("dark", [True, False])
def test_all_people_can_use_the_pictures(page: Path, tab: Tab, *, dark: bool) -> None:
    try:
        files = metadata.files("axe-playwright-python") or []
    except metadata.PackageNotFoundError:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    tab.open(page, dark=dark)
    tab.evaluate(next(file for file in files if file.name == "axe.min.js").read_text() + "; 0")
    assert not tab.evaluate("axe.run(document, { iframes: false }).then((told) => told.violations)")
