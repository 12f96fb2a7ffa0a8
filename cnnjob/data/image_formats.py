"""The image formats that are read, and descriptions of files in any other format."""

from pathlib import Path

from PIL import Image

from cnnjob import files

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SIGNATURES = (
    ("PNG", b"\x89PNG"), ("JPEG", b"\xff\xd8\xff"), ("GIF", b"GIF8"), ("TIFF", b"II*\x00"), ("TIFF", b"MM\x00*"),
    ("BMP", b"BM"), ("WebP", b"RIFF"),
)  # fmt: skip
_OTHER_FORMATS = (
    *((0, start, f"a damaged {name} image", "Restore or remove it") for name, start in _SIGNATURES if name != "TIFF"),
    *(
        (0, start, "a damaged TIFF image, or one with an unsupported pixel format", "Restore, convert or remove it")
        for name, start in _SIGNATURES
        if name == "TIFF"
    ),
    (4, b"ftyphei", "a HEIC image", "Convert it to JPEG, for example with heif-convert"),
    (4, b"ftyphev", "a HEIC image", "Convert it to JPEG, for example with heif-convert"),
    (4, b"ftypmif1", "a HEIF image", "Convert it to JPEG, for example with heif-convert"),
    (4, b"ftypavi", "an AVIF image", "Convert it to PNG, for example with avifdec"),
    (4, b"ftypcrx", "a Canon raw image", "Convert it to TIFF or JPEG with a raw converter"),
    (4, b"ftyp", "a video", "Extract its frames as PNG, for example with ffmpeg"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image", "Convert it to PNG, for example with opj_decompress"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", "Convert it to PNG, for example with opj_decompress"),
    (0, b"\xff\x0a", "a JPEG XL image", "Convert it to PNG, for example with djxl"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image", "Convert it to PNG, for example with djxl"),
    (0, b"8BPS", "a Photoshop document", "Export it as PNG"),
    (0, b"%PDF", "a PDF document", "Extract its images, for example with pdfimages"),
    (0, b"%!PS", "a PostScript document", "Convert it to PNG, for example with gs"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript document", "Convert it to PNG, for example with gs"),
    (0, b"<svg", "an SVG drawing", "Convert it to PNG, for example with rsvg-convert"),
    (0, b"\x00\x00\x01\x00", "a Windows icon", "Convert it to PNG"),
    (128, b"DICM", "a DICOM image", "Convert it to PNG, for example with dcm2img"),
    (0, b"\x89HDF", "an HDF5 file", "Specify image files, or pass its arrays from Python"),
    (0, b"\x93NUMPY", "a NumPy array", "Specify the array file itself instead of a folder"),
    (0, b"SIMPLE  =", "a FITS image", "Convert it to PNG or TIFF"),
    (0, b"PK\x03\x04", "a zip archive", "Unpack it, or specify the archive itself instead of a folder"),
    (0, b"\x1f\x8b", "a gzip file", "Unpack it"),
    (0, b"<?xml", "an XML file", "Remove it"),
    (0, b"<!DOCTYPE", "a web page", "Download the image itself"),
    (0, b"<html", "a web page", "Download the image itself"),
)
"""Offset and bytes that identify a file that cannot be read, a description of the file, and advice."""


def describe_unknown_format(path: Path | str, content: bytes | None) -> str:
    """Return a description of a file that is not an image in a supported format, based on its first bytes."""
    if content is None:
        with files.open_regular(Path(path)) as file:
            content = file.read(256)
    if not content:
        return "an empty file instead of an image. Remove it"
    if content.startswith(files.GIT_LFS_POINTER):
        return files.A_GIT_LFS_POINTER
    for position, signature, name, advice in _OTHER_FORMATS:
        if content.startswith(signature, position):
            return f"{name}. {advice}" if "damaged" in name else f"{name}, which is not supported. {advice}"
    known = ", ".join(FORMATS)
    named = Image.registered_extensions().get(Path(path).suffix.lower())  # loads all of Pillow's formats
    if named in FORMATS:
        return f"not a {named} image, despite its name. Restore or remove it"
    if named:
        return f"a {named} image, which is not supported. Convert it to PNG, or remove it"
    return f"not an image in a supported format ({known}). Convert or remove it"
