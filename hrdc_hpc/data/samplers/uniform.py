"""Every image once per epoch, in random order. Torch-free."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from hrdc_hpc.config.types import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hrdc_hpc.data.order import Sampler


@options
class Options:
    """None: every image has the same chance."""


class Uniform:
    """A new permutation of the images every epoch."""

    def __init__(self, images: int) -> None:
        """Take the number of images, N."""
        self._images = images
        # two epochs: the prefetch thread is in the next one while the log still asks for this one
        self._cached = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, seed: int, epoch: int, stream: str) -> NDArray[np.int64]:
        from hrdc_hpc.data.order import permutation

        order_N = permutation(seed, epoch, stream, self._images)
        order_N.flags.writeable = False
        return order_N

    def order(self, seed: int, epoch: int, stream: str) -> NDArray[np.int64]:
        """Return the epoch's permutation [N] of the image numbers, read-only."""
        return self._cached(seed, epoch, stream)


def build(
    options: Options,  # noqa: ARG001 - a sampler's signature
    labels_N: NDArray[np.int64],
    counts_C: NDArray[np.int64],  # noqa: ARG001 - a sampler's signature
    *,
    epochs: int | None = None,  # noqa: ARG001 - a sampler's signature
) -> Sampler:
    """Return the sampler of a training set with these labels."""
    return Uniform(len(labels_N))
