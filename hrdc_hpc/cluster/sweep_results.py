"""The results of a sweep in one table: mean and standard deviation over its seeds. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hrdc_hpc.cluster import sweep
from hrdc_hpc.record.folder import RunFolder

COLUMNS = ("balanced", "many", "medium", "few")
"""Top-1 accuracy of the reported prediction: mean over classes, and over the images of three groups of classes."""
_OVER = "seed"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The elements that differ in their seed alone."""

    values: Mapping[str, str]
    """Swept key: value; without the seed."""
    elements: Sequence[str]
    """Names of all of them."""
    finished: Sequence[str]
    """Names of those that have a result."""
    predictions: Sequence[str]
    """Which prediction they report, such as 'tail'; more than one where they differ."""
    mean: Mapping[str, float | None]
    """By column, as a share, 0 to 1; None without a result or for a group without classes."""
    deviation: Mapping[str, float | None]
    """Of the sample (n - 1), by column; None for fewer than two results."""


def result_rows(path: Path) -> list[Row]:
    """Return the results of a sweep so far, in the order of its grid, whatever part of it is finished.

    Raises ValueError if `path` is not the folder of a sweep.
    """
    there = sweep.read(path)
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for element in there.elements:
        rest = tuple((key, value) for key, value in element.values.items() if key != _OVER)
        groups.setdefault(rest, []).append(element.name)
    return [_row(path, dict(values), names) for values, names in groups.items()]


def _row(path: Path, values: Mapping[str, str], names: Sequence[str]) -> Row:
    summaries = {name: RunFolder(path / name).summary() for name in names}
    # a measured run is finished without a result of this kind
    found = {name: summary for name, summary in summaries.items() if summary and "accuracy" in summary}
    shares: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for summary in found.values():
        accuracy = summary["accuracy"][summary["primary"]]
        for column, values_so_far in shares.items():
            share = accuracy.get(column, accuracy["overall"] if column == "balanced" else None)
            if share is not None:
                values_so_far.append(share)
    return Row(
        values=values,
        elements=list(names),
        finished=list(found),
        predictions=list(dict.fromkeys(summary["primary"] for summary in found.values())),
        mean={column: statistics.fmean(some) if some else None for column, some in shares.items()},
        deviation={column: statistics.stdev(some) if len(some) > 1 else None for column, some in shares.items()},
    )


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows in percent, for a terminal."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    made.caption, made.caption_justify = "top-1 accuracy, %: mean ± standard deviation over n seeds", "left"
    head, body = _cells(rows)
    for number, name in enumerate(head):
        made.add_column(name, justify="right" if number >= len(head) - len(COLUMNS) - 1 else "left", overflow="fold")
    for cells in body:
        made.add_row(*(Text(cell) for cell in cells))
    return made


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows in percent, as a table of Markdown."""
    head, body = _cells(rows)
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n" for cells in lines)


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    keys = list(rows[0].values) if rows else []
    body = [
        [
            *row.values.values(),
            ", ".join(row.predictions) or "-",
            str(len(row.finished)) if len(row.finished) == len(row.elements) else _part(row),
            *(_figure(row.mean[column], row.deviation[column]) for column in COLUMNS),
        ]
        for row in rows
    ]
    return [*keys, "prediction", "n", *COLUMNS], body


def _part(row: Row) -> str:
    return f"{len(row.finished)} of {len(row.elements)}"


def _figure(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
