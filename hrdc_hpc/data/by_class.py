"""Orders that draw a class first and then one of its images: what the samplers that rebalance share. Torch-free.

Axis legend: N images of the training set, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.data import philox

Shares = Callable[[int], NDArray[np.float64]]
"""From the epoch to how often each class is drawn, in any unit, [C]."""

_BUCKETS = 1 << 16


def first_above(ends_C: NDArray[np.float64], drawn_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each number in [0, 1) the first place of the rising ends, of which the last is 1, that is above it.

    What np.searchsorted(side='right') finds by halving, which is slow for half a million numbers in no order. Here a
    table says where the numbers of each of 65,536 equal parts begin to look, and most have arrived there.
    """
    table = np.searchsorted(ends_C, np.arange(_BUCKETS) / _BUCKETS, side="right")
    place_N = table[(drawn_N * _BUCKETS).astype(np.int64)]  # exact, as the number of parts is a power of two
    behind = np.flatnonzero(ends_C[place_N] <= drawn_N)
    while len(behind):
        place_N[behind] += 1
        behind = behind[ends_C[place_N[behind]] <= drawn_N[behind]]
    return place_N.astype(np.int64, copy=False)


class ByClass:
    """Draws N images an epoch, with replacement: at each position class c with probability p_c, then one of its N_c.

    p_c is the share of c over the sum of all shares; an image has the chance p_c / N_c.
    """

    def __init__(self, labels_N: NDArray[np.int64], counts_C: NDArray[np.int64], shares: Shares) -> None:
        """Take the label of every image and the images per class; classes without an image are never drawn."""
        self._by_class_N = np.argsort(labels_N, kind="stable").astype(np.int64, copy=False)
        self._counts_C, self._shares = counts_C, shares
        self._first_C = np.cumsum(counts_C) - counts_C
        # two epochs: the prefetch thread is in the next one while the log still asks for this one
        self._cached = lru_cache(maxsize=2)(self._draw)

    def probabilities(self, epoch: int) -> NDArray[np.float64]:
        """Return p_c [C] of an epoch (0-based)."""
        shares_C = self._shares_of(epoch)
        return np.asarray(shares_C / shares_C.sum(), np.float64)

    def _shares_of(self, epoch: int) -> NDArray[np.float64]:
        return np.where(self._counts_C > 0, self._shares(epoch), 0.0)

    def _draw(self, seed: int, epoch: int, stream: str) -> NDArray[np.int64]:
        """Invert the distribution function at one uniform number of 53 bits a position.

        Position i takes words 0, 1 (i even) or 2, 3 (i odd) of the Philox block at i // 2, purpose 'by class'.
        """
        images = len(self._by_class_N)
        blocks = np.arange((images + 1) // 2)
        drawn_N = philox.uniforms(seed, "by class", epoch, blocks, 2, stream=stream).reshape(-1)[:images]
        ends_C = np.cumsum(self._shares_of(epoch))  # one after another: the same on any machine, as a sum need not be
        ends_C /= ends_C[-1]
        classes_N = first_above(ends_C, drawn_N)
        # where in its class's interval the number fell says which of the images
        starts_C = np.concatenate([[0.0], ends_C[:-1]])
        widths_C = ends_C - starts_C
        images_per_width_C = np.divide(self._counts_C, widths_C, out=np.zeros(len(widths_C)), where=widths_C > 0)
        places_N = ((drawn_N - starts_C[classes_N]) * images_per_width_C[classes_N]).astype(np.int64)
        np.minimum(places_N, self._counts_C[classes_N] - 1, out=places_N)  # rounding
        order_N: NDArray[np.int64] = self._by_class_N[self._first_C[classes_N] + places_N]
        order_N.flags.writeable = False
        return order_N

    def order(self, seed: int, epoch: int, stream: str) -> NDArray[np.int64]:
        """Return image numbers [N] in the order of the epoch, read-only."""
        return self._cached(seed, epoch, stream)
