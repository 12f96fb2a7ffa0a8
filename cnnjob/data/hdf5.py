"""Open parts of an HDF5 file safely: no part may refer to another file or need more memory than the file's size.

HDF5 follows links to other files, external storage and virtual datasets, loads filter plugins, and fills in values that
were never written. :mod:`cnnjob.data.prepare.writer` uses none of these features, so all of them are refused.
"""

from collections.abc import Iterable
from itertools import islice
from math import prod
from typing import Any

import h5py
import numpy as np

MOST_CHUNK_BYTES = 8 << 20
"""Maximum chunk size, in bytes; chunks in format 1 files hold one image or are at most half a MB."""
_MOST_ATTRIBUTE_BYTES = 64 << 20
_NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT)
_FILTERS = [h5py.h5z.FILTER_FLETCHER32]
_LAYOUTS = {
    h5py.h5d.COMPACT: "compact",
    h5py.h5d.CONTIGUOUS: "contiguous",
    h5py.h5d.CHUNKED: "chunked",
    h5py.h5d.VIRTUAL: "virtual",
}


def require_members(group: h5py.Group, allowed: Iterable[str]) -> list[str]:
    """Return the names of a group's members after checking them.

    Args:
        group: the file or one of its groups.
        allowed: names of the members that the group may have.

    Raises:
        ValueError: a member is a link, has a name that is not allowed, or has several names.
    """
    # A group may have millions of members, but one name too many is enough to refuse it.
    allowed = tuple(allowed)
    names = list(islice(group, len(allowed) + 1))
    for name in names:
        if name not in allowed:
            raise ValueError(f"a member does not belong in a dataset (found {name!r} in {group.name})")
        link = group.get(name, getlink=True)  # the link itself, which is not followed
        if not isinstance(link, h5py.HardLink):
            target = f"{getattr(link, 'filename', '')}:{link.path}"
            raise ValueError(f"a member is a link (found {target!r} for {name} in {group.name})")  # noqa: TRY004
        if h5py.h5o.get_info(group.id, name.encode()).rc != 1:
            raise ValueError(f"an object has several names (found {name} in {group.name})")
    return names


def require_attributes(owner: Any, where: str, allowed: Iterable[str] = ()) -> None:
    """Raise an error if a file, group or array has an attribute that is not allowed.

    Args:
        owner: low-level h5py identifier of the file, group or array.
        where: name of the file, group or array, for the message.
        allowed: names of the attributes that the file, group or array may have.

    Raises:
        ValueError: an attribute is not allowed.
    """
    allowed = tuple(allowed)
    for index in range(h5py.h5a.get_num_attrs(owner)):
        name = h5py.h5a.open(owner, index=index).name
        # Compared as bytes: a name in the file need not be UTF-8.
        if name not in {one.encode() for one in allowed}:
            shown = name[:80].decode(errors="backslashreplace")
            raise ValueError(f"an attribute does not belong in a dataset (found {shown!r} in {where})")


def subgroup(group: h5py.Group, name: str) -> h5py.Group:
    """Return the subgroup ``name`` of a group.

    The group must have a member of this name; :func:`require_members` returns the names.

    Raises:
        ValueError: the member is not a group, or has attributes.
    """
    if h5py.h5o.get_info(group.id, name.encode()).type != h5py.h5o.TYPE_GROUP:
        raise ValueError(f"a member is an array or a named datatype instead of a group (found {name} in {group.name})")
    found = group[name]
    require_attributes(found.id, found.name)
    return found


def contiguous_array(group: h5py.Group, name: str, dtypes: Iterable[Any]) -> h5py.Dataset:
    """Return a contiguous array from a group whose members have been checked.

    Args:
        group: a group of the file.
        name: name of the array.
        dtypes: the types that the array may have.

    Returns:
        The array, which is stored entirely within the file.

    Raises:
        ValueError: the array is not stored in the same way as :mod:`cnnjob.data.prepare.writer` stores arrays.
    """
    dataset, where = _dataset(group, name, dtypes, h5py.h5d.CONTIGUOUS, [])
    shape, file_bytes = dataset.shape, h5py.h5i.get_file_id(dataset).get_filesize()
    if not shape or not all(shape):
        raise ValueError(f"the array {where} is empty (found shape {shape})")
    # An array that was never written has no offset. Data beyond the end of the file would be read as zeros.
    n_bytes, offset = prod(shape) * dataset.dtype.itemsize, dataset.get_offset()
    if offset is None or offset + n_bytes > file_bytes or dataset.get_storage_size() != n_bytes:
        raise ValueError(
            f"the array {where} is incomplete (needs {n_bytes:,} bytes at offset {offset}, found a file of "
            f"{file_bytes:,} bytes)"
        )
    return h5py.Dataset(dataset)


