"""Pickles of NumPy arrays, read without running anything they name.

The parts of an array are stood in for by classes that only keep their arguments; any
other name is refused before anything can be done with it.
"""

import io
import pickle
import pickletools
import warnings
from typing import Any, NoReturn

from cnnjob.errors import DataError

_MALFORMED = (AttributeError, EOFError, IndexError, KeyError, MemoryError, OverflowError, RecursionError,
              TypeError, ValueError, pickle.UnpicklingError)  # fmt: skip
_MUCH = 1 << 20
_MOST_BYTES = 380_000_000  # CIFAR-100's training batch, of 155 MB, takes 360 MB
_OBJECT_BYTES = 256  # of an opcode: an empty set has 216
_MOST_CHARACTER_BYTES = 4
_MOST_OPCODES = 500_000  # CIFAR-100's has 200,000
_MOST_TUPLES = 1000  # an array has five; the hash of tuples nested without end would overflow the stack


class PickledArray:
    """What a pickle says of an array: ``shape``, type ``code`` and ``content``, none of it believed yet."""

    def __init__(self, *_: Any) -> None:
        """Stand in for ``numpy.ndarray`` and for the function that makes an empty one."""
        self.shape: Any = None
        self.code: Any = None
        self.content: Any = None

    def __setstate__(self, state: Any) -> None:
        """Keep the state that ``ndarray.__reduce__`` gives."""
        _, self.shape, kind, column_major, self.content = state
        self.code = None if column_major else kind.code


class _FrombufferArray(PickledArray):
    """An array pickled with protocol 5."""

    def __init__(self, content: Any, kind: Any, shape: Any, order: Any) -> None:
        super().__init__()
        self.shape, self.content = shape, content
        self.code = kind.code if order == "C" else None


class _Kind:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code  # Python 2 wrote bytes

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and fields: bytes have none."""


class _Text:
    """Stands in for ``_codecs.encode``, by which old protocols write bytes."""

    def __new__(cls, text: str, _: str) -> bytes:  # type: ignore[misc] # a call that gives bytes, no instance
        return text.encode("latin-1")

    def __setstate__(self, state: Any) -> None:
        """Ignore it: there is no instance to have a state."""


_PARTS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _Text,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): PickledArray for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FrombufferArray for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):  # noqa: S301 - it finds stand-ins only
    """Finds only an array's parts."""

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.where = where

    def find_class(self, module: str, name: str) -> type:
        """The stand-in for a part of an array."""
        return _PARTS.get((module, name)) or _refuse(self.where, f"{module} {name}")


class _Unread(bytes):
    """Stands in for bytes that were stepped over: empty, but as long as they are."""

    length = 0

    def __len__(self) -> int:
        return self.length


class _Skimmed(io.BytesIO):
    """A pickle for :mod:`pickletools`, which would copy 150 MB of pixels twice."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read little, and step over much."""
        if size is None or size < _MUCH:
            return super().read(size)
        start, end = self.tell(), self.seek(0, io.SEEK_END)
        unread = _Unread()
        unread.length = min(size, end - start)
        self.seek(start + unread.length)
        return unread

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line, and of a long one only the start, which pickletools refuses."""
        return super().readline(_MUCH if size is None or size < 0 else size)


def load(content: bytes, where: str) -> Any:
    """Read a pickle of plain values and arrays.

    Args:
        content: the pickle.
        where: names it in messages.

    Returns:
        Plain values, with :class:`PickledArray` for arrays.

    Raises:
        DataError: it is no whole pickle, or it names something else than an array's parts.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in a damaged text
            _look_through(content, where)
            return _Unpickler(content, where).load()
    except _MALFORMED as error:
        raise DataError(
            f"{where}: not a readable pickle, {type(error).__name__}: {error}; copy or download it again"
        ) from error


def _look_through(content: bytes, where: str) -> None:
    """Look at every opcode before any runs: for imports, and for how much memory all of them can take."""
    taken, start, width, tuples = len(content), 0, 1, 0
    for number, (opcode, argument, position) in enumerate(pickletools.genops(_Skimmed(content))):
        taken += _OBJECT_BYTES + ((position or 0) - start) * width
        start, width = position or 0, _MOST_CHARACTER_BYTES if "UNICODE" in opcode.name else 1
        tuples += opcode.name.startswith("TUPLE")
        if opcode.name in {"GLOBAL", "INST"} and tuple(str(argument).split(" ", 1)) not in _PARTS:
            _refuse(where, str(argument))
        if opcode.name.endswith("PUT") and not 0 <= int(argument or 0) <= number:
            raise ValueError("its memo is larger than its contents")  # an array as long as its largest index
        if taken > _MOST_BYTES or tuples > _MOST_TUPLES or number > _MOST_OPCODES:
            raise ValueError(f"it takes more than {_MOST_BYTES:,} bytes, or is nested")


def _refuse(where: str, what: str) -> NoReturn:
    raise DataError(
        f"{where}: an unsafe pickle, it names {what!r}; nothing of it was run, get the data from its publisher"
    )
