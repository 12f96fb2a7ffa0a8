"""The structure of the package: packages, layers and imports, light imports, public names, shapes of functions.

python -m tests.test_architecture prints what docs/architecture.md shows of the structure, and the figures.
"""

import ast
import importlib
import io
import itertools
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import cnnjob
from tests.helpers.cli import HEAVY
from tests.helpers.image_sources import write_images

PACKAGE = Path(cnnjob.__file__).parent
ROOT = PACKAGE.parent
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
MAX_NODES, MAX_LAYERS, MAX_IMPORTS = 14, 8, 56
"""Of packages and root modules, and of the pairs of them of which one imports the other."""
MAX_ROOT_MODULES, MAX_ROOT_PACKAGES = 5, 10
MAX_SHORT_FUNCTIONS = 101
"""Functions of at most three lines that one place uses."""
MAX_MODULES = 15
"""In one package; a sub-package counts by itself."""
MIN_COMMENTS = 3.0
"""Per 100 lines of code, without blank lines, docstrings, and comments for tools."""
SAME_MEANING = {
    "a command, its function in the API, and what does its work": {
        *("cancel", "evaluate", "export", "predict", "prepare", "report", "submit", "sync", "train", "verify_resume"),
    },
    "an operation, planned by each backend": {
        *("accumulate", "activate", "conv", "dense", "dropout", "gather", "mean_outputs", "norm", "pool"),
        *("residual_add", "softmax", "update", "_global_pool", "_max_pool", "cross_entropy"),
    },
    "a part of a conv block's plan": {"_plan_cache_block", "_plan_shard"},
    "a task that does nothing": {"_nothing"},
    "a shape in a message": {"_format_shape"},
    "the content of a source file, as each reader gives it": {"read", "_stream", "_with_test_split"},
    "where a process begins": {"main"},
}
"""The names that several modules define, and what they mean in all of these."""

Graph = Mapping[str, set[str]]


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name without the package's; a package's ``__init__`` has the package's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cnnjob":
            base = node.module.removeprefix("cnnjob").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in modules() else base
        elif isinstance(node, ast.Import):
            yield from (alias.name[7:] for alias in node.names if alias.name.startswith("cnnjob."))


@cache
def between_nodes() -> Graph:
    """Return what each package and root module imports of the others; without ``__init__`` and ``__main__``."""
    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in modules().items():
        node = name.split(".")[0]
        if node not in {"", "__main__"}:
            graph[node] |= {other for module in imports(path) if (other := module.split(".")[0]) not in {"", node}}
    return graph


def layers(graph: Graph) -> list[list[str]]:
    """Sort a graph into layers, the lowest first: each node is one above the highest that it imports.

    Raises:
        AssertionError: a cycle.
    """
    height: dict[str, int] = {}

    def height_of(node: str, above: tuple[str, ...] = ()) -> int:
        assert node not in above, f"a cycle of imports: {' → '.join((*above[above.index(node) :], node))}"
        if node not in height:
            height[node] = 1 + max((height_of(other, (*above, node)) for other in graph.get(node, ())), default=-1)
        return height[node]

    for node in sorted(graph):
        height_of(node)
    return [sorted(n for n in height if height[n] == level) for level in range(max(height.values()) + 1)]


def picture() -> str:
    """Return the layers as docs/architecture.md shows them, the highest first."""
    return "\n".join(" · ".join(layer) for layer in reversed(layers(between_nodes())))


def figures() -> str:
    """Return the figures that are limited here, in one line."""
    graph = between_nodes()
    pairs = sum(map(len, graph.values()))
    return f"{len(graph)} nodes, {len(layers(graph))} layers, {pairs} imports between them"


def test_the_package_has_few_parts_and_imports_downward() -> None:
    graph = between_nodes()
    assert len(graph) <= MAX_NODES, figures()
    assert len(layers(graph)) <= MAX_LAYERS, figures()
    assert sum(map(len, graph.values())) <= MAX_IMPORTS, figures()
    assert len([*PACKAGE.glob("*.py")]) <= MAX_ROOT_MODULES
    assert len([*PACKAGE.glob("*/__init__.py")]) <= MAX_ROOT_PACKAGES


def test_the_picture_in_the_documentation_is_the_structure() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert f"```text\n{picture()}\n```" in text
    assert figures() in text


def folders() -> dict[str, list[str]]:
    """Return the modules of each package that are directly in it."""
    found = defaultdict(list)
    for name, path in modules().items():
        if path.name != "__init__.py":
            found[name.rpartition(".")[0]].append(name)
    return found


@pytest.mark.parametrize("folder", sorted(folders()))
def test_a_package_has_few_modules_and_no_cycle(folder: str) -> None:
    names = folders()[folder]
    assert len(names) <= MAX_MODULES
    layers({name: {other for other in imports(modules()[name]) if other in names and other != name} for name in names})


def test_no_package_hides_its_classes_in_its_init() -> None:
    for name, path in modules().items():
        if path.name == "__init__.py":
            classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
            assert not classes, f"{name}: {classes[0].name}"


def test_nn_can_be_lifted_out() -> None:
    assert not between_nodes()["nn"]
    assert not {"pydantic", "typer", "submitit", "h5py"} & loaded_by("import cnnjob.nn")


def test_reports_need_neither_the_training_nor_a_cluster() -> None:
    loaded = loaded_by("import cnnjob.reporting.report, cnnjob.reporting.plots")
    assert not {"cupy", "submitit", "h5py", "cnnjob.training.trainer"} & loaded


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import cnnjob",
        "from typer.testing import CliRunner; import cnnjob.cli.main as c; CliRunner().invoke(c.app, ['--help'])",
        "from typer.testing import CliRunner; import cnnjob.cli.main as c; CliRunner().invoke(c.app, ['--version'])",
        "from typer.testing import CliRunner; import cnnjob.cli.main as c\n"
        "for name in c.COMMANDS: assert 'Example' in CliRunner().invoke(c.app, [name, '--help']).stdout",
    ],
)
def test_importing_and_helping_is_light(code: str) -> None:
    assert not set(HEAVY) & loaded_by(code)


