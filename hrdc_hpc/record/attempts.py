"""Starts of a run: each gets the next number, a metrics file of its own and a line in attempts.jsonl. Torch-free."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrdc_hpc.record.files import append_durably, fsync_folder, json_lines
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import attempt_files, encode, metrics_file

NO_FAREWELL = "no farewell: killed or lost"
"""What is written of an attempt that did not say why it ended."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    number: int
    """From 0; never given twice."""
    previous_end: str | None
    """Why the attempt before ended; None for the first."""


def begin_attempt(folder: RunFolder, info: Mapping[str, Any]) -> Attempt:
    """Take the next number and write down who starts (`info`: job id, restart count, nodes, world size ...)."""
    folder.metrics.mkdir(exist_ok=True)
    files = attempt_files(folder)
    number = max(files, default=-1) + 1
    while not _take(metrics_file(folder, number)):
        number += 1
    fsync_folder(folder.metrics)
    before = metrics_file(folder, number - 1) if number else None
    attempt = Attempt(number, _end_of(before) if before else None)
    line = {
        "attempt": number,
        "time": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "info": dict(info),
        "previous_end": attempt.previous_end,
    }
    append_durably(folder.attempts, encode(line))
    fsync_folder(folder.path)
    return attempt


def read_attempts(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the attempts in order: attempt, time (Unix seconds), host, pid, info, previous_end.

    An attempt that was killed between taking its number and writing its line has its number only.
    """
    content = folder.attempts.read_bytes() if folder.attempts.exists() else b""
    told = {line["attempt"]: line for line in json_lines(content) if "attempt" in line}
    return [told.get(number, {"attempt": number}) for number in sorted(attempt_files(folder).keys() | told.keys())]


def _take(path: Path) -> bool:
    """Create a file; False if somebody else did."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def _end_of(metrics: Path) -> str:
    ends = [line for line in json_lines(metrics.read_bytes()) if line.get("kind") == "end"] if metrics.exists() else []
    return str(ends[-1].get("reason")) if ends else NO_FAREWELL
