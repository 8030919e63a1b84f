"""The newest records of a run, read from the ends of its metrics files: quick, however long the run. Torch-free."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import attempt_files

_WINDOW = 4 << 20
"""Bytes at the end of a file that are looked through; only lines that are wanted are decoded."""
_HEAD = 1 << 16
_FILES = 50
"""Attempts that are looked back; more without a single evaluation are not worth the time."""
_KIND = re.compile(rb'"kind": "(\w+)"')
_WANTED = {
    "train": "train", "measure": "train", "eval": "evaluation", "checkpoint": "checkpoint", "staging": "staging",
}  # fmt: skip


@dataclass
class Newest:
    """Records, None where there is none."""

    attempt: int | None = None
    """Number of the newest attempt."""
    start: dict[str, Any] | None = None
    """What was settled at a start: steps, steps_per_epoch, world_size ..."""
    train: dict[str, Any] | None = None
    """Of a measured run the 'measure' record of its last window, with steps in all."""
    evaluation: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    staging: dict[str, Any] | None = None
    """How far rank 0's node is with its copy of the data set; not looked for where the others are found."""
    marks: list[dict[str, Any]] = field(default_factory=list)
    """Phase marks and 'save' records of the newest attempt in its file's last part, in order."""
    whole: bool = True
    """Whether `marks` begins with the attempt."""


def newest(folder: RunFolder) -> Newest:
    """Look from the newest attempt back until all is found."""
    found = Newest()
    files = attempt_files(folder)
    for number, path in list(reversed(files.items()))[:_FILES]:
        first = found.attempt is None
        if first:
            found.attempt = number
            found.whole = path.stat().st_size <= _WINDOW
        _look_through(path, found, marks=first)
        if found.start is None:
            found.start = next((_decode(line) for line in _head(path) if _kind(line) == "start"), None)
        if None not in (found.start, found.train, found.evaluation, found.checkpoint):
            break
    return found


def landmarks(path: Path) -> list[dict[str, Any]]:
    """Return a metrics file's records, of its 'train' records the last one only: most of a file are those."""
    found, last = [], b""
    for line in path.read_bytes().split(b"\n"):
        if _kind(line) != "train":
            found.append(_decode(line))
        elif line.endswith(b"}"):
            last = line
    found.append(_decode(last))
    return [record for record in found if record]


def _look_through(path: Path, found: Newest, *, marks: bool) -> None:
    for line in reversed(_tail(path)):
        kind = _kind(line)
        if kind in _WANTED and getattr(found, _WANTED[kind]) is None:
            setattr(found, _WANTED[kind], _decode(line))
        if marks and kind in ("phase", "save") and (record := _decode(line)):
            found.marks.insert(0, record)


def _tail(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _WINDOW))
        lines = file.read().split(b"\n")
    return lines[1:] if size > _WINDOW else lines


def _head(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file.read(_HEAD).split(b"\n")


def _kind(line: bytes) -> str:
    match = _KIND.search(line, 0, 100)
    return match[1].decode() if match else ""


def _decode(line: bytes) -> dict[str, Any] | None:
    """Read a record; None for a torn line."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
