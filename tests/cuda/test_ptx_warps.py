"""The instructions of PTX that concern memory, whole warps and control, each in a small kernel of its own."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.cuda.ptx.instructions import ORDINARY, OTHERS
from tests.cuda.ptx.library import built
from tests.cuda.ptx.parsing import PtxError
from tests.cuda.ptx.translation import kernels
from tests.cuda.ptx_values import ALL as VALUES
from tests.cuda.ptx_values import FORMS

pytestmark = [needs_compiler, pytest.mark.cuda_emulated]

Array = np.ndarray[Any, Any]
HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = ".reg .b32 %r<64>; .reg .b64 %rd<32>; .reg .b16 %rs<16>; .reg .f32 %f<16>; .reg .pred %p<8>;\n"
OWN_WORD = """
  mov.u32 %r0, %tid.x;
  mul.wide.u32 %rd0, %r0, 4;
"""
SHUFFLES = [("up", 1), ("up", 5), ("down", 1), ("down", 9), ("bfly", 1), ("bfly", 16), ("idx", 0), ("idx", 7)]
SEGMENTS = [32, 16, 4]
VOTES = {"any.pred": bool, "all.pred": bool, "ballot.b32": int}
MATRICES = [(count, turned) for count in (1, 2, 4) for turned in ("", ".trans")]
PRODUCTS = [("f16", 16), ("f16", 8), ("tf32", 8), ("tf32", 4)]
COPIES = [("ca", 4, 4), ("ca", 8, 3), ("ca", 16, 0), ("cg", 16, 16), ("cg", 16, 8)]


def kernel(name: str, arrays: int, body: str, before: str = "", after: str = "") -> str:
    """PTX of a kernel with the addresses of arrays in %rd1, %rd2 …"""
    parameters = ", ".join([*(f".param .u64 p{n + 1}" for n in range(arrays)), *([after] if after else [])])
    loads = "".join(f"  ld.param.u64 %rd{n + 1}, [p{n + 1}];\n" for n in range(arrays))
    return f".visible .entry {name}({parameters})\n{{\n{REGISTERS}{before}{loads}{OWN_WORD}{body}\n  ret;\n}}\n"


def shuffle(kind: str, shift: int, size: int) -> str:
    clamp = (32 - size) << 8 | (0 if kind == "up" else 31)
    return kernel(
        f"shuffle_{kind}_{shift}_{size}",
        3,
        f"""
  add.u64 %rd1, %rd1, %rd0;  add.u64 %rd2, %rd2, %rd0;  add.u64 %rd3, %rd3, %rd0;
  ld.global.u32 %r1, [%rd1];
  shfl.sync.{kind}.b32 %r2|%p1, %r1, {shift}, {clamp}, -1;
  st.global.u32 [%rd2], %r2;
  selp.u32 %r3, 1, 0, %p1;
  st.global.u32 [%rd3], %r3;""",
    )


def vote(kind: str) -> str:
    put = "vote.sync.ballot.b32 %r2, %p1, 0xffffffff;" if kind == "ballot.b32" else (
        f"vote.sync.{kind} %p2, !%p1, 0xffffffff;\n  selp.u32 %r2, 1, 0, %p2;"
    )  # fmt: skip
    return kernel(
        f"vote_{kind[:3]}",
        2,
        f"""
  add.u64 %rd1, %rd1, %rd0;  add.u64 %rd2, %rd2, %rd0;
  ld.global.u32 %r1, [%rd1];
  setp.ne.u32 %p1, %r1, 0;
  {put}
  st.global.u32 [%rd2], %r2;""",
    )


def load_matrix(count: int, turned: str) -> str:
    names = ", ".join(f"%r{10 + n}" for n in range(count))
    stores = "\n".join(f"  st.global.u32 [%rd2+{4 * n}], %r{10 + n};" for n in range(count))
    return kernel(
        f"matrices_{count}{turned[1:]}",
        2,
        f"""
  mul.wide.u32 %rd3, %r0, 16;
  add.u64 %rd1, %rd1, %rd3;
  mad.lo.u32 %r1, %r0, 16, 0;
  mov.u32 %r2, tile;
  add.u32 %r1, %r1, %r2;
  ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%rd1];
  st.shared.v4.u32 [%r1], {{%r3, %r4, %r5, %r6}};
  bar.warp.sync 0xffffffff;
  ldmatrix.sync.aligned.m8n8.x{count}{turned}.shared.b16 {{{names}}}, [%r1];
  mul.wide.u32 %rd3, %r0, {4 * count};
  add.u64 %rd2, %rd2, %rd3;
{stores}""",
        ".shared .align 16 .b8 tile[512];\n",
    )


def product(kind: str, depth: int) -> str:
    left, right = (4, 2) if (kind, depth) in {("f16", 16), ("tf32", 8)} else (2, 1)
    a, b = (", ".join(f"%r{place + n}" for n in range(size)) for place, size in ((10, left), (20, right)))
    loads = [f"  ld.global.u32 %r{10 + n}, [%rd1+{4 * n}];" for n in range(left)]
    loads += [f"  ld.global.u32 %r{20 + n}, [%rd2+{4 * n}];" for n in range(right)]
    d = "%f0, %f1, %f2, %f3"
    return kernel(
        f"product_{kind}_{depth}",
        3,
        f"""
  mul.wide.u32 %rd4, %r0, {4 * left};   add.u64 %rd1, %rd1, %rd4;
  mul.wide.u32 %rd4, %r0, {4 * right};  add.u64 %rd2, %rd2, %rd4;
  mul.wide.u32 %rd4, %r0, 16;           add.u64 %rd3, %rd3, %rd4;
{chr(10).join(loads)}
  ld.global.v4.f32 {{{d}}}, [%rd3];
  mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 {{{d}}}, {{{a}}}, {{{b}}}, {{{d}}};
  st.global.v4.f32 [%rd3], {{{d}}};""",
    )


def copy(cache: str, size: int, taken: int) -> str:
    return kernel(
        f"copy_{cache}_{size}_{taken}",
        2,
        f"""
  mul.wide.u32 %rd3, %r0, {size};
  add.u64 %rd1, %rd1, %rd3;
  add.u64 %rd2, %rd2, %rd3;
  mad.lo.u32 %r1, %r0, {size}, 0;
  mov.u32 %r2, {taken};
  cp.async.{cache}.shared.global [%r1], [%rd1], {size}{"" if taken == size else ", %r2"};
  cp.async.commit_group;
  cp.async.wait_group 0;
  ld.shared.u32 %r3, [%r1];
  st.global.u32 [%rd2], %r3;"""
        + "".join(f"\n  ld.shared.u32 %r3, [%r1+{n}];\n  st.global.u32 [%rd2+{n}], %r3;" for n in range(4, size, 4)),
        ".shared .align 16 .b8 tile[1024];\n  mov.u32 %r9, tile;\n",
    )


def copies_in_groups(left: str, reads: int) -> str:
    """Two copies in two groups; waits, and reads one of them."""
    return kernel(
        f"groups_{left.replace(' ', '_')}_{reads}",
        2,
        f"""
  mul.wide.u32 %rd3, %r0, 32;
  add.u64 %rd1, %rd1, %rd3;
  add.u64 %rd2, %rd2, %rd0;
  mad.lo.u32 %r1, %r0, 32, 0;
  cp.async.cg.shared.global.L2::128B [%r1], [%rd1], 16;
  cp.async.commit_group;
  cp.async.cg.shared.global [%r1+16], [%rd1+16], 16;
  {"cp.async.commit_group;" if left != "wait_all" else ""}
  cp.async.{left};
  ld.shared.u32 %r3, [%r1+{16 * reads}];
  st.global.u32 [%rd2], %r3;""",
        ".shared .align 16 .b8 tile[2048];\n  mov.u32 %r9, tile;\n",
    )


MEMORY = """
.const .align 4 .b32 table[3] = {10, 20, 30};
.global .align 8 .f64 halves[2] = {0d3FE0000000000000, 0dBFE0000000000000};
.func (.param .b32 result) twice (.param .b32 given, .param .align 8 .b8 both[8])
{
  .reg .b32 %r<4>;
  ld.param.u32 %r0, [given];
  ld.param.u32 %r1, [both];
  ld.param.u32 %r2, [both+4];
  mad.lo.u32 %r3, %r0, 2, %r1;
  add.u32 %r3, %r3, %r2;
  st.param.b32 [result], %r3;
  ret;
}
""" + "".join([
    kernel("extended", 2, """
  add.u64 %rd1, %rd1, %rd0;
  mul.wide.u32 %rd3, %r0, 32;
  add.u64 %rd2, %rd2, %rd3;
  ld.global.s8 %r1, [%rd1];       cvt.s64.s32 %rd4, %r1;  st.global.b64 [%rd2], %rd4;
  ld.global.nc.u8 %rs1, [%rd1];   cvt.u64.u16 %rd4, %rs1; st.global.b64 [%rd2+8], %rd4;
  ld.global.s16 %rs2, [%rd1+2];   cvt.s64.s16 %rd4, %rs2; st.global.b64 [%rd2+16], %rd4;
  ld.global.s32 %rd4, [%rd1];     st.global.b64 [%rd2+24], %rd4;"""),
    kernel("vectors", 2, """
  mul.wide.u32 %rd3, %r0, 16;
  add.u64 %rd1, %rd1, %rd3;
  add.u64 %rd2, %rd2, %rd3;
  ld.global.nc.L1::no_allocate.v4.u8 {%rs1, %rs2, %rs3, %rs4}, [%rd1];
  ld.volatile.global.v2.u16 {%rs5, %rs6}, [%rd1+4];
  ld.global.v2.u32 {%r1, _}, [%rd1+8];
  st.global.v4.u8 [%rd2], {%rs4, %rs3, %rs2, %rs1};
  st.global.v2.b16 [%rd2+4], {%rs6, %rs5};
  st.global.cs.v2.u32 [%rd2+8], {5, %r1};"""),
    kernel("packed", 2, """
  mul.wide.u32 %rd3, %r0, 8;
  add.u64 %rd1, %rd1, %rd3;
  add.u64 %rd2, %rd2, %rd3;
  ld.global.u64 %rd4, [%rd1];
  mov.b64 {%r1, %r2}, %rd4;
  mov.b32 {%rs1, %rs2}, %r1;
  mov.b64 {_, %r3}, %rd4;
  mov.b32 %r4, {%rs2, %rs1};
  mov.b64 %rd5, {%r3, %r4};
  st.global.u64 [%rd2], %rd5;"""),
    kernel("local_array", 2, """
  mov.u64 %rd6, own;
  cvta.local.u64 %rd7, %rd6;
  add.u64 %rd1, %rd1, %rd0;
  add.u64 %rd2, %rd2, %rd0;
  ld.global.u32 %r1, [%rd1];
  st.local.u32 [own+4], %r1;
  st.local.u32 [%rd6], 7;
  ld.u32 %r2, [%rd7+4];
  ld.local.u32 %r3, [own];
  add.u32 %r4, %r2, %r3;
  st.global.u32 [%rd2], %r4;""", ".local .align 8 .b8 own[8];\n"),
    kernel("tables", 1, """
  rem.u32 %r1, %r0, 3;
  mul.wide.u32 %rd3, %r1, 4;
  mov.u64 %rd4, table;
  add.u64 %rd4, %rd4, %rd3;
  ld.const.u32 %r2, [%rd4];
  ld.global.f64 %rd5, [halves+8];
  cvt.rn.f32.f64 %f1, %rd5;
  cvt.rn.f32.u32 %f2, %r2;
  add.f32 %f3, %f1, %f2;
  add.u64 %rd1, %rd1, %rd0;
  st.global.f32 [%rd1], %f3;"""),
    kernel("generic_shared", 2, """
  mov.u32 %r1, tile;
  cvt.u64.u32 %rd3, %r1;
  cvta.shared.u64 %rd4, %rd3;
  add.u64 %rd4, %rd4, %rd0;
  add.u64 %rd1, %rd1, %rd0;
  add.u64 %rd2, %rd2, %rd0;
  cvta.to.global.u64 %rd1, %rd1;
  ld.u32 %r2, [%rd1];
  st.u32 [%rd4], %r2;
  cvta.to.shared.u64 %rd5, %rd4;
  ld.shared.u32 %r3, [%rd5];
  st.global.u32 [%rd2], %r3;""", ".shared .align 4 .b8 other[36];\n.shared .align 16 .b8 tile[128];\n"),
    kernel("registers", 1, """
  .reg .b32 named;
  mov.u32 %r1, %ctaid.x;  mov.u32 %r2, %ctaid.y;  mov.u32 %r3, %nctaid.x;  mov.u32 %r4, %ntid.x;
  mad.lo.u32 %r5, %r2, %r3, %r1;
  mov.u32 %r6, %ntid.y;
  mul.lo.u32 %r7, %r4, %r6;
  mul.lo.u32 %r5, %r5, %r7;
  mov.u32 %r8, %tid.y;
  mad.lo.u32 %r8, %r8, %r4, %r0;
  add.u32 %r5, %r5, %r8;
  mul.wide.u32 %rd2, %r5, 4;
  add.u64 %rd1, %rd1, %rd2;
  mov.u32 named, %laneid;
  st.global.u32 [%rd1], named;"""),
    kernel("given", 1, """
  add.u64 %rd1, %rd1, %rd0;
  ld.param.u32 %r1, [whole+4];
  mov.b64 %rd3, whole;
  ld.param.u32 %r2, [%rd3+8];
  sub.u32 %r3, %r2, %r1;
  {
  .param .b32 first;
  st.param.b32 [first+0], %r3;
  .param .align 8 .b8 second[8];
  st.param.b32 [second+0], %r0;
  st.param.b32 [second+4], 100;
  .param .b32 back;
  call.uni (back), twice, (first, second);
  ld.param.b32 %r4, [back+0];
  }
  st.global.u32 [%rd1], %r4;""", after=".param .align 4 .b8 whole[12]"),
    kernel("looped", 2, """
  add.u64 %rd1, %rd1, %rd0;
  add.u64 %rd2, %rd2, %rd0;
  ld.global.u32 %r1, [%rd1];
  mov.u32 %r2, 0;
