"""CIFAR-10, long-tailed: 32 x 32 pixels, 10 classes, the whole test split (10,000 images) for evaluation. Torch-free.

Reads the standard python files below `root` (cifar-10-batches-py/); nothing is downloaded. Training images of class k:
5000 * imbalance**(-k / 9), truncated: 12,406, 13,996 and 20,431 in all for 100, 50 and 10. The
images lie on the device.

Source: 'Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss' (arXiv 1906.07413), whose profile all
later papers use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hrdc_hpc.config.types import OPERATIONAL, options
from hrdc_hpc.data import cifar

if TYPE_CHECKING:
    from hrdc_hpc.data.index import OnBad, Split
    from hrdc_hpc.data.pixels import PixelArray

SIDE = cifar.SIDE
"""Pixels of every image, as it lies in memory."""


@options
class Options:
    """Where the files are, and how long-tailed the training split is made."""

    root: Annotated[Path, OPERATIONAL] = Path("data/cifar10")
    """Folder that holds the folder of the python files."""
    imbalance: Annotated[float, Field(ge=1)] = 100.0
    """Images of the most frequent class over images of the rarest; 1: as it is."""


def known(options: Options) -> tuple[int, int]:
    """Classes and training images, without its files."""
    counts = cifar.profile(cifar.CIFAR10, options.imbalance)
    return len(counts), sum(counts)


def preflight(options: Options) -> None:
    """ValueError if the files are plainly not there."""
    cifar.preflight(cifar.CIFAR10, options.root, options.imbalance)


def open(  # noqa: A001 - a data set's contract
    options: Options,
    split: Split,
    on_bad_image: OnBad,  # noqa: ARG001 - the files are whole or refused
    *,
    trust_cache: bool = False,  # noqa: ARG001 - nothing is cached
) -> PixelArray:
    """Return a split. ValueError for files that are missing, damaged or other than the published ones."""
    return cifar.open_cifar(cifar.CIFAR10, options.root, options.imbalance, split)
