"""Tables of measured figures: on the console, and as Markdown for a record. Torch-free."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

_WIDTH = 120


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, padded so that it also reads as plain text."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    """Print a table to standard output: by rich, or as Markdown where it is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        sys.stdout.write(f"{title}\n\n{markdown(columns, rows)}\n\n{caption}\n")
        return
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in (0, len(columns) - 1) else "right")
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, markup=False).print(table)


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with about `digits` significant digits and no exponent, or '-'."""
    if value is None:
        return "-"
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def spread(low_high: Sequence[float], digits: int = 3) -> str:
    """Return '297-311'."""
    return "-".join(number(value, digits) for value in low_high)


def percent(share: float | None) -> str:
    """Return '12.3 %', or 'not known'."""
    return "not known" if share is None else f"{100 * share:.1f} %"
