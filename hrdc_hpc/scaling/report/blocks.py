"""What a report is written down as: headings, text, lists, tables, pictures; each form has a writer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Heading:
    """Of a section; the report's own title is level 1."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Command:
    """A line for a shell."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list; `warns`: what the reader must know first."""

    lines: Sequence[str]
    warns: bool = False


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset()
    """Columns of words, aligned left; the others hold figures."""
    failed: frozenset[int] = frozenset()
    """Rows without figures."""
    caption: str = ""


def without_empty(grid: Grid, empty: frozenset[str] = frozenset({"", "-"})) -> Grid:
    """Leave out the columns in which nothing is known of any row; a table without rows stays."""
    kept = [i for i in range(len(grid.columns)) if not grid.rows or any(row[i] not in empty for row in grid.rows)]
    return replace(
        grid,
        columns=[grid.columns[i] for i in kept],
        rows=[[row[i] for i in kept] for row in grid.rows],
        words=frozenset(at for at, i in enumerate(kept) if i in grid.words),
    )


@dataclass(frozen=True)
class Picture:
    """A plot, in NAME.png."""

    name: str
    says: str
    """For those who do not see it, and under it."""


Block = Heading | Text | Command | Bullets | Grid | Picture
