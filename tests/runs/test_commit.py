"""The commit that ``cnnjob --version`` prints: in a clone, without git, and from what is built and installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from cnnjob import __version__
from cnnjob.files import PACKAGE

ROOT = PACKAGE.parent
BUILT_FROM = ("cnnjob", "jobs", "slurm", "README.md", "LICENSE", "pyproject.toml", "hatch_build.py")


def run(*command: str, folder: Path, **variables: str) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    return run("git", "-c", "user.name=me", "-c", "user.email=me@localhost", *arguments, folder=folder)


def version(code: Path, **variables: str) -> str:
    """What the package in a folder prints, called from somewhere else."""
    return run(sys.executable, "-m", "cnnjob", "--version", folder=Path("/"), PYTHONPATH=str(code), **variables)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with a single commit of this package."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / ".gitignore").write_text("/dist/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all")
    return folder


def known(clone: Path) -> str:
    return f"cnnjob {__version__} (commit {git(clone, 'rev-parse', 'HEAD')[:8]})"


UNKNOWN = f"cnnjob {__version__} (commit unknown)"


def test_a_clone_asks_git(clone: Path) -> None:
    assert version(clone) == known(clone)
    (clone / "README.md").write_text("changed\n")  # not a file of the package
    assert version(clone) == known(clone)
    (clone / "cnnjob" / "more.py").write_text("")
    assert version(clone) == known(clone).replace(")", "+dirty)")


def test_without_git_it_is_unknown(clone: Path) -> None:
    assert version(clone, PATH="/nowhere") == UNKNOWN


def test_the_commit_of_another_project_is_not_taken(clone: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "a project with a virtual environment in it")
    shutil.copytree(clone / "cnnjob", tmp_path / "site-packages" / "cnnjob")
    assert version(tmp_path / "site-packages") == UNKNOWN


def build(clone: Path, *options: str, **variables: str) -> Path:
    """Build a wheel, and unpack it as an installation does."""
    pytest.importorskip("hatchling")
    run(sys.executable, "-m", "build", "--no-isolation", *options, folder=clone, **variables)
    [wheel] = (clone / "dist").glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(clone.parent / "installed")
    assert len(set(names)) == len(names)
    assert {"cnnjob/commit.json", "cnnjob/share/jobs/digits.toml"} <= set(names)
    return clone.parent / "installed"


@pytest.mark.parametrize("options", [("--wheel",), ()], ids=["wheel", "wheel of a source distribution"])
def test_an_installed_wheel_knows_the_commit_that_it_was_built_from(clone: Path, options: tuple[str, ...]) -> None:
    installed = build(clone, *options)
    commit = known(clone)
    git(clone, "commit", "--quiet", "--allow-empty", "--message", "another one")
    assert version(installed, PATH="/nowhere") == commit
    assert git(clone, "status", "--porcelain") == ""


def test_a_wheel_of_changed_files_says_so(clone: Path) -> None:
    (clone / "cnnjob" / "more.py").write_text("")
    installed = build(clone, "--wheel")
    assert version(installed) == known(clone).replace(")", "+dirty)")


def test_a_wheel_is_built_without_git(clone: Path) -> None:
    installed = build(clone, "--wheel", PATH="/nowhere")
    assert version(installed) == UNKNOWN
    assert json.loads((installed / "cnnjob" / "commit.json").read_text()) == {"commit": None, "dirty": None}


def test_an_editable_installation_keeps_asking_git(clone: Path) -> None:
    pytest.importorskip("editables")  # which hatchling needs for it
    script = "from hatchling.build import build_editable; print(build_editable('.'))"
    wheel = run(sys.executable, "-c", script, folder=clone).splitlines()[-1]
    with ZipFile(clone / wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith("commit.json")]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"commit": 5, "dirty": false}', '{"commit": "abc"}', "NaN"])
def test_a_damaged_record_counts_as_none(clone: Path, content: str) -> None:
    shutil.copytree(clone / "cnnjob", clone.parent / "copy" / "cnnjob")
    (clone.parent / "copy" / "cnnjob" / "commit.json").write_text(content)
    assert version(clone.parent / "copy") == UNKNOWN


def test_only_the_version_asks_git(clone: Path, tmp_path: Path) -> None:
    called = tmp_path / "called"
    (tmp_path / "git").write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
    (tmp_path / "git").chmod(0o755)
    variables = {"PYTHONPATH": str(clone), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for arguments in ("--help", "show", "status"):
        run(sys.executable, "-m", "cnnjob", arguments, folder=tmp_path, **variables)
    assert not called.exists()
    assert version(clone, PATH=variables["PATH"]) == UNKNOWN
    assert called.exists()
