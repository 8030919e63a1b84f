"""The rarer a class, the more often: the sampler of BBN's re-balancing branch. With replacement. Torch-free.

    w_c = N_max / N_c,    p_c = w_c / sum_k w_k

Images of the rarest classes come very often: on iNaturalist 2018 either image of a class with two about 280 times an
epoch, one of the most frequent class once in 900 epochs. BBN gives this order to the second of its two branches; as the
only one of a run it overfits.

Source: 'BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed Visual Recognition' (arXiv 1912.02413),
section 4.2.
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

    weights_C = counts_C.max() / np.maximum(counts_C, 1)
    return ByClass(labels_N, counts_C, lambda _: weights_C)
