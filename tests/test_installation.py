"""The recipe of the Apptainer image names files and commands that exist; Apptainer itself is not needed."""

import re
import shlex
import tomllib

import pytest
from typer.testing import CliRunner

from cnnjob.cli.main import app
from tests.helpers.documents import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RECIPE = ROOT / "slurm" / "cnnjob.def"
SECTIONS = {"files", "post", "environment", "runscript", "test", "help"}


def sections() -> dict[str, list[str]]:
    """The lines of each section of the recipe, without comments and empty lines; the header's name is empty."""
    found: dict[str, list[str]] = {"": []}
    for line in RECIPE.read_text().splitlines():
        text = re.sub(r"(^|\s+)#.*", "", line).strip()
        if line.startswith("%"):
            found[text[1:]] = []
        elif text:
            found[[*found][-1]].append(text)
    return found


def test_the_recipe_has_the_sections_of_an_image() -> None:
    header = dict(line.split(": ") for line in sections()[""])
    assert header["Bootstrap"] == "docker"
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", header["From"])
    assert {*sections()} == {"", *SECTIONS}


def test_the_recipe_copies_what_a_wheel_is_built_from() -> None:
    copied = dict(line.split() for line in sections()["files"])
    for source, target in copied.items():
        assert (ROOT / source).exists(), source
        assert target == f"/opt/cnnjob/{source}"
    build = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        *build["packages"],
        *build["force-include"],
        PYPROJECT["project"]["readme"],
        "pyproject.toml",
        "hatch_build.py",
    }
    assert needed | {*PYPROJECT["project"]["license-files"]} <= {*copied}


def test_the_extras_of_the_recipe_exist() -> None:
    extras = re.findall(r'"\[(\w+)\]"', RECIPE.read_text())
    assert {"gpu", "gpu13"} == {*extras} <= {*PYPROJECT["project"]["optional-dependencies"]}


@pytest.mark.parametrize("line", [*sections()["test"], *re.findall(r"run .*cnnjob\.sif (.+)", RECIPE.read_text())])
def test_the_commands_of_the_recipe_exist(line: str) -> None:
    words = shlex.split(line.removeprefix("cnnjob "))
    if words[0] != "cd":
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
