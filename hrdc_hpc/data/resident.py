"""Batches of small images that lie on the device, whole. Compute nodes only; needs no DALI.

The host makes the order and the draws of a whole epoch at once and copies them to the device as one table; a step only
takes its rows. Cropping is an index into a view of the bordered images on the device: nothing is decoded or
interpolated, and the result is a pure function of the draws.

Axis legend: N images, B images of this rank's batch, G of the global batch, C classes, S side, P border (crop_padding).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data import order
from hrdc_hpc.data.batch import DECODED, Batch, Pixels, blank_batch, decoded, to_device
from hrdc_hpc.data.jitter import FACTORS, jittered
from hrdc_hpc.data.pixels import PixelArray
from hrdc_hpc.data.plan import Plan, Samples
from hrdc_hpc.data.preflight import refuse_other_sizes, refuse_resized_crops

SAMPLES = "samples"
_INDEX, _TOP, _LEFT, _FLIP, _LABEL = range(5)


class Canvas:
    """The images on the device with a black border; `render` cuts crops out of it."""

    def __init__(self, images_NHWC: NDArray[np.uint8], padding: int, device: torch.device) -> None:
        """Copy the images to the device."""
        side = images_NHWC.shape[1]
        bordered = functional.pad(torch.from_numpy(images_NHWC).to(device), (0, 0, padding, padding, padding, padding))
        # every crop of every image as a view: [N, 2P + 1, 2P + 1, S, S, 3]
        self._crops = bordered.unfold(1, side, 1).unfold(2, side, 1).permute(0, 1, 2, 4, 5, 3)

    def render(self, pixels: Pixels) -> Tensor:
        """Return uint8 [B, S, S, 3] for samples, int64 [B, 5]: image number, top, left, flip, label."""
        index_B, top_B, left_B, flip_B, _ = pixels[SAMPLES].unbind(1)
        images_BHWC = self._crops[index_B, top_B, left_B]
        return torch.where(flip_B.bool()[:, None, None, None], images_BHWC.flip(2), images_BHWC)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """What one epoch takes, made once."""

    samples: Samples
    table_B6: NDArray[np.int64]
    """Samples.table_B6 of all positions."""
    rows_B5: Tensor
    """The columns that the device needs, of all positions, there."""
    counts_SC: Tensor
    """Images per class of the global batch of each step of the epoch, float32 on the device."""
    factors_B3: Tensor | None
    """Colour factors of all positions, on the device; None: no jitter."""

    def pixels(self, mine: slice) -> Pixels:
        """What the images at some positions are made of."""
        rows = {SAMPLES: self.rows_B5[mine]}
        return rows if self.factors_B3 is None else {**rows, FACTORS: self.factors_B3[mine]}


class _Resident:
    """What both loaders share: nothing to close, nothing to skip."""

    def __init__(self) -> None:
        self.skipped: Mapping[str, int] = {}
        self.reasons: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: there are no threads."""


