"""What losses divide logits by: pure arithmetic on class counts and levels, in float64. Torch-free.

Axis legend: C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.data.classes import FIRST, LAST, MEDIUM, ClassInfo

_NAMED = 5
"""Classes that an error lists before it only counts the rest."""


def require_images(classes: ClassInfo, loss: str) -> None:
    """Raise ValueError, naming the classes, if one has no training image: the factor of `loss` would be infinite."""
    empty = np.flatnonzero(classes.counts_C <= 0)
    if not len(empty):
        return
    listed = ", ".join(f"'{classes.names[c]}' (number {c})" for c in empty[:_NAMED])
    more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
    raise ValueError(
        f"loss {loss}: {len(empty)} of {classes.number} classes without training images: {listed}{more}. It divides by"
        " a class's number of images, so each class needs one at least: add images, leave the class out of the data"
        " set, or use loss cross_entropy"
    )


def cdt_factors(counts_C: NDArray[np.int64], gamma: float) -> NDArray[np.float64]:
    """Class-dependent temperatures a_c = (N_max / N_c)**gamma, float64 [C], at least 1; every count at least 1."""
    assert counts_C.min() > 0, "a class without images: call require_images first"
    # CDT (arXiv 2001.01385), eq. 7 of HRDC
    return np.asarray((counts_C.max() / counts_C.astype(np.float64)) ** gamma)


def level_means(values_C: NDArray[np.float64], levels_C: NDArray[np.int8]) -> NDArray[np.float64]:
    """Mean of the values in each of the levels head, medium, tail: float64 [3]; NaN for a level without classes."""
    means = np.full(3, np.nan)
    for level in (FIRST, MEDIUM, LAST):
        inside = levels_C == level
        if inside.any():
            means[level] = values_C[inside].mean()
    return means


def hierarchical_factors(counts_C: NDArray[np.int64], levels_C: NDArray[np.int8], gamma: float) -> NDArray[np.float64]:
    """CDT factors capped at the mean of their level, float64 [C]; every count at least 1.

    The means are those of the uncapped factors, and the cap is applied once (HRDC eq. 8). A level without classes caps
    nothing.
    """
    # a'_c = min(a_c, mean of a over the level of c), eq. 8 of HRDC
    uncapped_C = cdt_factors(counts_C, gamma)
    return np.minimum(uncapped_C, level_means(uncapped_C, levels_C)[levels_C])