def test_preparing_images_loads_only_what_it_needs(tmp_path: Path) -> None:
    for split, name in itertools.product(("train", "test"), "ab"):
        write_images(tmp_path / "pets" / split / name, 2)
    words = ["prepare", str(tmp_path / "pets"), "--out", str(tmp_path / "pets.h5")]
    code = (
        f"from typer.testing import CliRunner; import cnnjob.cli.main as c\nprint(CliRunner().invoke(c.app, {words}))"
    )
    loaded = loaded_by(code)
    assert "cnnjob.data.prepare.folders.parallel" in loaded
    assert not {"pydantic", "rich.progress", "ssl", "http.client", "pooch", "cnnjob.training.trainer"} & loaded


def test_the_public_names_are_sorted_and_there() -> None:
    assert list(cnnjob.__all__) == sorted(cnnjob.__all__) == dir(cnnjob)
    for name in cnnjob.__all__:
        assert getattr(cnnjob, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        cnnjob.nonsense  # noqa: B018


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function of the package with its module's name."""
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, node


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's body, its docstring left out."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def uses() -> Counter[str]:
    """Count how often each name is used in the package: called, passed or looked up, not defined or imported."""
    found: Counter[str] = Counter()
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found[node.id] += 1
            elif isinstance(node, ast.Attribute):
                found[node.attr] += 1
    return found


def short_functions_of_one_caller() -> list[str]:
    """Return the functions of at most three lines that one place uses; without those that a decorator registers."""
    count = uses()
    return [
        f"{module}.{node.name}"
        for module, node in functions()
        if body_lines(node) <= 3
        and count[node.name] == 1
        and not node.decorator_list
        and not node.name.startswith("__")
    ]


def test_functions_are_short() -> None:
    lengths = {f"{module}.{node.name}": body_lines(node) for module, node in functions()}
    assert max(lengths.values()) <= 60
    assert sum(length <= 25 for length in lengths.values()) >= 0.9 * len(lengths)


def test_few_functions_of_a_line_or_two_have_one_caller() -> None:
    found = short_functions_of_one_caller()
    assert len(found) <= MAX_SHORT_FUNCTIONS, "\n".join(found)


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The public functions and classes of a module or class, not those inside functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not any(isinstance(decorator, ast.Attribute) for decorator in node.decorator_list):  # a setter
                yield node
            yield from public(node.body) if isinstance(node, ast.ClassDef) else ()


def test_every_public_name_is_documented() -> None:
    for path in modules().values():
        for node in public(ast.parse(path.read_text()).body):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_every_module_can_be_imported_alone() -> None:
    for name in modules():
        if name != "__main__":
            importlib.import_module(f"cnnjob.{name}".rstrip("."))


READS_ITSELF = {
    "files",  # here is open_regular
    *(
        "runs.process",
        "runs.environment",
        "data.image_limits",
        "doctor.filesystem",
    ),  # of /proc, and what they wrote a moment ago
    *("nn.cuda.device", "slurm.submit.code_snapshot"),  # the package's own code
    "checks.resume",  # what its own child writes
    "reporting.report",  # what it is about to replace
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
    for name, path in modules().items():
        text = re.sub(r"\bfiles\.read_(?:text|bytes)\(", "", path.read_text(encoding="utf-8"))
        if not name.startswith("checks.benchmarks") and opens.search(text):
            found.add(name)
    assert found <= READS_ITSELF, found - READS_ITSELF


@cache
def shared_names() -> dict[str, list[str]]:
    """Return the functions and classes that several modules define, with these modules."""
    found = defaultdict(list)
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name].append(module)
    return {name: places for name, places in found.items() if len(places) > 1}


def test_a_name_has_one_meaning() -> None:
    known = set().union(*SAME_MEANING.values())
    assert known <= set(shared_names()), f"no longer shared: {known - set(shared_names())}"
    several = {name: places for name, places in shared_names().items() if name not in known}
    assert not several, "\n".join(f"{name}: {', '.join(places)}" for name, places in sorted(several.items()))


def comments_per_100_lines() -> float:
    """Count comments, without those for tools, and lines of code, without docstrings."""
    comments = lines = 0
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        code: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comments += not re.match(r"# ?(noqa|type:|fmt:|ruff:|codespell:)", token.string)
            elif token.type in {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}:
                code.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                code.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
        lines += len(code)
    return 100 * comments / lines


def test_the_code_gives_its_reasons() -> None:
    assert comments_per_100_lines() >= MIN_COMMENTS


TESTS = Path(__file__).parent


def test_no_test_module_imports_another() -> None:
    """What several share is in tests/helpers, in a conftest.py, or beside them in a module without tests."""
    for path in TESTS.rglob("*.py"):
        imported = {
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests")
            for alias in node.names
        }
        shared = {name for name in imported if re.search(r"\.test_\w+(\.|$)", name)}
        assert not shared, f"{path}: {sorted(shared)}"


if __name__ == "__main__":
    short = len(short_functions_of_one_caller())
    lines = [picture(), figures(), f"{short} short functions of one caller"]
    lines += [f"{comments_per_100_lines():.1f} comments per 100 lines of code", "names in several modules:"]
    for meaning, names in SAME_MEANING.items():
        lines += [
            f"  {name}: {', '.join(shared_names()[name])} ({meaning})" for name in sorted(names & shared_names().keys())
        ]
    sys.stdout.write("\n".join(lines) + "\n")
