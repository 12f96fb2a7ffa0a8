"""The page in a real browser: no error, no request, all fits, and can be used by all people. Needs Chromium."""

import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.page import page as pages
from cnnjob.reporting.record import read_record
from cnnjob.runs.run import Run
from tests.helpers import run_folders as folders
from tests.helpers.chromium import CHROMIUM, Tab, chromium_tab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
LONG = "x" * 60 + "y" * 40
FIRST_CELLS = """[...document.querySelector("table.sortable").tBodies]
    .map((body) => body.rows[0].cells[1].textContent.trim())"""
SHOWN_RUNS = """[...document.querySelectorAll("table.results tr[data-run]")].filter((row) => row.checkVisibility())
    .map((row) => row.cells[0].textContent.trim())"""
AXE = """axe.run(document, { iframes: false }).then((told) => ({
    passes: told.passes.length,
    faults: told.violations.map((one) => [one.id, one.impact, ...one.nodes.slice(0, 3).map((each) => each.html)]) }))"""


def written_page(file: Path, *runs: Run) -> Path:
    records = [read_record(run, run.name) for run in runs]
    file.write_text(pages.render(records, group_runs(records)))
    return file


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two groups, of a run whose names are hard to fit, and of five runs that have not started."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        folders.finished_run(root, seed=seed)
        folders.finished_run(root, seed=seed, learning_rate=0.1, channels=3)
    long = folders.stopped_run(root, name=LONG, learning_rate=0.2, why="failed: " + "no-blank" * 50)
    long.log_file.write_text("y" * 1000)
    folders.stopped_run(root, seed=2)
    for seed in range(5):
        folders.pending_run(root, seed=seed, learning_rate=0.3)
    better = next(run for run in Run.all(root) if run.manifest()["job"]["train"]["learning_rate"] == 0.1)
    better.predictions_file.unlink()
    folders.change_json(better.result_file, test_accuracy=0.9)
    return written_page(root / "page.html", *Run.all(root))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium_tab(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def open_all(tab: Tab) -> None:
    """Open everything that is folded."""
    tab.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    tab.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")  # what was inserted
    tab.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 400])
def test_the_page_fits_fetches_nothing_and_says_no_error(page: Path, tab: Tab, width: int, scheme: str) -> None:
    tab.open(page, width=width, dark=scheme == "dark")
    open_all(tab)
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth)")
    assert not tab.faults()


def test_the_first_screen_has_the_answer(page: Path, tab: Tab) -> None:
    tab.open(page, width=1280, height=900)
    for selector in (".states", "p.best", "table.results tbody:nth-of-type(2)"):
        assert tab.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().bottom <= innerHeight")
    assert tab.evaluate("[...document.querySelectorAll('.states .state')].every((each) => each.querySelector('svg'))")


def test_tables_are_sorted(page: Path, tab: Tab) -> None:
    tab.open(page)
    first = tab.evaluate(FIRST_CELLS)
    click = "document.querySelector('table.sortable').tHead.rows[0].cells[1].querySelector('button').click()"
    tab.evaluate(click)
    up = tab.evaluate(FIRST_CELLS)
    tab.evaluate(click)
    down = tab.evaluate(FIRST_CELLS)
    assert up[:2] == ["80.00 ± 0.00", "85.00 ± 63.53"]  # what is not known stays last
    assert first == down
    assert down[:3] == ["85.00 ± 63.53", "80.00 ± 0.00", ""]
    assert tab.evaluate("document.querySelector('table.sortable').tHead.rows[0].cells[1].ariaSort") == "descending"


def test_the_filter_is_reached_by_keyboard_and_finds_runs(page: Path, tab: Tab) -> None:
    tab.open(page)
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "filter"
    tab.press(*"0.1, seed 1")
    assert tab.evaluate("document.querySelector('output').textContent") == "1 of 11 runs"
    assert len(tab.evaluate(SHOWN_RUNS)) == 1
    assert tab.evaluate("[...document.querySelectorAll('details.run')].filter((each) => !each.hidden).length") == 1
    tab.press("Escape")
    assert tab.evaluate("document.querySelector('output').textContent") == ""
    everything = tab.evaluate(SHOWN_RUNS)
    tab.press(*"pending")
    assert tab.evaluate("document.querySelector('output').textContent") == "5 of 11 runs"
    assert not tab.evaluate(SHOWN_RUNS)  # the row of these runs is a list
    assert tab.evaluate("document.querySelector('table.results details.list').checkVisibility()")
    tab.press("Escape")
    assert tab.evaluate(SHOWN_RUNS) == everything


