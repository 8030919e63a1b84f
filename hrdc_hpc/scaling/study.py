"""The folder of a study: that of a sweep, with the rows and what was refused beside it. Torch-free.

STUDY/sweep.json     the runs that were ever handed over, and their arrays (cluster/sweep.py)
STUDY/study.json     all rows, also those that were refused; the config as it would be trained
STUDY/weak-2x4-r1/   an ordinary run folder: mode, nodes x ranks of each, repeat
STUDY/report/        what the report wrote
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hrdc_hpc.cluster import find_runs, sweep
from hrdc_hpc.config.compare import differences
from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record import measurement
from hrdc_hpc.record.files import write_json_durably
from hrdc_hpc.scaling.plan import Planned
from hrdc_hpc.scaling.rows import Size

_FILE = "study.json"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it is written down."""

    path: Path
    """Its folder."""
    rows: Sequence[Planned]
    config: str
    """YAML of the config as it would be trained: with its own batch, nodes and time limit."""
    command: Sequence[str]
    """The last one that measured."""
    wanted: float
    """Efficiency that more nodes must keep at least, 0 to 1."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Run: why the last command could not have it."""

    def folder(self, row: Planned) -> Path:
        """Return the run folder of a row; there is none if it was refused."""
        return self.path / row.run


def is_study(path: Path) -> bool:
    """Whether the folder is a study's."""
    return (path / _FILE).is_file()


def read(path: Path) -> Study:
    """Read a study. Raises ValueError if the folder is not one's, or of a version that this code does not know."""
    file = path / _FILE
    if not file.is_file():
        raise ValueError(f"{path} is not the folder of a scaling study (no {_FILE}){_hint(path)}")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not whole ({error}); remove it: the study's command writes it anew") from error
    if value.get("version") != _VERSION:
        raise ValueError(f"{file}: version {value.get('version')!r}; this code knows {_VERSION}: use that of the study")
    rows = [Planned(size=Size(**row["size"]), repeat=row["repeat"], run=row["run"]) for row in value["rows"]]
    return Study(
        path=path, rows=rows, config=value["config"], command=value["command"], wanted=value["wanted"],
        refused=value["refused"],
    )  # fmt: skip


def _hint(path: Path) -> str:
    there = find_runs.RUNS / path.name
    if is_study(there):
        return f". Did you mean {there}?"
    return ": start one with --cfg and --nodes" if not sweep.is_sweep(path) else ", but that of a sweep"


def write(study: Study) -> None:
    """Replace study.json. Only the holder of the launch writes here."""
    write_json_durably(
        study.path / _FILE,
        {
            "version": _VERSION, "command": list(study.command), "wanted": study.wanted,
            "rows": [asdict(row) for row in study.rows], "refused": dict(study.refused), "config": study.config,
        },
    )  # fmt: skip


def with_folder(path: Path) -> list[Planned]:
    """Return the rows that a study has already, but for those that were refused and never had a folder."""
    if not is_study(path):
        return []
    there = read(path)
    return [row for row in there.rows if there.folder(row).exists()]


def refuse_other_settings(path: Path, training: RunConfig) -> None:
    """Refuse to add to a study that has figures of a run that learns otherwise: both would not go together.

    Raises ValueError with the differences.
    """
    if not is_study(path) or training.checkpoint.accept_changes:
        return
    there = read(path)
    if not any(measurement.is_there(there.folder(row)) for row in there.rows):
        return
    found = differences(loads(there.config, place=f"{path}/{_FILE}"), training)
    if semantic := [f"  {change}" for change in found if not change.operational]:
        shown = "\n".join(semantic)
        raise ValueError(
            f"{path} has figures of other settings of what is learnt (there -> now):\n{shown}\nFigures of both would"
            " not go together: give this study another --name, or take back the change"
        )


def others(there: Study, rows: Sequence[Planned]) -> list[Planned]:
    """Return the rows that the study has beside `rows`: other sizes, modes and repeats."""
    asked = {_place(row) for row in rows}
    return [row for row in there.rows if _place(row) not in asked]


def _place(row: Planned) -> tuple[int, int, str, int]:
    return row.size.nodes, row.size.ranks_per_node, row.size.mode, row.repeat
