"""All ranks agree on the step at which to stop, without waiting for each other at every step.

Every k steps the ranks start an all-reduce (MAX) of their flags on the control group and read the result of the one
started k steps before. Rank 0 measures the step time and proposes k, in the same reduction, so that a stop is agreed
within about a second whatever the step time; k is therefore the same on all ranks.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from hrdc_hpc.engine.place import Stop
from hrdc_hpc.engine.processes import Processes

REASONS = ("", "other", "SIGUSR1", "SIGUSR2", "SIGTERM")
"""Why to stop, by code; where ranks differ the last one wins."""
_ANSWER_S = 0.5
_LONGEST = 256


def code_of(reason: str | None) -> int:
    """Number of a reason, to be reduced over the ranks."""
    if not reason:
        return 0
    return REASONS.index(reason) if reason in REASONS else 1


class Agreement:
    """Asked once per step by every rank; answers the same on every rank."""

    def __init__(self, processes: Processes, stop: Stop) -> None:
        self._processes = processes
        self._stop = stop
        self._period = 1
        self._steps = 0
        self._since = time.monotonic()
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def reason(self) -> str | None:
        """Why to stop after this step, or None; at most two periods after a rank was told to."""
        self._steps += 1
        if self._steps < self._period:
            return None
        answer = self._collect()
        self._ask()
        self._steps = 0
        return answer

    def reason_now(self) -> str | None:
        """The same, but waits for all ranks; for evaluation and warm-up, where there are no short steps."""
        return self._collect() or self._one_round()

    def _one_round(self) -> str | None:
        self._ask()
        return self._collect()

    def _ask(self) -> None:
        flags = torch.tensor([code_of(self._stop.reason()), self._proposal()])
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._processes.control, async_op=True)
        self._pending = (flags, work)

    def _collect(self) -> str | None:
        if self._pending is None:
            return None
        flags, work = self._pending
        work.wait()
        self._pending = None
        code, period = flags.tolist()
        self._period = max(1, period)
        return REASONS[code] or None

    def _proposal(self) -> int:
        now = time.monotonic()
        step_s = (now - self._since) / max(1, self._steps)
        self._since = now
        if not self._processes.first:
            return 0
        return max(1, min(_LONGEST, int(_ANSWER_S / max(step_s, 1e-6)), 2 * self._period))

    def close(self) -> None:
        """Finish a reduction under way, so that the group can be taken down."""
        if self._pending is not None:
            self._collect()