def chunked_array(group: h5py.Group, name: str, dtypes: Iterable[Any]) -> h5py.Dataset:
    """Do the same as :func:`contiguous_array` for an array stored in chunks of whole rows, each with a checksum."""
    dataset, where = _dataset(group, name, dtypes, h5py.h5d.CHUNKED, _FILTERS)
    _require_stored(dataset, dataset.get_create_plist().get_chunk(), where)
    return h5py.Dataset(dataset)


def _dataset(
    group: h5py.Group, name: str, dtypes: Iterable[Any], layout: int, filters: list[int]
) -> tuple[h5py.h5d.DatasetID, str]:
    """Open an array and check how it is stored; return the array and its path.

    Raises:
        ValueError: the member is not an array, has attributes, or has an unexpected layout, filter or type.
    """
    where = f"{group.name}/{name}"
    if h5py.h5o.get_info(group.id, name.encode()).type != h5py.h5o.TYPE_DATASET:
        raise ValueError(f"a member is a group or a named datatype instead of an array (found {where})")
    dataset = h5py.h5d.open(group.id, name.encode())
    plan = dataset.get_create_plist()
    if plan.get_layout() != layout or plan.get_external_count():
        where_stored = " data in external files" if plan.get_external_count() else ""
        stored = f"{_LAYOUTS.get(plan.get_layout(), plan.get_layout())}{where_stored}"
        raise ValueError(
            f"the array {where} is not stored as {_LAYOUTS[layout]} data in the file itself (found {stored})"
        )
    applied = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    if applied != filters:
        raise ValueError(f"the array {where} has unexpected filters (found {applied} instead of {filters})")
    # Compared as HDF5 types, which also distinguish byte orders.
    if not any(dataset.get_type() == h5py.h5t.py_create(np.dtype(dtype)) for dtype in dtypes):
        raise ValueError(f"the array {where} has an unexpected type (found {dataset.dtype})")
    require_attributes(dataset, where)
    return dataset, where


def _require_stored(dataset: h5py.h5d.DatasetID, chunk: tuple[int, ...], where: str) -> None:
    """Refuse an array whose chunks were never written or would extend beyond the end of the file."""
    shape, size = dataset.shape, dataset.dtype.itemsize
    chunk_bytes = prod(chunk) * size
    if not shape or not all(shape) or chunk[1:] != shape[1:] or chunk_bytes > MOST_CHUNK_BYTES:
        raise ValueError(
            f"the array {where} is empty or has unexpected chunks (found shape {shape} in chunks of {chunk})"
        )
    # HDF5 allocates chunks on their first write and reads missing ones as zeros, so a tiny file can claim a huge array.
    chunks, file_bytes = -(-shape[0] // chunk[0]), h5py.h5i.get_file_id(dataset).get_filesize()
    stored = dataset.get_storage_size()
    if stored < chunks * chunk_bytes or stored > file_bytes:
        raise ValueError(f"the array {where} is incomplete (found {stored:,} bytes in a file of {file_bytes:,} bytes)")


def number(file: h5py.File, name: str) -> np.ndarray:
    """Return a numeric attribute of a file, either a number or an array of numbers.

    Raises:
        ValueError: the attribute is missing, has another type, or is too large.
    """
    attribute = _attribute(file, name)
    if attribute.get_type().get_class() not in _NUMBERS:
        raise ValueError(f"the attribute {name} is not numeric")
    return np.asarray(file.attrs[name])


def text(file: h5py.File, name: str) -> str:
    """Return a string attribute of a file.

    Raises:
        ValueError: the attribute is missing, has another type, is too large, or is not UTF-8.
    """
    attribute = _attribute(file, name)
    kind = attribute.get_type()
    # A variable-length string is stored in the global heap, so the size of the attribute does not limit its length.
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str() or attribute.shape != ():
        raise ValueError(f"the attribute {name} is not a fixed-length string")
    try:
        return bytes(file.attrs[name]).decode()
    except UnicodeDecodeError:
        raise ValueError(f"the attribute {name} is not valid UTF-8") from None


def _attribute(file: h5py.File, name: str) -> h5py.h5a.AttrID:
    """Open an attribute and check its size without reading it."""
    if not h5py.h5a.exists(file.id, name.encode()):
        raise ValueError(f"the attribute {name} is missing")
    attribute = h5py.h5a.open(file.id, name.encode())
    if attribute.shape is None:
        raise ValueError(f"the attribute {name} has no value")
    if attribute.get_storage_size() > min(_MOST_ATTRIBUTE_BYTES, file.id.get_filesize()):
        raise ValueError(f"the attribute {name} is too large (found {attribute.get_storage_size():,} bytes)")
    return attribute
