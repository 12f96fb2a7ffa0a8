"""Plant faults in the package, one at a time in a copy, and show which of them the tests find.

``python -m tests.mutate --count 40 --seed 0`` draws faults in all packages but ``nn`` (whose arithmetic has its own
tests of this kind in ``tests/cuda``) and runs the test modules that are nearest to the changed module, then, if they
pass, the folder that mirrors its package, then the rest of the default suite outside ``nn`` and ``cuda``.
``--only 3,17`` runs some of a draw again. A draw depends on the code, so repeat one at the same commit.
A fault that survives is a missing test, or changes nothing that matters: read its diff.
"""

import argparse
import ast
import difflib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 900
"""Tests that take longer count as a fault that was found: it made them hang."""
OPPOSITES = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: ">=", ast.GtE: "<", ast.Gt: "<=", ast.LtE: ">",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",  # codespell:ignore notin
}  # fmt: skip
SINGLE_FILES = {"api": "test_api.py", "errors": "test_errors.py", "files": "test_files.py"}
"""Tests of the modules at the package's root."""


@dataclass(frozen=True)
class Fault:
    """A module with one change."""

    path: Path
    """Relative to the repository."""
    kind: str
    before: str
    after: str

    def diff(self) -> str:
        """Return the changed lines."""
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), n=0, lineterm="")
        return "\n".join(f"    {line}" for line in list(lines)[2:])


def modules(folder: Path) -> Iterator[Path]:
    """Yield the modules in which faults are drawn, relative to the folder of a copy."""
    for path in sorted((folder / "cnnjob").rglob("*.py")):
        if path.relative_to(folder).parts[1] not in {"nn", "__main__.py", "__init__.py"}:
            yield path.relative_to(folder)


def faults(folder: Path, path: Path) -> Iterator[Fault]:
    """Yield every fault that can be planted in the functions of a module."""
    source = (folder / path).read_bytes()
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        end_line, end_column = node.end_lineno or 0, node.end_col_offset or 0
        return starts[node.lineno - 1] + node.col_offset, starts[end_line - 1] + end_column

    def text(node: ast.expr) -> str:
        start, end = span(node)
        return source[start:end].decode()

    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                for node in ast.walk(statement):
                    for kind, target, new in changes(node, text):
                        start, end = span(target)
                        yield Fault(
                            path, kind, source.decode(), (source[:start] + new.encode() + source[end:]).decode()
                        )


def changes(node: ast.AST, text: Callable[[ast.expr], str]) -> Iterator[tuple[str, ast.expr, str]]:
    """Yield the kind, the place and the new text of each fault at a node."""
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            yield "comparison", node, f"{text(left)} {OPPOSITES[type(operator)]} {text(right)}"
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            yield "constant", node, str(value + 1)
            yield "constant", node, f"({value - 1})"
        case ast.BoolOp(op=operator, values=values):
            word = " or " if isinstance(operator, ast.And) else " and "
            yield "and/or", node, "(" + word.join(f"({text(value)})" for value in values) + ")"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", node, f"bool({text(operand)})"
        case ast.Call(func=function, args=[first, second, *others], keywords=keywords):
            if text(first) != text(second) and not {type(first), type(second)} & {ast.Starred}:
                rest = [text(argument) for argument in others]
                rest += [f"{word.arg}={text(word.value)}" if word.arg else f"**{text(word.value)}" for word in keywords]
                yield "arguments", node, f"{text(function)}({', '.join([text(second), text(first), *rest])})"
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "returned", value, "None"
        case ast.If(test=test) | ast.IfExp(test=test):
            yield "condition", test, "True"
            yield "condition", test, "False"
        case _:
            pass


def draw(folder: Path, count: int, seed: int) -> list[Fault]:
    """Draw faults: each kind is as likely as the others, and within it each place."""
    by_kind = defaultdict(list)
    for path in modules(folder):
        for fault in dict.fromkeys(faults(folder, path)):  # a function in a function is walked twice
            by_kind[fault.kind].append(fault)
    source = random.Random(seed)
    drawn: dict[Fault, None] = {}
    while len(drawn) < count:
        drawn[source.choice(by_kind[source.choice(sorted(by_kind))])] = None
    return list(drawn)


