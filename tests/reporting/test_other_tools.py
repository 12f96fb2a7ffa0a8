"""The report's tables, as pandas reads them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjob.reporting.report import report
from cnnjob.runs.run import Run
from tests.helpers import run_folders as folders

DOCUMENT = Path(__file__).parents[2] / "docs" / "other-tools.md"


def test_the_pandas_example_runs_as_it_is_documented(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs pandas: pip install pandas")
    for rate in (0.05, 0.1):
        for seed in (0, 1):
            folders.finished_run(tmp_path / "runs", learning_rate=rate, seed=seed)
    folders.running_run(tmp_path / "runs", seed=2)
    folders.pending_run(tmp_path / "runs", seed=3)
    report(Run.all(tmp_path / "runs"), tmp_path / "report")
    [example] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    wide = "pd.set_option('display.width', 200); pd.set_option('display.max_columns', 20)\n"
    code = example.replace("import pandas as pd\n", f"import pandas as pd\n{wide}")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^0\.05 +0\.8 +0\.0 +2$", done.stdout, re.MULTILINE)
    [curves] = re.findall(r"^3 .*", done.stdout, re.MULTILINE)[:1]  # epoch 3 of the five runs with a history
    assert sorted(curves.split()) == ["0.9", "0.9", "0.9", "0.9", "3", "NaN"]
    assert len(re.findall(r"^\d +tiny-\w+ +3 +0\.9 +0\.\d+ +[01] +0\.8$", done.stdout, re.MULTILINE)) == 4
    assert len(re.findall(r"^\d +tiny-\w+ +2 +0\.8 +0\.05 +2 +NaN$", done.stdout, re.MULTILINE)) == 1
