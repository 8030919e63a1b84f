"""Where images are cropped: the arithmetic of torchvision's transforms, vectorised over a batch. Torch-free.

All sizes and anchors are (height, width) and (top, left) in pixels. Axis legend: B images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.data import philox

_ATTEMPTS = 10
_CROP_DRAWS = 2 * _ATTEMPTS + 2
"""Area and ratio of every attempt, then top and left."""

Ints = NDArray[np.int32]


def random_resized_crop(
    sizes_B2: Ints, draws_Bn: NDArray[np.float64], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Ints, Ints]:
    """RandomResizedCrop.get_params of torchvision: 10 attempts, then the largest centre crop of an allowed ratio.

    Takes image sizes [B, 2] and 22 uniform draws [B, 22]; returns anchors and shapes, int32 [B, 2], always inside the
    image and never empty.
    """
    height, width = sizes_B2[:, :1].astype(np.int64), sizes_B2[:, 1:].astype(np.int64)
    share, slant = draws_Bn[:, 0 : 2 * _ATTEMPTS : 2], draws_Bn[:, 1 : 2 * _ATTEMPTS : 2]
    area = (height * width) * (scale[0] + share * (scale[1] - scale[0]))
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + slant * (high - low))
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    found = fits.any(axis=1)
    rows, first = np.arange(len(fits)), fits.argmax(axis=1)
    centre = _largest_allowed(height[:, 0], width[:, 0], ratio)
    crop_h = np.where(found, heights[rows, first], centre[0])
    crop_w = np.where(found, widths[rows, first], centre[1])
    room_h, room_w = height[:, 0] - crop_h, width[:, 0] - crop_w
    top = np.where(found, _below(draws_Bn[:, -2], room_h + 1), room_h // 2)
    left = np.where(found, _below(draws_Bn[:, -1], room_w + 1), room_w // 2)
    return _pairs(top, left), _pairs(crop_h, crop_w)


def _largest_allowed(
    height: NDArray[np.int64], width: NDArray[np.int64], ratio: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    is_ratio = width / height
    crop_h = np.where(is_ratio < min(ratio), np.rint(width / min(ratio)), height)
    crop_w = np.where(is_ratio > max(ratio), np.rint(height * max(ratio)), width)
    return np.clip(crop_h, 1, height).astype(np.int64), np.clip(crop_w, 1, width).astype(np.int64)


def _below(draw: NDArray[np.float64], limit: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.minimum((draw * limit).astype(np.int64), limit - 1)


def _pairs(first: NDArray[np.int64], second: NDArray[np.int64]) -> Ints:
    return np.stack([first, second], axis=1).astype(np.int32)


def padded_crop(sizes_B2: Ints, draws_B2: NDArray[np.float64], padding: int, side: int) -> tuple[Ints, Ints]:
    """A random square of `side` pixels out of the image with a border of `padding`: RandomCrop(side, padding).

    Takes image sizes [B, 2] and two uniform draws [B, 2]; returns anchors, counted from the corner of the border, and
    shapes, int32 [B, 2]. Every image must be at least side - 2 * padding high and wide.
    """
    room_B2 = sizes_B2.astype(np.int64) + 2 * padding - side
    assert room_B2.min() >= 0, "images are smaller than the crop"
    anchors = [_below(draws_B2[:, axis], room_B2[:, axis] + 1) for axis in (0, 1)]
    return _pairs(*anchors), np.full(sizes_B2.shape, side, np.int32)


def _flips(seed: int, stream: str, epoch: int, positions_B: NDArray[np.int64], *, flip: bool) -> Ints:
    """1 for the images that are mirrored, half of them, else 0; [B]."""
    if not flip:
        return np.zeros(len(positions_B), np.int32)
    coin = philox.uniforms(seed, "flip", epoch, positions_B, 1, stream=stream)[:, 0]
    return (coin < 0.5).astype(np.int32)


def training_crops(
    *,
    seed: int,
    stream: str,
    epoch: int,
    positions_B: NDArray[np.int64],
    sizes_B2: Ints,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool,
) -> tuple[Ints, Ints, Ints]:
    """Return anchors [B, 2], shapes [B, 2] and flips [B] (0 or 1) of the images at these positions of an epoch."""
    draws = philox.uniforms(seed, "crop", epoch, positions_B, _CROP_DRAWS, stream=stream)
    anchors_B2, shapes_B2 = random_resized_crop(sizes_B2, draws, scale, ratio)
    return anchors_B2, shapes_B2, _flips(seed, stream, epoch, positions_B, flip=flip)


def padded_crops(
    *,
    seed: int,
    stream: str,
    epoch: int,
    positions_B: NDArray[np.int64],
    sizes_B2: Ints,
    padding: int,
    side: int,
    flip: bool,
) -> tuple[Ints, Ints, Ints]:
    """RandomCrop(side, padding) of torchvision, and the flip: a square out of the image with a border.

    Returns the same as training_crops; anchors count from the corner of the border. Every image must be at least
    side - 2 * padding high and wide.
    """
    room_B2 = sizes_B2.astype(np.int64) + 2 * padding - side
    assert not len(room_B2) or room_B2.min() >= 0, "images are smaller than the crop"
    draws = philox.uniforms(seed, "crop", epoch, positions_B, 2, stream=stream)
    anchors = [_below(draws[:, axis], room_B2[:, axis] + 1) for axis in (0, 1)]
    shapes_B2 = np.full(sizes_B2.shape, side, np.int32)
    return _pairs(*anchors), shapes_B2, _flips(seed, stream, epoch, positions_B, flip=flip)


def check_evaluation(resize: int, crop: int) -> None:
    """ValueError if the centre crop is larger than the resized image (torchvision would pad it with black)."""
    if crop > resize:
        raise ValueError(
            f"data.eval_resize: {resize} is less than data.image_size {crop}, which is cropped out of it."
            f" Set data.eval_resize to {crop} or more."
        )


def evaluation_geometry(sizes_B2: Ints, resize: int, crop: int) -> tuple[Ints, Ints]:
    """Resize(resize) and CenterCrop(crop) of torchvision; returns resized sizes and crop anchors, int32 [B, 2].

    The longer side is truncated, the anchor is rounded half to even, as torchvision does.
    """
    check_evaluation(resize, crop)
    sizes = sizes_B2.astype(np.int64)
    resized = resize * sizes // sizes.min(axis=1, keepdims=True)
    anchors = np.rint((resized - crop) / 2)
    return resized.astype(np.int32), anchors.astype(np.int32)
