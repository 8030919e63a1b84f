"""Batches of images for training and evaluation. Compute nodes only.

A prefetch thread reads bytes and makes the draws, DALI decodes a few batches ahead, and the training thread only hands
over and takes out. Nothing here has a state that would have to be saved: a batch is a pure function of its step.

Axis legend: B images of this rank's batch, G of the global batch, C classes, H height, W width.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data import crops, order
from hrdc_hpc.data.batch import DECODED, Batch, blank_batch, decoded, to_device
from hrdc_hpc.data.feed import GREY, GREY_SIDE, READERS, Buffers, Feed, announced, inputs_of, read
from hrdc_hpc.data.index import Failure, ImageIndex
from hrdc_hpc.data.jitter import FACTORS, jittered
from hrdc_hpc.data.pipeline import DECODE_ERRORS, Decoder, Inputs, check_decoder, decode_reason, pack
from hrdc_hpc.data.plan import Plan
from hrdc_hpc.data.prefetch import Ahead, runs_of
from hrdc_hpc.data.preflight import refuse_padded_crops

_READ_AHEAD = 2
"""Runs read ahead of those that DALI has."""


Run = Sequence[Feed]
"""Batches that are decoded together."""


def _with_inputs(run: Run) -> tuple[Run, Inputs]:
    return run, inputs_of(run)


class _Loader:
    """What training and evaluation share: decoding, bad images, closing."""

    def __init__(
        self,
        index: ImageIndex,
        data: Data,
        *,
        classes: int,
        batch: int,
        training: bool,
        device: torch.device,
        cores: int,
    ) -> None:
        self._index, self._data, self._classes = index, data, classes
        self._batch, self._training, self._device = batch, training, device
        self._threads = data.loader.threads or cores
        self.runs = runs_of(data.loader, batch, self._threads)
        """How batches are decoded ahead."""
        self._render = jittered(decoded) if training and data.colour_jitter else decoded
        check_decoder(data.loader, device)
        self._decoder: Decoder | None = None
        self._end: Exception | None = None
        """What the iteration ends with behind the runs that wait."""
        self._running: weakref.ref[Generator[Batch]] | None = None
        self.skipped: Counter[str] = Counter()
        """How often a file was replaced by grey of weight 0 in this rank's batches (data.on_bad_image: skip)."""
        self.reasons: dict[str, str] = {}
        """Why, for each of these files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration that is under way, its threads and the pipeline. The loader may be used again."""
        running = self._running() if self._running is not None else None
        if running is not None:
            running.close()
        self._drop_decoder()

    def _new_decoder(self, batch: int, depth: int) -> Decoder:
        return Decoder(
            training=self._training,
            image_size=self._data.image_size,
            batch=batch,
            device=self._device,
            threads=min(self._threads, batch),
            depth=depth,
            loader=self._data.loader,
        )

    def _drop_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _start(self, describe: Callable[[int], Feed], numbers: range) -> Iterator[Batch]:
        """Begin an iteration; one that is under way ends."""
        running = self._running() if self._running is not None else None
        if running is not None:
            running.close()
        batches = self._iterate(describe, numbers)
        # weak: a consumer that drops its iterator half-way ends its threads thereby
        self._running = weakref.ref(batches)
        return batches

    def _iterate(self, describe: Callable[[int], Feed], numbers: range) -> Generator[Batch]:
        buffers, waiting = Buffers(), deque[Run]()
        self._end = None
        with (
            ThreadPoolExecutor(READERS, "hrdc-read") as readers,
            ThreadPoolExecutor(1, "hrdc-advise") as adviser,
        ):
            feeds = announced(map(describe, numbers), self._index, adviser, self._data.loader.look_ahead)
            # besides what is ready one more run is read, before there is room for it
            ahead = Ahead(_with_inputs, self._read_runs(feeds, buffers, readers), _READ_AHEAD - 1)
            try:
                self._top_up(ahead, waiting, at_least=self.runs.depth)
                while waiting:
                    images = self._pop(ahead, waiting)
                    run = waiting.popleft()
                    for feed in run:
                        buffers.give(feed.buffer)
                    for feed, images_BHWC in zip(run, images.chunk(len(run)), strict=True):
                        self._top_up(ahead, waiting, at_least=0)
                        self.skipped.update(bad.name for bad in feed.replaced.values())
                        self.reasons |= {bad.name: bad.reason for bad in feed.replaced.values()}
                        yield self._to_batch(feed, images_BHWC)
                    self._top_up(ahead, waiting, at_least=1)
                if self._end is not None:
                    raise self._end
                ahead.check()
            finally:
                ahead.close()
                if waiting:
                    self._drop_decoder()

    def _read_runs(self, feeds: Iterator[Feed], buffers: Buffers, readers: ThreadPoolExecutor) -> Iterator[Run]:
        """Read what is decoded together. An error comes behind all that could be read before it."""
        error: Exception | None = None
        while error is None:
            run: list[Feed] = []
            try:
                for feed in islice(feeds, self.runs.batches):
                    read(feed, self._index, buffers, readers, skip=self._data.on_bad_image == "skip")
                    run.append(feed)
            except Exception as caught:  # noqa: BLE001 - raised below
                error = caught
            if run:
                yield run
            elif error is None:
                return
        raise error

    def _top_up(self, ahead: Ahead[Run, tuple[Run, Inputs]], waiting: deque[Run], *, at_least: int) -> None:
        """Hand DALI what is ready, up to its depth; wait only for the first `at_least` runs."""
        while len(waiting) < self.runs.depth and self._end is None:
            ready = ahead.get(wait=len(waiting) < at_least)
            if ready is None:
                return
            run, inputs = ready
            waiting.append(run)
            if self._decoder is not None:
                try:
                    self._decoder.push(inputs)
                except DECODE_ERRORS:
                    self._drop_decoder()  # an earlier run killed it: _pop begins again with all that wait

    def _pop(self, ahead: Ahead[Run, tuple[Run, Inputs]], waiting: deque[Run]) -> torch.Tensor:
        while True:
            try:
                if self._decoder is None:
                    # a new decoder must begin with all that its depth holds: see Decoder.push
                    self._top_up(ahead, waiting, at_least=self.runs.depth)
                    self._decoder = self._new_decoder(self._batch * self.runs.batches, self.runs.depth)
                    for run in waiting:
                        self._decoder.push(inputs_of(run))
                return self._decoder.pop()
            except DECODE_ERRORS as error:
                # the pipeline is dead: make the run good, then begin again with everything that was under way
                self._drop_decoder()
                self._repair(waiting, error)
                if not waiting:
                    assert self._end is not None
                    raise self._end from error

    def _repair(self, waiting: deque[Run], error: Exception) -> None:
        """Replace the undecodable images of the oldest run that has any.

        Where images may not be replaced (data.on_bad_image: stop) `waiting` is cut before the first batch that has any,
        and the iteration ends behind what is left with an error that names them. Raises RuntimeError if none has any.
        """
        skip = self._data.on_bad_image == "skip"
        for place, run in enumerate(waiting):
            mended = False
            for number, feed in enumerate(run):
                bad = self._undecodable(feed)
                if not bad:
                    continue
                mended = True
                try:
                    feed.replace(self._index, bad, skip=skip, verb="decoded")
                except ValueError as named:
                    self._end = named
                    before = [*list(waiting)[:place], run[:number]]
                    waiting.clear()
                    waiting.extend(run for run in before if run)
                    return
            if mended:
                return
        raise RuntimeError(
            f"{waiting[0][0].place}: DALI failed, although each image of the batch decodes alone: {error}"
        ) from error

    def _undecodable(self, feed: Feed) -> dict[int, Failure]:
        """{place: why} of the images that fail when they are decoded one by one."""
        bad: dict[int, Failure] = {}
        decoder: Decoder | None = None
        for place, encoded in enumerate(feed.encoded_B):
            if encoded is GREY:
                continue
            decoder = decoder or self._new_decoder(1, depth=1)
            geometry = {name: values[place : place + 1] for name, values in feed.geometry.items()}
            try:
                decoder.push(Inputs(pack([encoded]), geometry))
                decoder.pop()
            except DECODE_ERRORS as error:
                bad[place] = Failure(decode_reason(error))
                decoder.close()
                decoder = None
        if decoder is not None:
            decoder.close()
        return bad

    def _to_batch(self, feed: Feed, images_BHWC: torch.Tensor) -> Batch:
        pixels = {DECODED: images_BHWC}
        if feed.factors_B3 is not None:
            pixels[FACTORS] = to_device(feed.factors_B3, self._device)
        labels_B = np.where(feed.indices_B >= 0, self._index.labels_N[feed.indices_B], 0)
        return Batch(
            pixels=pixels,
            render=self._render,
            labels_B=to_device(labels_B, self._device),
            valid_B=to_device(feed.valid_B, self._device),
            positions_B=feed.positions_B,
            indices_B=feed.indices_B,
            class_counts_C=to_device(feed.counts_C, self._device),
            samples_B6=feed.samples_B6,
            step=feed.step,
            epoch=feed.epoch,
        )


