"""The tables that launch and evaluate end with. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Accuracy = Mapping[str, Mapping[str, float | None]]

_COLUMNS = ("overall", "balanced", "many", "medium", "few")
_PLAIN_WIDTH = 10_000
"""Columns where nobody looks at a terminal: none is cut or wrapped."""


def accuracy_table(accuracy: Accuracy, primary: str, title: str, ema: Accuracy | None = None) -> Table:
    """One row per prediction, top-1 accuracy in percent; the row that the run reports is marked with '*'.

    `ema` adds the rows of the averaged weights. '-' stands where the group has no class. The column 'balanced', the
    mean over classes, is left out where it equals 'overall': on a balanced test set.
    """
    rows = [*accuracy.values(), *(ema or {}).values()]
    balanced = all(row.get("balanced") is None or _percent(row["balanced"]) == _percent(row["overall"]) for row in rows)
    columns = [column for column in _COLUMNS if column != "balanced" or not balanced]
    table = Table(title=title.strip(), title_justify="left", caption="top-1 accuracy, %; * = the reported prediction")
    table.add_column("prediction", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for prefix, some in (("", accuracy), ("averaged weights: ", ema or {})):
        for name, row in some.items():
            mark = " *" if name == primary and not prefix else ""
            cells = [_percent(row.get(column)) for column in columns]
            table.add_row(f"{prefix}{name}{mark}", *cells, style="bold" if mark else "")
    return table


def prediction_table(
    rows: Iterable[tuple[str, Sequence[Mapping[str, Any]]]], primary: str, title: str
) -> Table:  # fmt: skip
    """Likeliest classes of each image with what every prediction gives them, in percent; the reported one first.

    `rows`: image and its classes, each with 'class' and 'probabilities' by prediction.
    """
    table = Table(title=title.strip(), title_justify="left", caption=f"probabilities, %, in the order of {primary} (*)")
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    names: list[str] = []
    for image, classes in rows:
        if not names:
            names = [primary, *(name for name in classes[0]["probabilities"] if name != primary)]
            for name in names:
                table.add_column(f"{name} *" if name == primary else name, justify="right", no_wrap=True)
        for place, likely in enumerate(classes):
            shares = [_percent(likely["probabilities"][name]) for name in names]
            # text, not markup: a name may have brackets in it, or bytes that are no UTF-8
            table.add_row(Text(_printable(image) if place == 0 else ""), Text(_printable(likely["class"])), *shares)
        table.add_section()
    return table


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def print_table(table: Table) -> None:
    """Print to standard output: in colour on a terminal, plain and unwrapped elsewhere."""
    terminal = sys.stdout.isatty()
    Console(file=sys.stdout, width=None if terminal else _PLAIN_WIDTH).print(table)
