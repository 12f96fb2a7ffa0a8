"""Dataset files as older versions wrote them."""

from pathlib import Path

import h5py


def as_format_1(path: Path) -> Path:
    """Store the arrays of a dataset file in chunks with checksums, as format 1 does."""
    with h5py.File(path, "r+") as file:
        for split in file:
            for name in ("images", "labels"):
                content = file[split][name][...]
                del file[split][name]
                file[split].create_dataset(
                    name,
                    data=content,
                    maxshape=(None, *content.shape[1:]),
                    chunks=(20, *content.shape[1:]),
                    fletcher32=True,
                    track_times=False,
                )
        file.attrs.modify("format", 1)
    return path
