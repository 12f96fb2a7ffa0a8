"""The parts of an HDF5 file, each checked before it is read: nothing leads out of the file or grows in memory.

HDF5 follows links to other files, external storage and virtual datasets, loads plugins for filters, and fills what was
never written. `cnnjob.data.prepare.writer` makes none of these, so all of them are refused.
"""

from collections.abc import Iterable
from itertools import islice
from math import prod
from typing import Any

import h5py
import numpy as np

MOST_CHUNK_BYTES = 8 << 20
"""Bytes of a chunk: at most one image, or half a MB of them."""
_MOST_ATTRIBUTE_BYTES = 64 << 20
_NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT)
_FILTERS = [h5py.h5z.FILTER_FLETCHER32]
_LAYOUTS = {
    h5py.h5d.COMPACT: "compact",
    h5py.h5d.CONTIGUOUS: "contiguous",
    h5py.h5d.CHUNKED: "chunked",
    h5py.h5d.VIRTUAL: "virtual",
}


def members(group: h5py.Group, allowed: Iterable[str]) -> list[str]:
    """Return the names in a group.

    Args:
        group: the file or a group of it.
        allowed: the names that there may be.

    Raises:
        ValueError: there is another name, or one that is a link to elsewhere.
    """
    allowed = tuple(allowed)
    names = list(islice(group, len(allowed) + 1))
    for name in names:
        if name not in allowed:
            raise ValueError(f"a member that is not part of a dataset (found {name!r} in {group.name})")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"a link to elsewhere (found {_target(link)!r} for {name} in {group.name})")  # noqa: TRY004
        if h5py.h5o.get_info(group.id, name.encode()).rc != 1:
            raise ValueError(f"an object with several names (found {name} in {group.name})")
    return names


def _target(link: Any) -> str:
    return f"{getattr(link, 'filename', '')}:{link.path}"


def require_attributes(owner: Any, where: str, allowed: Iterable[str] = ()) -> None:
    """Refuse attributes that are not part of a dataset.

    Args:
        owner: h5py's identifier of the file, a group or an array.
        where: its name.
        allowed: the names that there may be.

    Raises:
        ValueError: there is another name.
    """
    allowed = tuple(allowed)
    for index in range(h5py.h5a.get_num_attrs(owner)):
        name = h5py.h5a.open(owner, index=index).name
        if name not in {one.encode() for one in allowed}:
            shown = name[:80].decode(errors="backslashreplace")
            raise ValueError(f"an attribute that is not part of a dataset (found {shown!r} in {where})")


def subgroup(group: h5py.Group, name: str) -> h5py.Group:
    """Return a group inside a group, whose members were checked.

    Raises:
        ValueError: it is no group.
    """
    if h5py.h5o.get_info(group.id, name.encode()).type != h5py.h5o.TYPE_GROUP:
        raise ValueError(f"an array or a type where a group belongs (found {name} in {group.name})")
    found = group[name]
    require_attributes(found.id, found.name)
    return found


def array(group: h5py.Group, name: str, dtypes: Iterable[Any]) -> h5py.Dataset:
    """Return an array of a group whose members were checked.

    Args:
        group: of the file.
        name: of the array.
        dtypes: those that it may have.

    Returns:
        The array, whose rows are all there: reading it takes no more memory than the file has bytes.

    Raises:
        ValueError: it is stored in another way than the writer's.
    """
    where = f"{group.name}/{name}"
    if h5py.h5o.get_info(group.id, name.encode()).type != h5py.h5o.TYPE_DATASET:
        raise ValueError(f"a group or a type where an array belongs (found {where})")
    found = h5py.h5d.open(group.id, name.encode())
    plan = found.get_create_plist()
    layout, filters = plan.get_layout(), [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    if layout != h5py.h5d.CHUNKED or plan.get_external_count():
        raise ValueError(f"an array that is not stored in chunks (found {_LAYOUTS.get(layout, layout)} {where})")
    if filters != _FILTERS:
        raise ValueError(f"an array with other filters than a checksum (found filters {filters} in {where})")
    if not any(found.get_type() == h5py.h5t.py_create(np.dtype(dtype)) for dtype in dtypes):
        raise ValueError(f"an array of another type (found {found.dtype} in {where})")
    _require_stored(found, plan.get_chunk(), where)
    require_attributes(found, where)
    return h5py.Dataset(found)


def _require_stored(found: h5py.h5d.DatasetID, chunk: tuple[int, ...], where: str) -> None:
    """Refuse an array of which a part was never written, or is said to lie where the file has ended."""
    shape, size = found.shape, found.dtype.itemsize
    chunk_bytes = prod(chunk) * size
    if not shape or not all(shape) or chunk[1:] != shape[1:] or chunk_bytes > MOST_CHUNK_BYTES:
        raise ValueError(f"an array that is empty or cut in other chunks (found {shape} in {chunk} of {where})")
    chunks, file_bytes = -(-shape[0] // chunk[0]), h5py.h5i.get_file_id(found).get_filesize()
    stored = found.get_storage_size()
    if stored < chunks * chunk_bytes or stored > file_bytes:
        raise ValueError(
            f"an array that is not whole (found {stored:,} bytes in {file_bytes:,} for {shape} of {where})"
        )


def number(file: h5py.File, name: str) -> np.ndarray:
    """Return a number, or a list of them, among a file's attributes.

    Raises:
        ValueError: there is no such attribute, or it is something else.
    """
    attribute = _attribute(file, name)
    if attribute.get_type().get_class() not in _NUMBERS:
        raise ValueError(f"no number (found another type in the attribute {name})")
    return np.asarray(file.attrs[name])


def text(file: h5py.File, name: str) -> str:
    """Return a text among a file's attributes.

    Raises:
        ValueError: there is no such attribute, or it is something else.
    """
    attribute = _attribute(file, name)
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str() or attribute.shape != ():
        raise ValueError(f"no text of a fixed length (found another type in the attribute {name})")
    try:
        return bytes(file.attrs[name]).decode()
    except UnicodeDecodeError:
        raise ValueError(f"no text in UTF-8 (found other bytes in the attribute {name})") from None


def _attribute(file: h5py.File, name: str) -> h5py.h5a.AttrID:
    """Open an attribute without reading it."""
    if not h5py.h5a.exists(file.id, name.encode()):
        raise ValueError(f"an attribute is missing (found no {name})")
    attribute = h5py.h5a.open(file.id, name.encode())
    if attribute.shape is None:
        raise ValueError(f"an attribute without a value (found nothing in {name})")
    if attribute.get_storage_size() > min(_MOST_ATTRIBUTE_BYTES, file.id.get_filesize()):
        raise ValueError(f"an attribute larger than any (found {attribute.get_storage_size():,} bytes in {name})")
    return attribute
