"""Colour jitter: how bright, contrasty and saturated each training image is. Torch-free; jitter.py applies it.

Axis legend: B images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.config.schema import ColourJitter
from hrdc_hpc.data import philox

Factors = NDArray[np.float32]


def draw_factors(
    jitter: ColourJitter | None, *, seed: int, stream: str, epoch: int, positions_B: NDArray[np.int64]
) -> Factors | None:
    """Return factors of brightness, contrast and saturation, float32 [B, 3], at these positions of an epoch.

    Each is uniform in [max(0, 1 - strength), 1 + strength], as torchvision's ColorJitter draws them. None: no jitter.
    """
    if jitter is None:
        return None
    strengths_3 = np.array([jitter.brightness, jitter.contrast, jitter.saturation])
    low_3, high_3 = np.maximum(0, 1 - strengths_3), 1 + strengths_3
    draws_B3: NDArray[Any] = philox.uniforms(seed, "colour", epoch, positions_B, 3, stream=stream)
    factors_B3: Factors = (low_3 + draws_B3 * (high_3 - low_3)).astype(np.float32)
    return factors_B3