def mirror(folder: Path, path: Path) -> list[str]:
    """Return the test modules of the package that a module is in."""
    name = path.with_suffix("").parts[1]
    tests = folder / "tests" / SINGLE_FILES.get(name, name)
    found = sorted(tests.glob("test_*.py")) if tests.is_dir() else [tests]
    return [str(test.relative_to(folder)) for test in found]


def nearest(folder: Path, path: Path) -> list[str]:
    """Return the test modules of a module's package that are named after it or import it, at most three of them."""
    imported = re.compile(rf"^from cnnjob.*\b{path.stem}\b", re.MULTILINE)
    names = [f"test_{path.stem}.py", f"test_{path.parent.name}.py"]
    named = [name for name in mirror(folder, path) if Path(name).name in names]
    importing = [name for name in mirror(folder, path) if imported.search((folder / name).read_text(encoding="utf-8"))]
    return list(dict.fromkeys([*named, *importing]))[:3]


def copy_repository(folder: Path) -> None:
    """Copy what git tracks or would, into a repository of its own: tests ask git about the package."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    identity = ["-c", "user.name=mutate", "-c", "user.email=mutate@localhost"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "copy"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def first_failure(folder: Path, selected: list[str]) -> str:
    """Run tests in the copy and return the first that fails, or nothing if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selected]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end in {TIMEOUT_SECONDS} s"
    if done.returncode == 0:
        return ""
    names = re.findall(r"^(?:FAILED|ERROR) (\S+\.py(?:::.*?)?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return names[0] if names else f"pytest's exit code {done.returncode}: {done.stdout[-300:]}"


def killer(folder: Path, fault: Fault, selected: list[str]) -> str:
    """Plant a fault and return the first test that fails with it and passes without it, or nothing."""
    ignored: list[str] = []
    while True:
        (folder / fault.path).write_text(fault.after, encoding="utf-8")
        failed = first_failure(folder, [*selected, *(f"--deselect={name}" for name in ignored)])
        (folder / fault.path).write_text(fault.before, encoding="utf-8")
        if not failed.startswith("tests/") or not first_failure(folder, [failed]):
            return failed
        say(f"    ignored, as it fails without the fault: {failed}")
        ignored.append(failed)


def other_tests(folder: Path, path: Path) -> list[str]:
    """Return the default test modules outside the mirror of a module, without those of ``nn`` and ``cuda``."""
    packages = ("slurm", "training", "cli", "runs", "reporting", "checks", "jobs", "data", "doctor")
    modules = [module for package in (*packages, *SINGLE_FILES) for module in mirror(folder, Path("cnnjob", package))]
    modules += ["tests/durability/test_smoke.py", "tests/test_docs.py"]
    return [module for module in modules if module not in mirror(folder, path)]


SELECTIONS = {"nearest": nearest, "mirror": mirror, "others": other_tests}
"""Which tests are run, one selection after the other, until one of them fails."""


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Draw, plant and test; print each fault with what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="numbers of drawn faults, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the faults without running tests")
    parser.add_argument("--tests", nargs="+", choices=SELECTIONS, default=list(SELECTIONS), help="which are run")
    options = parser.parse_args()
    only = {int(number) for number in options.only.split(",") if number}
    say(f"seed {options.seed}, {options.count} faults")
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_repository(folder)
        for number, fault in enumerate(draw(folder, options.count, options.seed), 1):
            if only and number not in only:
                continue
            said, began = "", time.monotonic()
            if not options.list:
                selections = [selected for name in options.tests if (selected := SELECTIONS[name](folder, fault.path))]
                found = next(filter(None, (killer(folder, fault, selected) for selected in selections)), "")
                said = f"killed by {found}" if found else "SURVIVED"
                said = f": {said} ({time.monotonic() - began:.0f} s)"
                survivors += [] if found else [number]
            say(f"{number}. {fault.path}, {fault.kind}{said}\n{fault.diff()}")
    if not options.list:
        say(f"survivors: {survivors or 'none'}")


if __name__ == "__main__":
    main()
