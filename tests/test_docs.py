"""The documents say what is so: their commands exist with these options, and those of the demo run as written."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import cnnjob
from cnnjob.cli.main import app
from cnnjob.jobs import job, reference

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *(ROOT / "docs").glob("*.md")]


def commands() -> list[str]:
    """Every ``cnnjob …`` line of an indented block, and every one between backticks."""
    text = "".join(path.read_text() for path in DOCUMENTS)
    lines = re.findall(r"^ {4}(?:\.venv/bin/)?(cnnjob [^\n]*)$", text, re.MULTILINE)
    return sorted({line.partition("#")[0].strip() for line in [*lines, *re.findall(r"`(cnnjob [^`]+)`", text)]})


@pytest.mark.parametrize("command", commands())
def test_every_command_and_option_of_the_documents_exists(command: str) -> None:
    words = shlex.split(command)[1:]
    found = CliRunner().invoke(app, [*words, "--help"])
    assert found.exit_code == 0, found.output


def test_the_names_of_the_notebook_are_public() -> None:
    names = re.findall(r"`(\w+)`", (ROOT / "docs" / "python-api.md").read_text().partition("## Functions")[0])
    assert {*names} & {*cnnjob.__all__} == {
        "prepare",
        "train",
        "submit",
        "predict",
        "evaluate",
        "report",
        "Job",
        "Run",
        "Dataset",
        "Network",
    }


def test_what_is_seen_when_something_is_wrong_is_what_is_said() -> None:
    table = (ROOT / "docs" / "troubleshooting.md").read_text()
    said = "".join(path.read_text() for path in Path(cnnjob.__file__).parent.rglob("*.py"))
    seen = [
        quoted for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) for quoted in re.findall(r"`(.+?)`", row)
    ]
    assert len(seen) > 30
    for words in seen:
        assert words in said, words


def test_there_are_commands() -> None:
    assert {"cnnjob demo", "cnnjob train mnist", "cnnjob report runs/"} <= set(commands())


def test_every_link_and_job_that_is_named_exists() -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
        for name in re.findall(r"cnnjob train ([a-z][\w-]+)", text):
            assert name in job.list_jobs() or f"`jobs/{name}.toml`" in text, name


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_first_documents_are_short(name: str) -> None:
    assert len((ROOT / name).read_text().split()) <= 1500


def test_every_marker_of_the_tests_is_documented() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for line in PYPROJECT["tool"]["pytest"]["markers"]:
        assert f"pytest -m {line.partition(':')[0]}`" in text, line


def test_the_citation_agrees_with_the_package() -> None:
    """The keys are those of the Citation File Format 1.2.0 (https://citation-file-format.github.io)."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "abstract", "authors"} <= citation.keys()
    project = PYPROJECT["project"]
    assert citation["version"] == cnnjob.__version__
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]


def test_the_tests_that_prove_a_guarantee_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    paths, markers = set(re.findall(r"\btests/[\w/.]+", text)), set(re.findall(r"pytest -m (\w+)", text))
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    known = {line.partition(":")[0] for line in PYPROJECT["tool"]["pytest"]["markers"]}
    assert markers <= known, markers - known


def test_the_readme_test_command_is_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -m1 -o '([^']+)' README.md", script)
    assert pattern is not None
    found = subprocess.run(
        ["grep", "-o", pattern[1], str(ROOT / "README.md")], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert found == ["    python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest", ""]


def test_the_reference_of_a_job_file_is_up_to_date() -> None:
    assert (ROOT / "docs" / "job-file.md").read_text() == reference.format_markdown()


def test_every_key_of_a_job_file_is_explained_in_a_line() -> None:
    shown = CliRunner().invoke(app, ["show", "--keys"]).stdout.splitlines()
    found = shown[-len(reference.list_keys()) :]  # below an example
    assert len(found) == len(reference.list_keys()) == len(set(found))
    for line in found:
        assert re.fullmatch(r"[\w.{} =…]+ \(.+\): [^\n]{8,}\.", line), line
    text = "\n".join(found)
    for said in (
        "{ conv = … }.batch_norm.momentum (number above 0 to 1; default 0.1): Weight of the batch statistics in the ",
        "running statistics, as in PyTorch; Keras uses 1 minus this value.",
        "biases and normalisation parameters are not decayed",
        "Fraction of all steps (not epochs)",
        "one step after the last step of the last epoch",
        "the last partial batch of an epoch is dropped",
        "train.epochs (integer from 1 to 1,000,000; required): ",
    ):
        assert said in text
    some = CliRunner().invoke(app, ["show", "--keys", "train.optimiser", "--json"])
    assert {one["table"] for one in json.loads(some.stdout)} == {
        "train", "train.optimiser", "train.optimiser.sgd", "train.optimiser.adam", "train.optimiser.adamw",
            "train.optimiser.muon", "train.optimiser.muon.others", "train.optimiser.muon.others.sgd",
            "train.optimiser.muon.others.adamw",
    }  # fmt: skip
    assert CliRunner().invoke(app, ["show", "--keys", "nothing"]).exit_code != 0


def test_the_pictures_are_small() -> None:
    sizes = {path: path.stat().st_size for path in (ROOT / "docs").rglob("*.png")}
    assert max(sizes.values()) <= 150_000, sizes
    assert sum(sizes.values()) <= 1_000_000
