"""From instance-balanced in the first epoch to class-balanced in the last. With replacement. Torch-free.

    p_c = (1 - s) * N_c / N + s / C,    s = t / (T - 1)

t is the 0-based epoch, T optim.epochs; s is constant within an epoch, 0 where T is 1. A run that is given more epochs
has other orders from its second epoch on.

Source: 'Decoupling Representation and Classifier for Long-Tailed Recognition' (arXiv 1910.09217), eq. 2, which prints
t / T; the authors' code goes from 0 to 1 inclusive, as here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hrdc_hpc.config.types import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hrdc_hpc.data.order import Sampler


@options
class Options:
    """None: the epoch decides."""


def build(
    options: Options,  # noqa: ARG001 - a sampler's signature
    labels_N: NDArray[np.int64],
    counts_C: NDArray[np.int64],
    *,
    epochs: int,
) -> Sampler:
    """Return the sampler of a training set with these labels; `epochs` is T."""
    import numpy as np

    from hrdc_hpc.data.by_class import ByClass

    by_image_C = counts_C / counts_C.sum()
    by_class_C = (counts_C > 0) / np.count_nonzero(counts_C)

    def shares(epoch: int) -> NDArray[np.float64]:
        # measurements go on beyond the last epoch
        passed = min(1.0, epoch / (epochs - 1)) if epochs > 1 else 0.0
        return np.asarray((1 - passed) * by_image_C + passed * by_class_C)

    return ByClass(labels_N, counts_C, shares)
