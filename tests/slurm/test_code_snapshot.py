"""The copy of the package that a SLURM job runs."""

import json
import os
import py_compile
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.runs.commit import find_commit
from cnnjob.runs.run import Run
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.code_snapshot import save_snapshot, snapshot_folder
from tests.helpers.cli import cnnjob
from tests.helpers.slurm_runs import only_run, run_batch_script

PACKAGE = Path(files.__file__).parent


@pytest.mark.usefixtures("slurm")
def test_the_code_that_was_submitted_is_kept_once() -> None:
    cnnjob("submit", "toy.toml")
    [code] = Path("runs/.code").iterdir()
    assert not list(code.rglob("__pycache__"))
    source = Path(submission.__file__)
    assert (code / source.relative_to(PACKAGE.parent)).read_bytes() == source.read_bytes()
    first = code.stat().st_mtime_ns
    cnnjob("submit", "toy.toml", "--set", "seed=2")
    assert [path.stat().st_mtime_ns for path in Path("runs/.code").iterdir()] == [first]


def other_code(*names: str) -> None:
    """Write modules into the current folder that must not be imported."""
    for name in names:
        Path(name).write_text("raise SystemExit('imported from the current folder')\n")


@pytest.mark.usefixtures("slurm")
def test_the_code_that_was_submitted_runs_whatever_becomes_of_the_clone() -> None:
    """The clone is the current folder of the command that submits and of the job; no environment is exported."""
    shutil.copytree(PACKAGE, "cnnjob", ignore=shutil.ignore_patterns("__pycache__"))
    Path("cnnjob/clone.py").touch()
    words = [sys.executable, "-m", "cnnjob", "submit", "toy.toml", "--sbatch", "export=NIL"]
    subprocess.run(words, capture_output=True, check=True)
    [code] = Path("runs/.code").iterdir()
    assert (code / "cnnjob/clone.py").exists()
    other_code("cnnjob/__init__.py", "cnnjob/slurm/node/node_task.py", "submitit.py", "numpy.py", "json.py")
    known = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_EXPORT_ENV": "NIL"}
    script = ["/bin/bash", str(only_run().slurm_folder / "17_submission.sh")]
    done = subprocess.run(script, capture_output=True, text=True, env=known, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert only_run().state() == "finished"


@pytest.mark.parametrize("words", [("submit", "toy.toml", "--local"), ("verify-resume", "toy.toml", "--kills", "1")])
@pytest.mark.usefixtures("no_slurm")
def test_no_process_imports_from_the_current_folder(words: tuple[str, ...]) -> None:
    Path("cnnjob").mkdir()
    other_code("cnnjob/__init__.py", "submitit.py", "numpy.py", "json.py")
    done = subprocess.run([sys.executable, "-P", "-m", "cnnjob", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("slurm")
def test_a_damaged_copy_of_the_code_is_refused_and_repaired() -> None:
    cnnjob("submit", "toy.toml")
    [code] = Path("runs/.code").resolve().iterdir()
    (code / "cnnjob/reporting/page/page.py").write_text('"""Changed."""\n')
    done = run_batch_script(only_run())
    assert (done.returncode, f"\ncnnjob: {code}: not the code that was submitted (" in done.stdout) == (3, True)
    (code / "cnnjob/reporting/page/charts.py").unlink()
    (code / "numpy.py").write_text("raise SystemExit('added')\n")
    assert cnnjob("submit", "toy.toml").exit_code == 0
    package = PACKAGE
    for name in ("reporting/page/page.py", "reporting/page/charts.py"):
        assert (code / "cnnjob" / name).read_bytes() == (package / name).read_bytes()
    assert run_batch_script(only_run()).returncode == 0


def compiled(source: Path, text: str) -> Path:
    """Write other byte code for a module where Python looks for it; it fits the module's time and size."""
    state = source.stat()
    other = source.with_name("other.py")
    other.write_text(text)
    cache = Path(cache_from_source(str(source)))
    py_compile.compile(str(other), cfile=str(cache), doraise=True)
    other.unlink()
    head = cache.read_bytes()[:8] + struct.pack("<II", int(state.st_mtime), state.st_size)
    cache.write_bytes(head + cache.read_bytes()[16:])
    return cache


def linked_folder(code: Path) -> None:
    """Have a folder of the package be a link to another one with the same files."""
    (code / "cnnjob/reporting").rename(code.parent.parent / "reporting")
    (code / "cnnjob/reporting").symlink_to(code.parent.parent / "reporting")


def linked_file(code: Path) -> None:
    (code / "cnnjob/files.py").rename(code.parent.parent / "files.py")
    (code / "cnnjob/files.py").symlink_to(code.parent.parent / "files.py")


def folder_for_a_file(code: Path) -> None:
    (code / "cnnjob/reporting/plots.py").unlink()
    (code / "cnnjob/reporting/plots.py").mkdir()


ODDITIES: dict[str, Callable[[Path], object]] = {
    "byte code": lambda code: compiled(code / "cnnjob/training/trainer.py", "raise SystemExit('other byte code')\n"),
    "sourceless": lambda code: (code / "sitecustomize.pyc").touch(),
    "shared object": lambda code: (code / "cnnjob/nn.so").touch(),
    "hidden": lambda code: (code / "cnnjob/.hidden").mkdir(),
    "link to nowhere": lambda code: (code / "usercustomize").symlink_to("/nonexistent"),
    "linked folder": linked_folder,
    "linked file": linked_file,
    "folder for a file": folder_for_a_file,
    "pipe": lambda code: os.mkfifo(code / "cnnjob/pipe.py"),
}


CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
from cnnjob.errors import DataError
from cnnjob.slurm.submit.code_snapshot import check_snapshot
for _ in sys.stdin:
    try:
        check_snapshot()
        print("whole", flush=True)
    except DataError as error:
        print(error, flush=True)
"""


@pytest.mark.usefixtures("slurm")
def test_nothing_that_the_package_has_not_is_run_from_a_copy() -> None:
    cnnjob("submit", "toy.toml")
    run = only_run()
    [code] = Path("runs/.code").resolve().iterdir()
    whole = {path.relative_to(code) for path in code.rglob("*")}
    with subprocess.Popen(
        [sys.executable, "-c", CHECK, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin
        assert process.stdout
        for name, add in ODDITIES.items():
            add(code)
            process.stdin.write("\n")
            assert f"{code}: not the code that was submitted (found digest " in process.stdout.readline(), name
            save_snapshot(run)
            assert {path.relative_to(code) for path in code.rglob("*")} == whole, name
            process.stdin.write("\n")
            assert process.stdout.readline() == "whole\n"
    assert not any(path.is_symlink() for path in code.rglob("*"))
    assert (code.parent.parent / "reporting/__init__.py").exists()  # what a link led to is not removed
    assert [path.name for path in code.parent.iterdir()] == [code.name]


def test_a_link_in_the_place_of_a_copy_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "any")
    code = snapshot_folder(run)
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "mine").touch()
    code.parent.mkdir(parents=True)
    code.symlink_to(tmp_path / "clone")
    assert save_snapshot(run) == code
    assert (code.is_symlink(), [path.name for path in (tmp_path / "clone").iterdir()]) == (False, ["mine"])


@pytest.mark.usefixtures("slurm")
def test_no_variable_of_python_changes_what_a_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the node's nor of the setup lines'; and no byte code comes to lie in the copy."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    Path("site.toml").write_text("setup = ['export PYTHONHOME=/nonexistent PYTHONPATH=/nonexistent PYTHONINSPECT=1']\n")
    cnnjob("submit", "toy.toml", "--profile", "site.toml")
    [code] = Path("runs/.code").resolve().iterdir()
    cache = compiled(code / "cnnjob/training/trainer.py", "raise SystemExit('other byte code')\n")
    elsewhere = Path.cwd() / "cache" / str(cache.parents[1])[1:] / cache.name
    elsewhere.parent.mkdir(parents=True)
    cache.rename(elsewhere)
    cache.parent.rmdir()
    other = {"PYTHONPYCACHEPREFIX": str(Path.cwd() / "cache"), "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2"}
    done = run_batch_script(only_run(), **other)
    assert (done.returncode, only_run().state()) == (0, "finished"), done.stdout
    assert not list(code.rglob("__pycache__"))


@pytest.mark.usefixtures("no_slurm")
def test_runs_here_leave_no_byte_code_in_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert cnnjob("submit", "toy.toml", "--local").exit_code == 0
    assert os.environ["PYTHONWARNINGS"] == "error"
    assert not list(Path("runs/.code").rglob("__pycache__"))


@pytest.mark.usefixtures("slurm")
def test_a_copy_of_the_code_that_cannot_be_written_is_one_message() -> None:
    Path("runs").mkdir()
    Path("runs/.code").touch()
    found = cnnjob("submit", "toy.toml")
    assert (found.exit_code, found.stdout) == (3, ""), found.output
    assert re.search(
        r"runs/\.code/\w{8}: cannot write the code snapshot \(.*\)\. "
        r"Check the free space and the folder's permissions\n$",
        found.stderr,
    )


def test_the_code_that_a_job_runs_knows_its_commit(tmp_path: Path) -> None:
    copy = save_snapshot(Run(tmp_path / "any"))
    script = "import json; from cnnjob.runs.commit import find_commit; print(json.dumps(find_commit()))"
    known = {**os.environ, "PYTHONPATH": str(copy)}
    said = subprocess.run(
        [sys.executable, "-c", script], env=known, capture_output=True, text=True, check=True, cwd="/"
    )
    assert json.loads(said.stdout) == find_commit()
    assert json.loads((copy / "cnnjob" / "commit.json").read_text()) == find_commit()
