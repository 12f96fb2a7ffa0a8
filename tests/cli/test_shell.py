"""The command as a shell sees it: help, TAB, and terminals that are narrow, plain, or not there."""

import inspect
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from cnnjob.checks.benchmarks.bench import NAMES
from cnnjob.cli import completion
from cnnjob.cli.main import COMMANDS, GROUPS, MANY_OPTIONS, app
from cnnjob.data.prepare.prepare import KNOWN
from cnnjob.jobs.job import Job
from cnnjob.jobs.reference import list_keys
from cnnjob.jobs.schema import OneOf, Table
from tests.helpers.cli import HEAVY, JOB
from tests.helpers.run_folders import finished_run, pending_run, stopped_run
from tests.helpers.toy_jobs import dataset, trained

ROOT = Path(__file__).parents[2]
NARROW = 60


def environment(**variables: str) -> dict[str, str]:
    outer = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "TERM"}}
    return {**outer, "PYTHONPATH": str(ROOT), **variables}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with datasets, a job, a profile, and runs."""
    for path in ("jobs/mine.toml", "slurm/site.toml", "data/mnist.h5", "runs/.code/x", "other/README"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    for seed in range(2):
        finished_run(tmp_path / "runs", seed=seed, name="tiny")
    stopped_run(tmp_path / "other", name="more")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- help


def command(name: str) -> Any:
    """A command with its parameters."""
    group: Any = typer.main.get_command(app)
    return group.commands[name].make_context(name, [], resilient_parsing=True).command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_and_a_word_on_every_option(name: str) -> None:
    module, about = COMMANDS[name]
    text = inspect.getdoc(getattr(import_module(f"cnnjob.cli.{module}"), name.replace("-", "_")))
    assert text
    assert text.splitlines()[0] == about
    assert len(about) <= NARROW
    assert re.search(rf"^Example: cnnjob {name}\b", text, re.MULTILINE)
    for param in command(name).params:
        if param.hidden:
            continue
        assert param.help, f"{name}: {param.name}"
        assert param.help.endswith("."), f"{name}: {param.name}"


def headings(words: list[str], columns: int) -> dict[str, list[str]]:
    """Return the lines of a help text below each of its headings; every line fits the terminal."""
    said = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": f"{columns}"}, terminal_width=columns).stdout
    assert max(map(len, said.splitlines())) <= columns
    parts = re.split(r"^(\S.*):$", said, flags=re.MULTILINE)
    return dict(zip(parts[1::2], [part.splitlines() for part in parts[2::2]], strict=True))


def test_commands_are_in_groups() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    shown = headings([], 80)
    assert list(shown) == [*GROUPS, "Options"]
    for heading, names in GROUPS.items():
        assert [line.split()[0] for line in shown[heading] if line] == list(names)


@pytest.mark.parametrize("name", COMMANDS)
def test_many_options_are_in_groups(name: str) -> None:
    count = 1 + sum(param.param_type_name == "option" for param in command(name).params)  # and --help
    for columns in (80, 120):
        shown = headings([name], columns)
        assert ("Options" in shown) == (count <= MANY_OPTIONS)
        if "Options" not in shown:
            assert len(shown.keys() - {"Arguments"}) > 1
            assert [line.split()[0] for line in shown["Other options"] if line][-1] == "-h,"
        assert "<" not in "".join(shown.get("Arguments", []))


@pytest.mark.parametrize("name", COMMANDS)
def test_h_is_help(name: str) -> None:
    said, in_full = (CliRunner().invoke(app, [name, option]) for option in ("-h", "--help"))
    assert (said.exit_code, said.stdout) == (0, in_full.stdout)
    assert CliRunner().invoke(app, ["-h"]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["train", "toy", "--lr", "0.1"], "--set train.learning_rate=VALUE"),
        (["submit", "toy", "--epochs=3"], "--set train.epochs=VALUE"),
        (["train", "toy", "--batch-size", "8"], "--set train.batch_size=VALUE"),
        (["submit", "toy", "-n4"], "one process on one node"),
        (["submit", "toy", "-N", "2"], "one process on one node"),
        (["submit", "toy", "-o", "x"], "cnnjob logs"),
    ],
)
def test_options_of_other_programs_are_answered(words: list[str], advice: str) -> None:
    said = CliRunner().invoke(app, words)
    assert (said.exit_code, said.stderr.startswith(f"cnnjob: {words[0]} -"), advice in said.stderr) == (2, True, True)


# --- JSON in place of a table


def as_json(*words: str) -> Any:
    said = CliRunner().invoke(app, [*words, "--json"])
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)


def test_what_prints_a_table_prints_json_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "toy.toml").write_text(JOB)
    dataset(tmp_path / "data")
    run = trained(tmp_path / "made").run
    pending_run(tmp_path / "runs")
    np.save("image.npy", np.zeros((6, 6), np.uint8))
    said = {
        words[0]: as_json(*words)
        for words in (
            ["prepare", "digits"], ["status", "runs"], ["predict", str(run.path), "image.npy"],
            ["report", "runs"],            ["doctor"], ["clean"],
        )
    }  # fmt: skip
    assert said["prepare"]["shapes"]["train"] == [1437, 8, 8, 1]
    assert sum(said["prepare"]["counts"]["test"]) == 360
    assert said["status"][0]["state"] == said["report"][0]["state"] == "pending"
    assert said["predict"][0]["image"] == "image.npy[0]"
    assert said["clean"] == []
    listed, described, job = (as_json("show", *words) for words in ([], ["data/digits.h5"], ["toy.toml"]))
    assert [row["dataset"] for row in listed["datasets"] if row["prepared"]] == ["digits", "toy"]
    assert {row["job"] for row in listed["jobs"]} >= {"mnist", "cifar10"}
    assert {**described, "prepared_now": True} == said["prepare"]
    assert (job["job"]["dataset"], job["run"][:4]) == ("toy", "toy-")
    assert job["memory_bytes"]["data"] > 0


# --- TAB


def offered(line: str, shell: str = "bash") -> list[str]:
    """What is offered at the end of a line, by the protocol of a shell; and that nothing heavy is loaded for it."""
    words = line.split(" ")
    variables = {"_CNNJOB_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, "COMP_WORDS": line}
    variables |= {"COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    script = f"""
