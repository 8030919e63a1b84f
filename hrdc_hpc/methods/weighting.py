"""How HRDC's two losses are weighed over training: alpha of a 0-based epoch T out of T_max. Pure functions, torch-free.

Source: 'Long-Tailed Recognition by Hierarchical Rebalancing Dual-Classifier', eq. 5, and the rivals of Table 6. T
is constant inside an epoch, so alpha starts at exactly 1 (but for `equal`).
"""

from __future__ import annotations

import math

_ROUNDING = 1e-9
"""Epochs; .55 * 100 is 55.00000000000001, which must not add an epoch."""


def parabola(epoch: int, epochs: int) -> float:
    """((T - T_max) / T_max)**2: from 1 down to 1 / T_max**2 in the last epoch; the paper's own."""
    return ((epoch - epochs) / epochs) ** 2


def equal() -> float:
    """.5 in every epoch."""
    return 0.5


def segmented(epoch: int, epochs: int, share: float) -> float:
    """1 in the epochs T < share * T_max, then 0; the paper's share is .6."""
    return 1.0 if epoch + _ROUNDING < share * epochs else 0.0


def cosine(epoch: int, epochs: int) -> float:
    """cos(pi * T / (2 * T_max)): from 1 down to nearly 0."""
    return math.cos(math.pi * epoch / (2 * epochs))
