"""The parts of a PTX text: functions, variables, statements, operands."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

MOST_THREADS = 1024

FUNCTION = re.compile(
    r"(?:\.(?:visible|weak|extern)\s+)*\.(?P<kind>entry|func)\s*(?:\((?P<results>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*"
    r"\((?P<parameters>[^)]*)\)(?P<directives>[^;{]*)(?P<end>[;{])"
)
VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>param|shared|global|local|const)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>[bsuf]\d+)\s+(?:\.ptr\s+(?:\.\w+\s+)*(?:\d+\s+)?)?"
    r"(?P<name>[\w$]+)(?P<sides>(?:\[\d*\])*)(?:\s*=\s*\{?(?P<content>[-\w\s,]+)\}?)?"
)
STATEMENT = re.compile(r"\s*(?:(?P<brace>[{}])|(?P<label>[\w$]+):(?!:)|(?P<text>(?:[^;{}]|\{[^{}]*\})+);)")


class PtxError(Exception):
    """PTX that is not translated; the message quotes it."""


def split(operands: str) -> list[str]:
    """What lies between the commas that are outside of all brackets."""
    return [operand.strip() for operand in re.findall(r"(?:[^,{}()\[\]]|\{.*?\}|\(.*?\)|\[.*?\])+", operands)]


def listed(operand: str) -> list[str]:
    """The registers of a vector, or the one."""
    return split(operand[1:-1]) if operand.startswith(("{", "(")) else [operand]


def size_of(kind: str) -> int:
    """Bytes of a type, as f32 or b64."""
    return int(kind[1:]) // 8


@dataclass(frozen=True)
class Variable:
    """A variable of memory: a parameter, an array in shared memory, a table."""

    space: str
    align: int
    kind: str
    name: str
    size: int
    """In bytes; 0 of dynamic shared memory."""
    content: list[int]

    @classmethod
    def declared(cls, text: str) -> "Variable":
        found = VARIABLE.fullmatch(text.strip())
        if not found:
            raise PtxError(f"{text.strip()}: a declaration that is not known")
        sides = [int(side or 0) for side in re.findall(r"\[(\d*)\]", found["sides"])]
        size = size_of(found["type"])
        try:
            content = [number(one) for one in split(found["content"] or "")]
        except ValueError as error:
            raise PtxError(f"{text.strip()}: content that is not of numbers") from error
        align = int(found["align"] or size)
        return cls(found["space"], align, found["type"], found["name"], size * prod(sides), content)


def number(text: str) -> int:
    """The bits of a number: an integer, or a float as its bits. Raises ValueError for what is none."""
    if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}|0[dD][0-9A-Fa-f]{16}", text):
        text = f"0x{text[2:]}"
    return int(text.removesuffix("U"), 0) & (1 << 64) - 1


@dataclass(frozen=True)
class Function:
    """An entry, or a function that is called."""

    name: str
    is_entry: bool
    results: list[Variable]
    parameters: list[Variable]
    most_threads: int
    body: str


@dataclass(frozen=True)
class Module:
    """The functions of a PTX text, and the variables outside of them, by name."""

    functions: dict[str, Function]
    variables: dict[str, Variable]

    @classmethod
    def of(cls, ptx: str) -> "Module":
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.DOTALL)
        functions, outside, place = {}, "", 0
        while found := FUNCTION.search(text, place):
            outside += text[place : found.start()]
            place = found.end() if found["end"] == ";" else _end(text, found.end())
            if found["end"] == ";":
                continue  # declared beforehand
            results, parameters = (
                [Variable.declared(one) for one in split(found[part] or "")] for part in ("results", "parameters")
            )
            threads = re.search(r"\.(?:maxntid|reqntid)\s+(\d[\d\s,]*)", found["directives"])
            most = prod(map(int, threads[1].split(","))) if threads else MOST_THREADS
            body = text[found.end() : place - 1]
            functions[found["name"]] = Function(
                found["name"], found["kind"] == "entry", results, parameters, most, body
            )
        outside = re.sub(r"\.(version|target|address_size)\s[^\n]*", "", outside + text[place:])
        variables = [Variable.declared(one) for one in outside.split(";") if one.strip()]
        return cls(functions, {one.name: one for one in variables})


def _end(text: str, place: int) -> int:
    """Behind the brace that closes the one before a place."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[place:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return place + brace.end()
    raise PtxError(f"{text[place : place + 80].strip()}: a function without an end")


def statements(body: str) -> Iterator[tuple[str, str]]:
    """The braces, labels and texts of a body, each with its kind."""
    place, whole = 0, body.rstrip()
    while place < len(whole):
        found = STATEMENT.match(whole, place)
        if not found:
            raise PtxError(f"{whole[place : place + 80].strip()}: not a statement")
        place = found.end()
        kind = str(found.lastgroup)
        yield kind, " ".join(found[kind].split())
