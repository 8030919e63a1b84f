"""Frame headers of many JPEGs at once, in memory. Torch-free.

Axis legend: B images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_BITS = 16
"""Of a sample, that DALI has a type for."""
_SEGMENTS = 64
"""Looked at in front of a frame header; photographs have about ten."""
_FRAME = np.isin(np.arange(256), [m for m in range(0xC0, 0xD0) if m not in (0xC4, 0xC8, 0xCC)])
_SCAN, _FILL = 0xDA, 0xFF


def impossible_precision(
    buffer: NDArray[np.uint8], starts_B: NDArray[np.int64], ends_B: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell which images are JPEGs whose frame header names more than MOST_BITS bits a sample: bool [B].

    It is the one error of a header that passes DALI's check (pipeline.checked). About 2 us an image.

    Args:
        buffer: encoded images one behind the other.
        starts_B: where each begins in it, bytes.
        ends_B: where each ends.
    """
    found_B = np.zeros(len(starts_B), np.bool_)
    on = np.flatnonzero(ends_B - starts_B > 4)
    on = on[(buffer[starts_B[on]] == 0xFF) & (buffer[starts_B[on] + 1] == 0xD8)]
    at, ends = starts_B[on] + 2, ends_B[on]
    for _ in range(_SEGMENTS):
        # marker, length and precision are there; what ends before them has no frame
        here = at + 4 < ends
        here[here] = buffer[at[here]] == 0xFF
        on, at, ends = on[here], at[here], ends[here]
        marker = buffer[at + 1]
        frame = _FRAME[marker]
        found_B[on[frame]] = buffer[at[frame] + 4] > MOST_BITS
        further = ~frame & (marker != _SCAN)
        if not further.any():
            break
        on, at, ends, marker = on[further], at[further], ends[further], marker[further]
        length = buffer[at + 2].astype(np.int64) * 256 + buffer[at + 3]
        at = at + np.where(marker == _FILL, 1, 2 + length)
    return found_B
