"""Pixels to network input, on the device. It is not done in DALI: bytes are a quarter of the memory traffic of floats.

Axis legend: B images, H height, W width, C channels (RGB).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Channels = tuple[float, float, float]


@lru_cache(maxsize=16)
def scale_and_shift(mean: Channels, std: Channels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what pixels are multiplied by, and what is added then: float32 [1, 3, 1, 1] each."""
    mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, shift = 1 / (255 * std_C), -mean_C / std_C
    return tuple(x.float().view(1, 3, 1, 1).to(device) for x in (scale, shift))  # type: ignore[return-value]  # two of them


def normalise(
    images_BHWC: Tensor, mean: Channels, std: Channels, dtype: torch.dtype = torch.float32, channels_last: bool = True
) -> Tensor:
    """Return (images / 255 - mean) / std as [B, C, H, W] of `dtype`, computed in float32, in the asked memory format.

    Capturable in a CUDA graph, and without a host sync, from the second call on (the first puts two constants on the
    device).
    """
    scale, shift = scale_and_shift(tuple(mean), tuple(std), images_BHWC.device)
    # a permuted BHWC tensor is a channels_last BCHW tensor: no copy
    images_BCHW = torch.addcmul(shift, images_BHWC.permute(0, 3, 1, 2).float(), scale).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images_BCHW.contiguous(memory_format=layout)
