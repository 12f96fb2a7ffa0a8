"""What the names in a function stand for: registers, variables in each kind of memory, numbers."""

import json
import re
from itertools import count

from tests.cuda.ptx.parsing import Module, PtxError, Variable, number, size_of, split

SPECIAL = re.compile(r"%(?:(tid|ntid|ctaid|nctaid)\.([xyz])|laneid)")
ADDRESS = re.compile(r"\[([%\w$]+)\s*(?:\+\s*(-?\d+))?\]")


def variable(name: str) -> str:
    """A register, parameter, label or symbol as a name in C++ (where ``$`` is a letter)."""
    return name.replace("%", "_")


def stored(kind: str) -> str:
    """The C++ type that a value has in memory: its bits, but of a signed one itself, which is extended when loaded."""
    return kind if kind[0] == "s" else f"u{kind[1:]}"


class Kernel:
    """What the functions of a kernel share: places in shared memory, tables, and numbers of its barriers."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.shared: dict[str, str] = {}
        self.shared_bytes, self.dynamic_align = 0, 0
        self.tables: dict[str, str] = {}
        self.called: list[str] = []
        self.barriers, self.warp_instructions = count(1), count(-1, -1)

    def call(self, name: str, text: str) -> None:
        """Notes that a function is needed."""
        if name not in self.module.functions:
            raise PtxError(f"{text}: a function without a body")
        if name not in self.called:
            self.called.append(name)

    def address(self, name: str, text: str) -> str:
        """Of a variable of all threads: its place in shared memory, or its address in the host's memory."""
        if name in self.module.variables:
            self.declare(self.module.variables[name])
        if name in self.shared:
            return self.shared[name]
        if name in self.tables:
            return f"(u64){variable(name)}"
        raise PtxError(f"{text}: {name} is not declared, or a special register that is not known")

    def declare(self, one: Variable) -> None:
        """Gives a variable its place when it is first used."""
        if one.space == "shared" and not one.size:
            self.shared[one.name] = "dynamic_shared"  # behind all others, which may still be to come
            self.dynamic_align = max(self.dynamic_align, one.align)
        elif one.space == "shared" and one.name not in self.shared:
            place = -(-self.shared_bytes // one.align) * one.align
            self.shared[one.name], self.shared_bytes = f"{place}u", place + one.size
        elif one.space in {"global", "const"}:
            if not one.content:
                raise PtxError(f"{one.name}: a variable that kernels write and all share")
            count, content = (
                one.size // size_of(one.kind),
                ", ".join(f"(u{one.kind[1:]}){value}ull" for value in one.content),
            )
            head = f"alignas({one.align}) static u{one.kind[1:]} {variable(one.name)}"
            self.tables[one.name] = f"{head}[{count}] = {{{content}}};"


class Scope:
    """The registers and arrays of a thread in one function, and what they are in C++."""

    def __init__(self, kernel: Kernel, parameters: list[Variable]) -> None:
        self.kernel = kernel
        self.registers: set[str] = set()
        self.arrays = {one.name for one in parameters}

    def declare_registers(self, kind: str, names: str) -> str:
        """Their declaration, from e.g. ``b32`` and ``%r<5>``."""
        declared = []
        for name in split(names):
            several = re.fullmatch(r"(.*)<(\d+)>", name)
            declared += [f"{several[1]}{place}" for place in range(int(several[2]))] if several else [name]
        self.registers.update(declared)
        held = "bool" if kind == "pred" else f"u{max(16, int(kind[1:]))}"
        return f"{held} {', '.join(f'{variable(name)} = 0' for name in declared)};"

    def declare(self, one: Variable) -> str:
        """The declaration of a variable; one that all threads share is the kernel's."""
        if one.space in {"param", "local"}:
            self.arrays.add(one.name)
            return f"alignas({one.align}) char {variable(one.name)}[{one.size}];"
        self.kernel.declare(one)
        return ""

    def value(self, operand: str, kind: str, text: str) -> str:
        """An operand as a value of a type; ``text`` is the instruction, for messages."""
        if special := SPECIAL.fullmatch(operand):
            found = f"thread.{special[1]}.{special[2]}" if special[1] else "thread.laneid"
        elif operand in self.registers:
            found = variable(operand)
        elif operand in self.arrays:
            found = f"(u64){variable(operand)}"
        elif re.match(r"-?\d", operand):
            found = f"{number(operand):#x}ull"
        else:
            found = self.kernel.address(operand, text)
        return f"as<{kind}>({found})"

    def address(self, operand: str, text: str) -> str:
        """The address that an operand in square brackets has."""
        found = ADDRESS.fullmatch(operand)
        if not found:
            raise ValueError(operand)
        return f"{self.value(found[1], 'u64', text)} + {found[2] or 0}"

    def pointer(self, operand: str, space: str | None, size: int, text: str, *, writes: bool) -> str:
        """Where an access of so many bytes goes in the host's memory, after it has been judged."""
        address, name = self.address(operand, text), json.dumps(text)
        if space == "global" and writes:
            return f"stored_at({address}, {size}, {name})"
        if space in {"global", "const", "local", "param"}:
            return f"global_at({address}, {size}, {name})"
        return f"{space or 'generic'}_at({address}, {size}, {int(writes)}, {name})"
