"""Half a cosine from the peak rate down.

factor = f + (1 - f) * (1 + cos(pi * t / T)) / 2, t the progress and T the length of the run in epochs, the warm-up
included in both; f the final factor. ImageNet-LT and iNaturalist 2018 are trained so.

Source: SGDR (arXiv 1608.03983), without restarts.
"""

from __future__ import annotations

import math

from hrdc_hpc.config.types import Fraction, options
from hrdc_hpc.engine.schedules.base import Schedule


@options
class Options:
    """Where it ends."""

    final_factor: Fraction = 0.0
    """Share of the peak rate at the end of the last epoch."""


def build(options: Options) -> Schedule:
    """Return the schedule."""

    def cosine(progress_epochs: float, epochs: int) -> float:
        final = options.final_factor
        return final + (1 - final) * (1 + math.cos(math.pi * progress_epochs / epochs)) / 2

    return cosine
