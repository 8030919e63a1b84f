"""What an image file says of itself, and whether its end is there, read from its head and tail only. Torch-free."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png")
"""Endings of the files that are read, in any case."""
REFUSED = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".jxl")
"""Endings of images that are not read: an error rather than a silently smaller data set."""

_TAIL = 4096
_JPEG_BEGIN = b"\xff\xd8"
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits per sample that there are, by colour type."""
_NOT_SOF = (0xC4, 0xC8, 0xCC)
_PPM = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")
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


def size_in_memory(content: memoryview) -> tuple[int, int] | None:
    """Return (height, width) of an encoded image as the decoder finds them, or None where it would find none.

    DALI (2.4) crashes the process, rather than raise, where a header in a large batch cannot be read: its main thread
    leaves while its other threads are still at the batch. So what it reads of a header is read here before it does.
    """
    begin = bytes(content[:24])
    if begin.startswith(_JPEG_BEGIN):
        return _jpeg_size(content)
    if begin.startswith(_PNG_BEGIN):
        return _png_size(content)
    ppm = _PPM.match(begin)  # of a decoded cache
    return (int(ppm[2]), int(ppm[1])) if ppm else None


def _jpeg_size(content: memoryview) -> tuple[int, int] | None:
    """Go from marker to marker up to the pixels."""
    size, place, last = None, 2, len(content) - 4
    while place <= last and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA:
            return size
        length = content[place + 2] << 8 | content[place + 3]
        behind = place + 2 + length
        if marker == 0 or length < 2 or behind > last:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_SOF:
            if length < 8 or content[place + 4] > 16 or content[place + 9] not in (1, 3, 4):
                return None
            height, width = (content[p] << 8 | content[p + 1] for p in (place + 5, place + 7))
            size = (height, width) if height and width else None
        elif marker == 0xE1 and length < 8 and bytes(content[place + 4 : place + 8]) == b"Exif":
            return None
        place = behind
    return None


def _png_size(content: memoryview) -> tuple[int, int] | None:
    """Go from chunk to chunk up to the end."""
    if len(content) < 33:
        return None
    width, height = (int.from_bytes(content[p : p + 4], "big") for p in (16, 20))
    if content[24] not in _PNG_DEPTHS.get(content[25], ()) or not 0 < width < 2**31 or not 0 < height < 2**31:
        return None
    place = 33
    while place + 8 <= len(content):
        if bytes(content[place + 4 : place + 8]) == b"IEND":
            return height, width
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return None
