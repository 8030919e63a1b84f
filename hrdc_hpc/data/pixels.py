"""Small images of one size, whole in memory as uint8. Torch-free.

Axis legend: N images, C classes, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hrdc_hpc.data.index import BadFile


@dataclass(frozen=True, eq=False)
class PixelArray:
    """The images of one split. What training asks of a split is the same as of an `ImageIndex`."""

    root: Path
    """Where they were read, for messages."""
    split: str
    class_names: tuple[str, ...]
    images_NHWC: NDArray[np.uint8]
    """RGB."""
    labels_N: NDArray[np.int64]
    fingerprint: str = field(init=False)
    """Hash over class names, labels and pixels; the same on any machine."""
    skipped: tuple[BadFile, ...] = ()
    """Nothing is ever left out."""

    def __post_init__(self) -> None:
        """Compute the fingerprint."""
        digest = hashlib.blake2b("\0".join(self.class_names).encode(), digest_size=16)
        digest.update(repr(self.images_NHWC.shape).encode())
        digest.update(np.ascontiguousarray(self.labels_N, "<i8").tobytes())
        digest.update(np.ascontiguousarray(self.images_NHWC).tobytes())
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def counts_C(self) -> NDArray[np.int64]:
        """Images per class."""
        return np.bincount(self.labels_N, minlength=len(self.class_names)).astype(np.int64, copy=False)

    @property
    def sizes_N2(self) -> NDArray[np.int32]:
        """Height and width in pixels."""
        return np.broadcast_to(np.array(self.images_NHWC.shape[1:3], np.int32), (len(self), 2))

    def subset(self, numbers: Sequence[int] | NDArray[np.int64], split: str) -> PixelArray:
        """Return these images, in this order, as a split of their own."""
        return PixelArray(self.root, split, self.class_names, self.images_NHWC[numbers], self.labels_N[numbers])
