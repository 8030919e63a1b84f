"""The rows of a scaling study: one for each measured run, and what they come to for each size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hrdc_hpc.record.measurement import Measurement

Mode = Literal["weak", "strong"]
"""weak: the batch of a rank stays, the global batch grows; strong: the global batch stays."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured: so many ranks in a mode."""

    nodes: int
    ranks_per_node: int
    mode: Mode
    global_batch: int

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True, kw_only=True)
class Row:
    """One repeat of a size: what it found, or how it ended without finding anything."""

    size: Size
    repeat: int
    """From 1."""
    run: str
    """Name of its run folder in the study's."""
    state: str
    """As `status` has it: finished, queued, running, failed ...; 'refused' for what the scheduler did not take."""
    why: str = ""
    """Why it ended without finding anything, in one line."""
    found: Measurement | None = None

    @property
    def step_s(self) -> list[float]:
        """Times of all steps as in training, warm-up left out."""
        return [s for window in self.found.windows["as_is"] for s in window] if self.found else []

    @property
    def images_per_s(self) -> float | None:
        """Over all windows as in training."""
        times = self.step_s
        return self.size.global_batch * len(times) / sum(times) if times else None


def of_size(rows: Sequence[Row], size: Size) -> list[Row]:
    """Return the rows of a size that found something."""
    return [row for row in rows if row.size == size and row.found]


def median_rate(rows: Sequence[Row], size: Size) -> float | None:
    """Median over the repeats, images per second."""
    rates = [row.images_per_s for row in of_size(rows, size)]
    return statistics.median(rate for rate in rates if rate is not None) if rates else None
