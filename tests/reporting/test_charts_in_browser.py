"""The charts in a real browser: values at a point, by pointer and by keyboard, smoothing and logarithmic axes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjob.reporting.curve import Curve
from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.page import page as pages
from cnnjob.reporting.record import Record
from tests.helpers.chromium import CHROMIUM, Tab, chromium_tab
from tests.helpers.records import group

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")

HELPERS = """
const chart = (name) => [...document.querySelectorAll(".chart")].find((one) => one.textContent.includes(name));
const accuracy = chart("accuracy of all groups over epochs"), loss = chart("loss of all groups over epochs");
const reading = (figure) => {
  const box = figure.querySelector(".reading");
  return box.hidden ? null : [box.querySelector("p"), ...box.querySelectorAll("li")].map((one) => one.textContent);
};
const pointer = (figure, kind, x, type = "mouse") => {
  const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
  const place = { clientX: box.left + x / 480 * box.width, clientY: box.top + 100, pointerType: type, bubbles: true };
  svg.dispatchEvent(new PointerEvent(kind, place));
  return reading(figure);
};
const ticks = (figure) => [...figure.querySelectorAll(".ticks text")].map((one) => one.textContent);
const drawn = (figure) => [...figure.querySelectorAll(".area, .area path, .ticks *")].flatMap((one) =>
  [..."d viewBox y".split(" ").map((name) => one.getAttribute(name) ?? ""), one.textContent]
).join(" ").split(/[^-\\d.]+/).map(parseFloat).filter(Number.isFinite);
const spoken = (figure) => figure.querySelector("svg").getAttribute("aria-valuetext");
"""


def records(*, epochs: int = 3, seeds: int = 2) -> list[Record]:
    """Two groups, the second of one seed."""
    made = [*group(*([0.9] * seeds), **{"train.learning_rate": 0.1}), *group(0.8, **{"train.learning_rate": 0.2})]
    for number, record in enumerate(made):
        e = np.arange(1.0, epochs + 1)
        history = {"epoch": e, "seconds": np.ones(epochs), "train_loss": (number + 1) / e, "learning_rate": 0.1 / e}
        record.curve = Curve(record.name, history | {"train_accuracy": (80 + 4 * e + number) / 100})
    return made


def written_page(file: Path, made: list[Record]) -> Path:
    file.write_text(pages.render(made, group_runs(made)))
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium_tab(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, tmp_path: Path) -> Iterator[Tab]:
    """A tab with the page of these records."""
    browser.open(written_page(tmp_path / "page.html", records()))
    browser.evaluate(HELPERS)
    yield browser
    assert not browser.faults()


def test_a_pointer_shows_the_epoch_and_the_value_of_each_line(tab: Tab) -> None:
    heading, *values = tab.evaluate("pointer(accuracy, 'pointermove', 60)")
    assert heading == "epoch 1"
    assert values[:2] == ["learning_rate 0.286.00 %", "learning_rate 0.1, mean of 284.50 ± 6.35 %"]
    assert [value[-7:] for value in values[2:]] == ["85.00 %", "84.00 %"]
    assert tab.evaluate("pointer(accuracy, 'pointerleave', 60)") is None


def test_a_touch_shows_values_that_stay(tab: Tab) -> None:
    touched = tab.evaluate("pointer(accuracy, 'pointerdown', 466, 'touch')")
    assert touched[0] == "epoch 3"
    assert tab.evaluate("pointer(accuracy, 'pointerleave', 466, 'touch')") == touched


def test_the_keyboard_moves_from_epoch_to_epoch_and_a_screen_reader_hears_the_values(tab: Tab) -> None:
    while not tab.evaluate("document.activeElement === accuracy.querySelector('svg')"):
        tab.press("Tab")
    assert tab.evaluate("reading(accuracy)")[0] == "epoch 1"
    tab.press("End")
    assert tab.evaluate("reading(accuracy)")[0] == "epoch 3"
    tab.press("ArrowLeft")
    assert tab.evaluate("reading(accuracy)")[0] == "epoch 2"
    told = tab.evaluate("spoken(accuracy)")
    assert told.startswith("epoch 2; learning_rate 0.2: 90.00 %; learning_rate 0.1, mean of 2: 88.50 ± 6.35 %; ")
    tab.press("Escape")
    assert tab.evaluate("reading(accuracy)") is None


def test_an_axis_is_switched_to_logarithms_and_back(tab: Tab) -> None:
    switch = "loss.querySelector('.switch')"
    before = tab.evaluate("drawn(loss)")
    assert tab.evaluate("ticks(loss)") == ["1", "2", "3"]
    tab.evaluate(f"{switch}.click()")
    assert tab.evaluate("ticks(loss)") == ["0.5", "1", "2"]
    assert tab.evaluate(f"{switch}.getAttribute('aria-pressed')") == "true"
    path = tab.evaluate("loss.querySelector('.line.mean.k0').getAttribute('d')")
    heights = [float(point.split(" ")[1]) for point in path[1:].split("L")]
    assert heights == pytest.approx([np.log10(1.5 / e) for e in (1, 2, 3)], abs=1e-3)
    top = -float(tab.evaluate("loss.querySelector('.area').getAttribute('viewBox')").split()[1])
    assert top == pytest.approx(np.log10(3) + 0.04 * np.log10(9), abs=1e-3)
    assert tab.evaluate("pointer(loss, 'pointermove', 60)")[1] == "learning_rate 0.23.0000"
    tab.evaluate(f"{switch}.click()")
    assert tab.evaluate("drawn(loss)") == pytest.approx(before, abs=1e-3)


def test_smoothing_draws_the_moving_average_and_leaves_the_values(tab: Tab) -> None:
    slider = "document.querySelector('.smoothing input')"
    tab.evaluate(f"{slider}.value = 0.5; {slider}.dispatchEvent(new Event('input'))")
    path = tab.evaluate("accuracy.querySelector('.line.mean.k0').getAttribute('d')")
    first, second, third = 84.5, 88.5, 92.5
    averages = [first, (first + 2 * second) / 3, (first + 2 * second + 4 * third) / 7]
    assert [float(point.split(" ")[1]) for point in path[1:].split("L")] == pytest.approx(averages, abs=0.01)
    assert "84.50 ± 6.35 %" in tab.evaluate("pointer(accuracy, 'pointermove', 60)")[2]


def test_the_charts_of_a_section_that_is_opened_have_switches(browser: Tab, tmp_path: Path) -> None:
    browser.open(written_page(tmp_path / "page.html", records(seeds=10)))
    assert not browser.evaluate("document.querySelectorAll('details.run .switch').length")
    browser.evaluate("document.querySelector('details.run').open = true")
    browser.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    assert browser.evaluate("document.querySelectorAll('details.run .switch').length") == 2  # loss and learning rate
    assert browser.evaluate("document.querySelectorAll('details.run .smoothing').length") == 1


def with_matrices(*counts: list[list[int]]) -> list[Record]:
    """Two groups of runs with these matrices; the first group has all but one of them."""
    made = [*group(*([0.9] * (len(counts) - 1)), **{"train.x": 1}), *group(0.8, **{"train.x": 2})]
    for record, matrix in zip(made, counts, strict=True):
        record.counts, record.class_names = np.array(matrix), tuple(f"<{k}>" for k in range(len(matrix)))
    return made


def test_the_keyboard_moves_from_group_to_group_of_parallel_coordinates(browser: Tab, tmp_path: Path) -> None:
    made = [record for rate in (0.1, 0.2, 0.3) for record in group(0.6 + rate, **{"train.learning_rate": rate})]
    browser.open(written_page(tmp_path / "page.html", made))
    values = "document.querySelector('.values').textContent"
    browser.evaluate("document.querySelector('.parallel').focus()")
    seen = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "Escape"):
        browser.press(key)
        seen.append(browser.evaluate(values))
    best, middle, worst = ("90.00 %: learning_rate 0.3", "80.00 %: learning_rate 0.2", "70.00 %: learning_rate 0.1")
    assert seen == [best, middle, worst, worst, middle, ""]


def test_two_confusion_matrices_are_side_by_side_with_their_difference(browser: Tab, tmp_path: Path) -> None:
    made = with_matrices([[8, 2], [0, 10]], [[10, 0], [0, 10]], [[5, 5], [1, 9]])
    browser.open(written_page(tmp_path / "page.html", made))
    cells = """[...document.querySelectorAll(".comparable table")].map(
        (table) => [...table.querySelectorAll("td:not([colspan])")].map((cell) => cell.textContent))"""
    assert browser.evaluate(cells) == [
        ["18", "2", "", "20"],  # the sum over the two runs of the first group
        ["5", "5", "1", "9"],
        ["+40.0", "−40.0", "−10.0", "+10.0"],
    ]
    names = "[...document.querySelectorAll('.comparable caption')].map((each) => each.textContent)"
    assert browser.evaluate(names)[:2] == ["x 1", made[2].name]
    titles = "[...document.querySelectorAll('.comparable .axis-title')].map((each) => each.textContent)"
    assert browser.evaluate(titles) == ["predicted class", "true class"] * 3
    first = "document.querySelector('.comparable li').textContent"
    assert browser.evaluate(first) == "<0> recognised: 18 (90.0 %) and 5 (50.0 %), +40.0 points"
    choose = "const select = document.querySelector('.comparable select'); select.value = 'runs 1'"
    browser.evaluate(f"{choose}; select.dispatchEvent(new Event('change'))")
    assert browser.evaluate(cells)[0] == ["10", "", "", "10"]
    assert not browser.faults()


def test_matrices_of_many_classes_are_pictures_that_can_be_read(browser: Tab, tmp_path: Path) -> None:
    one, other = np.diag(np.full(30, 4)), np.diag(np.full(30, 4))
    one[2, 3] = 4
    browser.open(written_page(tmp_path / "page.html", with_matrices(one.tolist(), other.tolist())))
    assert browser.evaluate("document.querySelectorAll('.comparable canvas[role=img]').length") == 3
    read = """const canvas = document.querySelector(".comparable canvas"), box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new PointerEvent("pointermove",
          { clientX: box.left + 3.5 / 30 * box.width, clientY: box.top + 2.5 / 30 * box.height }));
        document.querySelector(".comparable .soft").textContent"""
    assert browser.evaluate(read) == "<2> predicted as <3>: 4 (50.0 %) and 0 (0.0 %), +50.0 points"
    assert not browser.faults()


def test_one_matrix_and_matrices_of_other_classes_are_not_compared(browser: Tab, tmp_path: Path) -> None:
    made = with_matrices([[1, 0], [0, 1]], [[1, 0], [0, 1]])
    made[1].class_names = ("a", "b")
    browser.open(written_page(tmp_path / "page.html", made))
    assert not browser.evaluate("document.querySelectorAll('#matrices, .comparable').length")
    assert not browser.faults()


def test_without_scripts_the_charts_are_whole_and_have_no_switches(browser: Tab, tmp_path: Path) -> None:
    browser.open(written_page(tmp_path / "page.html", records()), scripts=False)
    assert browser.evaluate("document.querySelectorAll('.chart .line.mean').length") == 4 * 2 + 3 * 3
    assert not browser.evaluate("document.querySelectorAll('.switch, .smoothing').length")


def test_one_epoch_is_a_visible_point(browser: Tab, tmp_path: Path) -> None:
    browser.open(written_page(tmp_path / "page.html", records(epochs=1)), height=2000)
    picture = tmp_path / "page.png"
    browser.screenshot(picture)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    orange = (np.abs(pixels - [0xD5, 0x5E, 0x00]) <= 2).all(axis=-1)
    # The four charts have a dot of the second group, eight pixels across; there is also its dash in the key.
    assert orange.sum() > 4 * 40
