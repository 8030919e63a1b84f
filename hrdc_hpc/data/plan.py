"""What every step of training takes: image numbers, crops, flips. Pure functions of the step; torch-free.

Axis legend: N images of the training set, G images of the global batch, B images at some positions, C classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data import colour, crops, order


@dataclass(frozen=True, eq=False)
class Samples:
    """What was drawn for some positions of an epoch."""

    epoch: int
    positions_B: NDArray[np.int64]
    indices_B: NDArray[np.int64]
    anchors_B2: crops.Ints
    shapes_B2: crops.Ints
    flips_B: crops.Ints
    factors_B3: colour.Factors | None = None
    """Of brightness, contrast and saturation; None: colours stay as they are."""

    @property
    def table_B6(self) -> NDArray[np.int64]:
        """Image number, crop (top, left, height, width) and flip."""
        columns: list[NDArray[Any]] = [self.indices_B, self.anchors_B2, self.shapes_B2, self.flips_B]
        return np.column_stack(columns).astype(np.int64)


def samples_digest(samples_G6: NDArray[np.int64]) -> str:
    """Hash over the samples of a global batch, in the order of their positions (Samples.table_B6)."""
    return hashlib.blake2b(samples_G6.astype("<i8").tobytes(), digest_size=16).hexdigest()


class Plan:
    """The samples of every step of a run, whichever rank takes them."""

    def __init__(
        self,
        sizes_N2: crops.Ints,
        labels_N: NDArray[np.int64],
        data: Data,
        sampler: order.Sampler,
        *,
        classes: int,
        seed: int,
        stream: str,
        global_batch: int,
    ) -> None:
        """Draw nothing yet. `stream` names the sequence of images. ValueError: fewer images than global_batch."""
        self.steps_per_epoch = order.steps_per_epoch(len(labels_N), global_batch)
        """Steps of an epoch; what is left over is dropped, other images every epoch."""
        self._sizes_N2, self._labels_N, self._data, self._sampler = sizes_N2, labels_N, data, sampler
        self._classes, self._seed, self._stream, self._global = classes, seed, stream, global_batch

    def place(self, step: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """Return (epoch, positions within it [G], image numbers [G]) of a step."""
        return order.global_batch(
            self._sampler,
            seed=self._seed,
            stream=self._stream,
            step=step,
            images=len(self._labels_N),
            global_batch=self._global,
        )

    def samples(self, epoch: int, positions_B: NDArray[np.int64]) -> Samples:
        """Return what is drawn for these positions of an epoch."""
        indices_B = self._sampler.order(self._seed, epoch, self._stream)[positions_B]
        data = self._data
        place: dict[str, Any] = {
            "seed": self._seed,
            "stream": self._stream,
            "epoch": epoch,
            "positions_B": positions_B,
        }
        settings = place | {
            "sizes_B2": self._sizes_N2[indices_B],
            "flip": data.flip,
        }
        if data.crop == "padded":
            drawn = crops.padded_crops(**settings, padding=data.crop_padding, side=data.image_size)
        else:
            drawn = crops.training_crops(**settings, scale=data.crop_scale, ratio=data.crop_ratio)
        return Samples(epoch, positions_B, indices_B, *drawn, colour.draw_factors(data.colour_jitter, **place))

    def samples_hash(self, step: int) -> str:
        """Hash over image numbers, crops and flips of the step's global batch; the same on any number of ranks."""
        epoch, positions_G, _ = self.place(step)
        return samples_digest(self.samples(epoch, positions_G).table_B6)

    def counts(self, indices_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Images per class [C] among image numbers."""
        return np.bincount(self._labels_N[indices_B], minlength=self._classes).astype(np.float32)
