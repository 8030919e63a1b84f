"""The precision that a JPEG's frame header names, for many images in one piece of memory."""

from __future__ import annotations

import io

import numpy as np
import pytest

from hrdc_hpc.data.frames import impossible_precision
from tests.data.images import encoded, jpeg, picture


def told(contents: list[bytes]) -> list[bool]:
    ends = np.cumsum([len(content) for content in contents])
    starts = ends - [len(content) for content in contents]
    return impossible_precision(np.frombuffer(b"".join(contents), np.uint8), starts, ends).tolist()


def with_precision(content: bytes, bits: int, marker: bytes = b"\xff\xc0") -> bytes:
    at = content.index(marker) + 4
    return content[:at] + bytes([bits]) + content[at + 1 :]


def test_whole_images_of_many_kinds_pass():
    assert not any(told([content for _, content in map(encoded, range(60))]))


@pytest.mark.parametrize(("bits", "impossible"), [(0, False), (8, False), (16, False), (17, True), (255, True)])
def test_more_than_sixteen_bits_are_found(bits, impossible):
    whole = jpeg(picture(1, 60, 80))
    assert told([whole, with_precision(whole, bits), whole]) == [False, impossible, False]


def test_progressive_frames_fill_bytes_and_comments():
    file = io.BytesIO()
    picture(2, 60, 80).save(file, "JPEG", progressive=True, comment=b"x" * 40_000)
    assert told([with_precision(file.getvalue(), 99, b"\xff\xc2")]) == [True]
    whole = with_precision(jpeg(picture(1, 60, 80)), 99)
    assert told([whole[:2] + b"\xff\xff" + whole[2:]]) == [True]


def test_nothing_behind_the_end_or_the_scan_is_read():
    whole = with_precision(jpeg(picture(1, 60, 80)), 99)
    frame, scan = whole.index(b"\xff\xc0"), whole.index(b"\xff\xda")
    for end in (0, 1, 2, 3, 5, frame, frame + 3):
        assert told([whole[:end], whole]) == [False, True]
    assert told([whole[:frame] + whole[scan:] + whole[frame:]]) == [False]
    assert told([b"\x89PNG" + whole, b"", bytes(100)]) == [False] * 3
