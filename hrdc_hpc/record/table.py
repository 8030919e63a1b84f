"""The table of accuracies that launch and evaluate end with. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

Accuracy = Mapping[str, Mapping[str, float | None]]

_COLUMNS = ("overall", "balanced", "many", "medium", "few")
_PLAIN_WIDTH = 100


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


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def print_table(table: Table) -> None:
    """Print to standard output: in colour on a terminal, plain and unwrapped elsewhere."""
    terminal = sys.stdout.isatty()
    Console(file=sys.stdout, width=None if terminal else _PLAIN_WIDTH).print(table)
