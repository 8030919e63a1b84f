"""Arrays in a file that is an .npz to everybody, and that can be mapped instead of read. Torch-free.

numpy's own .npz cannot be mapped: its members lie at any byte. Here each member's data begins at a multiple of 64, by
an extra field of padding in its header (the id is that of Android's zipalign, which does the same), nothing is
compressed, and times are fixed: the same arrays give the same bytes.
"""

from __future__ import annotations

import io
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_ALIGN = 64
_PADDING_ID = 0xD935
_LOCAL_HEADER = 30
"""Bytes of a member's header in front of its name (APPNOTE.TXT of PKWARE, 4.3.7)."""
_LENGTHS_AT = 26
"""Where in it the lengths of name and extra field are."""
_DATE = (1980, 1, 1, 0, 0, 0)
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError, ValueError, TypeError, KeyError,
    EOFError, OverflowError, MemoryError, RuntimeError,
)  # fmt: skip
"""What zipfile and numpy raise for bytes that are no such file."""


def write_arrays(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of numbers to an empty file."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as members:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _DATE)
            info.extra = _padding(file.tell() + _LOCAL_HEADER + len(info.filename))
            members.writestr(info, content.getbuffer())


def _padding(start: int) -> bytes:
    """Return an extra field that begins at `start` and ends at a multiple of 64."""
    size = -start % _ALIGN
    if size == 0:
        return b""
    size += _ALIGN if size < 4 else 0  # id and length take 4
    return struct.pack("<HH", _PADDING_ID, size - 4) + bytes(size - 4)


def map_arrays(path: Path, *, check: bool = False) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file of `write_arrays`, read-only; memory is taken where they are looked at.

    Processes of a node share that memory. `check` reads them all and compares their checksums. Raises OSError, and
    ValueError for a file that is none of these, or is damaged.
    """
    try:
        with path.open("rb") as file:
            # of bytes in memory, a wrong offset is no error of the disk
            with zipfile.ZipFile(io.BytesIO(file.read()) if check else file) as members:
                infos = members.infolist()
                if check and (damaged := members.testzip()) is not None:
                    raise ValueError(f"{damaged} differs from its checksum")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {info.filename.removesuffix(".npy"): _array(mapped, info.header_offset) for info in infos}
    except _DAMAGED as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def _array(mapped: mmap.mmap, header: int) -> NDArray[Any]:
    lengths = struct.unpack_from("<HH", mapped, header + _LENGTHS_AT)
    mapped.seek(header + _LOCAL_HEADER + sum(lengths))
    if np.lib.format.read_magic(mapped) != (1, 0):
        raise ValueError("an array in it is of another format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(mapped)
    if fortran or dtype.hasobject:
        raise ValueError("an array in it is of another layout")
    count = int(np.prod(shape))
    if count == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(mapped, dtype, count, mapped.tell()).reshape(shape)
