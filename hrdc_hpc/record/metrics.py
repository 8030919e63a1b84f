"""Metrics: append-only, one file per attempt, one JSON object a line. Torch-free.

A run that is killed goes back to its last checkpoint and writes the steps since then again, in the file of its next
attempt. Nothing is ever cut off or rewritten: what was computed in vain is part of the record. A reader of
`read_metrics` sees one record per kind and step, that of the latest attempt which reached the step. Steps which a
later attempt has not reached again yet therefore still show what the earlier one measured.

A number that is not finite (NaN, infinities) is written as null: JSON has no word for it.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from hrdc_hpc.record.files import append_whole, ends_torn, json_lines
from hrdc_hpc.record.folder import RunFolder

_NOT_BY_STEP = ("phase", "end")
"""Kinds that mark moments of an attempt, not results of a step."""


class MetricsWriter:
    """Appends to one attempt's file; threads may share it."""

    def __init__(self, folder: RunFolder, attempt_number: int) -> None:
        folder.metrics.mkdir(exist_ok=True)
        self.path = metrics_file(folder, attempt_number)
        self._attempt = attempt_number
        self._lock = threading.Lock()
        self._descriptor = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
        self._torn = ends_torn(self.path)

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Append one record: one line, in one write(2).

        Raises TypeError for a field that is not plain (numbers, strings, lists, dicts), OSError if the disk is full.
        """
        assert not fields.keys() & {"attempt", "time"}, "attempt and time are added here"
        line = encode({"kind": kind, "step": step, "attempt": self._attempt, "time": time.time(), **fields})
        with self._lock:
            torn, self._torn = self._torn, True
            append_whole(self._descriptor, b"\n" + line if torn else line)
            self._torn = False

    def sync(self) -> None:
        """Return once every record written is on disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def metrics_file(folder: RunFolder, attempt_number: int) -> Path:
    """Return the metrics file of an attempt."""
    return folder.metrics / f"attempt-{attempt_number}.jsonl"


def attempt_files(folder: RunFolder) -> dict[int, Path]:
    """Metrics files by attempt number, in order."""
    found = {int(m[1]): p for p in folder.metrics.glob("*") if (m := re.fullmatch(r"attempt-(\d+)\.jsonl", p.name))}
    return dict(sorted(found.items()))


def read_raw(folder: RunFolder | Path) -> list[dict[str, Any]]:
    """Return every record of every attempt, in the order they were written; torn lines are left out."""
    run = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    records = (record for path in attempt_files(run).values() for record in json_lines(path.read_bytes()))
    return [record for record in records if "kind" in record]


def read_metrics(folder: RunFolder | Path) -> list[dict[str, Any]]:
    """Return one record per (kind, step), the latest attempt's, sorted by step; no 'phase' and 'end' records.

    Records of one step stand in the order in which they were written.
    """
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for record in read_raw(folder):
        if record["kind"] not in _NOT_BY_STEP:
            key = (record["kind"], record["step"])
            latest.pop(key, None)  # so that the order is that of the records kept
            latest[key] = record
    return sorted(latest.values(), key=lambda record: int(record["step"]))


def encode(record: dict[str, Any]) -> bytes:
    """One line of JSON, with null for numbers that are not finite."""
    try:
        text = json.dumps(record, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(record), allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
