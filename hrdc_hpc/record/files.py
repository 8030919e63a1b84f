"""Files that are there whole after a power cut, or not at all. Torch-free.

The order is always: write beside the final name, flush and fsync the file, rename, fsync the folder.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""What the name of an unfinished file or folder begins with."""
_FSYNCS = 8
"""Files flushed at once: a file system writes several for little more than the time of one."""


def temporary_beside(path: Path) -> Path:
    """Return a name in the same folder that nobody else uses."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError of the block name `path` where it names none: what write(2) and fsync(2) raise does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text_durably(path: Path, text: str) -> None:
    """Put `text` (UTF-8) at `path`, replacing what is there; readers see the old or the new text, whole."""
    aside = temporary_beside(path)
    try:
        with naming(path), aside.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json_durably(path: Path, value: Any) -> None:
    """Put `value` at `path` as JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text_durably(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def fsync_folder(path: Path) -> None:
    """Return once the names in folder `path` are on disk, where the file system can say so."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no fsync of folders
            raise
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Return once folder `path` is on disk with all files and folders below it, links not followed.

    For a folder that is written beside its final name: call it before the rename, and fsync_folder(parent) after it.
    """
    with ThreadPoolExecutor(_FSYNCS) as pool:
        for folder, _, names in os.walk(path, topdown=False, onerror=_raise):
            files = [file for file in (Path(folder) / name for name in names) if not file.is_symlink()]
            list(pool.map(_fsync_file, files))
            fsync_folder(Path(folder))


def _raise(error: OSError) -> None:
    raise error


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_whole(descriptor: int, line: bytes) -> None:
    """Append a line, ending in a newline, to a file opened with O_APPEND; one write unless the disk is full.

    Raises OSError if it does not fit; what did is then a torn line, which readers skip.
    """
    written = os.write(descriptor, line)
    while written < len(line):
        written += os.write(descriptor, line[written:])


def append_durably(path: Path, line: bytes) -> None:
    """Append a line, ending in a newline, and return once it is on disk; a torn last line is closed first."""
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
    try:
        with naming(path):
            append_whole(descriptor, b"\n" + line if ends_torn(path) else line)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ends_torn(path: Path) -> bool:
    """Whether a file's last line has no newline: its writer was killed, or the disk was full."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return False
        file.seek(size - 1)
        return file.read(1) != b"\n"


def json_lines(content: bytes) -> Iterable[dict[str, Any]]:
    """Yield the objects of a file with one JSON object a line; torn lines are skipped."""
    for line in content.split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
