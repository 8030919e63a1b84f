"""The stages of the training loader, each run alone, to be timed. Compute nodes only.

All stages take the same images and crops, in the order of the run. What is not measured is done before: the stages that
decode find their bytes in memory.

Axis legend: B images of a batch.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data.feed import READERS, Buffers, Feed, inputs_of, read
from hrdc_hpc.data.index import ImageIndex
from hrdc_hpc.data.loader import TrainLoader
from hrdc_hpc.data.order import Sampler
from hrdc_hpc.data.pipeline import Decoder, Inputs, Until

HELD = 4
"""Runs of the decoder whose bytes are held for the stages that decode; they are taken again and again."""
_WARM_UP = 2
"""Runs that are not timed at the start of a turn, beside those that lie ready."""
_END = 10**9


@dataclass
class Turn:
    """What one stage did in a while."""

    images: int
    seconds: float
    cpu_s: float
    """Of all threads of the process."""


Stage = Callable[[float], Turn]
"""Works for about so many seconds."""


def timed(work: Callable[[], int], seconds: float) -> Turn:
    """Call `work`, which returns images, again and again."""
    images, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds or not images:
        images += work()
    return Turn(images, time.perf_counter() - began, time.process_time() - cpu)


class Stages:
    """A rank's training loader, whole and in parts."""

    def __init__(
        self, index: ImageIndex, data: Data, sampler: Sampler, *, batch: int, threads: int, device: torch.device
    ) -> None:
        """Start nothing yet. ValueError for fewer images than `batch`."""
        self._index, self._data, self._batch, self._device, self._threads = index, data, batch, device, threads
        self._sampler = sampler
        self._loader = self._make_loader(threads)
        self._step = 0
        self._held: list[Feed] = []

    def _make_loader(self, threads: int) -> TrainLoader:
        return TrainLoader(
            self._index, self._data, self._sampler, classes=len(self._index.class_names), seed=0, stream="main",
            global_batch=self._batch, rank=0, world_size=1, device=self._device, cores=threads,
        )  # fmt: skip

    def parts(self) -> Mapping[str, Stage]:
        """Return the stages by name; each that decodes does what the one before it does, and more."""
        return {
            "read": self._read,
            "feed": self._feed,
            "decode, whole": lambda seconds: self._decode("whole", seconds),
            "decode, crop": lambda seconds: self._decode("crop", seconds),
            "decode, resize": lambda seconds: self._decode("resize", seconds),
            "decode, resize, flip": lambda seconds: self._decode("end", seconds),
            "bare libjpeg-turbo": self._bare,
        }

    def whole(self, threads: int) -> Stage:
        """Return the loader itself, decoding with so many threads."""

        def run(seconds: float) -> Turn:
            with self._make_loader(threads) as loader:
                batches = loader.batches(self._step, _END)

                def work() -> int:  # whole runs: the batches of one come at once
                    return sum(len(next(batches).labels_B) for _ in range(loader.runs.batches))

                # what lay ready would come at once
                for _ in range(loader.runs.depth + _WARM_UP):
                    work()
                turn = timed(work, seconds)
                batches.close()  # type: ignore[attr-defined]  # a generator
            self._step += turn.images // self._batch
            return turn

        return run

    @contextmanager
    def _reading(self) -> Iterator[Callable[[Feed], None]]:
        buffers = Buffers()
        with ThreadPoolExecutor(READERS) as readers:

            def take(feed: Feed) -> None:
                read(feed, self._index, buffers, readers, skip=True)
                buffers.give(feed.buffer)

            yield take

    def _read(self, seconds: float) -> Turn:
        feeds = [self._loader.describe(self._step + k) for k in range(64)]
        steps = itertools.cycle(feeds)
        with self._reading() as take:

            def work() -> int:
                take(next(steps))
                return self._batch

            return timed(work, seconds)

    def _feed(self, seconds: float) -> Turn:
        """Everything that is done for an image before it is DALI's: draws, reading, wrapping."""
        steps = itertools.count(self._step)
        with self._reading() as take:

            def work() -> int:
                feed = self._loader.describe(next(steps))
                self._index.will_need(feed.indices_B)
                take(feed)
                inputs_of([feed])
                return self._batch

            return timed(work, seconds)

    def _in_memory(self) -> list[Feed]:
        if not self._held:
            with ThreadPoolExecutor(READERS) as readers:
                for step in range(HELD * self._loader.runs.batches):
                    feed = self._loader.describe(step)
                    read(feed, self._index, Buffers(), readers, skip=True)
                    self._held.append(feed)
        return self._held

    def _decode(self, until: Until, seconds: float) -> Turn:
        held, together = self._in_memory(), self._loader.runs.batches
        inputs: Iterator[Inputs] = itertools.cycle(
            [inputs_of(held[first : first + together]) for first in range(0, len(held), together)]
        )
        decoder = Decoder(
            training=True, image_size=self._data.image_size, batch=self._batch * together, device=self._device,
            threads=self._threads, depth=2, loader=self._data.loader, until=until,
        )  # fmt: skip

        def work() -> int:
            decoder.skip()
            decoder.push(next(inputs))
            return self._batch * together

        decoder.push(next(inputs))
        decoder.push(next(inputs))
        for _ in range(_WARM_UP):
            work()
        turn = timed(work, seconds)
        decoder.close()
        return turn

    def _bare(self, seconds: float) -> Turn:
        """Whole images, by torchvision's decode_jpeg in threads: the decoder and nothing else."""
        from torchvision.io import ImageReadMode, decode_jpeg

        jpegs = [
            torch.from_numpy(encoded)
            for feed in self._in_memory()
            for encoded in feed.encoded_B
            if encoded[0] == 0xFF  # not a PNG
        ]
        groups: Iterator[list[Any]] = itertools.cycle(
            [jpegs[k : k + self._batch] for k in range(0, len(jpegs), self._batch)]
        )
        with ThreadPoolExecutor(self._threads) as pool, warnings.catch_warnings():
            # torchvision says that it may move elsewhere one day
            warnings.simplefilter("ignore", DeprecationWarning)

            def decode_one(encoded: torch.Tensor) -> None:
                decode_jpeg(encoded, ImageReadMode.RGB)

            def work() -> int:
                group = next(groups)
                list(pool.map(decode_one, group))
                return len(group)

            return timed(work, seconds)