import atexit, sys
from cnnjob.cli.main import main
atexit.register(lambda: print(*set({(*HEAVY, "rich.console")}) & sys.modules.keys(), file=sys.stderr))
sys.argv = ["cnnjob"]
main()
"""
    known = environment(**variables)
    done = subprocess.run([sys.executable, "-c", script], env=known, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    return re.findall(r'"([^"]+)"', done.stdout) if shell == "zsh" else done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.usefixtures("here")
def test_tab_offers_what_is_there(shell: str) -> None:
    runs = [*sorted(path.name for path in Path("runs").glob("tiny-*")), "latest"]
    assert offered("cnnjob tr", shell) == ["train"]
    assert offered("cnnjob train mi", shell) == ["mine"]
    assert offered("cnnjob status ", shell) == runs


@pytest.mark.usefixtures("here")
def test_what_tab_offers_where() -> None:
    [other] = map(str, Path("other").glob("more-*"))
    Path("tea.png").touch()
    Path("other", "\x1b[2Jmore").mkdir()
    for line, names in {
        "cnnjob ": list(COMMANDS),
        "cnnjob prepare m": ["mnist"],
        "cnnjob submit mine --profile s": ["site"],
        "cnnjob submit mnist-b": ["mnist-baseline"],
        "cnnjob show data/": ["data/mnist.h5"],
        "cnnjob report other/": [other],
        "cnnjob logs lat": ["latest"],
        "cnnjob export runs/tiny-": sorted(map(str, Path("runs").glob("tiny-*"))),
        "cnnjob train mine --ru": ["--runs"],
        "cnnjob train nothing": [],
        "cnnjob train digits --set train.le": ["train.learning_rate"],
        "cnnjob submit digits --sweep se": ["seed"],
        "cnnjob predict runs tes": ["test:0"],
        "cnnjob predict runs t": ["test:0", "train:0", "tea.png"],
        "cnnjob predict runs ": [],
    }.items():
        assert offered(line) == names, line


def test_the_names_that_are_offered_without_a_look_are_those_there_are() -> None:
    assert tuple(entry.name for entry in KNOWN) == completion.DATASETS
    assert (*NAMES, "data") == completion.WORKLOADS
    keys = [key for key in _keys_of(Job) if key != "name" and ".classifier." not in key]
    of_kinds = {key for key in completion.SETTINGS if key.startswith(("train.optimiser.", "train.schedule."))}
    assert sorted(keys) == sorted(set(completion.SETTINGS) - of_kinds)
    assert of_kinds <= {f"{one.table}.{one.name}" for one in list_keys()}


def _keys_of(section: type[BaseModel] | Table, above: str = "") -> Iterator[str]:
    """The dotted keys of a table and of those within it."""
    for name, field in section.model_fields.items():
        inner = next((part for part in field.metadata if isinstance(part, Table)), field.annotation)
        if isinstance(inner, Table) or (
            isinstance(inner, type) and issubclass(inner, BaseModel) and not issubclass(inner, OneOf)
        ):
            yield from _keys_of(inner, f"{above}{name}.")
        else:
            yield f"{above}{name}"


@pytest.mark.parametrize(
    ("shell", "script"),
    [
        ("bash", """eval "$(cnnjob --show-completion)"
