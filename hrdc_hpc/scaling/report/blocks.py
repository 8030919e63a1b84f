"""What a report is written down as: headings, text, lists, tables, pictures; each form has a writer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


@dataclass(frozen=True)
class Picture:
    """A plot, in NAME.png."""

    name: str
    says: str
    """For those who do not see it, and under it."""


Block = Heading | Text | Command | Bullets | Grid | Picture
