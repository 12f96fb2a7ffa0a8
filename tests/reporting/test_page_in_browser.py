"""The page in a real browser: no error, no request, everything fits, sorting works, all can use it. Needs Chromium."""

import json
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.page import page as pages
from cnnjob.reporting.record import read_record
from cnnjob.runs.run import Run
from tests.helpers import run_folders as folders

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
const fits = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
const broken = [...document.images].filter((image) => !image.complete || !image.naturalWidth).length;
const table = document.querySelector("table.sortable"), column = 1;
const shown = () => [...table.tBodies].map((body) => body.rows[0].cells[column].textContent.trim()).join();
const orders = [shown()];
for (let click = 0; click < 2; click++) { table.tHead.rows[0].cells[column].firstChild.click(); orders.push(shown()); }
const told = { fits, broken, orders, sorted: table.tHead.rows[0].cells[column].ariaSort,
  fetched: performance.getEntriesByType("resource").filter((one) => !one.name.startsWith("data:")).length };
document.body.replaceChildren(JSON.stringify(told));
</script></body>"""

AXE_PROBE = """<script>axe.run(document, { iframes: false }).then((told) => document.body.replaceChildren(
  "told:" + JSON.stringify({ passes: told.passes.length, faults: told.violations.map(
    (one) => [one.id, one.impact, ...one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]) }) + ":told"));
</script></body>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of two groups, one of which has a name that is hard to fit."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        folders.finished_run(root, seed=seed)
        folders.finished_run(root, seed=seed, learning_rate=0.1, channels=3)
    long = folders.stopped_run(root, name="x" * 100, learning_rate=0.2, why="failed: " + "no-blank" * 50)
    long.log_file.write_text("y" * 1000)
    better = next(run for run in Run.all(root) if run.manifest()["job"]["train"]["learning_rate"] == 0.1)
    better.predictions_file.unlink()
    folders.change_json(better.result_file, test_accuracy=0.9)
    records = [read_record(run, run.name) for run in Run.all(root)]
    return pages.render(records, group_runs(records))


def browsed(page: str, folder: Path, *options: str) -> tuple[str, str]:
    """What Chromium printed of a page, and what its console said."""
    file = folder / "page.html"
    file.write_text(page)
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *(f"--user-data-dir={folder / 'profile'}", *options, file.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def axe() -> str:
    """The source of axe-core, which finds what keeps people from using a page; a package of PyPI carries it."""
    try:
        files = metadata.files("axe-playwright-python") or []
    except metadata.PackageNotFoundError:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    return next(file for file in files if file.name == "axe.min.js").read_text()


@pytest.mark.parametrize("width", [1280, 768, 400])
def test_the_page_fits_fetches_nothing_says_no_error_and_is_sorted(page: str, tmp_path: Path, width: int) -> None:
    told, console = browsed(page.replace("</body>", PROBE), tmp_path, "--dump-dom", f"--window-size={width},900")
    assert not console
    assert '"fits":true,"broken":0' in told
    assert '"fetched":0' in told
    orders = re.search(r'"orders":\["(.*?)","(.*?)","(.*?)"\]', told)
    assert orders
    first, up, down = orders.groups()
    assert up == "80.00 ± 0.00,85.00 ± 63.53,"  # what is not known stays last
    assert first == down == "85.00 ± 63.53,80.00 ± 0.00,"
    assert '"sorted":"descending"' in told


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "dark")])
def test_all_people_can_use_the_page(page: str, tmp_path: Path, width: int, scheme: str) -> None:
    probe = f"<script>{axe()}</script>{AXE_PROBE}"
    options = ("--dump-dom", "--virtual-time-budget=20000", f"--window-size={width},900")
    colours = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    dom, _ = browsed(page.replace("</body>", probe), tmp_path, *options, colours)
    found = re.search(r"told:(.*):told</body>", dom)
    assert found, dom[-1000:]
    told = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert told["passes"] > 20
    assert not told["faults"]
