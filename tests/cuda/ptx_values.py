"""Instructions of PTX that compute values, what each is in Python, and kernels that do nothing else."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
KINDS = {"u": "uint", "s": "int", "b": "uint", "f": "float"}


def bits_of(kind: str) -> int:
    return {"pred": 8}.get(kind) or int(kind[1:])


def dtype(kind: str) -> np.dtype[Any]:
    return np.dtype(np.uint8 if kind == "pred" else f"{KINDS[kind[0]]}{bits_of(kind)}")


# ---- values: (instruction, the types of its result and operands, what it is in Python) -----------------------------


def flushed(x: np.float32) -> np.float32:
    return np.copysign(np.float32(0), x) if abs(x) < np.finfo(np.float32).smallest_normal else x


def with_flush(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: flushed(np.float32(function(*map(flushed, given))))


def exact_fma(direction: str) -> Callable[..., Any]:
    """The product and sum as fractions, rounded to float32 towards -infinity, infinity, zero, or the nearest."""

    def rounded(a: np.float32, b: np.float32, c: np.float32) -> Any:
        if not np.isfinite([a, b, c]).all():
            return np.float32(np.float64(a) * np.float64(b) + np.float64(c))
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        if not exact:
            return np.float32(np.float64(a) * np.float64(b) + np.float64(c))
        near = np.float32(float(exact))
        places = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
        below = [one for one in places if one < np.inf and (np.isinf(one) or Fraction(float(one)) <= exact)]
        above = [one for one in places if one > -np.inf and (np.isinf(one) or Fraction(float(one)) >= exact)]
        if direction == "z":
            return below[-1] if exact > 0 else above[0]
        if direction in "mp":
            return below[-1] if direction == "m" else above[0]
        if np.isinf([below[-1], above[0]]).any():
            return near
        return min((below[-1], above[0]), key=lambda one: (abs(Fraction(float(one)) - exact), one.view(np.uint32) & 1))

    return rounded


def exact_fma_of_doubles(a: float, b: float, c: float) -> float:
    plain = np.float64(a) * np.float64(b) + np.float64(c)
    if not np.isfinite([a, b, c]).all():
        return plain
    try:
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        return float(exact) if exact else plain
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def divided(a: int, b: int) -> int:
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


def saturated(x: np.float32) -> np.float32:
    return min(x, np.float32(1)) if x > 0 else np.float32(0)


def smaller(a: Any, b: Any) -> Any:
    if np.isnan(a) or np.isnan(b):
        return b if np.isnan(a) else a
    return min((a, b), key=lambda one: (one, not np.signbit(one)))


def larger(a: Any, b: Any) -> Any:
    return -smaller(-a, -b)


def to_integer(way: Callable[[float], float], bits: int, *, signed: bool) -> Callable[[Any], int]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def converted(x: Any) -> int:
        if np.isnan(x):
            return 0
        return int(min(max(way(float(x)), low), high)) if np.isfinite(x) else high if x > 0 else low

    return converted


def half(x: np.float32) -> int:
    with np.errstate(over="ignore"):
        found = np.float16(x)
    return 0x7FFF if np.isnan(found) else int(found.view(np.uint16))


def tf32(x: np.float32) -> int:
    found = int(x.view(np.uint32))
    return (found + 0x1000) & ~0x1FFF if np.isfinite(x) else found


def permuted(a: int, b: int, choice: int) -> int:
    both = [(a | b << 32) >> 8 * n & 255 for n in range(8)]
    chosen = [choice >> 4 * n & 15 for n in range(4)]
    parts = [(both[one & 7] >> 7) * 255 if one & 8 else both[one & 7] for one in chosen]
    return sum(part << 8 * n for n, part in enumerate(parts))


def extracted(bits: int, *, signed: bool) -> Callable[[int, int, int], int]:
    def field(a: int, at: int, length: int) -> int:
        at, length = at & 255, length & 255
        whole = (a & (1 << bits) - 1) >> at & (1 << length) - 1 if at < bits else 0
        sign = (a >> min(at + length - 1, bits - 1)) & 1 if signed and length else 0
        have = max(0, min(length, bits - at))
        return whole | (-1 << have if sign else 0)

    return field


def inserted(bits: int) -> Callable[[int, int, int, int], int]:
    def field(a: int, b: int, at: int, length: int) -> int:
        at, length = at & 255, length & 255
        mask = ((1 << length) - 1 << at) & (1 << bits) - 1
        return b & ~mask | a << at & mask

    return field


def shifted(bits: int, *, wraps: bool, left: bool) -> Callable[[int, int, int], int]:
    def funnel(low: int, high: int, count: int) -> int:
        count, both = count % bits if wraps else min(count, bits), high << bits | low
        return both << count >> bits if left else both >> count

    return funnel


def gross(x: np.float64) -> Any:
    """The reciprocal of the upper half of a float64, and of that the upper half."""
    upper = (x.view(np.uint64) & np.uint64(0xFFFFFFFF << 32)).view(np.float64)
    found = np.float64(1) / upper
    if abs(found) < np.finfo(np.float64).smallest_normal:
        return np.copysign(np.float64(0), found)
    return (found.view(np.uint64) & np.uint64(0xFFFFFFFF << 32)).view(np.float64)


F = np.float32
INTEGERS: list[tuple[str, str, Callable[..., Any]]] = [
    *((f"add.{t}", f"{t} {t} {t}", lambda a, b: a + b) for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *((f"sub.{t}", f"{t} {t} {t}", lambda a, b: a - b) for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *((f"mul.lo.{t}", f"{t} {t} {t}", lambda a, b: a * b) for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *((f"mul.hi.{t}", f"{t} {t} {t}", lambda a, b, t=t: a * b >> bits_of(t)) for t in ("s16", "u32", "s32", "u64")),
    *((f"mul.wide.{t}32", f"{t}64 {t}32 {t}32", lambda a, b: a * b) for t in "us"),
    *((f"mul.wide.{t}16", f"{t}32 {t}16 {t}16", lambda a, b: a * b) for t in "us"),
    *((f"mad.lo.{t}", f"{t} {t} {t} {t}", lambda a, b, c: a * b + c) for t in ("s16", "s32", "u32", "s64", "u64")),
    *((f"mad.hi.{t}32", f"{t}32 {t}32 {t}32 {t}32", lambda a, b, c: (a * b >> 32) + c) for t in "us"),
    *((f"mad.wide.{t}32", f"{t}64 {t}32 {t}32 {t}64", lambda a, b, c: a * b + c) for t in "us"),
    *((f"div.{t}", f"{t} {t} {t}!", divided) for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *((f"rem.{t}", f"{t} {t} {t}!", lambda a, b: a - b * divided(a, b)) for t in ("s32", "u32", "s64", "u64")),
    *((f"min.{t}", f"{t} {t} {t}", min) for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *((f"max.{t}", f"{t} {t} {t}", max) for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *((f"abs.{t}", f"{t} {t}", abs) for t in ("s16", "s32", "s64")),
    *((f"neg.{t}", f"{t} {t}", lambda a: -a) for t in ("s16", "s32", "s64")),
    *((f"and.{t}", f"{t} {t} {t}", lambda a, b: a & b) for t in ("b16", "b32", "b64", "pred")),
    *((f"or.{t}", f"{t} {t} {t}", lambda a, b: a | b) for t in ("b16", "b32", "b64", "pred")),
    *((f"xor.{t}", f"{t} {t} {t}", lambda a, b: a ^ b) for t in ("b16", "b32", "b64", "pred")),
    *((f"not.{t}", f"{t} {t}", lambda a: ~a) for t in ("b16", "b32", "b64")),
    ("not.pred", "pred pred", lambda a: 1 - a),
    *((f"mov.{t}", f"{t} {t}", lambda a: a) for t in ("b16", "u32", "b64", "f32", "f64", "pred")),
    *((f"selp.{t}", f"{t} {t} {t} pred", lambda a, b, c: a if c else b) for t in ("b16", "u32", "s64", "f32", "f64")),
    *((f"shl.b{n}", f"b{n} b{n} u32", lambda a, b: a << b if b < 64 else 0) for n in (16, 32, 64)),
    *((f"shr.u{n}", f"u{n} u{n} u32", lambda a, b: a >> b) for n in (16, 32, 64)),
    *((f"shr.s{n}", f"s{n} s{n} u32", lambda a, b: a >> b) for n in (16, 32, 64)),
    ("shf.l.wrap.b32", "b32 b32 b32 u32", shifted(32, wraps=True, left=True)),
    ("shf.l.clamp.b32", "b32 b32 b32 u32", shifted(32, wraps=False, left=True)),
    ("shf.r.wrap.b32", "b32 b32 b32 u32", shifted(32, wraps=True, left=False)),
    ("shf.r.clamp.b32", "b32 b32 b32 u32", shifted(32, wraps=False, left=False)),
    *((f"bfe.u{n}", f"u{n} u{n} u32 u32", extracted(n, signed=False)) for n in (32, 64)),
    *((f"bfe.s{n}", f"s{n} s{n} u32 u32", extracted(n, signed=True)) for n in (32, 64)),
    *((f"bfi.b{n}", f"b{n} b{n} b{n} u32 u32", inserted(n)) for n in (32, 64)),
    *((f"popc.b{n}", f"u32 b{n}", lambda a: a.bit_count()) for n in (32, 64)),
    *((f"clz.b{n}", f"u32 b{n}", lambda a, n=n: n - a.bit_length()) for n in (32, 64)),
    *((f"brev.b{n}", f"b{n} b{n}", lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2)) for n in (32, 64)),
    ("prmt.b32", "b32 b32 b32 b32", permuted),
    ("lop3.b32 0xca", "b32 b32 b32 b32", lambda a, b, c: a & b | ~a & c),
    ("lop3.b32 0x96", "b32 b32 b32 b32", lambda a, b, c: a ^ b ^ c),
    ("lop3.b32 0x13", "b32 b32 b32 b32", lambda a, b, c: ~(a & c | b)),
    *((f"cvt.{a}.{b}", f"{a} {b}", lambda x: x)
      for a in ("u8", "s8", "u32", "s64") for b in ("u8", "s16", "s32", "u64")),
    ("cvt.sat.u8.s32", "u8 s32", lambda x: min(max(x, 0), 255)),
    ("cvt.sat.s16.u32", "s16 u32", lambda x: min(x, 32767)),
]  # fmt: skip
COMPARED: list[tuple[str, str, Callable[..., Any]]] = [
    *((f"setp.eq.{t}", f"pred {t} {t}", lambda a, b: a == b) for t in ("b16", "s32", "u64", "f32", "f64")),
    *((f"setp.ne.{t}", f"pred {t} {t}", lambda a, b: a < b or a > b) for t in ("b16", "s32", "u64", "f32", "f64")),
    *((f"setp.lt.{t}", f"pred {t} {t}", lambda a, b: a < b) for t in ("s16", "u16", "s32", "u64", "f32", "f64")),
    *((f"setp.le.{t}", f"pred {t} {t}", lambda a, b: a <= b) for t in ("s32", "u32", "f32", "f64")),
    *((f"setp.gt.{t}", f"pred {t} {t}", lambda a, b: a > b) for t in ("s32", "u32", "f32", "f64")),
    *((f"setp.ge.{t}", f"pred {t} {t}", lambda a, b: a >= b) for t in ("s64", "u32", "f32", "f64")),
    ("setp.lo.u32", "pred u32 u32", lambda a, b: a < b),
    ("setp.ls.u32", "pred u32 u32", lambda a, b: a <= b),
    ("setp.hi.u32", "pred u32 u32", lambda a, b: a > b),
    ("setp.hs.u32", "pred u32 u32", lambda a, b: a >= b),
    *((f"setp.equ.{t}", f"pred {t} {t}", lambda a, b: not (a < b or a > b)) for t in ("f32", "f64")),
    *((f"setp.neu.{t}", f"pred {t} {t}", lambda a, b: a != b) for t in ("f32", "f64")),
    *((f"setp.ltu.{t}", f"pred {t} {t}", lambda a, b: not a >= b) for t in ("f32", "f64")),
    *((f"setp.leu.{t}", f"pred {t} {t}", lambda a, b: not a > b) for t in ("f32", "f64")),
    *((f"setp.gtu.{t}", f"pred {t} {t}", lambda a, b: not a <= b) for t in ("f32", "f64")),
    *((f"setp.geu.{t}", f"pred {t} {t}", lambda a, b: not a < b) for t in ("f32", "f64")),
    *((f"setp.num.{t}", f"pred {t} {t}", lambda a, b: a == a and b == b) for t in ("f32", "f64")),  # noqa: PLR0124
    *((f"setp.nan.{t}", f"pred {t} {t}", lambda a, b: a != a or b != b) for t in ("f32", "f64")),  # noqa: PLR0124
    ("setp.eq.ftz.f32", "pred f32 f32", lambda a, b: flushed(a) == flushed(b)),
    ("setp.gt.ftz.f32", "pred f32 f32", lambda a, b: flushed(a) > flushed(b)),
]
FLOATS: list[tuple[str, str, Callable[..., Any]]] = [
    *((f"{name}{way}.{t}", f"{t} {t} {t}", function)
      for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply))
      for way in ("", ".rn") for t in ("f32", "f64")),
    *((f"{name}.ftz.f32", "f32 f32 f32", with_flush(function))
      for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div.rn", np.divide))),
    *((f"fma.r{way}.f32", "f32 f32 f32 f32", exact_fma(way)) for way in "nzmp"),
    ("fma.rn.f64", "f64 f64 f64 f64", exact_fma_of_doubles),
    ("fma.rn.ftz.f32", "f32 f32 f32 f32", with_flush(exact_fma("n"))),
    ("fma.rn.sat.f32", "f32 f32 f32 f32", lambda *given: saturated(exact_fma("n")(*given))),
    ("add.rm.f32", "f32 f32 f32", lambda a, b: exact_fma("m")(a, F(1), b)),
    ("sub.rp.f32", "f32 f32 f32", lambda a, b: exact_fma("p")(a, F(1), -b)),
    ("mul.rz.f32", "f32 f32 f32", lambda a, b: exact_fma("z")(a, b, F(-0.0))),
    ("add.sat.f32", "f32 f32 f32", lambda a, b: saturated(a + b)),
    *((f"div.rn.{t}", f"{t} {t} {t}", np.divide) for t in ("f32", "f64")),
    *((f"min.{t}", f"{t} {t} {t}", smaller) for t in ("f32", "f64")),
    *((f"max.{t}", f"{t} {t} {t}", larger) for t in ("f32", "f64")),
    ("max.ftz.f32", "f32 f32 f32", with_flush(larger)),
    *((f"copysign.{t}", f"{t} {t} {t}", lambda a, b: np.copysign(b, a)) for t in ("f32", "f64")),
    *((f"abs.{t}", f"{t} {t}", abs) for t in ("f32", "f64")),
    *((f"neg.{t}", f"{t} {t}", lambda a: -a) for t in ("f32", "f64")),
    ("abs.ftz.f32", "f32 f32", with_flush(abs)),
    ("neg.ftz.f32", "f32 f32", with_flush(lambda a: -a)),
    *((f"rcp.rn.{t}", f"{t} {t}", lambda a: type(a)(1) / a) for t in ("f32", "f64")),
    *((f"sqrt.rn.{t}", f"{t} {t}", np.sqrt) for t in ("f32", "f64")),
    ("sqrt.rn.ftz.f32", "f32 f32", with_flush(np.sqrt)),
    ("rcp.approx.ftz.f64", "f64 f64", gross),
    *((f"cvt.{way}.{t}.{f}", f"{t} {f}", to_integer(function, bits_of(t), signed=t[0] == "s"))
      for way, function in (("rzi", math.trunc), ("rni", round), ("rmi", math.floor), ("rpi", math.ceil))
      for t in ("s32", "u32", "s64", "u8") for f in ("f32", "f64")),
    *((f"cvt.{way}.f32.f32", "f32 f32", function)
      for way, function in (("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil))),
    ("cvt.rzi.f64.f64", "f64 f64", np.trunc),
    *((f"cvt.rn.f32.{t}", f"f32 {t}", F) for t in ("u8", "u16", "s16", "s32", "u32", "s64", "u64")),
    *((f"cvt.rn.f64.{t}", f"f64 {t}", float) for t in ("s32", "u32", "s64", "u64")),
    ("cvt.f64.f32", "f64 f32", np.float64),
    ("cvt.ftz.f64.f32", "f64 f32", lambda a: np.float64(flushed(a))),
    ("cvt.rn.f32.f64", "f32 f64", np.float32),
    ("cvt.rn.ftz.f32.f64", "f32 f64", lambda a: flushed(np.float32(a))),
    ("cvt.sat.f32.f32", "f32 f32", saturated),
    ("cvt.ftz.sat.f32.f32", "f32 f32", lambda a: flushed(saturated(flushed(a)))),
    ("cvt.rn.f16.f32", "u16 f32", half),
    ("cvt.rn.f16x2.f32", "b32 f32 f32", lambda a, b: half(a) << 16 | half(b)),
    ("cvt.f32.f16", "f32 f16", np.float32),
    ("cvt.rna.tf32.f32", "b32 f32", tf32),
]  # fmt: skip
APPROXIMATE: list[tuple[str, str, Callable[..., Any]]] = [
    ("div.approx.f32", "f32 f32 f32", np.divide),
    ("div.full.ftz.f32", "f32 f32 f32", with_flush(np.divide)),
    ("rcp.approx.ftz.f32", "f32 f32", with_flush(lambda a: F(1) / a)),
    ("sqrt.approx.ftz.f32", "f32 f32", with_flush(np.sqrt)),
    ("rsqrt.approx.f32", "f32 f32", lambda a: F(1) / np.sqrt(a)),
    ("ex2.approx.f32", "f32 f32", np.exp2),
    ("ex2.approx.ftz.f32", "f32 f32", with_flush(np.exp2)),
    ("lg2.approx.ftz.f32", "f32 f32", with_flush(np.log2)),
    ("sin.approx.f32", "f32 f32", np.sin),
    ("cos.approx.f32", "f32 f32", np.cos),
    ("tanh.approx.f32", "f32 f32", np.tanh),
]
FORMS = [*INTEGERS, *COMPARED, *FLOATS, *APPROXIMATE]
"""An operand that is never 0 is marked by !."""


def name_of(text: str) -> str:
    return re.sub(r"\W", "_", text)


def kernel(text: str, kinds: list[str]) -> str:
    """PTX that applies an instruction to values of arrays, one per thread."""
    parameters = ", ".join(f".param .u64 p{n}" for n in range(len(kinds)))
    lines = ["mov.u32 %i, %tid.x;"]
    for n, kind in enumerate(kinds):
        held, size = register(kind), bits_of(kind) // 8
        lines += [f".reg .{held} %v{n};", f".reg .u64 %a{n};", f"ld.param.u64 %a{n}, [p{n}];"]
        lines += [f"mul.wide.u32 %o, %i, {size};", f"add.u64 %a{n}, %a{n}, %o;"]
        if n and kind == "pred":
            lines += [f"ld.global.u8 %s, [%a{n}];", f"setp.ne.u16 %v{n}, %s, 0;"]
        elif n:
            lines += [f"ld.global.{'b16' if kind == 'f16' else kind} %v{n}, [%a{n}];"]
    opcode, _, last = text.partition(" ")
    operands = [f"%v{n}" for n in range(len(kinds))] + [last] * bool(last)
    lines += [f"{opcode} {', '.join(operands)};"]
    lines += (
        ["selp.u16 %s, 1, 0, %v0;", "st.global.u8 [%a0], %s;"]
        if kinds[0] == "pred"
        else [f"st.global.{kinds[0]} [%a0], %v0;"]
    )
    body = "\n  ".join([".reg .u32 %i;", ".reg .u64 %o;", ".reg .b16 %s;", *lines, "ret;"])
    return f".visible .entry {name_of(text)}({parameters})\n{{\n  {body}\n}}\n"


def register(kind: str) -> str:
    return kind if kind in {"pred", "f32", "f64"} else f"b{max(16, bits_of(kind))}"


ALL = HEAD + "".join(kernel(text, kinds.replace("!", "").split()) for text, kinds, _ in FORMS)