class ResidentTrainLoader(_Resident):
    """This rank's part of every step's global batch; the same samples as an encoded data set's loader would take."""

    def __init__(
        self,
        images: PixelArray,
        data: Data,
        sampler: order.Sampler,
        *,
        classes: int,
        seed: int,
        stream: str,
        global_batch: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        """Copy the images to the device. ValueError: fewer images than global_batch, sizes or crops that do not fit."""
        super().__init__()
        refuse_other_sizes(data, images.images_NHWC.shape[1:3], str(images.root))
        refuse_resized_crops(data, str(images.root))
        self._plan = Plan(
            images.sizes_N2,
            images.labels_N,
            data,
            sampler,
            classes=classes,
            seed=seed,
            stream=stream,
            global_batch=global_batch,
        )
        self.steps_per_epoch = self._plan.steps_per_epoch
        """Steps of an epoch; what is left over is dropped, other images every epoch."""
        self._slice = order.rank_slice(rank, world_size, global_batch)
        self._canvas = Canvas(images.images_NHWC, data.crop_padding, device)
        self._jitters = data.colour_jitter is not None
        self._render = jittered(self._canvas.render) if self._jitters else self._canvas.render
        self._labels_N, self._classes, self._global, self._device = images.labels_N, classes, global_batch, device
        self._valid_B = torch.ones(self._slice.stop - self._slice.start, device=device)
        # two: the log asks for the epoch that has just ended
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield this rank's batches of steps first_step ... last_step - 1 of the run (0-based, over all epochs)."""
        return (self._batch(step) for step in range(first_step, last_step))

    def samples_hash(self, step: int) -> str:
        """Hash over image numbers, crops and flips of the step's global batch; the same on any number of ranks."""
        return self._plan.samples_hash(step)

    def blank(self) -> Batch:
        """Return the first image again and again, in the place of this rank's images."""
        rows_B5 = torch.zeros(len(self._valid_B), 5, dtype=torch.int64, device=self._device)
        pixels = {SAMPLES: rows_B5}
        if self._jitters:
            pixels[FACTORS] = torch.ones(len(self._valid_B), 3, device=self._device)
        batch = blank_batch(pixels, self._render, self._slice, self._classes, self._device)
        # a column of the samples, as in every batch: for other strides the compiler would make another program
        return replace(batch, labels_B=rows_B5[:, _LABEL])

    def _make_epoch(self, epoch: int) -> _Epoch:
        samples = self._plan.samples(epoch, np.arange(self.steps_per_epoch * self._global))
        labels_B = self._labels_N[samples.indices_B]
        columns: list[NDArray[Any]] = [samples.indices_B, samples.anchors_B2, samples.flips_B, labels_B]
        counts_SC = np.zeros((self.steps_per_epoch, self._classes), np.float32)
        np.add.at(counts_SC, (samples.positions_B // self._global, labels_B), 1)
        rows_B5 = np.column_stack(columns).astype(np.int64)
        factors_B3 = samples.factors_B3
        return _Epoch(
            samples,
            samples.table_B6,
            to_device(rows_B5, self._device),
            to_device(counts_SC, self._device),
            None if factors_B3 is None else to_device(factors_B3, self._device),
        )

    def _batch(self, step: int) -> Batch:
        number, step_in_epoch = divmod(step, self.steps_per_epoch)
        epoch = self._epoch(number)
        start = step_in_epoch * self._global
        mine = slice(start + self._slice.start, start + self._slice.stop)
        rows_B5 = epoch.rows_B5[mine]
        return Batch(
            pixels=epoch.pixels(mine),
            render=self._render,
            labels_B=rows_B5[:, _LABEL],
            valid_B=self._valid_B,
            positions_B=epoch.samples.positions_B[mine],
            indices_B=epoch.samples.indices_B[mine],
            class_counts_C=epoch.counts_SC[step_in_epoch],
            samples_B6=epoch.table_B6[mine],
            step=step,
            epoch=number,
        )


class ResidentEvalLoader(_Resident):
    """Every image exactly once over all ranks, as it is.

    Batch b, images [b * batch_size, (b + 1) * batch_size), goes to rank b % world_size, as with encoded images.
    """

    def __init__(
        self, images: PixelArray, data: Data, *, batch_size: int, rank: int, world_size: int, device: torch.device
    ) -> None:
        """Copy the images to the device. ValueError: sizes that do not fit."""
        super().__init__()
        refuse_other_sizes(data, images.images_NHWC.shape[1:3], str(images.root))
        number = -(-len(images) // batch_size)
        self._numbers, self._size, self._device = range(rank, number, world_size), batch_size, device
        self.rounds = -(-number // world_size)
        """Batches of the rank that has most: all ranks can meet this often."""
        self._classes = len(images.class_names)
        self._labels_N = images.labels_N
        self._images_NHWC = torch.from_numpy(images.images_NHWC).to(device)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._numbers)

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's batches."""
        return (self._batch(number) for number in self._numbers)

    def _batch(self, number: int) -> Batch:
        images = len(self._labels_N)
        indices_B = np.arange(number * self._size, (number + 1) * self._size)
        indices_B[indices_B >= images] = -1
        there_B = indices_B >= 0
        first = number * self._size
        block = self._images_NHWC[first : first + self._size]  # padded with black, so that all batches have one shape
        block = functional.pad(block, (0, 0, 0, 0, 0, 0, 0, self._size - len(block)))

        def on_device(array: NDArray[Any]) -> Tensor:
            return to_device(array, self._device)

        return Batch(
            pixels={DECODED: block},
            render=decoded,
            labels_B=on_device(np.where(there_B, self._labels_N[indices_B], 0)),
            valid_B=on_device(there_B.astype(np.float32)),
            positions_B=indices_B,
            indices_B=indices_B,
            class_counts_C=on_device(
                np.bincount(self._labels_N[indices_B[there_B]], minlength=self._classes).astype(np.float32)
            ),
            samples_B6=np.empty((0, 6), np.int64),
            step=number,
            epoch=0,
        )
