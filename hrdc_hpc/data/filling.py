"""Fills a cache of decoded images (decoded.py). Compute nodes only.

All ranks of a node take part, and those of other jobs there: each takes a block of images that nobody has locked. A
block is whole once its line with a checksum is written; a start after a kill fills the others only. Images are always
decoded on the CPU, so that all nodes keep the same pixels.

Axis legend: B images of a decoder's batch.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import xxhash
from nvidia.dali import Pipeline, fn, types

from hrdc_hpc.data.decoded import BLOCK, PIXELS, DecodedIndex, header
from hrdc_hpc.data.index import Bytes, Failure, unusable
from hrdc_hpc.data.pipeline import DECODE_ERRORS, OTHER_SIZE, decode, decode_reason, external, pack
from hrdc_hpc.record.files import append_whole, json_lines

log = logging.getLogger(__name__)

_NOTES, _LOCKS = "blocks.jsonl", "locks"
_MAGIC = header(0, 0)[:2]
_LOOK_S = 0.1
_SAY_S = 10.0


class _Note(TypedDict):
    """What blocks.jsonl says of a block."""

    block: int
    checksum: str
    unusable: int
    """Images that were left out, as zeros: they are tried again by the next start."""


class Filler:
    """One process's part in filling a cache."""

    def __init__(
        self, index: DecodedIndex, *, cores: int, skip: bool, rank: int, ranks: int, told: Callable[[], bool]
    ) -> None:
        """Fill nothing yet. `rank` of the `ranks` of this node; `skip`: leave out images that cannot be decoded.

        Whatever is left out cannot be decoded in training either, and is replaced and counted there.
        """
        self._index, self._cores, self._skip, self._told = index, cores, skip, told
        self._rank, self._ranks = rank, ranks
        self._folder: Path = index.files.folder
        self._blocks = -(-len(index) // BLOCK)
        self._batch = max(8, 2 * cores)
        self._pipeline: Pipeline | None = None
        self.filled = 0
        """Blocks that this process has filled."""

    def fill(self) -> bool:
        """Return once all blocks are whole; False if told to stop before.

        Raises DataError naming images that cannot be decoded, RuntimeError where disk or network failed, OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        pixels = os.open(self._folder / PIXELS, flags, 0o600)
        locks = os.open(self._folder / _LOCKS, flags, 0o600)
        try:
            os.truncate(pixels, int(self._index.bytes_N.sum()))
            found = self._notes()
            begin = self._rank * self._blocks // self._ranks
            waiting = [(begin + number) % self._blocks for number in range(self._blocks)]
            said = time.monotonic()
            while waiting and not self._told():
                left = [block for block in waiting if not self._settled(block, pixels, locks, found)]
                if len(left) == len(waiting):
                    time.sleep(_LOOK_S)  # others are at the rest
                waiting = left
                if self._rank == 0 and time.monotonic() - said > _SAY_S:
                    said = time.monotonic()
                    log.info("decoded cache: %d of %d blocks are filled", len(self._notes()), self._blocks)
            return not waiting
        finally:
            os.close(locks)
            os.close(pixels)
            self._pipeline = None

    def _settled(self, block: int, pixels: int, locks: int, found: dict[int, _Note]) -> bool:
        """Have a block whole; False if another process is at it, or it is time to stop."""
        if self._told():
            return False
        if block in found and block % self._ranks != self._rank:
            return True  # another rank compares it
        with _byte_locked(locks, block) as mine:
            if not mine:
                return False
            noted = self._notes().get(block)
            if noted is not None and block not in found:
                return True
            # an image that could not be used may have been mended since, or may be left out no more
            if noted is not None and not noted["unusable"]:
                if self._checksum(block, pixels) == noted["checksum"]:
                    return True
                log.warning("%s: block %d is damaged; it is filled again", self._folder, block)
            made = self._fill(block, pixels)
            if made is None:
                return False
            self._write_note(made)
        self.filled += 1
        return True

    def _notes(self) -> dict[int, _Note]:
        """What is noted of the blocks that are whole; of a block that was filled twice the last."""
        try:
            content = (self._folder / _NOTES).read_bytes()
        except FileNotFoundError:
            return {}
        return {
            line["block"]: _Note(block=line["block"], checksum=line["checksum"], unusable=line.get("unusable", 0))
            for line in json_lines(content)
        }

    def _write_note(self, note: _Note) -> None:
        notes = os.open(self._folder / _NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # a line of its own, whatever a process that was killed left there
            append_whole(notes, b"\n" + json.dumps(note).encode() + b"\n")
        finally:
            os.close(notes)

    def _checksum(self, block: int, pixels: int) -> str:
        digest = xxhash.xxh3_64()
        for number in self._images(block):
            digest.update(os.pread(pixels, int(self._index.bytes_N[number]), int(self._index.offsets_N[number])))
        return digest.hexdigest()

    def _images(self, block: int) -> range:
        return range(block * BLOCK, min((block + 1) * BLOCK, len(self._index)))

    def _fill(self, block: int, pixels: int) -> _Note | None:
        """Decode and write the images of a block; return what to note, or None when it is time to stop."""
        digest, images, unusable_images = xxhash.xxh3_64(), self._images(block), 0
        self._index.source.will_need(images)
        for start in range(images.start, images.stop, self._batch):
            if self._told():
                return None
            numbers = list(range(start, min(start + self._batch, images.stop)))
            for number, content in zip(numbers, self._decoded(numbers), strict=True):
                _write(pixels, content, int(self._index.offsets_N[number]))
                digest.update(content)
                unusable_images += not content.startswith(_MAGIC)
        os.fdatasync(pixels)
        return {"block": block, "checksum": digest.hexdigest(), "unusable": unusable_images}

    def _decoded(self, numbers: Sequence[int]) -> list[bytes]:
        """Return what is to be written for some images; zeros for one that cannot be decoded."""
        source = self._index.source
        arrays = [np.empty(source.bytes_N[number], np.uint8) for number in numbers]
        failed = source.read_into(numbers, arrays)
        there = [place for place in range(len(numbers)) if place not in failed]
        images = self._run([arrays[place] for place in there], [numbers[place] for place in there])
        failed |= {place: image for place, image in zip(there, images, strict=True) if isinstance(image, Failure)}
        if failed and not self._skip:
            raise unusable(
                f"decoded cache: {len(failed)} images cannot be used",
                {source.path(numbers[place]): failure for place, failure in failed.items()},
                "set data.on_bad_image: skip to give them weight 0",
            )
        contents = [bytes(int(self._index.bytes_N[number])) for number in numbers]
        for place, image in zip(there, images, strict=True):
            if not isinstance(image, Failure):
                contents[place] = header(*image.shape[:2]) + image.tobytes()
        return contents

    def _run(self, encoded: list[Bytes], numbers: list[int]) -> list[Any]:
        """Decode and resize images; of those that fail, why."""
        if not encoded:
            return []
        if self._pipeline is None:
            self._pipeline = _build(self._batch, self._cores)
        sizes = self._index.sizes_N2[numbers].astype(np.float32)
        try:
            self._pipeline.feed_input("encoded", pack(encoded))
            self._pipeline.feed_input("size", sizes)
            output, shapes = self._pipeline.run()
        except DECODE_ERRORS as error:
            self._pipeline = None  # it is dead
            if len(encoded) == 1:
                return [Failure(decode_reason(error))]
            alone = zip(encoded, numbers, strict=True)
            return [image for one, number in alone for image in self._run([one], [number])]
        return [
            np.array(output.at(place))
            if np.array_equal(shapes.at(place)[:2], self._index.source.sizes_N2[number])
            else Failure(OTHER_SIZE)  # it would be stretched
            for place, number in enumerate(numbers)
        ]


def _build(batch: int, threads: int) -> Pipeline:
    pipeline = Pipeline(batch_size=batch, num_threads=threads, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        images = decode(external("encoded", types.UINT8, 1), hardware=None)
        size = external("size", types.FLOAT, 1)
        smaller = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(smaller, images.shape())
    pipeline.build()
    return pipeline


@contextmanager
def _byte_locked(descriptor: int, number: int) -> Iterator[bool]:
    """Lock a byte of an open file against other processes, at once or not at all; yields whether it is locked."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except (BlockingIOError, PermissionError):
        yield False
        return
    try:
        yield True
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, number)


def _write(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done
