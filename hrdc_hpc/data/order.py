"""Which images a step trains on: pure functions over plain values. Torch-free.

The global batch of step s is the same on 1 rank and on 512. The whole state is one integer, the step.

Axis legend: N images of the training set, G images of the global batch, C classes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.data import philox


class Sampler(Protocol):
    """Decides the order of an epoch.

    A sampler file holds `Options` and `build(options, labels_N, counts_C, *, epochs)`; `epochs` are those of the run.
    """

    def order(self, seed: int, epoch: int, stream: str) -> NDArray[np.int64]:
        """Return image numbers [N] in the order of the epoch; a pure function of its arguments and the labels."""
        ...


def permutation(seed: int, epoch: int, stream: str, images: int) -> NDArray[np.int64]:
    """Return a uniform permutation [N]: the argsort of one 64-bit key per image, ties by image number.

    Image i takes words 0, 1 (i even) or 2, 3 (i odd) of the Philox block at position i // 2, purpose 'order'.
    """
    drawn = philox.words(seed, "order", epoch, np.arange((images + 1) // 2), 1, stream=stream).reshape(-1, 2)[:images]
    return keyed_argsort((drawn[:, 0] << np.uint64(32)) | drawn[:, 1])


def keyed_argsort(keys_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Argsort, ties by number; the fast unstable sort decides unless there is a tie."""
    order = np.argsort(keys_N)
    ordered = keys_N[order]
    if np.any(ordered[1:] == ordered[:-1]):
        order = np.argsort(keys_N, kind="stable")
    return order.astype(np.int64, copy=False)


def steps_per_epoch(images: int, global_batch: int) -> int:
    """Steps of an epoch; the N mod G last positions are dropped (other images every epoch). ValueError if N < G."""
    if images < global_batch:
        raise ValueError(
            f"optim.global_batch: {global_batch} is more than the {images} images of the training set."
            f" Set optim.global_batch to {images} or less, or use a larger data set."
        )
    return images // global_batch


def place_of_step(step: int, images: int, global_batch: int) -> tuple[int, int]:
    """Return (epoch, first position within it) of a 0-based step of the run."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(images, global_batch))
    return epoch, step_in_epoch * global_batch


def rank_slice(rank: int, world_size: int, global_batch: int) -> slice:
    """Part [rG/W, (r+1)G/W) of the global batch that belongs to a rank; sizes differ by one at most, and never by step.

    ValueError where a rank would be left without an image.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes: must be between 0 and {world_size - 1}")
    if global_batch < world_size:
        raise ValueError(
            f"optim.global_batch: {global_batch} images cannot be shared by {world_size} processes, each needs one."
            " Ask for fewer nodes or raise optim.global_batch."
        )
    return slice(rank * global_batch // world_size, (rank + 1) * global_batch // world_size)


def global_batch(
    sampler: Sampler, *, seed: int, stream: str, step: int, images: int, global_batch: int
) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Return (epoch, positions within it [G], image numbers [G]) of a 0-based step of the run."""
    epoch, first = place_of_step(step, images, global_batch)
    positions_G = np.arange(first, first + global_batch)
    return epoch, positions_G, sampler.order(seed, epoch, stream)[positions_G]