class TrainLoader(_Loader):
    """This rank's part of every step's global batch, cropped and mirrored at random."""

    def __init__(
        self,
        index: ImageIndex,
        data: Data,
        sampler: order.Sampler,
        *,
        classes: int,
        seed: int,
        stream: str,
        global_batch: int,
        rank: int,
        world_size: int,
        device: torch.device,
        cores: int,
    ) -> None:
        """Start nothing yet. `stream` names the sequence of images, `cores` is for decoding unless threads are set.

        ValueError: fewer images than global_batch, fewer than one image per rank, more labels than `classes`.
        """
        refuse_padded_crops(data, str(index.root))
        _check_labels(index, classes)
        self._plan = Plan(
            index.sizes_N2,
            index.labels_N,
            data,
            sampler,
            classes=classes,
            seed=seed,
            stream=stream,
            global_batch=global_batch,
        )
        self.steps_per_epoch = self._plan.steps_per_epoch
        self._slice = order.rank_slice(rank, world_size, global_batch)
        batch = self._slice.stop - self._slice.start
        super().__init__(index, data, classes=classes, batch=batch, training=True, device=device, cores=cores)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield this rank's batches of steps first_step ... last_step - 1 of the run (0-based, over all epochs).

        With data.on_bad_image: stop, an image that cannot be used raises an error naming files, epoch and step:
        RuntimeError if disk or network failed, else DataError.
        """
        return self._start(self.describe, range(first_step, last_step))

    def samples_hash(self, step: int) -> str:
        """Hash over image numbers, crops and flips of the step's global batch; the same on any number of ranks."""
        return self._plan.samples_hash(step)

    def blank(self) -> Batch:
        """Return black images in the place of this rank's."""
        number, side = self._slice.stop - self._slice.start, self._data.image_size
        pixels = {DECODED: torch.zeros(number, side, side, 3, dtype=torch.uint8, device=self._device)}
        if self._data.colour_jitter:
            pixels[FACTORS] = torch.ones(number, 3, device=self._device)
        return blank_batch(pixels, self._render, self._slice, self._classes, self._device)

    def describe(self, step: int) -> Feed:
        """Return what this rank's batch of a step is made of, before any byte is read."""
        epoch, positions_G, indices_G = self._plan.place(step)
        samples = self._plan.samples(epoch, positions_G[self._slice])
        return Feed(
            place=f"epoch {epoch}, step {step}",
            step=step,
            epoch=epoch,
            positions_B=samples.positions_B,
            indices_B=samples.indices_B,
            counts_C=self._plan.counts(indices_G),
            geometry={
                "indexed": _indexed(self._index, samples.indices_B),
                "anchor": samples.anchors_B2,
                "shape": samples.shapes_B2,
                "flip": samples.flips_B,
            },
            samples_B6=samples.table_B6,
            factors_B3=samples.factors_B3,
            grey_geometry=_GREY_CROP,
        )


