from __future__ import annotations

import numpy as np
import pytest

from hrdc_hpc.data import philox

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123, tests/kat_vectors, philox4x32 10
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_published_known_answers(counter, key, expected):
    many = 40_000  # more than one pass
    counters = np.repeat(np.array(counter, np.uint64)[:, None], many, axis=1)
    assert np.array_equal(philox.philox(counters, key), np.repeat(np.array(expected, np.uint64)[:, None], many, axis=1))


# by a scalar implementation in Python's integers; other values mean that no older run can be resumed or repeated
FROZEN = [
    [0.41389818341172946, 0.635763885270765, 0.09314346930024597],
    [0.7669010087084435, 0.03376692919146085, 0.038319945159488555],
]


def test_draws_are_frozen():
    assert philox.key_of(7, "crop", "main") == (3830867357, 3813481572)
    drawn = philox.uniforms(7, "crop", 3, np.array([0, 5_000_000_000]), 3, stream="main")
    assert drawn.tolist() == FROZEN


def test_a_draw_depends_on_its_place_alone():
    positions = np.arange(1000)
    whole = philox.uniforms(1, "mixup", 2, positions, 7)
    assert np.array_equal(philox.uniforms(1, "mixup", 2, positions[300:417], 7), whole[300:417])
    assert np.array_equal(philox.uniforms(1, "mixup", 2, positions[::-1], 3), whole[::-1, :3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_part_of_the_place_matters(dtype):
    base = {"seed": 1, "purpose": "crop", "epoch": 0, "stream": "main"}
    others = [{}, {"seed": 2}, {"purpose": "flip"}, {"epoch": 1}, {"stream": "second"}]
    drawn = [philox.uniforms(positions=np.arange(100), n=4, dtype=dtype, **(base | o)).ravel() for o in others]
    assert len(np.unique(np.concatenate(drawn))) == sum(len(d) for d in drawn)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_on_zero_to_one(dtype):
    drawn = philox.uniforms(0, "test", 0, np.arange(20_000), 5, dtype=dtype)
    assert drawn.dtype == dtype
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, 100, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi-square, 99 degrees of freedom: p about 0.0007
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.03


def test_the_largest_word_stays_below_one(monkeypatch):
    monkeypatch.setattr(philox, "words", lambda *_, **__: np.full((1, 4), ONES, np.uint64))
    assert philox.uniforms(0, "test", 0, np.arange(1), 2).max() < 1
    assert philox.uniforms(0, "test", 0, np.arange(1), 4, dtype=np.float32).max() < 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="epoch -1"):
        philox.uniforms(0, "crop", -1, np.arange(2), 1)
    with pytest.raises(ValueError, match="dtype int64; allowed: float32, float64"):
        philox.uniforms(0, "crop", 0, np.arange(2), 1, dtype=np.int64)
