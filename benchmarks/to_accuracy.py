"""A time-to-accuracy study as a record: `python -m benchmarks.to_accuracy NAME STUDY --title T [--metric few=20]`.

The study is made by `python -m hrdc_hpc.scaling --to-accuracy ... --batches ...`; this reads its folder, as
`python -m hrdc_hpc.scaling report` does, and writes NAME_<machine>_<date>.md and .json. No path gets into them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster import sweep
from hrdc_hpc.record.figures import markdown
from hrdc_hpc.record.machine import describe
from hrdc_hpc.scaling import accuracy, accuracy_report, accuracy_tables, curves
from hrdc_hpc.scaling.curves import Study, Wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the study and write the record; 78 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.to_accuracy", allow_abbrev=False)
    parser.add_argument("name", help="of the record")
    parser.add_argument("study", type=Path, metavar="STUDY", help="its folder")
    parser.add_argument("--title", required=True)
    parser.add_argument("--metric", action="append", metavar="METRIC[=VALUE]", help="(default: as the study was asked)")
    parser.add_argument("--note", action="append", default=[], help="a paragraph of the record; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("records"))
    options = parser.parse_args(arguments)
    try:
        studies = read(options.study, options.metric or ())
    except ValueError as error:
        sys.stderr.write(f"benchmarks.to_accuracy: {error}\n")
        return 78
    _write(options, studies)
    return 0


def read(folder: Path, metrics: Sequence[str]) -> list[Study]:
    """Read the study for each METRIC[=VALUE], at least once. Raises ValueError."""
    if not accuracy.is_study(folder):
        raise ValueError(f"{folder} is not the folder of a time-to-accuracy study")
    there = sweep.read(folder)
    wanted: Sequence[Wanted] = [curves.parse_wanted(text) for text in metrics] or [accuracy.wanted_of(folder)]
    return [curves.read(there, one) for one in wanted]


def command(study: Study) -> str:
    """The study's command, with DIR for each folder of the machine."""
    words = (f"{word.partition('=')[0]}=DIR" if "=/" in word else word for word in study.command[1:])
    return shlex.join(["python", *("DIR" if word.startswith("/") else word for word in words)])


def _write(options: argparse.Namespace, studies: Sequence[Study]) -> None:
    from benchmarks.report import write

    first, *others = studies
    report: dict[str, Any] = {
        "machine": describe(), "arguments": ["NAME", "STUDY"], "command": command(first),
        "readings": [{key: value for key, value in accuracy_report.plain(s).items() if key != "runs"} for s in studies],
        **accuracy_report.plain(first),
    }  # fmt: skip
    columns, rows = accuracy_tables.reach_table(first)
    notes = [f"The table above: to reach {accuracy_tables.what(first)}."]
    for study in others:
        notes += [f"To reach {accuracy_tables.what(study)}:", markdown(*accuracy_tables.reach_table(study))]
    notes += ["At the end of the schedule, top-1 accuracy in per cent:", markdown(*accuracy_tables.end_table(first))]
    notes += ["Overall accuracy after each epoch, per cent:", markdown(*_epochs(first))]
    notes += [f"The runs were made by\n`{command(first)}`", *options.note, *accuracy_report.notes(first)]
    write(
        options.out, options.name, report, module="benchmarks.to_accuracy", title=options.title, columns=columns,
        rows=rows, notes=notes,
    )  # fmt: skip


def _epochs(study: Study) -> accuracy_tables.Table:
    """A row for each run that was evaluated, a column for each epoch."""
    runs = [run for run in study.runs if run.points]
    epochs = sorted({point.epoch for run in runs for point in run.points})
    rows = []
    for run in runs:
        shares = {point.epoch: point.accuracy["overall"] for point in run.points}
        cells = ("-" if (share := shares.get(e)) is None else f"{100 * share:.1f}" for e in epochs)
        rows.append((f"batch {run.batch}, seed {run.seed}", *cells))
    return ("epoch", *map(str, epochs)), rows


if __name__ == "__main__":
    sys.exit(main())
