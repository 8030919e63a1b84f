"""The peak rate, multiplied by a factor at each milestone.

factor = f**n, n the milestones passed: those m with m <= t, t the progress in epochs since the start of the run, the
warm-up included. CIFAR-LT is trained with milestones 160 and 180 of 200 epochs and f = .01; BBN on iNaturalist 2018
with 120 and 160 of 180 epochs and f = .1.
"""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import AfterValidator, Field

from hrdc_hpc.config.types import PositiveInt, options
from hrdc_hpc.engine.schedules.base import Schedule


def _rising(milestones: tuple[int, ...]) -> tuple[int, ...]:
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise ValueError(f"got {list(milestones)}; each milestone must be later than the one before it")
    return milestones


@options
class Options:
    """When the rate falls, and by how much."""

    milestones: Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_rising)]
    """Epochs at whose start (counted from 0) the rate falls, in rising order; one past the run's end is not reached."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What the rate is multiplied by at each milestone."""


def build(options: Options) -> Schedule:
    """Return the schedule."""

    def step(progress_epochs: float, epochs: int) -> float:  # noqa: ARG001 - the contract of all schedules
        return float(options.factor ** sum(milestone <= progress_epochs for milestone in options.milestones))

    return step