COMP_WORDS=(cnnjob train mi) COMP_CWORD=2; _cnnjob_completion cnnjob; echo "${COMPREPLY[@]}" """),
        ("fish", """cnnjob --show-completion | source
complete --do-complete "cnnjob train mi" """),
        ("zsh", """autoload -U compinit; compinit -u -D; eval "$(cnnjob --show-completion)"
_arguments() { echo "$@" | tr -dc a-z }; words=(cnnjob train mi); CURRENT=3; _cnnjob_completion"""),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("here")
def test_a_real_shell(tmp_path: Path, shell: str, script: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: apt install {shell}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cnnjob").write_text(f"#!{sys.executable}\nfrom cnnjob.cli.main import main\nmain()\n")
    (tmp_path / "bin" / "cnnjob").chmod(0o755)
    known = environment(PATH=f"{tmp_path}/bin:{os.environ['PATH']}", HOME=str(tmp_path))
    done = subprocess.run([shell], input=script, env=known, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("mine", "")


# --- terminals


def on_a_terminal(*words: str, columns: int = 80, exit_code: int = 0, **variables: str) -> str:
    """What a command writes to a terminal."""
    leader, follower = pty.openpty()
    known = environment(**{"TERM": "xterm-256color", "COLUMNS": str(columns), **variables})
    with subprocess.Popen(
        [sys.executable, "-m", "cnnjob", *words], stdin=follower, stdout=follower, stderr=follower, env=known
    ) as child:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 65536):
                shown += part
        except OSError:  # the terminal's other end is closed
            pass
    os.close(leader)
    assert child.returncode == exit_code, shown
    return shown.decode()


@pytest.mark.usefixtures("here")
def test_colour_only_where_it_is_wanted() -> None:
    assert "\x1b[32m" in on_a_terminal("doctor", PATH="/nowhere")
    assert "\x1b" not in on_a_terminal("doctor", PATH="/nowhere", NO_COLOR="1")
    assert "\x1b[32mfinished" in on_a_terminal("status", "runs", PATH="/nowhere")
    assert "\x1b" not in on_a_terminal("status", "runs", PATH="/nowhere", TERM="dumb")
    assert "\x1b[31mcnnjob:\x1b[0m gone: no such run" in on_a_terminal("logs", "gone", exit_code=3)
    assert on_a_terminal("logs", "gone", exit_code=3, NO_COLOR="1").startswith("cnnjob: gone: no such run")
    assert "\x1b[31mcnnjob:\x1b[0m No such command 'statsu'. Did you mean" in on_a_terminal("statsu", exit_code=2)
    name = next(Path("runs").glob("tiny-*")).name
    assert re.search("^state: +\x1b\\[32mfinished", on_a_terminal("status", name, PATH="/nowhere"), re.MULTILINE)
    assert "\x1b" not in on_a_terminal("status", name, PATH="/nowhere", NO_COLOR="1")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("words", [("doctor",), ("status", "runs"), ("show", "mine.toml")])
def test_a_narrow_terminal(words: tuple[str, ...]) -> None:
    Path("mine.toml").write_text((ROOT / "jobs" / "cifar10.toml").read_text())
    shown = re.sub("\x1b\\[[0-9;]*m", "", on_a_terminal(*words, columns=NARROW, PATH="/nowhere"))
    tables = [line.rstrip() for line in shown.splitlines() if "  " in line and " = " not in line]
    assert tables
    assert max(map(len, tables)) <= NARROW, shown


@pytest.mark.usefixtures("here")
def test_a_narrow_status_keeps_the_accuracy_and_says_what_is_hidden() -> None:
    shown = on_a_terminal("status", "runs", columns=44, PATH="/nowhere", NO_COLOR="1")
    assert "80.00 %" in shown or "90.00 %" in shown
    assert max(map(len, shown.splitlines())) <= 44
    [hidden] = re.findall(
        "hidden on this narrow terminal: (.*); --wide or --json shows all of", " ".join(shown.split())
    )
    assert "loss" in hidden
    assert "\x1b" not in shown
    wide = on_a_terminal("status", "runs", "--wide", columns=44, PATH="/nowhere", NO_COLOR="1")
    assert all(title in wide for title in hidden.split(", "))
    assert "hidden" not in wide


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("words", [("doctor",), ("status", "runs"), ("show",), ("clean",)])
def test_without_utf8_and_without_a_terminal(words: tuple[str, ...]) -> None:
    pending_run(Path("runs"), name="x" * 60)
    plain = environment(LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PATH="/nowhere")
    done = subprocess.run([sys.executable, "-m", "cnnjob", *words], env=plain, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    done.stdout.decode("ascii")
