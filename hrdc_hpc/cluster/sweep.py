"""The folder of a sweep: its grid and elements, the code that they share, the arrays that were submitted. Torch-free.

    SWEEP/sweep.json      grid, elements in order, command, arrays
    SWEEP/code/           one snapshot of the code; every element's `code` is a link to it
    SWEEP/arrays/1/       links to the run folders by array index (array.py), and the script
    SWEEP/ELEMENT/        an ordinary run folder, for every tool

A link, not hard links: one call for each element instead of one for each file, also where a file system has no hard
links, and the nodes read (and cache) each file once for all elements.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster import snapshot
from hrdc_hpc.cluster.runs import Refused
from hrdc_hpc.config.grid import Element, Grid
from hrdc_hpc.record.files import fsync_folder, temporary_beside, write_json_durably

_FILE = "sweep.json"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as it is written down."""

    path: Path
    """Its folder."""
    grid: Grid
    elements: Sequence[Element]
    """In order; arrays take theirs in this order."""
    cfg: str
    """The config, as --cfg named it."""
    command: Sequence[str]
    """That made the sweep."""
    arrays: Sequence[Mapping[str, Any]] = field(default=())
    """Submitted ones: time, number (of the folder of links), job_id, elements (names, by array index)."""

    @property
    def code(self) -> Path:
        """Folder of the shared snapshot."""
        return self.path / "code"

    def run(self, element: Element) -> Path:
        """Return the run folder of an element."""
        return self.path / element.name


def is_sweep(path: Path) -> bool:
    """Whether the folder is a sweep's."""
    return (path / _FILE).is_file()


def read(path: Path) -> Sweep:
    """Read a sweep. Raises ValueError if the folder is not one's, or of a version that this code does not know."""
    file = path / _FILE
    if not file.is_file():
        raise ValueError(f"{path} is not the folder of a sweep (no {_FILE})")
    value = json.loads(file.read_text(encoding="utf-8"))
    if value.get("version") != _VERSION:
        raise ValueError(f"{file}: version {value.get('version')!r}; this code knows {_VERSION}: use that of the sweep")
    return Sweep(
        path=path, grid=value["grid"], elements=[Element(**element) for element in value["elements"]],
        cfg=value["cfg"], command=value["command"], arrays=value["arrays"],
    )  # fmt: skip


def make(sweep: Sweep) -> bool:
    """Make the folder, whole, with the snapshot; False if a sweep is there already. Raises Refused, OSError."""
    if is_sweep(sweep.path):
        return False
    if os.path.lexists(sweep.path):
        raise Refused(f"{sweep.path} exists, but is not the folder of a sweep (no {_FILE}); choose another --name")
    sweep.path.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary_beside(sweep.path)
    try:
        aside.mkdir()
        snapshot.take(aside / "code")
        write(replace(sweep, path=aside))
        aside.rename(sweep.path)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and is_sweep(sweep.path):  # another launch was faster
            return False
        raise
    fsync_folder(sweep.path.parent)
    return True


def write(sweep: Sweep) -> None:
    """Replace sweep.json. Only the holder of the launch writes here."""
    elements = [{"name": element.name, "values": dict(element.values)} for element in sweep.elements]
    write_json_durably(
        sweep.path / _FILE,
        {
            "version": _VERSION, "cfg": sweep.cfg, "command": list(sweep.command), "grid": dict(sweep.grid),
            "elements": elements, "arrays": list(sweep.arrays),
        },
    )  # fmt: skip


def extended(there: Sweep, asked: Sweep) -> Sweep:
    """Return the sweep with what is asked for beside what it has. Raises Refused where the same keys are not swept."""
    if list(there.grid) != list(asked.grid):
        raise Refused(
            f"{there.path} sweeps over {', '.join(there.grid)}, not {', '.join(asked.grid)}; give this sweep another"
            " --name. Nothing was touched."
        )
    grid = {key: list(dict.fromkeys([*there.grid[key], *asked.grid[key]])) for key in there.grid}
    known = {element.name for element in there.elements}
    return replace(there, grid=grid, elements=[*there.elements, *(e for e in asked.elements if e.name not in known)])


def with_array(sweep: Sweep, number: int, job_id: str, names: Sequence[str]) -> Sweep:
    """Return the sweep with one array more. `names`: of its elements, by array index."""
    entry = {"time": time.time(), "number": number, "job_id": job_id, "elements": list(names)}
    return replace(sweep, arrays=[*sweep.arrays, entry])