_GREY_SHAPE = np.array([GREY_SIDE, GREY_SIDE, 3], np.int32)
_GREY_CROP: Mapping[str, NDArray[Any]] = {
    "indexed": _GREY_SHAPE,
    "anchor": np.zeros(2, np.int32),
    "shape": np.full(2, GREY_SIDE, np.int32),
    "flip": np.zeros((), np.int32),
}


class EvalLoader(_Loader):
    """Every image exactly once over all ranks, resized and cropped at the centre.

    Batch b, images [b * batch_size, (b + 1) * batch_size), goes to rank b % world_size: which images share a batch does
    not depend on the number of ranks. The last batch is padded. Ranks may have different numbers of batches.
    """

    def __init__(
        self,
        index: ImageIndex,
        data: Data,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        cores: int,
    ) -> None:
        """Start nothing yet. ValueError: image_size above eval_resize."""
        crops.check_evaluation(data.eval_resize, data.image_size)
        classes = len(index.class_names)
        super().__init__(index, data, classes=classes, batch=batch_size, training=False, device=device, cores=cores)
        number = -(-len(index) // batch_size)
        self._numbers = range(rank, number, world_size)
        self.rounds = -(-number // world_size)
        """Batches of the rank that has most: all ranks can meet this often."""
        size_12, anchor_12 = self._geometry(np.full((1, 2), GREY_SIDE, np.int32))
        self._grey_geometry = {"indexed": _GREY_SHAPE, "size": size_12[0], "anchor": anchor_12[0]}

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's batches. An image that cannot be used raises as in training."""
        return self._start(self._describe, self._numbers)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._numbers)

    def _geometry(self, sizes_B2: crops.Ints) -> tuple[NDArray[np.float32], crops.Ints]:
        size_B2, anchor_B2 = crops.evaluation_geometry(sizes_B2, self._data.eval_resize, self._data.image_size)
        return size_B2.astype(np.float32), anchor_B2

    def _describe(self, number: int) -> Feed:
        indices_B = np.arange(number * self._batch, (number + 1) * self._batch)
        indices_B[indices_B >= len(self._index)] = -1
        size_B2, anchor_B2 = self._geometry(self._index.sizes_N2[indices_B])
        return Feed(
            place=f"evaluation of {self._index.split}, batch {number}",
            step=number,
            epoch=0,
            positions_B=indices_B,
            indices_B=indices_B,
            counts_C=np.bincount(self._index.labels_N[indices_B[indices_B >= 0]], minlength=self._classes).astype(
                np.float32
            ),
            geometry={"indexed": _indexed(self._index, indices_B), "size": size_B2, "anchor": anchor_B2},
            samples_B6=np.empty((0, 6), np.int64),
            factors_B3=None,
            grey_geometry=self._grey_geometry,
        )


def _indexed(index: ImageIndex, indices_B: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return height, width and 3 of each image: int32 [B, 3]; anything for padding."""
    return np.concatenate([index.sizes_N2[indices_B], np.full((len(indices_B), 1), 3)], axis=1).astype(np.int32)


def _check_labels(index: ImageIndex, classes: int) -> None:
    if len(index.class_names) > classes or index.labels_N.max() >= classes:
        raise ValueError(
            f"{index.root}: the {index.split} split has {len(index.class_names)} classes, and labels up to"
            f" {index.labels_N.max()}; the network has {classes} outputs. Build it for the classes of this split."
        )
