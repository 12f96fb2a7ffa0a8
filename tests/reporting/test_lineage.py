"""The report shows which run was fine-tuned from which."""

import re
from pathlib import Path

import pytest

from cnnjob.jobs.job import Job
from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.page.page import render
from cnnjob.reporting.record import read_record
from cnnjob.reporting.report import report
from cnnjob.runs import npz
from cnnjob.runs.initial import find_initial
from cnnjob.runs.run import Run
from cnnjob.training.train import train
from tests.helpers.toy_jobs import dataset, job, run_of, trained

QUICK = {"train__epochs": 1}
FROZEN = [{"conv": 4, "kernel": 3, "pool": 2, "frozen": True}, {"dense": 8}]


def fine_tuned(source: Path, folder: Path, **changes: object) -> Run:
    child: Job = find_initial(job(model__init_from=str(source), **{**QUICK, **changes}), folder / "runs")
    return train(run_of(child, dataset(folder), folder / "runs")).run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lineage")


@pytest.fixture(scope="module")
def family(folder: Path) -> tuple[Run, Run, Run]:
    """A run, one from its weights, and one from the weights of that one."""
    parent = trained(folder, **QUICK).run
    child = fine_tuned(parent.path, folder, model__blocks=FROZEN)
    return parent, child, fine_tuned(child.path, folder, seed=1)


def page_of(*runs: Run) -> str:
    records = [read_record(run, run.name) for run in runs]
    return render(records, group_runs(records))


def lineage(page: str) -> list[str]:
    """The sentences, with each link as its text."""
    anchors = dict(re.findall(r'<li data-run="[^"]*"><a href="#([^"]*)">([^<]+)</a>', page))
    for anchor, name in anchors.items():
        page = page.replace(f'<a href="#{anchor}">{name}</a>', f"→{name}")
    return re.findall(r'<p class="lineage">([^\n]*)</p>', page)


def test_parent_and_child_are_linked_both_ways(family: tuple[Run, Run, Run]) -> None:
    parent, child, grandchild = family
    assert sorted(lineage(page_of(*family))) == sorted([
        f"Fine-tuned in →{child.name}",
        f"Fine-tuned from →{parent.name}",
        f"Fine-tuned in →{grandchild.name}",
        f"Fine-tuned from →{child.name}",
    ])  # fmt: skip
    assert lineage(page_of(child)) == [f"Fine-tuned from {parent.name}"]  # its parent is not on the page
    assert lineage(page_of(parent)) == []


def test_the_tables_name_the_parent(family: tuple[Run, Run, Run], folder: Path) -> None:
    parent, child, _ = family
    written = report(family, folder / "report")
    rows = {row["run"]: row["init_from"] for row in written.rows}
    assert rows[parent.name] is None
    assert rows[child.name] == f"{parent.name} {child.manifest()['initial']['sha256'][:8]}"
    markdown = (folder / "report" / "metrics.md").read_text()
    assert f"- {child.name}: fine-tuned from {parent.name}\n" in markdown
    alone = report([child], folder / "alone")
    [group] = alone.groups
    assert group.remarks == [f"fine-tuned from {parent.name}"]
    assert "init_from" not in group.settings
    assert f"fine-tuned from {parent.name}" in (folder / "alone" / "groups.md").read_text()


def test_a_record_says_it_in_settings_and_network(family: tuple[Run, Run, Run]) -> None:
    parent, child, _ = (read_record(run, run.name) for run in family)
    assert "model.init_from" not in parent.settings
    assert "model.init_sha256" not in child.settings
    assert child.settings["model.init_from"].startswith(f"{parent.name} ")
    assert child.chosen["model.init_from"] == child.settings["model.init_from"]
    assert child.layers[0].settings == "4 filters, kernel 3, pool 2, relu, frozen"


def test_without_a_parent_only_the_weights_of_a_frozen_block_are_kept(folder: Path) -> None:
    run = trained(folder, model__blocks=FROZEN, **QUICK).run
    assert read_record(run, run.name).layers[0].settings == "4 filters, kernel 3, pool 2, relu, frozen weights"


def test_weights_of_a_file_have_its_name(family: tuple[Run, Run, Run], tmp_path: Path) -> None:
    path = tmp_path / "<b>größe.npz"
    npz.write_arrays(path, {**family[0].weights()})
    run = fine_tuned(path, tmp_path)
    assert run.manifest()["initial"]["run"] is None
    page = page_of(run)
    assert lineage(page) == ["Fine-tuned from &lt;b&gt;größe.npz"]
    assert "<b>größe" not in page
