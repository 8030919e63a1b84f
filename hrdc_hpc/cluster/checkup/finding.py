"""One line of a check-up. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]
Role = Literal["login", "node", "machine"]
"""A login node submits and needs no torch; a compute node trains; a machine without SLURM does both."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what follows."""

    what: str
    level: Level
    found: str
    means: str = ""
    """What follows from it; empty if all is well."""
    mend: str = ""
    """What to do; empty if all is well."""


def ok(what: str, found: str) -> Finding:
    """Return that all is well."""
    return Finding(what, "ok", found)


def warning(what: str, found: str, means: str, mend: str) -> Finding:
    """Return what may hurt, but stops nothing."""
    return Finding(what, "warning", found, means, mend)


def problem(what: str, found: str, means: str, mend: str) -> Finding:
    """Return what will stop a run."""
    return Finding(what, "problem", found, means, mend)
