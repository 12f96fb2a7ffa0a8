"""What each instruction is in C++."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from tests.cuda.ptx.parsing import PtxError, listed, size_of, split
from tests.cuda.ptx.scope import Scope, stored, variable

_INT, _BITS = r"\.(?P<type>[us](?:16|32|64))", r"\.(?P<type>pred|b16|b32|b64)"
_F32 = r"(?P<ftz>\.ftz)?(?P<sat>\.sat)?\.(?P<type>f32)"
_ROUNDED = r"(?:\.rn|\.r(?P<toward>[zmp]))?"

ORDINARY = [
    (rf"(?P<name>add|sub){_INT}", "{name}_", "tt"),
    (rf"(?P<name>add|sub|mul){_ROUNDED}{_F32}", "{name}_", "tt"),
    (r"(?P<name>add|sub|mul)(?:\.rn)?\.(?P<type>f64)", "{name}_", "tt"),
    (rf"(?P<name>fma){_ROUNDED}{_F32}", "{name}_", "ttt"),
    (r"(?P<name>fma)\.rn\.(?P<type>f64)", "{name}_", "ttt"),
    (rf"mul\.(?P<name>lo|hi){_INT}", "mul_{name}", "tt"),
    (r"mul\.(?P<name>wide)\.(?P<type>[us](?:16|32))", "mul_{name}", "tt"),
    (rf"mad\.(?P<name>lo|hi){_INT}", "mad_{name}", "ttt"),
    (r"mad\.(?P<name>wide)\.(?P<type>[us](?:16|32))", "mad_{name}", "ttw"),
    (rf"(?P<name>div|rem){_INT}", "{name}_", "tti"),
    (rf"(?P<name>div)\.(?:rn|approx|full){_F32}", "{name}_", "tt"),
    (r"(?P<name>div)\.rn\.(?P<type>f64)", "{name}_", "tt"),
    (rf"(?P<name>min|max){_INT}", "{name}_", "tt"),
    (rf"(?P<name>min|max){_F32}", "{name}_", "tt"),
    (r"(?P<name>min|max|copysign)\.(?P<type>f64)", "{name}_", "tt"),
    (r"(?P<name>copysign)\.(?P<type>f32)", "{name}_", "tt"),
    (rf"(?P<name>abs|neg){_F32}", "{name}_", "t"),
    (r"(?P<name>abs|neg)\.(?P<type>s16|s32|s64|f64)", "{name}_", "t"),
    (rf"(?P<name>rcp|sqrt)\.(?:rn|approx){_F32}", "{name}_", "t"),
    (rf"(?P<name>rsqrt|ex2|lg2|sin|cos|tanh)\.approx{_F32}", "{name}_", "t"),
    (r"(?P<name>rcp|sqrt)\.rn\.(?P<type>f64)", "{name}_", "t"),
    (r"(?P<name>rcp)\.approx\.ftz\.(?P<type>f64)", "{name}_gross", "t"),
    (rf"(?P<name>and|or|xor){_BITS}", "{name}_", "tt"),
    (rf"(?P<name>not){_BITS}", "{name}_", "t"),
    (r"(?P<name>selp)\.(?P<type>[bus](?:16|32|64)|f32|f64)", "{name}_", "ttp"),
    (r"(?P<name>shl)\.(?P<type>b16|b32|b64)", "{name}_", "tu"),
    (r"(?P<name>shr)\.(?P<type>[bus](?:16|32|64))", "{name}_", "tu"),
    (r"shf\.(?P<name>[lr])\.(?P<mode>wrap|clamp)\.(?P<type>b32)", "shf_{name}", "ttum"),
    (r"(?P<name>bfe)\.(?P<type>[us](?:32|64))", "{name}_", "tuu"),
    (r"(?P<name>bfi)\.(?P<type>b32|b64)", "{name}_", "ttuu"),
    (r"(?P<name>popc|clz|brev)\.(?P<type>b32|b64)", "{name}_", "t"),
    (r"(?P<name>prmt)\.(?P<type>b32)", "{name}_", "ttt"),
    (r"(?P<name>lop3)\.(?P<type>b32)", "{name}_", "tttu"),
    (r"mov\.(?P<type>pred|[bus](?:16|32|64)|f32|f64)", "", "t"),
]
"""Operations on values: the instruction, its function in ptx.h, and the operands that follow the result. These are of
the instruction's type (t), of twice its width (w), u32 (u) or predicates (p); i stands for the instruction as text, and
m for whether a shift wraps."""

WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
OPPOSITES = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt", "nan": "num"}
"""A comparison that is true also of NaN is another one, negated, that is not."""
ROUNDINGS = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
CONVERSIONS = {
    ("f16", "f32", "rn"): "to_half",
    ("f32", "f16", None): "from_half",
    ("f16x2", "f32", "rn"): "to_halves",
    ("tf32", "f32", "rna"): "to_tf32",
}
EXACT = {("f32", "f32"), ("f64", "f64"), ("f64", "f32")}
ELEMENTS = {"f16": "u16", "tf32": "u32"}


@dataclass(frozen=True)
class Code:
    """An instruction without its predicate."""

    scope: Scope
    text: str
    form: re.Match[str]
    operands: list[str]

    @property
    def quoted(self) -> str:
        """Its text as a string in C++, for messages."""
        return json.dumps(self.text)

    def value(self, operand: str, kind: str) -> str:
        """An operand as a value of a type."""
        return self.scope.value(operand, kind, self.text)

    def address(self, operand: str) -> str:
        """The address that an operand has."""
        return self.scope.address(operand, self.text)

    def warp_number(self) -> int:
        """A number of its own, for an instruction that a warp executes together."""
        return next(self.scope.kernel.warp_instructions)


def statement(scope: Scope, text: str) -> str:
    """An instruction without its predicate as a statement."""
    opcode, _, operands = text.partition(" ")
    form, translate = known(opcode)
    if not form:
        raise PtxError(f"{text}: an instruction that is not known")
    try:
        return translate(Code(scope, text, form, split(operands)))
    except (IndexError, ValueError) as error:
        raise PtxError(f"{text}: not the operands that it takes") from error


@cache
def known(opcode: str) -> tuple[re.Match[str] | None, Callable[[Code], str]]:
    """The form that an opcode has, if any, and what translates its instructions."""
    for pattern, function, kinds in ORDINARY:
        if form := re.fullmatch(pattern, opcode):
            return form, partial(_ordinary, function, kinds)
    for pattern, translate in OTHERS:
        if form := re.fullmatch(pattern, opcode):
            return form, translate
    return None, _nothing


# ---- values --------------------------------------------------------------------------------------------------------


def _ordinary(function: str, kinds: str, code: Code) -> str:
    groups: dict[str, str] = {"name": "", "toward": "", "ftz": "", "sat": "", "mode": "", **code.form.groupdict("")}
    if not function and "{" in code.text:
        return _packed(code, size_of(groups["type"]) * 8)
    target, *sources = code.operands
    types = {"t": groups["type"], "w": WIDE.get(groups["type"], ""), "u": "u32", "p": "pred"}
    values = [code.value(source, types[kind]) for source, kind in zip(sources, kinds.rstrip("im"), strict=True)]
    if groups["ftz"]:
        values = [f"flush({value})" for value in values]
    values += {"i": [code.quoted], "m": [str(int(groups["mode"] == "wrap"))]}.get(kinds[-1], [])
    if groups["toward"]:
        function, values = "{name}_toward", [f"'{groups['toward']}'", *values]
    return _put(code, target, f"{function.format(**groups)}({', '.join(values)})")


def _put(code: Code, target: str, value: str) -> str:
    """A result into its register, flushed and saturated if the instruction says so and the result is a float."""
    groups = code.form.groupdict()
    is_float = groups.get("to", groups.get("type")) == "f32"
    if groups.get("ftz") and is_float:
        value = f"flush({value})"
    if groups.get("sat") and is_float:
        value = f"saturate({value})"
    return f"{variable(target)} = bits({value});"


def _packed(code: Code, width: int) -> str:
    """Registers moved into a wider one, or out of it."""
    target, source = code.operands
    parts = listed(target if target.startswith("{") else source)
    each = width // len(parts)
    if source.startswith("{"):
        shifted = (f"(u{width}){code.value(one, f'u{each}')} << {n * each}" for n, one in enumerate(parts))
        return f"{variable(target)} = {' | '.join(shifted)};"
    put = (f"{variable(one)} = (u{each})(whole >> {n * each});" for n, one in enumerate(parts) if one != "_")
    return f"u{width} whole = {code.value(source, f'u{width}')}; {' '.join(put)}"


def _compare(code: Code) -> str:
    target, *sources = code.operands
    a, b = (code.value(source, code.form["type"]) for source in sources)
    if code.form["ftz"]:
        a, b = f"flush({a})", f"flush({b})"
    comparison = OPPOSITES.get(code.form["comparison"], code.form["comparison"])
    if comparison == "num":
        found = f"({a} == {a} && {b} == {b})"
    elif comparison == "ne" and code.form["type"][0] == "f":
        found = f"({a} < {b} || {a} > {b})"  # not true of NaN
    else:
        found = f"({a} {COMPARISONS[comparison]} {b})"
    results = [f"!{found}", found] if code.form["comparison"] in OPPOSITES else [found, f"!{found}"]
    targets = zip(target.split("|"), results, strict=False)  # the second, if any, is the opposite
    return " ".join(f"{variable(one)} = {result};" for one, result in targets if one != "_")


def _convert(code: Code) -> str:
    to, of, rounding, (target, *sources) = code.form["to"], code.form["of"], code.form["rounding"], code.operands
    values = [code.value(source, of.replace("f16", "u16")) for source in sources]
    if code.form["ftz"] and of == "f32":
        values = [f"flush({value})" for value in values]
    if (to, of, rounding) in CONVERSIONS:
        return _put(code, target, f"{CONVERSIONS[to, of, rounding]}({', '.join(values)})")
    (value,), is_float, was_float = values, to in {"f32", "f64"}, of in {"f32", "f64"}
    if to[0] in "us" and of[0] in "us" and not rounding:
        return _put(code, target, f"{'clamped' if code.form['sat'] else 'as'}<{to}>({value})")
    if to[0] in "us" and was_float and rounding in ROUNDINGS:
        return _put(code, target, f"clamped<{to}>({ROUNDINGS[rounding]}({value}))")
    if is_float and to == of and rounding in ROUNDINGS:
        return _put(code, target, f"{ROUNDINGS[rounding]}({value})")
    if is_float and (was_float or of[0] in "us") and rounding == (None if (to, of) in EXACT else "rn"):
        return _put(code, target, f"({to}){value}")
    raise PtxError(f"{code.text}: a conversion that is not known")


# ---- memory --------------------------------------------------------------------------------------------------------


def _access(code: Code) -> str:
    loads, size, count = code.form["name"] == "ld", size_of(code.form["type"]), int(code.form["count"] or 1)
    registers, address = code.operands if loads else code.operands[::-1]
    names, held = listed(registers), stored(code.form["type"])
    if len(names) != count:
        raise ValueError(registers)
    pointer = code.scope.pointer(address, code.form["space"], size * count, code.text, writes=not loads)
    each = (
        f"{variable(name)} = load<{held}>(at + {n * size});"
        if loads
        else f"store(at + {n * size}, {code.value(name, held)});"
        for n, name in enumerate(names)
        if name != "_"
    )
    return f"char *at = {pointer}; {' '.join(each)}"


def _address_of(code: Code) -> str:
    target, source = code.operands
    value = code.value(source, "u64")
    if code.form["space"] == "shared":
        value = f"to_shared({value}, {code.quoted})" if code.form["to"] else f"to_generic({value})"
    return f"{variable(target)} = {value};"


def _copy_async(code: Code) -> str:
    shared, source, size, *given = code.operands
    if int(size) not in ((16,) if code.form["cache"] == "g" else (4, 8, 16)) or len(given) > 1:
        raise ValueError(size)
    (taken,) = given or [size]
    places = f"{code.address(shared)}, {code.address(source)}"
    return f"copy_async({places}, {size}, {code.value(taken, 'u32')}, {code.quoted});"


def _await_copies(code: Code) -> str:
    if code.form["what"] == "wait_group":
        (left,) = code.operands
        return f"await_copies({int(left)});"
    if code.operands:
        raise ValueError(code.operands)
    return "commit_copies();" if code.form["what"] == "commit_group" else "await_all_copies();"


def _increment(code: Code) -> str:
    target, counter, most = code.operands
    given = f"{code.address(counter)}, {code.value(most, 'u32')}, {code.quoted}"
    return f"{variable(target)} = atomic_inc({given});"


# ---- control -------------------------------------------------------------------------------------------------------


def _branch(code: Code) -> str:
    (label,) = code.operands
    if not re.fullmatch(r"[\w$]+", label):
        raise ValueError(label)
    return f"goto {variable(label)};"


def _leave(code: Code) -> str:
    return f'fault({code.quoted}, "the kernel gives up");' if code.form[0] == "trap" else "return;"


def _call(code: Code) -> str:
    results = listed(code.operands.pop(0)) if code.operands[0].startswith("(") else []
    name, *given = code.operands
    arguments = [variable(one) for one in (*results, *(listed(given[0]) if given else []))]
    code.scope.kernel.call(name, code.text)
    return f"{variable(name)}({', '.join(['thread', *arguments])});"


def _barrier(code: Code) -> str:
    if code.operands != ["0"]:
        raise PtxError(f"{code.text}: a barrier that is not that of the whole block")
    return f"barrier({next(code.scope.kernel.barriers)});"


def _nothing(_: Code) -> str:
    return ""


# ---- warps ---------------------------------------------------------------------------------------------------------


def _all_lanes(code: Code, mask: str) -> str:
    return f"all_lanes({code.value(mask, 'u32')}, {code.quoted});"


def _warp_barrier(code: Code) -> str:
    (mask,) = code.operands
    return f"{_all_lanes(code, mask)} warp_barrier({code.warp_number()});"


def _shuffle(code: Code) -> str:
    target, *sources, mask = code.operands
    a, b, c = (code.value(source, "u32") for source in sources)
    name, _, inside = target.partition("|")
    found = f"shuffle('{code.form['mode'][0]}', &in, {a}, {b}, {c}, {code.warp_number()})"
    put = f" {variable(inside)} = in;" if inside else ""
    return f"bool in; {_all_lanes(code, mask)} {variable(name)} = {found};{put}"


def _vote(code: Code) -> str:
    target, source, mask = code.operands
    value = f"{'!' if source.startswith('!') else ''}{code.value(source.lstrip('!'), 'pred')}"
    ballot = f"vote({value}, {code.warp_number()})"
    found = {"any": f"{ballot} != 0", "all": f"{ballot} == ~0u"}.get(code.form["mode"], ballot)
    return f"{_all_lanes(code, mask)} {variable(target)} = {found};"


def _load_matrices(code: Code) -> str:
    target, source = code.operands
    names = listed(target)
    count, turned, number = int(code.form["count"]), int(bool(code.form["trans"])), code.warp_number()
    if len(names) != count:
        raise ValueError(target)
    given = f"{code.address(source)}, {code.quoted}, {number}"
    put = " ".join(f"{variable(name)} = m[{n}];" for n, name in enumerate(names))
    return f"u32 m[{count}]; load_matrices<{count}, {turned}>(m, {given}); {put}"


def _multiply_add(code: Code) -> str:
    names = [listed(operand) for operand in code.operands]
    depth, element = int(code.form["k"]), ELEMENTS[code.form["of"]]
    right = depth * size_of(element) // 16  # registers of b
    if [len(one) for one in names] != [4, 2 * right, right, 4]:
        raise ValueError(code.operands)
    a, b, c = (", ".join(code.value(one, "u32") for one in factor) for factor in names[1:])
    found = f"multiply_add<{element}, {depth}>(d, a, b, {code.warp_number()});"
    put = " ".join(f"{variable(name)} = d[{n}];" for n, name in enumerate(names[0]))
    return f"u32 d[] = {{{c}}}, a[] = {{{a}}}, b[] = {{{b}}}; {found} {put}"


OTHERS: list[tuple[str, Callable[[Code], str]]] = [
    (
        r"setp\.(?P<comparison>eq|ne|lt|le|gt|ge|lo|ls|hi|hs|equ|neu|ltu|leu|gtu|geu|num|nan)"
        r"(?P<ftz>\.ftz)?\.(?P<type>[bus](?:16|32|64)|f32|f64)",
        _compare,
    ),
    (
        r"cvt(?:\.(?P<rounding>rna|r[nzmp]i|rn))?(?P<ftz>\.ftz)?(?P<sat>\.sat)?"
        r"\.(?P<to>[us](?:8|16|32|64)|f16|f32|f64|f16x2|tf32)\.(?P<of>[us](?:8|16|32|64)|f16|f32|f64)",
        _convert,
    ),
    (
        r"(?P<name>ld|st)(?:\.(?:weak|volatile))?(?:\.(?P<space>param|shared|global|local|const)(?:::cta)?)?"
        r"(?:\.(?:nc|ca|cg|cs|lu|cv|wb|wt))?(?:\.L[12]::\w+)*(?:\.v(?P<count>[24]))?"
        r"\.(?P<type>[bus](?:8|16|32|64)|f32|f64)",
        _access,
    ),
    (r"cvta(?P<to>\.to)?\.(?P<space>shared|global|local|const)\.u64", _address_of),
    (r"cp\.async\.c(?P<cache>[ag])\.shared(?:::cta)?\.global(?:\.L2::\d+B)?", _copy_async),
    (r"cp\.async\.(?P<what>commit_group|wait_group|wait_all)", _await_copies),
    (r"atom\.global\.inc\.u32", _increment),
    (r"bra(?:\.uni)?", _branch),
    (r"ret(?:\.uni)?|trap", _leave),
    (r"call(?:\.uni)?", _call),
    (r"bar\.sync|barrier\.sync(?:\.aligned)?", _barrier),
    (r"membar\.(?:cta|gl|sys)|fence\.(?:sc|acq_rel)\.(?:cta|gpu|sys)", _nothing),
    (r"bar\.warp\.sync", _warp_barrier),
    (r"shfl\.sync\.(?P<mode>up|down|bfly|idx)\.b32", _shuffle),
    (r"vote\.sync\.(?:(?P<mode>any|all)\.pred|ballot\.b32)", _vote),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared(?:::cta)?\.b16", _load_matrices),
    (r"mma\.sync\.aligned\.m16n8k(?P<k>8|16)\.row\.col\.f32\.(?P<of>f16)\.f16\.f32", _multiply_add),
    (r"mma\.sync\.aligned\.m16n8k(?P<k>4|8)\.row\.col\.f32\.(?P<of>tf32)\.tf32\.f32", _multiply_add),
]
"""The other instructions."""