$again:
  setp.eq.u32 %p1|%p2, %r1, 0;
  @%p1 bra $done;
  add.u32 %r2, %r2, %r1;
  @%p2 sub.u32 %r1, %r1, 1;
  bra.uni $again;
$done:
  setp.gt.u32 %p3, %r2, 20;
  @!%p3 bra $store;
  mov.u32 %r2, 20;
$store:
  membar.gl;
  st.global.u32 [%rd2], %r2;"""),
    kernel("counted", 2, """
  mov.u32 %r1, 2;
  atom.global.inc.u32 %r2, [%rd1], %r1;
  add.u64 %rd2, %rd2, %rd0;
  barrier.sync 0;
  st.global.u32 [%rd2], %r2;"""),
    kernel("trapped", 1, "  setp.eq.u32 %p1, %r0, 3;\n  @%p1 trap;"),
])  # fmt: skip
ALL = "".join([
    HEAD, MEMORY,
    *(shuffle(kind, shift, size) for kind, shift in SHUFFLES for size in SEGMENTS),
    *map(vote, VOTES), *(load_matrix(*one) for one in MATRICES), *(product(*one) for one in PRODUCTS),
    *(copy(*one) for one in COPIES),
    *(copies_in_groups(left, reads) for left in ("wait_group 0", "wait_group 1", "wait_all") for reads in (0, 1)),
])  # fmt: skip


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return built(ALL)


@pytest.fixture(params=ORDERS)
def launch(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Callable[..., None]:
    """Launches a kernel with arrays, as one block unless something else is said."""

    def run(name: str, *arguments: Any, grid: tuple[int, int] = (1, 1), block: tuple[int, int] = (32, 1)) -> None:
        EmulatedDevice(library, request.param).launch(name, grid, block, arguments)

    return run


RANDOM = np.random.default_rng(0)
WORDS = RANDOM.integers(0, 1 << 32, 64, np.uint32)
LANES = np.arange(32)


@pytest.mark.parametrize("size", SEGMENTS)
@pytest.mark.parametrize(("kind", "shift"), SHUFFLES)
def test_a_shuffle(launch: Callable[..., None], kind: str, shift: int, size: int) -> None:
    """As CUDA has it: a lane with a partner outside of its segment keeps its value, but bfly reads earlier segments."""
    found, inside = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    launch(f"shuffle_{kind}_{shift}_{size}", WORDS, found, inside, block=(64, 1))
    first = LANES - LANES % size
    other = {"up": LANES - shift, "down": LANES + shift, "bfly": LANES ^ shift, "idx": first + shift % size}[kind]
    valid = (other < first + size) & ((other >= first) | (kind == "bfly"))
    other = np.where(valid, other, LANES)
    np.testing.assert_array_equal(found, np.concatenate([WORDS[other], WORDS[32 + other]]))
    np.testing.assert_array_equal(inside, [*valid, *valid])


def test_votes(launch: Callable[..., None]) -> None:
    cases = [np.zeros(32, np.uint32), np.ones(32, np.uint32), RANDOM.integers(0, 2, 32, np.uint32)]
    for lanes in cases:
        found = {name: np.zeros(32, np.uint32) for name in ("any", "all", "bal")}
        for name, result in found.items():
            launch(f"vote_{name}", lanes, result)
        assert set(found["any"]) == {int(not lanes.all())}  # of the opposites
        assert set(found["all"]) == {int(not lanes.any())}
        assert set(found["bal"]) == {sum(1 << n for n in LANES if lanes[n])}


@pytest.mark.parametrize(("count", "turned"), MATRICES)
def test_matrices_are_loaded(launch: Callable[..., None], count: int, turned: str) -> None:
    rows = RANDOM.integers(0, 1 << 16, (4, 8, 8), np.uint16)
    found = np.zeros((32, count, 2), np.uint16)
    launch(f"matrices_{count}{turned[1:]}", rows, found)
    for matrix in range(count):
        expected = rows[matrix].T if turned else rows[matrix]
        np.testing.assert_array_equal(found[:, matrix].reshape(8, 8), expected)


@pytest.mark.parametrize(("kind", "depth"), PRODUCTS)
def test_a_product_of_matrices(launch: Callable[..., None], kind: str, depth: int) -> None:
    """The lanes' parts are those of the figures in "Matrix fragments for mma.m16n8kN" of the manual."""
    held = np.float16 if kind == "f16" else np.float32
    a, b = RANDOM.standard_normal((16, depth)).astype(held), RANDOM.standard_normal((depth, 8)).astype(held)
    c = RANDOM.standard_normal((16, 8)).astype(np.float32)
    each = 4 // a.itemsize  # neighbours in a register
    group, part, half, e = np.ix_(LANES // 4, np.arange(depth // (4 * each)), np.arange(2), np.arange(each))
    column = 4 * each * part + each * (LANES % 4)[:, None, None, None] + e
    outputs = np.ix_(LANES // 4, np.arange(2), np.arange(2))
    place = outputs[0] + 8 * outputs[1], 2 * (LANES % 4)[:, None, None] + outputs[2]
    sums = c[place]
    launch(f"product_{kind}_{depth}", a[group + 8 * half, column], b[column[:, :, 0], group[:, :, 0]], sums)
    found = np.zeros((16, 8))
    found[place] = sums
    if kind == "tf32":  # the lower 13 bits are not used
        a, b = ((one.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for one in (a, b))
    np.testing.assert_allclose(found, a.astype(np.float64) @ b.astype(np.float64) + c, atol=1e-5)


@pytest.mark.parametrize(("cache", "size", "taken"), COPIES)
def test_an_asynchronous_copy(launch: Callable[..., None], cache: str, size: int, taken: int) -> None:
    source = RANDOM.integers(1, 256, (32, size), np.uint8)
    found = np.full((32, size), 9, np.uint8)
    launch(f"copy_{cache}_{size}_{taken}", aligned(source), found)
    expected = np.where(np.arange(size) < taken, source, 0)
    np.testing.assert_array_equal(found, expected)


def aligned(values: Array) -> Array:
    """A copy at a multiple of 16."""
    memory = np.zeros(values.nbytes + 16, np.uint8)
    first = -memory.ctypes.data % 16
    found = memory[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    found[...] = values
    return found


@pytest.mark.parametrize(
    ("left", "reads", "arrived"),
    [
        (left, reads, (left, reads) != ("wait_group_1", 1))
        for left in ("wait_group_0", "wait_group_1", "wait_all")
        for reads in (0, 1)
    ],
)
def test_only_the_groups_that_are_waited_for_have_arrived(
    launch: Callable[..., None], left: str, reads: int, *, arrived: bool
) -> None:
    source, found = aligned(RANDOM.integers(0, 1 << 32, (32, 2, 4), np.uint32)), np.zeros(32, np.uint32)
    if not arrived:
        with pytest.raises(RuntimeError, match=r"ld\.shared\.u32 .* awaits an asynchronous copy of thread"):
            launch(f"groups_{left}_{reads}", source, found)
        return
    launch(f"groups_{left}_{reads}", source, found)
    np.testing.assert_array_equal(found, source[:, reads, 0])


def test_loaded_values_are_extended_to_their_registers(launch: Callable[..., None]) -> None:
    found = np.zeros((32, 4), np.int64)
    launch("extended", WORDS, found)
    of_bytes, of_shorts = WORDS[:32].view(np.uint8)[::4], WORDS[:32].view(np.int16)[1::2]
    expected = of_bytes.view(np.int8), of_bytes, of_shorts, WORDS[:32].view(np.int32)
    np.testing.assert_array_equal(found.T, expected)


def test_vectors_and_packed_registers(launch: Callable[..., None]) -> None:
    source, found = aligned(RANDOM.integers(0, 256, (32, 16), np.uint8)), aligned(np.zeros((32, 16), np.uint8))
    launch("vectors", source, found)
    np.testing.assert_array_equal(found[:, :4], source[:, 3::-1])
    np.testing.assert_array_equal(found[:, 4:8], source[:, [6, 7, 4, 5]])
    np.testing.assert_array_equal(found[:, 8:12].copy().view(np.uint32), 5)
    np.testing.assert_array_equal(found[:, 12:], source[:, 8:12])
    launch("packed", WORDS, longer := np.zeros(64, np.uint32))
    np.testing.assert_array_equal(longer[::2], WORDS[1::2])
    np.testing.assert_array_equal(longer[1::2], WORDS[::2] << 16 | WORDS[::2] >> 16)


def test_other_memory(launch: Callable[..., None]) -> None:
    found = np.zeros(32, np.uint32)
    launch("local_array", WORDS, found)
    np.testing.assert_array_equal(found, WORDS[:32] + np.uint32(7))
    launch("generic_shared", WORDS, found)
    np.testing.assert_array_equal(found, WORDS[:32])
    launch("tables", floats := np.zeros(32, np.float32))
    np.testing.assert_array_equal(floats, np.array([10, 20, 30], np.float32)[LANES % 3] - 0.5)


def test_control(launch: Callable[..., None]) -> None:
    counts, found = np.arange(32, dtype=np.uint32) % 9, np.zeros(32, np.uint32)
    launch("looped", counts, found)
    np.testing.assert_array_equal(found, np.minimum(counts * (counts + 1) // 2, 20))
    launch("given", found, np.array((1, 30, 72), "u4").view("V12")[0])
    np.testing.assert_array_equal(found, 2 * (72 - 30) + LANES + 100)
    lanes = np.zeros(2 * 3 * 4 * 16, np.uint32)
    launch("registers", lanes, grid=(2, 3), block=(4, 16))
    np.testing.assert_array_equal(lanes, np.tile(LANES, len(lanes) // 32))
    counter = np.zeros(1, np.uint32)
    launch("counted", counter, found)
    np.testing.assert_array_equal(np.sort(found), np.sort(LANES % 3))
    assert counter[0] == 32 % 3
    with pytest.raises(RuntimeError, match=r"trapped: trap: the kernel gives up \(block 0, 0, thread 3\)"):
        launch("trapped", found)


def test_every_form_is_tried_here_or_with_values() -> None:
    words = {*ALL.split(), *(text.split()[0] for text, *_ in FORMS)}
    for pattern in (*(pattern for pattern, *_ in ORDINARY), *(pattern for pattern, _ in OTHERS)):
        assert any(re.fullmatch(pattern, word.rstrip(";")) for word in words), pattern


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas is not installed")
def test_what_is_tried_here_and_with_values_is_ptx(tmp_path: Path) -> None:
    first, *others = re.split(r"(?=\.visible \.entry)", ALL)  # ptxas 13.0 crashes on all of them together
    for number, text in enumerate([VALUES, *(first + other for other in others)]):
        (source := tmp_path / f"{number}.ptx").write_text(text)
        subprocess.run(["ptxas", "-arch=sm_80", str(source), "-o", str(tmp_path / "machine_code")], check=True)


def broken(line: str, before: str = "") -> str:
    return HEAD + kernel("broken", 1, line, before)


@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        (broken("wgmma.fence.sync.aligned;"), r"wgmma\.fence\.sync\.aligned: an instruction that is not known"),
        (broken("add.rz.f64 %rd2, %rd2, %rd2;"), r"add\.rz\.f64 %rd2, %rd2, %rd2: an instruction that is not known"),
        (broken("ld.global.u32.some %r1, [%rd1];"), r"ld\.global\.u32\.some .*: an instruction that is not known"),
        (broken("red.global.add.u32 [%rd1], 1;"), r"red\.global\.add\.u32 .*: an instruction that is not known"),
        (broken("bar.sync 1, 64;"), r"bar\.sync 1, 64: a barrier that is not that of the whole block"),
        (broken("add.u32 %r1, %r2;"), r"add\.u32 %r1, %r2: not the operands that it takes"),
        (broken("add.u32 %r1, %r2, absent;"), r"add\.u32 %r1, %r2, absent: absent is not declared"),
        (broken("mov.u64 %rd2, %clock64;"), r"mov\.u64 %rd2, %clock64: %clock64 is not declared"),
        (broken("cvt.rz.f32.f64 %f1, %rd1;"), r"cvt\.rz\.f32\.f64 .*: an instruction that is not known"),
        (broken("cvt.rn.s32.f32 %r1, %f1;"), r"cvt\.rn\.s32\.f32 .*: a conversion that is not known"),
        (broken("cp.async.cg.shared.global [%r1], [%rd1], 8;"), r"cp\.async\.cg.*: not the operands that it takes"),
        (broken("ld.global.v2.u32 {%r1}, [%rd1];"), r"ld\.global\.v2\.u32 .*: not the operands that it takes"),
        (broken("ld.global.u32 %r1, %rd1;"), r"ld\.global\.u32 %r1, %rd1: not the operands that it takes"),
        (broken("call vprintf, (%rd1);"), r"call vprintf, \(%rd1\): a function without a body"),
        (broken("bra $a"), r"bra \$a ret: not the operands that it takes"),
        (broken("", ".shared .align 4 .b8 tile[50000];\n mov.u32 %r1, tile;"), "broken: 50000 bytes of shared memory"),
        (HEAD + ".global .surfref x;\n" + kernel("broken", 1, ""), r"\.global \.surfref x: a declaration"),
        (HEAD + ".global .align 4 .u32 x;\n" + kernel("broken", 1, "mov.u64 %rd2, x;"), "x: a variable"),
    ],
)  # fmt: skip
def test_what_is_not_translated_is_an_error_that_names_it(ptx: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        kernels(ptx)
