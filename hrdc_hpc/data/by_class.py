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


class ByClass:
    """Draws N images an epoch, with replacement: at each position class c with probability p_c, then one of its N_c.

    p_c is the share of c over the sum of all shares; an image has the chance p_c / N_c.
    """

    def __init__(self, labels_N: NDArray[np.int64], counts_C: NDArray[np.int64], shares: Shares) -> None:
        """Take the label of every image and the images per class; classes without an image are never drawn."""
        self._by_class_N = np.argsort(labels_N, kind="stable").astype(np.int64, copy=False)
        self._counts_C, self._shares = counts_C, shares
        self._starts_C = np.cumsum(counts_C) - counts_C
        # two epochs: the prefetch thread is in the next one while the log still asks for this one
        self._cached = lru_cache(maxsize=2)(self._draw)

    def probabilities(self, epoch: int) -> NDArray[np.float64]:
        """Return p_c [C] of an epoch (0-based)."""
        shares_C = np.where(self._counts_C > 0, self._shares(epoch), 0.0)
        return np.asarray(shares_C / shares_C.sum(), np.float64)

    def _draw(self, seed: int, epoch: int, stream: str) -> NDArray[np.int64]:
        """Invert the distribution function at one uniform number of 53 bits a position.

        Position i takes words 0, 1 (i even) or 2, 3 (i odd) of the Philox block at i // 2, purpose 'by class'.
        """
        images, counts_C = len(self._by_class_N), self._counts_C
        blocks = np.arange((images + 1) // 2)
        drawn_N = philox.uniforms(seed, "by class", epoch, blocks, 2, stream=stream).reshape(-1)[:images]
        chances_C = self.probabilities(epoch)
        ends_C = np.cumsum(chances_C)
        drawn_N *= ends_C[-1]  # which rounding leaves beside 1
        drawable = np.flatnonzero(chances_C)
        classes_N = drawable[np.searchsorted(ends_C[drawable[:-1]], drawn_N, side="right")]
        # where in its class's interval the number fell says which of the images
        images_per_chance_C = np.divide(counts_C, chances_C, out=np.zeros(len(chances_C)), where=chances_C > 0)
        depth_N = (drawn_N - (ends_C - chances_C)[classes_N]) * images_per_chance_C[classes_N]
        places_N = np.clip(depth_N.astype(np.int64), 0, counts_C[classes_N] - 1)
        order_N: NDArray[np.int64] = self._by_class_N[self._starts_C[classes_N] + places_N]
        order_N.flags.writeable = False
        return order_N

    def order(self, seed: int, epoch: int, stream: str) -> NDArray[np.int64]:
        """Return image numbers [N] in the order of the epoch, read-only."""
        return self._cached(seed, epoch, stream)
