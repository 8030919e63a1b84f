"""Accuracies of finished runs beside each other: `python -m benchmarks.accuracy NAME RUN... [--cfg CFG]`.

Runs whose names differ in a last `-s<seed>` alone are one row: mean over the seeds and each of them. Every prediction
of a method is a row of its own. Rows of two methods over the same seeds are paired, seed by seed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hrdc_hpc.config.load import loads
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics

GROUPS = ("overall", "many", "medium", "few")
COLUMNS = ("runs, prediction", "seeds", *(f"{group}, error %" for group in GROUPS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the runs and write the record; 78 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", help="of the record")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished run folders")
    parser.add_argument("--title", required=True)
    parser.add_argument("--note", action="append", default=[], help="a paragraph of the record; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("records"))
    options = parser.parse_args(arguments)
    try:
        report = collect(options.runs)
    except ValueError as error:
        sys.stderr.write(f"benchmarks.accuracy: {error}\n")
        return 78
    _write(options, report)
    return 0


def collect(runs: Sequence[Path]) -> dict[str, Any]:
    """Return plain values: of each group of runs the settings, and errors by prediction, group of classes and seed."""
    from hrdc_hpc.record.machine import describe

    groups: dict[str, Any] = {}
    for run in runs:
        folder = RunFolder(run)
        summary = folder.summary()
        if summary is None:
            raise ValueError(f"{run}: not a finished run; launch it again until it is")
        config = loads(folder.config.read_text(), str(folder.config))
        group = groups.setdefault(re.sub(r"-s\d+$", "", run.name), {"seeds": [], "seconds": [], "errors": {}})
        group["primary"] = summary["primary"]
        group["seeds"].append(config.seed)
        records = read_metrics(folder)
        group["seconds"].append(records[-1]["time"] - records[0]["time"])
        for prediction, accuracy in summary["accuracy"].items():
            errors = group["errors"].setdefault(prediction, {name: [] for name in GROUPS})
            for name in GROUPS:
                errors[name].append(100 * (1 - accuracy[name]))
    return {"machine": describe(), "arguments": ["NAME", "RUN..."], "groups": groups}


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table: mean of the seeds, and each."""
    table = []
    for name, group in report["groups"].items():
        for prediction, errors in group["errors"].items():
            mark = " *" if prediction == group["primary"] else ""
            told = (f"{mean(errors[g]):.2f} ({', '.join(f'{one:.2f}' for one in errors[g])})" for g in GROUPS)
            table.append((f"{name}, {prediction}{mark}", str(len(group["seeds"])), *told))
    return table


def pairs(report: dict[str, Any]) -> list[str]:
    """Return a sentence for each two groups with the same seeds: what the second's primary prediction gains."""
    sentences = []
    names = list(report["groups"])
    for one, other in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        groups = [report["groups"][name] for name in (one, other)]
        if groups[0]["seeds"] != groups[1]["seeds"] or len(groups[0]["seeds"]) < 2:
            continue
        told = []
        for group in GROUPS:
            first, second = (g["errors"][g["primary"]][group] for g in groups)
            gains = [b - a for a, b in zip(first, second, strict=True)]
            told.append(f"{group} {mean(gains):+.2f} points (standard deviation {stdev(gains):.2f})")
        sentences.append(f"Accuracy of {one} over {other}, seed by seed: {'; '.join(told)}.")
    return sentences


def _write(options: argparse.Namespace, report: dict[str, Any]) -> None:
    from benchmarks.report import write
    from hrdc_hpc.record.figures import show

    seconds = [s for group in report["groups"].values() for s in group["seconds"]]
    notes = [
        "Top-1 error of the last epoch on the balanced test set, percent: mean of the seeds (each seed); * = the"
        " prediction that the method reports.",
        *pairs(report),
        f"A run took {min(seconds):.0f} to {max(seconds):.0f} s from its first to its last record.",
        *options.note,
    ]
    show(options.title, COLUMNS, rows(report), "\n".join(notes))
    write(
        options.out, options.name, report, module="benchmarks.accuracy", title=options.title, columns=COLUMNS,
        rows=rows(report), notes=notes,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
