"""Windows of training steps for a measurement: as in training, or with data or network left out.

A window begins with all ranks at once, on the weights that the measurement began with. Its first steps are not timed.
Nothing waits for a GPU before its end: times are read from events then. All ranks take the same number of steps.

Axis legend: B images of this rank's batch, G of the global batch, C classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch

from hrdc_hpc.config.schema import Measure, RunConfig
from hrdc_hpc.data.batch import DECODED, Batch, to_device
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.data.index import ImageIndex
from hrdc_hpc.data.prefetch import runs_of
from hrdc_hpc.engine import hardware
from hrdc_hpc.engine.around import Around
from hrdc_hpc.engine.clock import IDLE
from hrdc_hpc.engine.energy import EnergyCounter
from hrdc_hpc.engine.parts import Parts, scalars_at, step_draws
from hrdc_hpc.engine.place import Stopped
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.record.measurement import Share, Variant

_ENDLESS = 1 << 40
"""Steps of a stream that nobody takes to its end."""
_READ_AHEAD = 2
"""Runs that a loader reads besides those that it decodes ahead (data/loader.py)."""
_TRIAL = 3
"""Timed steps of the window that says how long a step takes."""
_FEWEST = 5


@dataclass(frozen=True)
class Window:
    """What one window found."""

    step_s: Sequence[float]
    """Rank 0's, of each timed step."""
    share: Share
    """Rank 0's, mean over the timed steps."""
    ranks_s: Sequence[float]
    """Length of the timed part on each rank."""
    no_core: float
    """Share of the window's time for which the host's thread of rank 0 had no core to run on."""
    joules: float | None
    """Of all GPUs, over all steps of the window; None where that is not known."""


