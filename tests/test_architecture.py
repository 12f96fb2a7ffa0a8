"""The house: arrows only downward, nn knows nothing above it, imports are light, the public face is as said."""

import ast
import importlib
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cnnjob

PACKAGE = Path(cnnjob.__file__).parent
FLOORS = (
    {"cli"},
    {"doctor", "verbs"},
    {"slurm"},
    {"rehearsals", "verification"},
    {"packing", "training", "reports", "benchmarks"},
    {
        "backends",
        "crosschecks",
        "estimates",
        "evaluations",
        "exports",
        "figures",
        "groups",
        "loops",
        "pages",
        "predictions",
        "records",
        "tables",
        "verdicts",
    },
    {"bindings", "checkpoints", "environments", "idle", "lives", "metrics", "plots", "stopping"},
    {"claims", "curves", "datasets", "images", "listeners", "nn", "runs", "tiles"},
    {"reference", "sweeps", "jobs", "older", "assignments", "models", "sections"}
    | {"schemas", "toml", "clocks", "files", "hdf5", "npz", "processes", "shelves", "escapes", "errors"},
)
HEAVY = ("cupy", "matplotlib", "submitit", "sklearn", "scipy", "pandas", "pydantic", "h5py", "pooch", "numpy")


def modules() -> Iterator[tuple[str, Path]]:
    """Every file of the package with the room it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[str]:
    """The rooms of the package that a file names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cnnjob":
            yield from (alias.name for alias in node.names)
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("cnnjob."))


def test_arrows_point_downward() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for room, path in modules():
        if room in {"__init__", "__main__"}:
            continue
        for other in imports(path):
            if other in floor and other != room:
                assert floor[room] <= floor[other], f"{path.name} ({room}) imports {other}"


def test_every_room_has_its_floor() -> None:
    rooms = {room for room, _ in modules()} - {"__init__", "__main__"}
    assert rooms == set.union(*FLOORS)


def test_nn_can_be_lifted_out() -> None:
    for path in (PACKAGE / "nn").rglob("*.py"):
        assert set(imports(path)) <= {"nn"}, path


def test_reports_need_neither_the_network_nor_a_cluster() -> None:
    loaded = loaded_by("import cnnjob.reports, cnnjob.plots")
    assert not {"cupy", "submitit", "h5py", "cnnjob.nn"} & loaded


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import cnnjob",
        "from typer.testing import CliRunner; import cnnjob.cli as c; CliRunner().invoke(c.app, ['--help'])",
        "from typer.testing import CliRunner; import cnnjob.cli as c\n"
        "for name in c.COMMANDS: assert 'Example' in CliRunner().invoke(c.app, [name, '--help']).stdout",
    ],
)
def test_importing_and_helping_is_light(code: str) -> None:
    assert not set(HEAVY) & loaded_by(code)


def test_the_public_names_are_sorted_and_there() -> None:
    assert list(cnnjob.__all__) == sorted(cnnjob.__all__) == dir(cnnjob)
    for name in cnnjob.__all__:
        assert getattr(cnnjob, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        cnnjob.nonsense  # noqa: B018


def functions() -> Iterator[tuple[str, int]]:
    """Every function of the package and its length in lines, docstring left out."""
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                documented = ast.get_docstring(node) is not None
                first = node.body[1].lineno if documented and len(node.body) > 1 else node.lineno
                yield f"{path.name}:{node.name}", (node.end_lineno or 0) - first + 1


def test_functions_are_short() -> None:
    lengths = dict(functions())
    assert statistics.median(lengths.values()) <= 8
    assert sum(length <= 25 for length in lengths.values()) >= 0.9 * len(lengths)
    assert max(lengths.values()) <= 60


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The public functions and classes of a module or class, not those inside functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not any(isinstance(decorator, ast.Attribute) for decorator in node.decorator_list):  # a setter
                yield node
            yield from public(node.body) if isinstance(node, ast.ClassDef) else ()


def test_every_public_name_is_documented() -> None:
    for _, path in modules():
        for node in public(ast.parse(path.read_text()).body):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_every_module_can_be_imported_alone() -> None:
    for _, path in modules():
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        if not name.endswith("__main__"):
            importlib.import_module(name.removesuffix(".__init__"))


READS_ITSELF = {
    "files.py",  # here is open_regular
    *("processes.py", "environments.py", "images.py", "places.py"),  # of /proc, and what they wrote a moment ago
    *("sources.py", "frozen.py"),  # the package's own code
    "verification.py",  # what its own child writes
    "reports.py",  # what it is about to replace
}


def test_every_file_of_others_is_opened_as_a_regular_file() -> None:
    """A pipe or a device must hang no command: modules open files by cnnjob.files."""
    ways = (
        r"\.read_text\(",
        r"\.read_bytes\(",
        r"\.open\([\"']r",
        r"(?<![\w.])(?<!def )open\(",
        r"json\.load",
        r"tomllib\.load\(",
    )
    opens = re.compile("|".join(ways))
    found = set()
    for room, path in modules():
        text = re.sub(r"\bfiles\.read_(?:text|bytes)\(", "", path.read_text(encoding="utf-8"))
        if room != "benchmarks" and opens.search(text):
            found.add(path.name)
    assert found <= READS_ITSELF, found - READS_ITSELF
