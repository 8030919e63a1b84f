"""Classes by the square root of their images: between uniform and class-balanced. With replacement. Torch-free.

    p_c = sqrt(N_c) / sum_k sqrt(N_k)

Source: 'Decoupling Representation and Classifier for Long-Tailed Recognition' (arXiv 1910.09217), eq. 1 with q = 1/2.
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
    """None: the numbers of images decide."""


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

    roots_C = np.sqrt(counts_C)
    return ByClass(labels_N, counts_C, lambda _: roots_C)
