"""A part of the training images to choose settings on, so that nothing is chosen on the test split. Torch-free.

Axis legend: N images, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.config.schema import Holdout
from hrdc_hpc.data import philox
from hrdc_hpc.data.index import ImageIndex
from hrdc_hpc.data.order import keyed_argsort
from hrdc_hpc.data.pixels import PixelArray

Images = ImageIndex | PixelArray


def held_out(labels_N: NDArray[np.int64], classes: int, holdout: Holdout) -> NDArray[np.bool_]:
    """Which images are held out: of each class floor(share * N_c), at least one where the class has two, bool [N].

    A pure function of labels and holdout: the images of a class are ordered by one random key each (Philox, purpose
    'holdout').
    """
    keys_N = philox.words(holdout.seed, "holdout", 0, np.arange(len(labels_N)), 1)[:, :2]
    shuffled = keyed_argsort((keys_N[:, 0] << np.uint64(32)) | keys_N[:, 1])
    chosen_N = np.zeros(len(labels_N), np.bool_)
    by_class = shuffled[np.argsort(labels_N[shuffled], kind="stable")]
    counts_C = np.bincount(labels_N, minlength=classes)
    # the small addition: .1 * 30 must give 3
    wanted_C = np.floor(holdout.share * counts_C * (1 + 1e-12)).astype(np.int64)
    wanted_C = np.clip(wanted_C, np.where(counts_C > 1, 1, 0), np.maximum(counts_C - 1, 0))
    starts_C = np.cumsum(counts_C) - counts_C
    for start, wanted in zip(starts_C, wanted_C, strict=True):
        chosen_N[by_class[start : start + wanted]] = True
    return chosen_N


def split_off(train: Images, holdout: Holdout) -> tuple[Images, Images]:
    """Return what is trained on and what is held out."""
    held_N = held_out(train.labels_N, len(train.class_names), holdout)
    return train.subset(np.flatnonzero(~held_N), train.split), train.subset(np.flatnonzero(held_N), "holdout")
