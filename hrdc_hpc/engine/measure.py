"""A measured run: windows of steps take turns, then all-reduces, a checkpoint, memory; nothing that was learnt is kept.

It starts as training does and takes the same steps (windows.py), so that its figures are those of the job that a user
would run. What it found goes into report/measurement.json; the summary, last, says that the run is finished. One that
is stopped leaves nothing behind that it could go on from: its next attempt measures anew, which is short.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from pathlib import Path

import torch.distributed as dist

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.engine import allreduce, hardware
from hrdc_hpc.engine.announce import say_what_runs
from hrdc_hpc.engine.around import Around, Outcome
from hrdc_hpc.engine.checkpoint import Saver, list_checkpoints
from hrdc_hpc.engine.parts import Parts, rehearse
from hrdc_hpc.engine.place import Stopped
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.state import about, capture, state_bytes
from hrdc_hpc.engine.watchdog import SAVE
from hrdc_hpc.engine.windows import Window, Windows
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.measurement import VARIANTS, AllReduce, Measurement, Share, Variant, write

log = logging.getLogger(__name__)

_SAVES = 2
"""The first one also finds memory for its copies, which later ones of a run have."""
_STARVED = 0.05
"""Share of the time without a core that is worth a note."""
_STRAGGLER = 1.1
"""How many times rank 0's the slowest rank's time is, to be worth a note."""


@dataclass(frozen=True)
class _Cost:
    """Of a checkpoint."""

    bytes: int = 0
    stall_s: float = 0.0
    durable_s: float = 0.0


class Measuring:
    """One attempt at a measured run, on one rank."""

    def __init__(
        self, folder: RunFolder, config: RunConfig, parts: Parts, processes: Processes, around: Around
    ) -> None:  # fmt: skip
        """Measure nothing yet. ValueError for the folder of a run that has trained."""
        assert config.measure is not None
        if list_checkpoints(folder.checkpoints):
            raise ValueError(
                f"{folder.path}: measure is set, but this run has trained: it has checkpoints. Give the measured run a"
                " --name of its own"
            )
        self.folder, self.config, self.told = folder, config, config.measure
        self.parts, self.processes, self.around = parts, processes, around
        self.journal, self.lease, self.watchdog = around.journal, around.lease, around.watchdog
        self.windows = Windows(config, parts, processes, around)
        self.found: dict[Variant, list[Window]] = {variant: [] for variant in self._variants()}
        self.notes: list[str] = []

    def to_the_end(self) -> Outcome:
        """Start up, measure, write down; return how it ended."""
        try:
            self._measure()
            outcome = Outcome(True, "finished", 0)
        except Stopped as told:
            log.info("stopped by %s; the next attempt measures from the start", told.reason)
            outcome = Outcome(False, told.reason, 0)
        self.journal.ended(outcome.reason)
        self.around.agreement.close()
        self.processes.barrier()
        return outcome

    def _variants(self) -> list[Variant]:
        """What there is to leave out: nothing is sent by one rank, nothing is read where images are made up."""
        return [
            variant
            for variant in VARIANTS
            if not (variant.endswith("no_sync") and self.processes.world_size == 1)
            and not (variant.startswith("resident") and self.told.images == "resident")
        ]

    def _measure(self) -> None:
        with ExitStack() as stack:
            self._start(stack)
            self.journal.phase("measure", "begin", 0)
            buckets = self._take_turns()
        self.watchdog.at("all-reduces", self.windows.done)
        all_reduces = self._all_reduces()
        cost = self._checkpoint()
        self.watchdog.at("writing the measurement", self.windows.done)
        measured = self._sum_up(buckets, all_reduces, cost)
        self.journal.phase("measure", "end", 0)
        if self.lease:
            self.lease.check()
            write(self.folder.path, measured)
            self._write_summary(measured)

    def _start(self, stack: ExitStack) -> None:
        """As training does, up to the first batches. Raises Stopped."""
        if self.processes.first and self.parts.step.compiled:
            log.info("compiling the step: about a minute on a GPU, several on two CPU cores")
        self._rehearsing()
        rehearse(self.config, self.parts, self.processes, self._rehearsing)
        self.around.startup.done("rehearsal")
        self.watchdog.at("first batches", 0)
        self.windows.open(stack)
        self.around.startup.done("first batches")
        say_what_runs(self.parts, self.processes, self.journal, None, self._planned(self.told.steps))
        self.around.deadline.begin(state_bytes(self.parts.step))
        self.journal.phase("startup", "end", 0)

    def _rehearsing(self) -> None:
        self.watchdog.at("rehearsal, compiling", 0)
        self.around.agreement.together()

    # windows

    def _planned(self, steps: int) -> int:
        """Steps of all windows that are not done yet, with those that are."""
        left = len(self.found) * self.told.rounds - sum(len(windows) for windows in self.found.values())
        return self.windows.done + left * (self.told.warm_up + steps)

    def _take_turns(self) -> list[int]:
        """Let the variants take turns; return the bytes of the gradients' buckets."""
        steps, buckets = self.windows.trial()
        self.around.peers.stop_listening()  # from here on a broken connection says it as soon
        if steps < self.told.steps:
            self.notes.append(
                f"windows have {steps} timed steps instead of {self.told.steps}: steps take long (measure.window_s)"
            )
        order = list(self.found)
        for number in range(self.told.rounds):
            first = number % len(order)  # a variant that always came after the same other one would inherit from it
            for variant in order[first:] + order[:first]:
                window = self.windows.window(variant, steps)
                self.found[variant].append(window)
                self._record(variant, number, window, steps)
        return buckets

    def _record(self, variant: Variant, number: int, window: Window, steps: int) -> None:
        """Write a measure record, by which `status` knows how far it is."""
        planned, seconds = self._planned(steps), sum(window.step_s)
        rate = self.config.optim.global_batch * len(window.step_s) / seconds
        self.journal.write(
            "measure", self.windows.done, variant=variant, round=number, steps=planned, timed=len(window.step_s),
            step_s=statistics.median(window.step_s), ranks_s=list(window.ranks_s), no_core=window.no_core,
            images_per_s=rate, eta_s=(planned - self.windows.done) * seconds / len(window.step_s),
        )  # fmt: skip
        if self.processes.first:
            log.info(
                "%s, round %d of %d: %.1f images/s (median step %.4g s)",
                variant, number + 1, self.told.rounds, rate, statistics.median(window.step_s),
            )  # fmt: skip

    # what else there is to measure

    def _all_reduces(self) -> list[AllReduce]:
        if self.processes.world_size == 1:
            return []
        found, cut = allreduce.sweep(
            self.processes, self.parts.step.gradient_bytes(), self.config.compute.gradients,
            self.around.agreement.together,
        )  # fmt: skip
        self.notes += [cut] if cut else []
        return found

    def _checkpoint(self) -> _Cost:
        """Save as training does, but beside the checkpoints, where nothing is ever resumed from; then remove it."""
        place, cost = self.folder.path / "measured-checkpoint", _Cost()
        with ExitStack() as stack:
            saver = None
            if self.lease:
                stack.callback(shutil.rmtree, place, ignore_errors=True)
                saver = stack.enter_context(closing(self._saver(place)))
            for number in range(1, 1 + _SAVES):
                self.around.agreement.together()
                self.watchdog.at(SAVE, self.windows.done)
                self.journal.phase("save", "begin", 0)
                cost = self._save(saver, number)
                self.journal.phase("save", "end", 0)
        return cost

    def _saver(self, place: Path) -> Saver:
        assert self.lease is not None
        shutil.rmtree(place, ignore_errors=True)  # of an attempt that was killed
        place.mkdir()
        check = self.around.faults.slowly(self.lease.check)
        return Saver(place, asynchronous=self.config.checkpoint.asynchronous, keep_last=1, lease_check=check)

    def _save(self, saver: Saver | None, number: int) -> _Cost:
        """Save once. Training stands still from the gathering of the state until the saver has a copy of it."""
        began = time.perf_counter()
        state = capture(self.parts.step, number, self.processes)
        if saver is None or state is None:
            return _Cost()
        told = about(
            self.config, self.parts.images.fingerprint, self.parts.precision.name, self.processes.world_size,
            self.parts.images.classes, self.parts.step.execution,
        )  # fmt: skip
        saver.save(number, state, told)
        stall_s = time.perf_counter() - began
        saver.wait()
        assert saver.last is not None
        return _Cost(saver.last.bytes, stall_s, time.perf_counter() - began)

    # writing down

    def _sum_up(self, buckets: Sequence[int], all_reduces: Sequence[AllReduce], cost: _Cost) -> Measurement:
        """Called by all ranks, for some of it is gathered."""
        nodes, backend = hardware.nodes(self.processes, self.around.homes), str(dist.get_backend())
        step_s: dict[str, list[list[float]]] = {
            variant: [list(window.step_s) for window in windows] for variant, windows in self.found.items()
        }
        if self.told.images == "resident":  # the same steps under both names
            step_s["resident"] = step_s["as_is"]
            step_s |= {"resident_no_sync": step_s["no_sync"]} if "no_sync" in step_s else {}
        as_is = self.found["as_is"]
        joules = [window.joules for window in as_is]
        steps = sum(self.told.warm_up + len(window.step_s) for window in as_is)
        self._note_what_is_special()
        return Measurement(
            world_size=self.processes.world_size,
            ranks_per_node=self.processes.world_size // len(nodes),
            global_batch=self.config.optim.global_batch,
            images=self.told.images,
            warm_up=self.told.warm_up,
            windows=step_s,
            shares=_median([window.share for window in as_is]),
            gradient_bytes=self.parts.step.gradient_bytes(),
            buckets=buckets,
            all_reduces=all_reduces,
            backend=backend,
            interface=hardware.interface(backend, len(nodes)),
            nodes=nodes,
            precision=self.parts.precision.name,
            startup_s=self.around.startup.told(),
            checkpoint_bytes=cost.bytes,
            checkpoint_stall_s=cost.stall_s,
            checkpoint_s=cost.durable_s,
            energy_j=None if None in joules else sum(one for one in joules if one is not None) / steps,
            versions=hardware.versions(self.windows.energy.driver),
            notes=self.notes,
        )

    def _note_what_is_special(self) -> None:
        energy, step = self.windows.energy, self.parts.step
        self.notes += [energy.missing] if energy.missing else []
        if self.processes.world_size == 1:
            self.notes.append("one rank: nothing is sent, and no_sync was left out")
        elif self.config.model.batch_norm == "sync":
            self.notes.append("batch norm over all ranks sends its statistics in no_sync windows too")
        if self.told.images == "resident":
            self.notes.append("as_is read no images: resident windows are the same ones")
        elif not self.windows.reads:
            self.notes.append("the data set lies in the devices' memory: as_is reads nothing from disk either")
        if step.captured:
            self.notes.append("a step is one CUDA graph: all of it counts as compute")
        starved = statistics.median(w.no_core for windows in self.found.values() for w in windows)
        if starved > _STARVED:
            self.notes.append(
                f"rank 0 had no core to run on for {100 * starved:.0f} % of the time: others were at work on its node,"
                " and figures are no better than that"
            )
        alone = [w for name, windows in self.found.items() if name.endswith("no_sync") for w in windows]
        if alone and (slowest := statistics.median(max(w.ranks_s) / w.ranks_s[0] for w in alone)) > _STRAGGLER:
            self.notes.append(
                f"without sync the slowest rank takes {slowest:.2f} times as long as rank 0, whose times these are"
            )

    def _write_summary(self, measured: Measurement) -> None:
        times = [s for window in measured.windows["as_is"] for s in window]
        self.folder.write_summary(
            {
                "measured": True,
                "step": self.windows.done,
                "nodes": len(measured.nodes),
                "world_size": measured.world_size,
                "global_batch": measured.global_batch,
                "images_per_s": measured.global_batch * len(times) / sum(times),
                "step_s": statistics.median(times),
            }
        )


def _median(shares: Sequence[Share]) -> Share:
    """Of each part by itself."""
    return Share(**{f.name: statistics.median(getattr(share, f.name) for share in shares) for f in fields(Share)})
