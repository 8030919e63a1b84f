"""health.jsonl: what was seen to be wrong with nodes, one line each, for whoever places the next attempt. Torch-free.

    {time, host, node, job_id, restart_count, kind, what}

`kind` is 'check' (failed the health check before the first step), 'hung' (did not arrive where its peers waited) or
'nonfinite' (a loss or gradient that was not finite there, and was when the steps were done again). `host` and `node`
(the scheduler's name, empty where there is no scheduler) are those of the suspect, and empty if nobody can be named.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hrdc_hpc.record.files import append_durably, json_lines
from hrdc_hpc.record.folder import RunFolder

log = logging.getLogger(__name__)

Kind = Literal["check", "hung", "nonfinite"]


class BadNode(RuntimeError):
    """A node failed its health check: start elsewhere."""


@dataclass(frozen=True)
class Home:
    """Where a rank runs."""

    host: str
    node: str = ""
    """The scheduler's name of it."""

    def __str__(self) -> str:
        return self.node or self.host or "unknown"


NOWHERE = Home("")
"""Of a fault whose place is not known."""


def note(folder: RunFolder, job: Mapping[str, Any], kind: Kind, what: str, home: Home) -> None:
    """Append a line about `home`; what cannot be written is logged, for the fault that it tells of matters more."""
    entry = {
        "time": time.time(), "host": home.host, "node": home.node, "job_id": str(job.get("job_id", "")),
        "restart_count": int(job.get("restart_count", 0)), "kind": kind, "what": what,
    }  # fmt: skip
    try:
        append_durably(_path(folder), (json.dumps(entry) + "\n").encode())
    except OSError as error:
        log.warning("cannot write %s: %s; it would have said: %s", _path(folder), error, entry)


def read(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the lines, oldest first; torn ones are left out."""
    try:
        content = _path(folder).read_bytes()
    except FileNotFoundError:
        return []
    return [line for line in json_lines(content) if "kind" in line]


def _path(folder: RunFolder) -> Path:
    return folder.path / "health.jsonl"
