"""Tiny source files of the published formats, made on the spot."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CIFAR10_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def random_bytes(shape: tuple[int, ...], seed: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_arrays(n_train: int = 30, n_test: int = 10) -> dict[str, np.ndarray]:
    return {
        "train-images-idx3-ubyte": random_bytes((n_train, 5, 4), 1),
        "train-labels-idx1-ubyte": random_bytes((n_train,), 2, 10),
        "t10k-images-idx3-ubyte": random_bytes((n_test, 5, 4), 3),
        "t10k-labels-idx1-ubyte": random_bytes((n_test,), 4, 10),
    }


def write_mnist(folder: Path, *, zipped: bool = True, **changed: bytes) -> Path:
    """Four IDX files; ``changed`` replaces contents by the name's first two words."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in mnist_arrays().items():
        content = changed.get("_".join(name.split("-")[:2]), idx(array))
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)
    return folder


def python2_batch(images: np.ndarray, labels: Sequence[int], key: str = "labels") -> bytes:
    """The opcodes by which Python 2 pickled a CIFAR batch: {'data': array, key: list}."""
    out = io.BytesIO()
    out.write(b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03")
    out.write(b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01")
    out.write(b"J" + struct.pack("<i", len(images)) + b"J" + struct.pack("<i", images.shape[1]) + b"\x86")
    out.write(b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
    out.write(b"T" + struct.pack("<i", images.size) + images.tobytes() + b"tb")
    out.write(b"U" + bytes([len(key)]) + key.encode() + b"](")
    out.write(b"".join(b"J" + struct.pack("<i", label) for label in labels))
    out.write(b"eu.")
    return out.getvalue()


def cifar_batch(seed: int, n: int = 4, key: str = "labels", classes: int = 10) -> bytes:
    labels = random_bytes((n,), seed + 100, classes).tolist()
    return python2_batch(random_bytes((n, 3072), seed), labels, key)


def cifar10_members() -> dict[str, bytes]:
    return {name: cifar_batch(seed) for seed, name in enumerate(CIFAR10_BATCHES)}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload] # its modes are spelt out one by one
        for name, content in members.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pin(folder: Path) -> str:
    """What ``sha256sum * | sha256sum`` says in a folder."""
    lines = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_images(folder: Path, n: int, *, mode: str = "RGB", size: tuple[int, int] = (6, 5), seed: int = 0) -> Path:
    """PNG images of (width, height) ``size``."""
    folder.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    for i in range(n):
        Image.fromarray(random_bytes((size[1], size[0], *channels), seed + i)).save(folder / f"{i:04}.png")
    return folder


@contextmanager
def served(answers: dict[str, tuple[int, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine: its address, and the list of what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, content = answers.get(self.path, (404, b"no such thing"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def png16(channels: int, size: tuple[int, int] = (6, 5)) -> bytes:
    """A PNG of (width, height) ``size`` with 16 bits per channel; Pillow writes only grey ones."""
    width, height = size
    rows = b"".join(b"\0" + bytes(range(2 * channels)) * width for _ in range(height))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = {
        b"IHDR": struct.pack(">2I5B", width, height, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    chunks = (struct.pack(">I", len(part)) + name + part + crc(name + part) for name, part in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def crc(content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content))


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def turned_exif() -> Image.Exif:
    """An orientation that is turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def usable_images() -> dict[str, bytes]:
    """Image files of 6 by 5 pixels of every kind that is read."""
    colour, grey = Image.fromarray(random_bytes((5, 6, 3), 0)), Image.fromarray(random_bytes((5, 6), 1))
    clear = Image.fromarray(random_bytes((5, 6, 4), 2))
    deep = Image.fromarray(random_bytes((5, 6), 0).astype(np.uint16))
    more = {"save_all": True, "append_images": [grey.convert("RGB"), colour]}
    return {
        "colour.png": encoded(colour, "png"),
        "grey.png": encoded(grey, "png"),
        "clear.png": encoded(clear, "png"),
        "palette.png": encoded(colour.quantize(4), "png", transparency=1),
        "bit.png": encoded(grey.convert("1"), "png"),
        "turned.png": encoded(colour, "png", exif=turned_exif()),
        "colour.jpg": encoded(colour, "jpeg"),
        "progressive.jpg": encoded(colour, "jpeg", progressive=True, exif=turned_exif()),
        "ink.jpg": encoded(colour.convert("CMYK"), "jpeg"),
        "moving.gif": encoded(colour, "gif", **more),
        "pages.tiff": encoded(colour, "tiff", **more),
        "packed.tiff": encoded(colour, "tiff", compression="tiff_lzw"),
        "colour.bmp": encoded(colour, "bmp"),
        "moving.webp": encoded(colour, "webp", **more),
        "clear.webp": encoded(clear, "webp", lossless=True),
        "colour.ppm": encoded(colour, "ppm"),
        "plain.pgm": b"P2 6 5 255\n" + b"7 " * 30,
        "deep.png": encoded(deep, "png"),
        "deep.tiff": encoded(deep, "tiff"),
        "deep colour.png": png16(3),
        "deep and clear.png": png16(4),
        "deep.ppm": b"P6 6 5 65535\n" + bytes(180),
        "plain and deep.ppm": b"P3 6 5 65535\n" + b"9 " * 90,
    }


def unusable_images() -> dict[str, tuple[str, bytes]]:
    """Image files that are not read, each with what is said of it."""
    colour = Image.fromarray(random_bytes((5, 6, 3), 0))
    wide, unknown = "do not have 8 or 16 bits per channel", "not an image in a supported format"
    bomb = encoded(Image.new("1", (20_000, 10_000)), "png")
    return {
        "integers.tiff": (wide, encoded(Image.fromarray(np.zeros((5, 6), np.int32)), "tiff")),
        "float.tiff": (wide, encoded(Image.fromarray(np.zeros((5, 6), np.float32)), "tiff")),
        "program.eps": ("a PostScript document, which is not supported", encoded(colour, "eps")),
        "program.png": ("a PostScript document, which is not supported", encoded(colour, "eps")),
        "icon.ico": ("a Windows icon, which is not supported. Convert it to PNG", encoded(colour, "ico")),
        "page.pdf": ("a PDF document, which is not supported", encoded(colour, "pdf")),
        "phone.heic": ("a HEIC image, which is not supported. Convert it to JPEG", bytes(4) + b"ftypheic" + bytes(20)),
        "old.tga": ("a TGA image, which is not supported. Convert it to PNG", encoded(colour, "tga")),
        "text.png": ("not a PNG image, despite its name", b"a, b"),
        "text.txt": (unknown, b"a, b"),
        "empty.png": ("an empty file instead of an image", b""),
        "cut.png": ("not a usable image", encoded(colour, "png")[:-40]),
        "cut.jpg": ("not a usable image", encoded(colour, "jpeg")[:-40]),
        "cut.gif": ("not a usable image", encoded(colour, "gif")[:-20]),
        "large.png": ("8000 x 4001 pixels; the maximum is", encoded(Image.new("1", (8_000, 4_001)), "png")),
        "bomb.png": ("not a usable image", bomb),
        "same strip.tiff": ("or tiles overlap: they total 101,100 bytes in a file of 1,931", tiff_of_one_strip(100)),
        "strips.tiff": ("30,000 strips or tiles; the maximum is", tiff_of_strips(30_000)),
    }


def tiff_of_one_strip(count: int) -> bytes:
    """A TIFF of one column, each pixel a strip that lies where all others do: small, and slow to decode."""
    strip = zlib.compress(bytes(1000), 0)
    tags = [(256, 3, 1, 1), (257, 3, 1, count), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (278, 3, 1, 1)]
    tags += [(273, 4, count, 120), (279, 4, count, 120 + 4 * count)]
    tags.sort()
    entries = b"".join(struct.pack("<2H2I", *tag) for tag in tags)
    head = (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries).ljust(120, b"\0")
    place = 120 + 8 * count
    return head + struct.pack("<I", place) * count + struct.pack("<I", len(strip)) * count + strip


def jpeg_of_scans(count: int, side: int = 2000) -> bytes:
    """A progressive JPEG whose scans say nothing new of any pixel."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">2BH", 0xFF, marker, len(content) + 2) + content

    tables = segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC2, struct.pack(">B2H4B", 8, side, side, 1, 1, 17, 0))
    tables += segment(0xC4, b"\0\1" + bytes(16)) + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    first = segment(0xDA, b"\1\1" + bytes(4)) + bytes(side * side // 512 + 1)
    return b"\xff\xd8" + tables + first + segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) * count + b"\xff\xd9"


def png_of_chunks(count: int) -> bytes:
    """A PNG with so many parts that are no pixels."""
    content = encoded(Image.new("L", (4, 4)), "png")
    return content[:33] + (bytes(4) + b"IDAT" + crc(b"IDAT")) * count + content[33:]


def tiff_of_strips(count: int) -> bytes:
    """A TIFF of one column, each pixel a strip of its own: a small file that takes gigabytes to open."""
    tags = [(256, 4, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (262, 3, 1, 1), (278, 4, 1, 1)]
    tags += [(273, 4, count, 500), (279, 4, count, 500)]
    tags.sort()
    entries = b"".join(struct.pack("<2H2I", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(500, b"\0") + struct.pack("<I", 1) * count