def test_sections_are_inserted_when_they_are_opened_by_keyboard_or_link(page: Path, tab: Tab) -> None:
    tab.open(page)
    figures = "document.querySelectorAll('details.run figure.chart').length"
    assert tab.evaluate(figures) == 0
    tab.evaluate("document.querySelector('details.run > summary').focus()")
    tab.press("Enter")
    tab.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    once = tab.evaluate(figures)
    assert once >= 2
    tab.evaluate("document.querySelectorAll('table.results a')[1].click()")
    tab.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    assert tab.evaluate(figures) == 2 * once
    top = tab.evaluate("document.querySelector(location.hash).parentElement.getBoundingClientRect().top")
    assert -1 <= top <= 100
    # The section of a run that has not started is in a section that is folded itself.
    tab.evaluate("[...document.querySelectorAll('table.results details.list a')].at(-1).click()")
    tab.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    assert tab.evaluate("document.querySelector(location.hash).checkVisibility()")
    assert not tab.faults()


def test_without_scripts_all_is_there(page: Path, tab: Tab) -> None:
    tab.open(page, scripts=False)
    assert tab.evaluate("document.querySelectorAll('details.run svg[role=img]').length") >= 10
    assert tab.evaluate("!document.querySelector('.filter').checkVisibility()")
    assert tab.evaluate("document.querySelectorAll('table.results .run-row').length") == 5
    tab.evaluate("document.querySelector('details.run > summary').focus()")
    tab.press("Enter")
    assert tab.evaluate("document.querySelector('details.run').open")
    assert tab.evaluate("document.querySelector('details.run svg[role=img]').checkVisibility()")


def test_long_names_are_shortened_in_their_middle_and_stay_whole(page: Path, tab: Tab) -> None:
    tab.open(page, width=768)
    short = "[...document.querySelectorAll('details.run .short')].find((each) => each.textContent.startsWith('xxx'))"
    assert LONG in tab.evaluate(f"{short}.textContent")
    assert LONG in tab.evaluate(f"{short}.title")
    assert tab.evaluate(f"{short}.firstElementChild.scrollWidth > {short}.firstElementChild.clientWidth")
    assert tab.evaluate(f"{short}.lastElementChild.scrollWidth <= {short}.lastElementChild.clientWidth")


def test_wide_tables_scroll_inside_their_frame(page: Path, tab: Tab) -> None:
    for width in (768, 400):
        tab.open(page, width=width)
        frame = "document.querySelector('table.results').parentElement"
        assert tab.evaluate(f"{frame}.scrollWidth > {frame}.clientWidth")
        assert tab.evaluate(f"getComputedStyle({frame}).backgroundImage.split('linear-gradient').length") == 5
        tab.evaluate(f"{frame}.focus()")
        assert tab.evaluate(f"document.activeElement === {frame}")  # arrow keys scroll it


def test_each_run_is_printed_on_a_page_of_its_own(tab: Tab, tmp_path: Path) -> None:
    for seed in range(6):
        folders.finished_run(tmp_path / "runs", seed=seed)
    runs = Run.all(tmp_path / "runs")
    for count in (6, 1):
        tab.open(written_page(tmp_path / "page.html", *runs[:count]))
        n_pages = len(re.findall(rb"/Type /Page\b", tab.pdf()))
        assert n_pages == (1 + count if count > 1 else 1)
        assert not tab.evaluate("document.querySelectorAll('details.run[open]').length")  # as before
        assert not tab.faults()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (768, "dark"), (1280, "dark"), (1280, "light")])
def test_all_people_can_use_the_page(page: Path, tab: Tab, width: int, scheme: str) -> None:
    """Axe-core finds what keeps people from using a page; a package of PyPI carries it."""
    try:
        files = metadata.files("axe-playwright-python") or []
    except metadata.PackageNotFoundError:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    tab.open(page, width=width, dark=scheme == "dark")
    open_all(tab)
    tab.evaluate(next(file for file in files if file.name == "axe.min.js").read_text() + "; 0")
    told = tab.evaluate(AXE)
    assert told["passes"] > 20
    assert not told["faults"], json.dumps(told["faults"], indent=1)
