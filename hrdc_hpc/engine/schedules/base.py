"""What a learning-rate schedule is. Torch-free."""

from __future__ import annotations

from typing import Protocol


class Schedule(Protocol):
    """A pure function of progress; a schedule's file holds `Options` and `build(options) -> Schedule`."""

    def __call__(self, progress_epochs: float, epochs: int) -> float:
        """Return the share of the peak rate after `progress_epochs` (0 <= progress < epochs) of `epochs` epochs."""
        ...
