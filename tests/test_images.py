"""Image files: `prepare` and `predict` say the same of the same file."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjob.errors import DataError
from cnnjob.images import header, pixels
from cnnjob.packing import pack
from cnnjob.predictions import predict
from cnnjob.runs import Run
from tests.packing_sources import unusable_images, usable_images, write_images
from tests.toys import trained

UNUSABLE = unusable_images()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("place"), train__epochs=1).run


@pytest.mark.parametrize("name", UNUSABLE)
def test_both_refuse_an_unusable_file_in_the_same_words(tmp_path: Path, run: Run, name: str) -> None:
    message, content = UNUSABLE[name]
    for label in "ab":
        write_images(tmp_path / label, 3)
    path = tmp_path / "b" / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as packing:
        pack("folder", tmp_path / "out.h5", source=tmp_path, size=(6, 6), test_fraction=0.5)
    with pytest.raises(DataError) as predicting:
        predict(run, [str(path)])
    assert str(predicting.value) == str(packing.value)
    assert str(packing.value).startswith(f"{path}: ")
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("name", usable_images())
def test_both_read_a_usable_file(tmp_path: Path, run: Run, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(usable_images()[name])
    turned = name in {"turned.png", "progressive.jpg"}
    found = header(path)
    assert (found.height, found.width) == ((6, 5) if turned else (5, 6))
    image, same = pixels(path, (found.height, found.width, 3))
    assert same == found
    assert (image.dtype, image.shape) == (np.uint8, (found.height, found.width, 3))
    (guess,) = predict(run, [str(path)])
    assert guess.scaled_from == (found.height, found.width)


def test_no_program_is_started(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    for name in ("gs", "gswin32c", "gs.exe"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {trace}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "x.png").write_bytes(UNUSABLE["program.eps"][1])
    with pytest.raises(DataError, match="known format"):
        predict(run, [str(tmp_path / "x.png")])
    assert not trace.exists()


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from cnnjob.errors import DataError
from cnnjob.images import pixels

in_use = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (in_use + 20_000_000, resource.RLIM_INFINITY))
try:
    pixels(Path(sys.argv[1]), (4, 4, 3))
except DataError as error:
    print(error)
"""


def test_an_image_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 2000)).save(tmp_path / "large.png")
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path / "large.png")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "large.png: takes more than 400 MB of memory to decode. Convert or remove it" in said


def test_the_limit_of_memory_is_taken_back(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    path = tmp_path / "strips.tiff"
    path.write_bytes(UNUSABLE[path.name][1])
    with pytest.raises(DataError):
        header(path)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
