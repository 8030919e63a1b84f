"""What a study has found so far: its rows, whatever became of each, for fit, advice and report. Torch-free."""

from __future__ import annotations

from pathlib import Path

from hrdc_hpc.cluster.ends import read_ends
from hrdc_hpc.cluster.jobs import last_job
from hrdc_hpc.cluster.overview import OVER, Overview, survey
from hrdc_hpc.cluster.results import root_cause
from hrdc_hpc.record import measurement
from hrdc_hpc.record.measurement import Measurement
from hrdc_hpc.scaling.plan import Planned
from hrdc_hpc.scaling.rows import Row
from hrdc_hpc.scaling.study import Study

_MOST = 300
"""Characters of a reason."""


def rows(study: Study) -> list[Row]:
    """Return all rows in the study's order; asks SLURM once, if anything may still be there."""
    runs = {row.run: study.folder(row) for row in study.rows}
    there = [run for run in runs.values() if (run / "config.yaml").is_file()]
    seen = {Path(one.run).name: one for one in survey(there).runs} if there else {}
    found = {name: _found(run) for name, run in runs.items() if name in seen}
    return [_row(study, row, seen.get(row.run), *found.get(row.run, (None, ""))) for row in study.rows]


def _found(run: Path) -> tuple[Measurement | None, str]:
    """What a run measured; None with what is wrong with it, '' where it is only not there."""
    try:
        return measurement.read(run), ""
    except (OSError, ValueError, KeyError, TypeError) as error:  # of another version, or not whole
        return None, f"measurement cannot be read: {error}"


def _row(study: Study, row: Planned, seen: Overview | None, found: Measurement | None, trouble: str) -> Row:
    state, why = ("prepared", "not submitted") if seen is None else (str(seen.state), "")
    if seen is not None and state == "finished" and found is None:
        state, why = "failed", trouble or "finished without a measurement: it ran on code that does not measure"
    elif seen is not None and state != "finished":
        found, why = None, _why(Path(seen.run), seen)
    if row.run in study.refused and state not in ("finished", "queued", "requeued", "running"):
        state, why = "refused", study.refused[row.run]
    return Row(size=row.size, repeat=row.repeat, run=row.run, state=state, why=_one_line(why), found=found)


def _why(run: Path, seen: Overview) -> str:
    """Return the scheduler's word of a run that waits, the root cause of one that is over."""
    job = last_job(run) if seen.state in OVER else None
    cause = root_cause(read_ends(run, job)) if job else None
    if cause is None:
        return seen.word or (seen.last_end if seen.state in OVER else None) or ""
    who = "" if cause["rank"] is None else f"rank {cause['rank']} on {cause['host']}: "
    return f"{who}{cause['reason']}"


def _one_line(text: str) -> str:
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    line = line.replace(":; ", ": ")
    return line if len(line) <= _MOST else f"{line[: _MOST - 3]}..."
