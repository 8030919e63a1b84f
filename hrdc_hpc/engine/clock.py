"""Where the time of steps goes on one rank: forward and backward, exposed communication, optimizer.

Marks are set inside every step and read on log steps only. On a GPU they are events on its stream: setting one does not
make the host wait. Communication counts only where it is *exposed*: from the moment at which the last gradient of this
rank is there to the moment at which all ranks' sums are; what overlaps with the backward pass costs nothing.
"""

from __future__ import annotations

import itertools
import time
from enum import IntEnum

import torch


class Mark(IntEnum):
    """Moments of a step, in order."""

    BEGIN = 0
    GRADIENTS = 1
    """This rank's own gradients are complete."""
    REDUCED = 2
    """The gradients are those of the global batch."""
    DONE = 3


IDLE = "idle"
_SHARES = {"compute": Mark.GRADIENTS, "communication": Mark.REDUCED, "optimizer": Mark.DONE}
"""What ends at which mark; it begins at the one before."""

Moment = float | torch.cuda.Event


class StepClock:
    """Collects marks of steps until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._free: list[torch.cuda.Event] = []
        self._steps: list[dict[Mark, Moment]] = []
        self._since: Moment | None = None
        """When it was last read or restarted."""
        self._open: dict[Mark, Moment] | None = None

    def mark(self, mark: Mark) -> None:
        """Set a mark of the step under way; BEGIN opens one, DONE closes it, a mark set again counts from then."""
        if mark is Mark.BEGIN:
            self._open = {}
        if self._open is None:  # a rehearsal
            return
        self._open[mark] = self._now()
        if mark is Mark.DONE:
            self._steps.append(self._open)
            self._open = None

    def restart(self) -> None:
        """Forget what was not read."""
        for step in self._steps:
            self._recycle(step)
        self._steps.clear()
        self._since = self._now()

    def step_times(self) -> list[float]:
        """Return the seconds of each step since the last restart, which waits for a GPU; they are not read thereby.

        A step's time is from the end of the one before it, or the restart, to its own end: they add up to the whole.
        """
        assert self._since is not None, "it was never restarted"
        ends = [self._since, *(step[Mark.DONE] for step in self._steps)]
        if isinstance(ends[-1], torch.cuda.Event):
            ends[-1].synchronize()
        return [seconds(before, end) for before, end in itertools.pairwise(ends)]

    def read(self) -> dict[str, float]:
        """Return seconds of compute, communication, optimizer and idle since the last read; waits for a GPU.

        Idle is the time between two steps, in which the device had nothing of a step to do. A step that was replayed as
        one CUDA graph has no marks inside: all of it counts as compute.
        """
        totals = dict.fromkeys([*_SHARES, IDLE], 0.0)
        done = self._since
        for step in self._steps:
            last = step[Mark.DONE]
            if isinstance(last, torch.cuda.Event):
                last.synchronize()
            before = step[Mark.BEGIN]
            totals[IDLE] += seconds(done, before) if done is not None else 0.0
            done = last
            inside = [mark for mark in (Mark.GRADIENTS, Mark.REDUCED) if mark in step]
            for name, mark in _SHARES.items():
                if mark in step and (inside or mark is Mark.DONE):
                    totals[name if inside else "compute"] += seconds(before, step[mark])
                    before = step[mark]
        self.restart()
        return totals

    def _now(self) -> Moment:
        if not self._on_gpu:
            return time.perf_counter()
        moment = self._free.pop() if self._free else event()
        moment.record()
        return moment

    def _recycle(self, step: dict[Mark, Moment]) -> None:
        self._free += [moment for moment in step.values() if isinstance(moment, torch.cuda.Event)]


def event() -> torch.cuda.Event:
    """Return an event of a GPU that can be asked for the time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no annotations there


def seconds(start: Moment, end: Moment) -> float:
    """Seconds from one moment to another; of a GPU both must be past."""
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end)) / 1000
    assert not isinstance(end, torch.cuda.Event)
    return end - start
