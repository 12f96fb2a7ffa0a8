"""Read pickles of NumPy arrays without running any code that they reference.

The globals that a pickled array needs are replaced by classes that only store their arguments; any other global is
refused before it can be used.
"""

import io
import pickle
import pickletools
import warnings
from typing import Any, NoReturn

from cnnjob.errors import DataError

_MALFORMED = (AttributeError, EOFError, IndexError, KeyError, MemoryError, OverflowError, RecursionError,
              TypeError, ValueError, pickle.UnpicklingError)  # fmt: skip
_MUCH = 1 << 20  # arguments of at least this size are skipped rather than copied
_MOST_BYTES = 380_000_000  # CIFAR-100's training batch, 155 MB in size, takes 360 MB
_OBJECT_BYTES = 256  # upper bound per opcode: an empty set takes 216
_MOST_CHARACTER_BYTES = 4  # in a Python string: one wide character makes all of them wide
_MOST_OPCODES = 500_000  # CIFAR-100's training batch has 200,000
_MOST_TUPLES = 1000  # an array has five; hashing deeply nested tuples would overflow the C stack


class PickledArray:
    """An array as described by its pickle: ``shape``, dtype ``code`` and ``content``, all unchecked."""

    def __init__(self, *_: Any) -> None:
        """Create an empty array; ignore the arguments that the pickle passes, which are meant for NumPy."""
        self.shape: Any = None
        self.code: Any = None
        self.content: Any = None

    def __setstate__(self, state: Any) -> None:
        """Store the state that ``ndarray.__reduce__`` returns."""
        _, self.shape, kind, column_major, self.content = state
        self.code = None if column_major else kind.code  # without a code, the caller refuses the array


class _FrombufferArray(PickledArray):
    """The replacement for NumPy's ``_frombuffer``, which protocol 5 pickles call to create an array from a buffer."""

    def __init__(self, content: Any, kind: Any, shape: Any, order: Any) -> None:
        super().__init__()
        self.shape, self.content = shape, content
        self.code = kind.code if order == "C" else None


class _Kind:
    """The replacement for ``numpy.dtype``."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code  # Python 2 wrote bytes

    def __setstate__(self, state: Any) -> None:
        """Ignore the rest of a dtype's state, such as byte order and fields, which do not apply to single bytes."""


class _Text:
    """The replacement for ``_codecs.encode``, which pickles with a protocol below 3 call to create bytes."""

    def __new__(cls, text: str, _: str) -> bytes:  # type: ignore[misc] # returns bytes, not an instance
        return text.encode("latin-1")

    def __setstate__(self, state: Any) -> None:
        """Prevent a pickle from setting attributes of this class, which has no instances."""


# NumPy 2 moved numpy.core to numpy._core, so pickles may name either.
_PARTS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _Text,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): PickledArray for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FrombufferArray for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):  # noqa: S301 - it only resolves replacements
    """An unpickler that resolves only the globals of a pickled array."""

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.where = where

    def find_class(self, module: str, name: str) -> type:
        """Return the replacement for a global; refuse the pickle if there is no replacement."""
        return _PARTS.get((module, name)) or _refuse_pickle(self.where, f"{module} {name}")


class _Unread(bytes):
    """A placeholder for skipped bytes: empty, but it reports their length, which pickletools checks."""

    length = 0

    def __len__(self) -> int:
        return self.length


class _Skimmed(io.BytesIO):
    """A stream of a pickle that skips large blocks, so that :mod:`pickletools` does not copy 150 MB of pixels twice."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes; if ``size`` is large, skip the bytes and return a placeholder."""
        if size is None or size < _MUCH:
            return super().read(size)
        start, end = self.tell(), self.seek(0, io.SEEK_END)
        unread = _Unread()
        unread.length = min(size, end - start)
        self.seek(start + unread.length)
        return unread

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line; a very long line is cut off, and pickletools refuses it because it has no newline."""
        return super().readline(_MUCH if size is None or size < 0 else size)


def load_plain(content: bytes, where: str) -> Any:
    """Load a pickle of plain values and arrays.

    Args:
        content: the pickle.
        where: file or archive member that contains the pickle, for messages.

    Returns:
        Plain values, with a :class:`PickledArray` in place of each array.

    Raises:
        DataError: the content is not a complete pickle, exceeds a limit, or refers to globals not needed for an array.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # such as those about invalid escapes in a damaged string
            _check_opcodes(content, where)
            return _Unpickler(content, where).load()
    except _MALFORMED as error:
        raise DataError(
            f"{where}: not a readable pickle ({type(error).__name__}: {error}). Copy or download it again"
        ) from error


def _check_opcodes(content: bytes, where: str) -> None:
    """Check all opcodes before any is executed: what they import, and how much memory they can take in total."""
    taken, start, width, tuples = len(content), 0, 1, 0
    for number, (opcode, argument, position) in enumerate(pickletools.genops(_Skimmed(content))):
        # The bytes since the previous opcode are its argument; a string may take four bytes per character.
        taken += _OBJECT_BYTES + ((position or 0) - start) * width
        start, width = position or 0, _MOST_CHARACTER_BYTES if "UNICODE" in opcode.name else 1
        tuples += opcode.name.startswith("TUPLE")
        # STACK_GLOBAL takes its names from the stack, so they are only checked in find_class.
        if opcode.name in {"GLOBAL", "INST"} and tuple(str(argument).split(" ", 1)) not in _PARTS:
            _refuse_pickle(where, str(argument))
        if opcode.name.endswith("PUT") and not 0 <= int(argument or 0) <= number:
            raise ValueError("its memo is larger than its contents")  # the memo is as long as its largest index
        if taken > _MOST_BYTES or tuples > _MOST_TUPLES or number > _MOST_OPCODES:
            raise ValueError(f"it takes more than {_MOST_BYTES:,} bytes, or is nested too deeply")


def _refuse_pickle(where: str, what: str) -> NoReturn:
    raise DataError(
        f"{where}: an unsafe pickle (found the name {what!r}). None of its code was run. Get the file from "
        "its publisher"
    )
