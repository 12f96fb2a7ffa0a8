"""The kernels' machine code: what CUDA's own tools say about the code that NVRTC makes, on a machine without a GPU."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from operator import itemgetter
from pathlib import Path

from tests.cuda import nvrtc
from tests.cuda.emulation import kernels

TOOLS = "cuobjdump", "nvdisasm"
"""The first starts the second."""
INSTALL = "pip install nvidia-cuda-nvrtc nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"

MULTIPLY_ADDS = 1 / 6
"""A loop with a smaller share of multiply-adds is one over values, which has them in its addresses or activations."""


@dataclass(frozen=True)
class MachineCode:
    """One kernel, compiled for one architecture."""

    registers: int
    """Per thread."""
    stack_bytes: int
    """Per thread: memory for what does not fit into registers."""
    shared_bytes: int
    """Per block, on sm_90 with 1,024 of the system, and without memory whose size is chosen at the launch."""
    instructions: tuple[tuple[int, str], ...]
    """Address and text of each."""

    @property
    def spills(self) -> int:
        """Accesses to the stack."""
        return sum(opcode in {"LDL", "STL"} for opcode in map(opcode_of, self.texts))

    @cached_property
    def texts(self) -> list[str]:
        """The instructions, without those that only fill the last cache line."""
        return [text for _, text in self.instructions if not text.startswith("NOP")]

    @cached_property
    def main_loop(self) -> Counter[str]:
        """Numbers of each opcode in the loop that does most: tensor-core products, or multiply-adds, or accesses to
        memory; empty without a loop."""
        return self.loop_with("HMMA") or self.loop_with("FFMA", share=MULTIPLY_ADDS) or self.loop_with("LDG", "STG")

    def loop_with(self, *opcodes: str, share: float = 0) -> Counter[str]:
        """Numbers of each opcode in the loop that has most of some, and at least a share of them; of loops within each
        other, in the innermost that has any."""
        loops = [(sum(body[opcode] for opcode in opcodes), first, last, body) for first, last, body in self._loops]
        having = [loop for loop in loops if loop[0] > share * loop[3].total()]
        innermost = [
            (count, body) for count, first, last, body in having
            if not any(first <= start and end <= last and (start, end) != (first, last) for _, start, end, _ in having)
        ]  # fmt: skip
        return max(innermost, key=itemgetter(0), default=(0, Counter[str]()))[1]

    @property
    def tensor_share(self) -> float:
        """The part of the main loop's instructions that are products of the tensor cores."""
        return self.main_loop["HMMA"] / max(1, self.main_loop.total())

    @cached_property
    def _loops(self) -> list[tuple[int, int, Counter[str]]]:
        """The first and last address of each loop, from the target of a jump back to the jump, and its opcodes."""
        ends: dict[int, int] = {}
        for address, text in self.instructions:
            target = jump_target(text)
            if target is not None and target < address:
                ends[target] = max(ends.get(target, 0), address)
        opcodes = [(address, opcode_of(text)) for address, text in self.instructions]
        return [
            (first, last, Counter(opcode for address, opcode in opcodes if first <= address <= last))
            for first, last in ends.items()
        ]

    @cached_property
    def longest_path(self) -> int:
        """The most instructions that a thread runs if it runs the body of each loop once."""
        following = [address for address, _ in self.instructions[1:]]
        longest: dict[int, int] = {}
        # Only jumps forward: from the end to the start, what follows each instruction is known.
        for (address, text), after in zip(reversed(self.instructions), [-1, *reversed(following)], strict=True):
            target = jump_target(text)
            ways = [longest.get(after, 0)] if not ends_path(text) else [0]
            if target is not None and target > address:
                ways.append(longest.get(target, 0))
            longest[address] = 1 + max(ways)
        return longest[self.instructions[0][0]]


def opcode_of(text: str) -> str:
    """An instruction's operation, without its predicate and variants."""
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]


def jump_target(text: str) -> int | None:
    """The address that an instruction may jump to, unless that is code for warps that are not together."""
    found = re.search(r"\bBRA(?!\.DIV)\b[^;]*?0x([0-9a-f]+)$", text)
    return int(found[1], 16) if found else None


def ends_path(text: str) -> bool:
    """Nothing follows: the end of the thread, of a function, or a jump in any case."""
    return bool(re.match(r"(EXIT|RET|BRA(?!\.DIV)\S* 0x)", text))


@cache
def missing_tools() -> str | None:
    """Why machine code cannot be made and read here, and what to do."""
    lacks = [name for name in TOOLS if not find_tool(name)]
    if nvrtc.library() is None:
        lacks.append("NVRTC")
    return f"{', '.join(lacks)}: not installed; {INSTALL}" if lacks else None


def find_tool(name: str) -> Path | None:
    """One of CUDA's tools: of its wheel, or on the path as in Debian's package nvidia-cuda-toolkit."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec and spec.submodule_search_locations) or ()
    wheels = sorted(path for folder in folders for path in Path(folder).glob(f"*/bin/{name}"))
    installed = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    return wheels[-1] if wheels else installed and Path(installed)  # type: ignore[return-value]


@cache
def machine_codes(architecture: str, source: str | None = None) -> dict[str, MachineCode]:
    """All kernels of a source, by default the product's, compiled for an architecture such as ``sm_90``."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernels.cubin"
        binary.write_bytes(nvrtc.compiled(source or kernels(), architecture))
        resources, listing = (_read(binary, option) for option in ("-res-usage", "-sass"))
    usage = dict(re.findall(r"Function (\w+):\s*(REG.*)", resources))
    parts = re.split(r"Function : (\w+)", listing)[1:]
    codes = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage[name])}
        lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", text, re.MULTILINE)
        instructions = tuple((int(address, 16), " ".join(line.split())) for address, line in lines)
        codes[name] = MachineCode(numbers["REG"], numbers["STACK"], numbers["SHARED"], instructions)
    return codes


def _read(binary: Path, option: str) -> str:
    """What cuobjdump prints of compiled kernels."""
    tools = {name: find_tool(name) for name in TOOLS}
    environment = os.environ | {"NVDISASM_PATH": str(tools["nvdisasm"])}
    command = [str(tools["cuobjdump"]), option, str(binary)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
