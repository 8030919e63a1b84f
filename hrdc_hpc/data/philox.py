"""Random numbers as a pure function of where they are used: Philox4x32-10, vectorised. Torch-free.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A draw depends on (seed, purpose, stream)
through the key and on (epoch, position, number of the draw) through the counter, and on nothing else: there is no
generator that would have to be saved, and any rank can make any draw. numpy's own generators are not used, because
numpy does not promise their streams across versions.

    key     = the 8 bytes of BLAKE2b("seed\\0purpose\\0stream"), two little-endian words
    counter = (block, position mod 2**32, position div 2**32, epoch)

Axis legend: P positions, n draws per position, M counters.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_CHUNK = 1 << 14
"""Counters per pass: four columns of them stay in the second-level cache."""


def key_of(seed: int, purpose: str, stream: str = "") -> tuple[int, int]:
    """Return the two 32-bit key words of a purpose; the same on every machine and in every version."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox(counters_4M: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10 of M counters, in place: uint64 [4, M] with values below 2**32."""
    for start in range(0, counters_4M.shape[1], _CHUNK):
        _rounds(counters_4M[:, start : start + _CHUNK], key)
    return counters_4M


def _rounds(c_4M: NDArray[np.uint64], key: tuple[int, int]) -> None:
    c0, c1, c2, c3 = (row.copy() for row in c_4M)
    for number in range(_ROUNDS):
        k0, k1 = (np.uint64((k + number * w) & 0xFFFFFFFF) for k, w in zip(key, _WEYL, strict=True))
        c0 *= _MULTIPLIERS[0]
        c2 *= _MULTIPLIERS[1]
        c1 ^= c2 >> _SHIFT
        c1 ^= k0
        c3 ^= c0 >> _SHIFT
        c3 ^= k1
        c0 &= _MASK
        c2 &= _MASK
        c0, c1, c2, c3 = c1, c2, c3, c0
    c_4M[0], c_4M[1], c_4M[2], c_4M[3] = c0, c1, c2, c3


def words(
    seed: int, purpose: str, epoch: int, positions: NDArray[np.int64], blocks: int, *, stream: str = ""
) -> NDArray[np.uint64]:
    """Return uint64 [P, 4 * blocks] of random 32-bit words. ValueError if epoch or blocks do not fit 32 bits."""
    if not (0 <= epoch < 2**32 and 0 <= blocks < 2**32):
        raise ValueError(f"philox: epoch {epoch} and {blocks} blocks must be between 0 and 2**32")
    place = np.asarray(positions, np.int64).astype(np.uint64)
    counters = np.empty((4, len(place), blocks), np.uint64)
    counters[0] = np.arange(blocks, dtype=np.uint64)
    counters[1] = (place & _MASK)[:, None]
    counters[2] = (place >> _SHIFT)[:, None]
    counters[3] = epoch
    drawn = philox(counters.reshape(4, -1), key_of(seed, purpose, stream))
    return np.ascontiguousarray(drawn.T).reshape(len(place), 4 * blocks)


def uniforms(
    seed: int,
    purpose: str,
    epoch: int,
    positions: NDArray[np.int64],
    n: int,
    *,
    stream: str = "",
    dtype: DTypeLike = np.float64,
) -> NDArray[Any]:
    """Return [P, n] uniform random numbers in [0, 1), float64 (53 random bits) or float32 (24 bits: never rounds to 1).

    The first m of n draws are the same for every n >= m. The two dtypes are different draws.
    """
    if np.dtype(dtype) == np.float32:
        drawn = words(seed, purpose, epoch, positions, -(-n // 4), stream=stream)[:, :n]
        return (drawn >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
    if np.dtype(dtype) != np.float64:
        raise ValueError(f"philox: dtype {np.dtype(dtype)}; allowed: float32, float64")
    drawn = words(seed, purpose, epoch, positions, -(-n // 2), stream=stream)[:, : 2 * n]
    return (((drawn[:, 0::2] << _SHIFT) | drawn[:, 1::2]) >> np.uint64(11)).astype(np.float64) * 2.0**-53
