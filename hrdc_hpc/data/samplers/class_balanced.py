"""Every class equally often: of each position first a class, then one of its images. With replacement. Torch-free.

    p_c = 1 / C

An image of class c is drawn N / (C * N_c) times an epoch on average: on iNaturalist 2018 one of the most frequent class
about once in 19 epochs, one of the rarest 27 times an epoch.

Source: 'Decoupling Representation and Classifier for Long-Tailed Recognition' (arXiv 1910.09217), eq. 1 with q = 0.
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
    """None: every class has the same chance."""


def build(
    options: Options,  # noqa: ARG001 - a sampler's signature
    labels_N: NDArray[np.int64],
    counts_C: NDArray[np.int64],
    *,
    epochs: int,  # noqa: ARG001 - a sampler's signature
) -> Sampler:
    """Return the sampler of a training set with these labels."""
    import numpy as np

    from hrdc_hpc.data.by_class import ByClass

    same_C = np.ones(len(counts_C))
    return ByClass(labels_N, counts_C, lambda _: same_C)
