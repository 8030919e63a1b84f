"""What a batch is made from: image numbers, crops, encoded bytes. Compute nodes only.

Axis legend: B images of this rank's batch, C classes.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrdc_hpc.data.colour import Factors
from hrdc_hpc.data.frames import impossible_precision
from hrdc_hpc.data.index import BadFile, Bytes, Failure, ImageIndex, unusable
from hrdc_hpc.data.pipeline import DAMAGED, Inputs, pack

READERS = 4
"""Threads that read files, per rank."""
GREY_SIDE = 8
"""Side of the stand-in, pixels."""


def _grey() -> Bytes:
    file = io.BytesIO()
    Image.new("RGB", (GREY_SIDE, GREY_SIDE), (128, 128, 128)).save(file, "JPEG", quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


GREY = _grey()
"""Stands in for padding and for an image that cannot be used; exactly 128 everywhere when decoded."""


@dataclass(eq=False)
class Feed:
    """One batch, before it is decoded."""

    place: str
    """For messages: 'epoch 3, step 120'."""
    step: int
    epoch: int
    positions_B: NDArray[np.int64]
    indices_B: NDArray[np.int64]
    """-1: padding."""
    counts_C: NDArray[np.float32]
    geometry: dict[str, NDArray[Any]]
    """As in pipeline.Inputs."""
    samples_B6: NDArray[np.int64]
    """As in Batch; not changed where GREY stands in."""
    factors_B3: Factors | None
    """As in plan.Samples."""
    grey_geometry: Mapping[str, NDArray[Any]]
    """The same of one GREY, without the axis B."""
    encoded_B: list[Bytes] = field(default_factory=list)
    buffer: Bytes | None = None
    """Holds the bytes; nobody may write to it before the batch has come out of DALI."""
    replaced: dict[int, BadFile] = field(default_factory=dict)
    """Files that GREY stands in for, by place in the batch."""

    @property
    def valid_B(self) -> NDArray[np.float32]:
        """1 where an image is, 0 where GREY is."""
        valid = (self.indices_B >= 0).astype(np.float32)
        valid[list(self.replaced)] = 0
        return valid

    def put_grey(self, place: int) -> None:
        """Let GREY stand at a place of the batch."""
        self.encoded_B[place] = GREY
        for name, values in self.geometry.items():
            values[place] = self.grey_geometry[name]

    def replace(self, index: ImageIndex, bad: Mapping[int, Failure], *, skip: bool, verb: str) -> None:
        """Let GREY stand in for bad images ({place: why}) or, without `skip`, raise what `unusable` returns."""
        paths = {place: index.path(int(self.indices_B[place])) for place in bad}
        if not skip:
            raise unusable(
                f"{self.place}: {len(bad)} of {len(self.indices_B)} images cannot be {verb}",
                {paths[place]: failure for place, failure in bad.items()},
                "set data.on_bad_image: skip to give them weight 0",
                mend=index.mend,
            )
        for place, failure in bad.items():
            self.put_grey(place)
            self.replaced[place] = BadFile(paths[place], failure.reason)


def inputs_of(feeds: Sequence[Feed]) -> Inputs:
    """Return what the pipeline takes of batches that are decoded together."""
    geometry = {name: np.concatenate([feed.geometry[name] for feed in feeds]) for name in feeds[0].geometry}
    return Inputs(pack([encoded for feed in feeds for encoded in feed.encoded_B]), geometry)


class Buffers:
    """Memory for encoded bytes, taken again and again: fresh memory costs a page fault every 4 kB."""

    def __init__(self) -> None:
        """Start with none."""
        self._free: deque[Bytes] = deque()

    def take(self, size: int) -> Bytes:
        """Return a buffer of at least `size` bytes that nobody reads."""
        buffer = self._free.popleft() if self._free else None
        return buffer if buffer is not None and len(buffer) >= size else np.empty(size + size // 4, np.uint8)

    def give(self, buffer: Bytes | None) -> None:
        """Take a buffer back."""
        if buffer is not None:
            self._free.append(buffer)


def announced(feeds: Iterable[Feed], index: ImageIndex, adviser: ThreadPoolExecutor, images: int) -> Iterator[Feed]:
    """Yield feeds in order; the index hears of each (`will_need`) about `images` images before its turn.

    The order is known, so that disk or server can be at work on bytes long before they are asked for.
    """
    if not images:
        yield from feeds
        return
    waiting: deque[tuple[Feed, Future[None]]] = deque()
    known = 0
    for feed in feeds:
        numbers = feed.indices_B[feed.indices_B >= 0]
        waiting.append((feed, adviser.submit(index.will_need, numbers)))
        known += len(numbers)
        while known > images:
            yield _taken(*waiting[0])
            known -= int(np.count_nonzero(waiting.popleft()[0].indices_B >= 0))
    yield from (_taken(*one) for one in waiting)


def _taken(feed: Feed, advice: Future[None]) -> Feed:
    """Return a feed whose turn has come; advice that has not been given by now would be of no use."""
    if not advice.cancel() and advice.done():
        advice.result()
    return feed


def read(feed: Feed, index: ImageIndex, buffers: Buffers, readers: ThreadPoolExecutor, *, skip: bool) -> None:
    """Fill in the feed's bytes. Raises, naming the files that cannot be read (see `unusable`), unless `skip`."""
    places = np.flatnonzero(feed.indices_B >= 0)
    numbers = feed.indices_B[places]
    ends = np.cumsum(index.bytes_N[numbers])
    feed.buffer = buffers.take(int(ends[-1]))
    arrays: list[Bytes] = list(np.split(feed.buffer[: ends[-1]], ends[:-1]))
    each = -(-len(places) // READERS)
    parts = [slice(start, start + each) for start in range(0, len(places), each)]

    def read_part(part: slice) -> dict[int, Failure]:
        return index.read_into(numbers[part], arrays[part])

    failures = readers.map(read_part, parts)
    bad = {
        int(places[part.start + place]): failure
        for part, failed in zip(parts, failures, strict=True)
        for place, failure in failed.items()
    }
    feed.encoded_B = [GREY] * len(feed.indices_B)
    for place, array in zip(places.tolist(), arrays, strict=True):
        feed.encoded_B[place] = array
    for place in np.flatnonzero(feed.indices_B < 0).tolist():
        feed.put_grey(place)
    if bad:
        feed.replace(index, bad, skip=skip, verb="read")
    impossible = places[impossible_precision(feed.buffer, ends - index.bytes_N[numbers], ends)]
    damaged = {place: Failure(DAMAGED) for place in impossible.tolist() if place not in bad}
    if damaged:
        feed.replace(index, damaged, skip=skip, verb="decoded")
