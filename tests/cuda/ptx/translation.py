"""Kernels of a PTX text as C++ texts."""

import re

from tests.cuda.ptx import instructions
from tests.cuda.ptx.parsing import Function, Module, PtxError, Variable, statements
from tests.cuda.ptx.scope import Kernel, Scope, variable

STATIC_SHARED_BYTES = 48 << 10
"""More than this a kernel can have as dynamic shared memory alone."""
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)")
PREDICATED = re.compile(r"@(!?)([%\w$]+)\s+(.*)")
NOTES = (".pragma ", ".loc ", ".file ")


def kernels(ptx: str) -> list[str]:
    """Each kernel of a PTX text, with the functions that a library has for it.

    Raises:
        PtxError: an instruction, or something else, that has no translation.
    """
    module = Module.of(ptx)
    return [_kernel(module, function) for function in module.functions.values() if function.is_entry]


def _kernel(module: Module, entry: Function) -> str:
    kernel, name = Kernel(module), entry.name
    bodies = [_function(kernel, entry)]
    bodies.extend(_function(kernel, module.functions[called]) for called in kernel.called)  # which grows meanwhile
    if kernel.shared_bytes > STATIC_SHARED_BYTES:
        raise PtxError(f"{name}: {kernel.shared_bytes} bytes of shared memory, of at most {STATIC_SHARED_BYTES}")
    declared = [f"{_head(module.functions[called])};" for called in kernel.called]
    if kernel.dynamic_align:
        kernel.shared_bytes = -(-kernel.shared_bytes // kernel.dynamic_align) * kernel.dynamic_align
    parts = "\n".join(
        [f"enum : u32 {{ dynamic_shared = {kernel.shared_bytes} }};", *kernel.tables.values(), *declared, *bodies]
    )
    facts = f'"{name}", {kernel.shared_bytes}, {int(kernel.dynamic_align > 0)}, {entry.most_threads}'
    sizes = ", ".join(str(parameter.size) for parameter in entry.parameters)
    return (
        f"namespace of_{name} {{\n{parts}\n}}\n"
        f'extern "C" int emulate_{name}(const unsigned *grid, const unsigned *block, void **values, int order) '
        f"{{ return run(of_{name}::kernel_{name}, {facts}, grid, block, values, order); }}\n"
        f'extern "C" int count_{name}() {{ return {len(entry.parameters)}; }}\n'
        f'extern "C" size_t size_{name}(int place) {{ size_t sizes[] = {{{sizes}}}; return sizes[place]; }}\n'
        f'extern "C" int barriers_{name}() {{ return {next(kernel.barriers) - 1}; }}\n'
    )


def _head(function: Function) -> str:
    if function.is_entry:
        return f"static void kernel_{function.name}(void **values)"  # a kernel may be named like a function of ptx.h
    names = [f"char *{variable(one.name)}" for one in (*function.results, *function.parameters)]
    return f"static void {function.name}({', '.join(['const Thread &thread', *names])})"


def _function(kernel: Kernel, function: Function) -> str:
    scope, lines = Scope(kernel, [*function.results, *function.parameters]), [f"{_head(function)} {{"]
    if function.is_entry:
        lines.append("const Thread thread = begin();")
        lines += [f"char *{variable(one.name)} = (char *)values[{n}];" for n, one in enumerate(function.parameters)]
    for kind, text in statements(function.body):
        if kind == "brace":
            lines.append(text)
        elif kind == "label":
            lines.append(f"{variable(text)}:;")
        elif not text.startswith(NOTES):
            lines.append(_statement(scope, text))
    return "\n".join([*lines, "}"])


def _statement(scope: Scope, text: str) -> str:
    if found := REGISTERS.fullmatch(text):
        return scope.declare_registers(found[1], found[2])
    if text.startswith("."):
        return scope.declare(Variable.declared(text))
    if found := PREDICATED.fullmatch(text):
        condition = scope.value(found[2], "pred", text)
        return f"if ({found[1]}{condition}) {{ {instructions.statement(scope, found[3])} }}"
    return f"{{ {instructions.statement(scope, text)} }}"
