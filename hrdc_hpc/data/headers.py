"""What an image file says of itself, and whether its end is there, read from its head and tail only. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png")
"""Endings of the files that are read, in any case."""
REFUSED = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".jxl")
"""Endings of images that are not read: an error rather than a silently smaller data set."""

_TAIL = 4096
_JPEG_END = b"\xff\xd9"
_PNG_END = b"IEND\xae\x42\x60\x82"


class BadImageError(ValueError):
    """The file is not a whole image; the text says why."""


def read_header(path: str | Path) -> tuple[int, int, int]:
    """Return (height, width, file size in bytes) without decoding, EXIF orientation ignored.

    Raises BadImageError: empty, no readable JPEG or PNG header, or the end-of-image marker is missing (truncated).
    Damage inside an image shows when it is decoded, if at all: libjpeg goes on behind damaged pixels.
    """
    try:
        with Path(path).open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length == 0:
                raise BadImageError("empty file")
            width, height = check(file, length)
    except OSError as error:
        # PIL's own have no errno
        raise BadImageError(
            f"cannot be read: {error.strerror}" if error.errno else f"damaged header: {error}"
        ) from error
    return height, width, length


def check(file: IO[bytes], length: int) -> tuple[int, int]:
    """Return (width, height) of an open image of `length` bytes. Raises what `read_header` raises, and OSError."""
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            size, kind = image.size, image.format
            # PIL has read up to the pixels; a thumbnail in front of them has an end marker, too, that must not count
            pixels = file.tell() if kind == "JPEG" else 0
            marker = _PNG_END if kind == "PNG" else _JPEG_END
            start = max(pixels, length - _TAIL)
            file.seek(start)
            if marker in file.read():
                return size
            # a camera may have appended something behind the image's end
            file.seek(pixels)
            if marker in file.read(start - pixels + len(marker) - 1):
                return size
    except UnidentifiedImageError as error:
        raise BadImageError("no readable JPEG or PNG header") from error
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(f"damaged header: {error}") from error
    raise BadImageError(f"truncated: no end-of-image marker in its {length} bytes")
