"""What a loader hands to the training step. Compute nodes only; needs no DALI.

Axis legend: B images of this rank's batch, C classes, H height, W width, S side of the square that the network sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = Mapping[str, torch.Tensor]
"""Tensors on the rank's device whose first axis is B."""
Render = Callable[[Pixels], torch.Tensor]
"""Makes images, uint8 [B, S, S, 3], of Pixels. Fixed shapes and no host sync: it can be captured in a CUDA graph."""

DECODED = "images"


def decoded(pixels: Pixels) -> torch.Tensor:
    """Return images that are pixels already: the Render of a loader that decodes."""
    return pixels[DECODED]


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of a step. The memory is this batch's own: it may be kept as long as it is wanted."""

    pixels: Pixels
    """What `render` makes the images of: the images themselves, or where they lie and how they are cropped."""
    render: Render
    labels_B: torch.Tensor
    """int64, on the device; 0 for padding."""
    valid_B: torch.Tensor
    """float32, on the device: 1, or 0 for padding and for an image that could not be used."""
    positions_B: NDArray[np.int64]
    """Position within the epoch; in evaluation the image number, -1 for padding."""
    indices_B: NDArray[np.int64]
    """Image number, -1 for padding."""
    class_counts_C: torch.Tensor
    """float32, on the device: images per class of the *global* batch; in evaluation of this batch."""
    samples_B6: NDArray[np.int64]
    """Image number, crop (top, left, height, width) and flip: what was drawn for each place; empty in evaluation."""
    step: int
    """0-based step of the run; in evaluation the number of the batch."""
    epoch: int
    """0-based epoch; 0 in evaluation."""

    @property
    def images_BHWC(self) -> torch.Tensor:
        """uint8, on the rank's device."""
        return self.render(self.pixels)


def blank_batch(pixels: Pixels, render: Render, part: slice, classes: int, device: torch.device) -> Batch:
    """Return a batch for the positions of a part of the global batch that says nothing: all of it is class 0."""
    number = part.stop - part.start
    return Batch(
        pixels=pixels,
        render=render,
        labels_B=torch.zeros(number, dtype=torch.int64, device=device),
        valid_B=torch.ones(number, device=device),
        positions_B=np.arange(part.start, part.stop),
        indices_B=np.zeros(number, np.int64),
        class_counts_C=torch.ones(classes, device=device),
        samples_B6=np.empty((0, 6), np.int64),
        step=0,
        epoch=0,
    )


class TrainBatches(Protocol):
    """This rank's part of every step's global batch, whatever it is made from."""

    steps_per_epoch: int

    @property
    def skipped(self) -> Mapping[str, int]:
        """How often a file was replaced by grey of weight 0 in this rank's batches (data.on_bad_image: skip)."""
        ...

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of steps first_step ... last_step - 1 of the run (0-based, over all epochs)."""
        ...

    def samples_hash(self, step: int) -> str:
        """Hash over image numbers, crops and flips of the step's global batch; the same on any number of ranks."""
        ...

    def blank(self) -> Batch:
        """Return a batch of this rank's shape that says nothing, made as the others are: to rehearse a step with."""
        ...

    def close(self) -> None:
        """End its threads."""
        ...


class EvalBatches(Protocol):
    """Every image of a split exactly once over all ranks."""

    rounds: int
    """Batches of the rank that has most: all ranks can meet this often."""

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why files were replaced by grey of weight 0 in this rank's batches so far (data.on_bad_image: skip)."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's batches; ranks may have different numbers of them."""
        ...

    def close(self) -> None:
        """End its threads."""
        ...


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy to the device without making the host wait; on a CPU the tensor shares the array's memory."""
    tensor = torch.from_numpy(array)
    # pinned: a copy from pageable memory would wait for the device
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
