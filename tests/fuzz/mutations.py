"""Valid inputs in, nearly valid inputs out: the same for the same seed and number."""

import re
from collections.abc import Callable, Sequence
from random import Random

LARGEST = 1 << 20
"""Bytes of a mutated input: enough for any structure, and quick to read."""

_SEARCHED = 1 << 14
_STACKED = (1, 1, 1, 2, 2, 3, 4, 6, 10)
_BITS = (8, 16, 24, 31, 32, 48, 63, 64)
_INTEGERS = sorted({0, 1, 2, 7, 100} | {(1 << bits) + delta for bits in _BITS for delta in (-1, 0, 1)})
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_WORD = re.compile(rb"[\w.+-]+")
_WORDS = (
    b"", b"0", b"-1", b"1e999", b"-1e999", b"NaN", b"Infinity", b"null", b"true", b"[]", b"{}", b'""', b"9" * 400,
    b"9" * 5000, b"1" + b"0" * 30, b"0.1e-400", b"0x7fffffff", b"1_000", b"99999999999:00:00", b"-00:00:01",
    b"2038-01-19T03:14:08", b"9999-99-99T99:99:99", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\0", b"\r",
    b"\n", b"\t", b"\x1b[2J", b"'", b'"', b"|", b"=", b"#", b"..", b"/", b"%s%n", "١٢٣".encode(), "²".encode(),
)  # fmt: skip
_OPENINGS = (b"[", b"{", b"(", b'{"a":', b"[[", b"a.")

Mutation = Callable[[bytearray, Random, Sequence[bytes]], None]


def series(
    seeds: Sequence[bytes], seed: int, *, text: bool, finish: Callable[[bytes], bytes]
) -> Callable[[int], bytes]:
    """Return the inputs of a seed, by number; arguments as :func:`mutated`."""
    return lambda number: finish(mutated(seeds, seed, number, text=text))


def mutated(seeds: Sequence[bytes], seed: int, number: int, *, text: bool) -> bytes:
    """Mutate one of the seeds.

    Args:
        seeds: valid inputs.
        seed: of the whole series.
        number: of the input in it, from 0.
        text: whether to mutate words and lines too.

    Returns:
        At most :data:`LARGEST` bytes.
    """
    random = Random(f"{seed}-{number}")
    content = bytearray(random.choice(seeds))
    ways = _OF_BYTES + _OF_TEXT * 2 if text else _OF_BYTES
    for _ in range(random.choice(_STACKED)):
        random.choice(ways)(content, random, seeds)
    return bytes(content[:LARGEST])


def _place(content: bytearray, random: Random) -> int:
    """A place; every second one is near the start or the end, where headers are."""
    if random.random() < 0.5:
        near = min(len(content), 1 << random.randrange(1, 10))
        return random.choice((random.randint(0, near), len(content) - random.randint(0, near)))
    return random.randint(0, len(content))


def _range(content: bytearray, random: Random) -> slice:
    start = _place(content, random)
    return slice(start, min(len(content), start + (1 << random.randrange(14))))


def _match(pattern: re.Pattern[bytes], content: bytearray, random: Random) -> slice | None:
    """One of the places where a pattern matches; of a large input in a part of it, which is quicker."""
    start = random.randint(0, max(0, len(content) - _SEARCHED))
    matches = list(pattern.finditer(content, start, start + _SEARCHED))
    return slice(*random.choice(matches).span()) if matches else None


def _flip(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    for _again in range(1 << random.randrange(4)):
        if place := _place(content, random):
            content[place - 1] ^= 1 << random.randrange(8)


def _set_byte(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if place := _place(content, random):
        content[place - 1] = random.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _set_number(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """Put a number that is odd, or near to the one that was there: a length, a count, an offset."""
    width, place, order = random.choice((1, 2, 4, 8)), _place(content, random), random.choice(("little", "big"))
    before = int.from_bytes(content[place : place + width], order)  # type: ignore[arg-type] # one of the two
    after = random.choice((random.choice(_INTEGERS), -1, before + 1, before - 1, before * 2, len(content)))
    content[place : place + width] = (after % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]


def _set_digits(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """Replace a number that is written in digits, its length kept half of the time."""
    if place := _match(_NUMBER, content, random):
        before = bytes(content[place])
        digits = str(random.choice((*_INTEGERS, -1, int(before.split(b".")[0][:20]) + 1))).encode()
        keeps_length = random.random() < 0.5
        content[place] = digits.rjust(len(before), b"0")[-len(before) :] if keeps_length else digits


def _cut(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    del content[_place(content, random) :]


def _delete(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    del content[_range(content, random)]


def _insert(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    place, length = _place(content, random), 1 << random.randrange(10)
    content[place:place] = random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))


def _repeat(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """Repeat a range, at times so often that the input gets as large as it may."""
    part = content[_range(content, random)]
    times = random.choice((1, 1, 2, 2, 10, 10, 100, 1000, LARGEST // max(1, len(part))))
    content[(place := _place(content, random)) : place] = (part * times)[:LARGEST]


def _move(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    part = content[_range(content, random)]
    place = _place(content, random)
    content[place : place + len(part)] = part


def _splice(content: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """Go on with the rest, or a range, of a seed."""
    other = bytearray(random.choice(seeds))
    if random.random() < 0.5:
        content[_place(content, random) :] = other[_place(other, random) :]
    else:
        content[_range(content, random)] = other[_range(other, random)]


def _set_word(content: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """Replace a word by an odd one, or by one of a seed."""
    if place := _match(_WORD, content, random):
        other = bytearray(random.choice(seeds))
        theirs = _match(_WORD, other, random)
        content[place] = random.choice((random.choice(_WORDS), other[theirs] if theirs else b""))


def _edit_lines(content: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """Delete, double, exchange or lengthen a line, or insert one of a seed."""
    lines = bytes(content).splitlines(keepends=True) or [b""]
    first, second = random.randrange(len(lines)), random.randrange(len(lines))
    other = random.choice(random.choice(seeds).splitlines(keepends=True) or [b""])
    times = random.choice((2, 100, 10_000))
    edits: tuple[Callable[[], object], ...] = (
        lambda: lines.pop(first),
        lambda: lines.insert(second, lines[first]),
        lambda: lines.insert(second, other),
        lambda: lines.insert(first, lines.pop(second)),
        lambda: lines.insert(first, lines[first].rstrip()[: LARGEST // times] * times),
    )
    random.choice(edits)()
    content[:] = b"".join(lines)


def _nest(content: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """Open many brackets, and perhaps close them."""
    depth, opening = random.choice((10, 1000, 3000, 100_000)), random.choice(_OPENINGS)
    closing = {b"[": b"]", b"{": b"}", b"(": b")"}.get(opening[:1], b"") * random.randrange(2)
    place = _place(content, random)
    content[place:place] = opening * depth + b"1" + closing * depth * opening.count(opening[:1])


_OF_BYTES: tuple[Mutation, ...] = (
    _flip, _flip, _set_byte, _set_number, _set_number, _set_number, _set_digits, _cut, _delete, _insert, _repeat, _move,
    _splice,
)  # fmt: skip
_OF_TEXT: tuple[Mutation, ...] = (_set_word, _set_word, _set_word, _edit_lines, _edit_lines, _nest)
