"""Groups and runs to tables: for machines in full, for readers escaped, for papers in LaTeX."""

import csv
import io
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.reporting import tables
from cnnjob.reporting.groups import Group, group_runs
from cnnjob.reporting.record import Record, read_record
from cnnjob.runs.run import Run
from tests.helpers import run_folders as folders


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Two seeds of one learning rate, one unfinished run of another."""
    for seed in range(2):
        folders.finished_run(tmp_path, seed=seed)
    folders.stopped_run(tmp_path, learning_rate=0.1)
    return [read_record(run, run.name) for run in Run.all(tmp_path)]


@pytest.fixture
def groups(records: list[Record]) -> list[Group]:
    return group_runs(records)


def test_groups_for_machines(groups: list[Group]) -> None:
    first, other = csv.DictReader(io.StringIO(tables.csv(tables.group_rows(groups)).decode()))
    assert (first["group"], first["learning_rate"], first["n"], first["seeds"]) == (
        "learning_rate 0.05", "0.05", "2", "0 1",
    )  # fmt: skip
    assert (float(first["test_accuracy_mean"]), float(first["test_accuracy_half_width"])) == (0.8, 0)
    assert (other["n"], other["test_accuracy_mean"], other["seeds"]) == ("0", "", "")


def test_groups_for_readers(groups: list[Group]) -> None:
    lines = tables.groups_as_markdown(groups).splitlines()
    assert lines[2] == "| group | test accuracy, % | n | test loss | learning_rate |"
    assert lines[4] == "| learning_rate 0.05 | 80.00 ± 0.00 | 2 | 0.7459 ± 0.0000 | 0.05 |"


def test_groups_for_papers(groups: list[Group]) -> None:
    assert tables.groups_as_latex(groups) == (
        "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}; non-Latin letters need LuaLaTeX\n"
        "\\begin{tabular}{lrrrl}\n"
        "\\toprule\n"
        "group & test accuracy, \\% & n & test loss & learning\\_rate \\\\\n"
        "\\midrule\n"
        "learning\\_rate 0.05 & 80.00 $\\pm$ 0.00 & 2 & 0.7459 $\\pm$ 0.0000 & 0.05 \\\\\n"
        "learning\\_rate 0.1 & \\textendash{} & 0 & \\textendash{} & 0.1 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_accuracies_that_are_no_plain_ones_say_so(tmp_path: Path) -> None:
    files.write_json(
        folders.finished_run(tmp_path, split="test").result_file,
        {**folders.result("test"), "test_time_augmentation": "flip"},
    )
    found = [read_record(run, run.name) for run in Run.all(tmp_path)]
    remark = "optimistic: chosen on the test images; test-time augmentation: flip"
    assert tables.groups_as_markdown(group_runs(found)).splitlines()[2:5:2] == [
        "| group | test accuracy, % | n | test loss | remarks |",
        f"| tiny | 80.00 | 1 | 0.7459 | {remark} |",
    ]
    head, _, row = tables.runs_as_latex(tables.run_rows(found, group_runs(found))).splitlines()[3:6]
    assert head.endswith(" & epochs & selected on & test time augmentation \\\\")
    assert row.endswith(" & 4 & test & flip \\\\")


def test_no_group_is_an_empty_table() -> None:
    assert "\\begin{tabular}{lrrr}" in tables.groups_as_latex([])
    assert tables.csv(tables.group_rows([])) == b"\n"


def test_what_latex_would_obey_is_printed(records: list[Record]) -> None:
    records[0].row["run"] = "a_b & 100% $x$ #1 {y} \\end{document} ~^"
    row = tables.runs_as_latex(tables.run_rows(records, group_runs(records))).splitlines()[5]
    assert row.startswith(
        "a\\_b \\& 100\\% \\$x\\$ \\#1 \\{y\\} \\textbackslash{}end\\{document\\} "
        f"\\textasciitilde{{}}\\textasciicircum{{}} & {records[0].row['seed']} & "
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("[a]", "{}[a] "),
        ("*", "{}* "),
        ("a---b", "a-{}-{}-b "),
        ('<|">', r"\textless{}\textbar{}\textquotedbl{}\textgreater{} "),
    ],
)
def test_what_latex_would_take_for_more_is_printed(name: str, written: str, records: list[Record]) -> None:
    records[0].row["run"] = name
    assert tables.runs_as_latex(tables.run_rows(records, group_runs(records))).splitlines()[5].startswith(written)