class Windows:
    """Takes steps on one rank as the training loop does; all ranks call the same in the same order."""

    def __init__(self, config: RunConfig, parts: Parts, processes: Processes, around: Around) -> None:
        """Take nothing yet."""
        assert config.measure is not None
        self.config, self.told, self.parts = config, config.measure, parts
        self.processes, self.around = processes, around
        self.energy = EnergyCounter(processes.device)
        self.done = 0
        """Steps taken."""
        self._last_step = parts.steps_per_epoch * config.optim.epochs
        self._streams: list[Iterator[Batch]] = []
        self._resident: dict[str, Batch] = {}
        self._waited_s = 0.0
        self._read_ahead = max(processes.everybody(read_ahead(config, processes)))
        """Batches that the loader of the rank that is furthest ahead may have read: all ranks leave out as many."""

    @property
    def reads(self) -> bool:
        """Whether steps as in training read images from disk."""
        return self.told.images == "real" and isinstance(self.parts.images.train, ImageIndex)

    def open(self, stack: ExitStack) -> None:
        """Make the batch that stays on the device; where real images are read, begin to, until the stack ends."""
        loaders, classes = self.parts.loaders, self.parts.images.classes
        if self.told.images == "resident" and isinstance(self.parts.images.train, ImageIndex):
            self._resident = {name: made_up(loader.blank(), classes, self.config) for name, loader in loaders.items()}
            return
        self._streams = [loader.batches(0, _ENDLESS) for loader in loaders.values()]
        for stream in self._streams:
            stack.callback(getattr(stream, "close", lambda: None))
        self._resident = self._next()
        if self.told.images == "resident":  # the data set lies on the device: its first images are as good as others
            self._streams = []

    def trial(self) -> tuple[int, list[int]]:
        """Return how many steps a window has, the same on all ranks, and the bytes of the gradients' buckets."""
        exchange = self.parts.step.exchange
        exchange.sizes = []
        with self.parts.step.everything_kept():
            self._take(1, resident=False)
        sizes, exchange.sizes = exchange.sizes, None
        step_s = statistics.median(self.window("as_is", _TRIAL).step_s)
        return self.processes.from_first(length(self.told, step_s)), sizes

    def window(self, variant: Variant, steps: int) -> Window:
        """Take the steps that are not timed and `steps` that are. Raises Stopped, on all ranks."""
        self.around.watchdog.at("between windows", self.done)
        self.around.agreement.together()
        step = self.parts.step
        resident = variant.startswith("resident")
        step.exchange.on = not variant.endswith("no_sync")
        try:
            with step.everything_kept():
                return self._timed(steps, resident=resident)
        finally:
            step.exchange.on = True

    def _timed(self, steps: int, *, resident: bool) -> Window:
        clock = self.parts.step.clock
        began, starved_s = time.perf_counter(), hardware.waited_for_core_s()
        if self.reads and not resident:
            self._forget_what_was_read_ahead()
        before = self.energy.joules()
        self._take(self.told.warm_up, resident=resident)
        clock.restart()
        self._waited_s = 0.0
        self._take(steps, resident=resident)
        self.around.watchdog.at("end of a window", self.done)  # the host may be many steps ahead of its GPU
        step_s = clock.step_times()
        busy = clock.read()
        after = self.energy.joules()
        no_core = (hardware.waited_for_core_s() - starved_s) / (time.perf_counter() - began)
        share = Share(
            data_wait_s=min(self._waited_s, busy[IDLE]) / steps,
            compute_s=busy["compute"] / steps,
            communication_s=busy["communication"] / steps,
            optimizer_s=busy["optimizer"] / steps,
        )
        used = None if before is None or after is None else after - before
        everybody: list[tuple[float, float | None]] = self.processes.everybody((sum(step_s), used))
        joules = [one for _, one in everybody]
        known = None if None in joules else sum(one for one in joules if one is not None)
        return Window(step_s, share, [own for own, _ in everybody], no_core, known)

    def _forget_what_was_read_ahead(self) -> None:
        """Leave out batches that the loader made while others had the device: steps would have them for nothing."""
        for _ in range(self._read_ahead):
            self.around.watchdog.at("data", self.done)
            self._next()

    def _next(self) -> dict[str, Batch]:
        return dict(zip(self.parts.loaders, (next(stream) for stream in self._streams), strict=True))

    def _take(self, number: int, *, resident: bool) -> None:
        """Take steps as the training loop does, without its log, looks and saves."""
        watchdog, agreement = self.around.watchdog, self.around.agreement
        for i in range(number):
            watchdog.step_begins(self.done)
            began = time.perf_counter()
            batches = self._resident if resident or not self._streams else self._next()
            self._waited_s += time.perf_counter() - began
            self.around.faults.before(self.done)
            watchdog.data_there(self.done)
            draws = {
                name: step_draws(self.parts.method, self.config.seed, name, batch, self.processes.device)
                for name, batch in batches.items()
            }
            scalars = scalars_at(self.done % self._last_step, self.config, self.parts, self.around.faults)
            self.parts.step(batches, draws, scalars)
            self.done += 1
            watchdog.step_ended(self.done, count=i > 0)
            if reason := agreement.reason():
                raise Stopped(reason)


def length(told: Measure, step_s: float) -> int:
    """Timed steps of a window, for the time of one step in seconds."""
    return max(min(_FEWEST, told.steps), min(told.steps, int(told.window_s / max(step_s, 1e-9))))


def read_ahead(config: RunConfig, processes: Processes) -> int:
    """Return how many batches this rank's loader may have read while nobody took any."""
    loader, images = config.data.loader, config.optim.global_batch // processes.world_size
    runs = runs_of(loader, images, loader.threads or processes.cores)
    return runs.ahead + _READ_AHEAD * runs.batches


def made_up(blank: Batch, classes: ClassInfo, config: RunConfig) -> Batch:
    """Fill a blank batch with random pixels, and with labels that are as frequent as the data set's."""
    rng = np.random.default_rng(config.seed)
    labels_G = rng.choice(classes.number, config.optim.global_batch, p=classes.counts_C / classes.counts_C.sum())
    counts_C = np.bincount(labels_G, minlength=classes.number).astype(np.float32)
    device = blank.labels_B.device
    return replace(
        blank,
        pixels={**blank.pixels, DECODED: torch.randint_like(blank.pixels[DECODED], 256)},
        labels_B=to_device(labels_G[blank.positions_B], device),
        class_counts_C=to_device(counts_C, device),
    )
