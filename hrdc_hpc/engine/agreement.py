"""All ranks agree on the step at which to stop, without waiting for each other at every step.

Every k steps the ranks start an all-reduce (MAX) of their flags on the control group, and read its result one step
later, when it has long arrived. Rank 0 measures the step time and proposes k in the same reduction, so k is the same on
all ranks. A rank that is told to stop is heeded within k + 1 steps: a quarter of a second where steps are short, and
never more than 9 steps, also where they become slow all of a sudden. In the same way all ranks save after one step when
somebody asked for it, and stop in time for the end of the job.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from hrdc_hpc.engine.deadline import TIME_LIMIT, Deadline
from hrdc_hpc.engine.place import Stop, Stopped
from hrdc_hpc.engine.processes import Processes

REASONS = ("", "other", TIME_LIMIT, "SIGUSR1", "SIGUSR2", "SIGTERM", "stop file")
"""Why to stop, by code; where ranks differ the last one wins."""
_EVERY_S = 0.25
_LONGEST = 8


def code_of(reason: str | None) -> int:
    """Number of a reason, to be reduced over the ranks."""
    if not reason:
        return 0
    return REASONS.index(reason) if reason in REASONS else 1


def period_of(step_s: float) -> int:
    """Steps from one question to the next for a step time in seconds."""
    return max(1, min(_LONGEST, int(_EVERY_S / max(step_s, 1e-9))))


class Agreement:
    """Asked once per step by every rank; answers the same on every rank."""

    def __init__(self, processes: Processes, stop: Stop, deadline: Deadline | None = None) -> None:
        """`deadline`: asked on rank 0 beside `stop`."""
        self._processes = processes
        self._stop = stop
        self._deadline = deadline
        self._period = 1
        self._save_asked = False
        self._pending: tuple[torch.Tensor, dist.Work] | None = None
        self.questions = self.answers = 0
        """How often all ranks were asked, and how many of these questions all of them have answered."""
        self._measure_anew()

    def reason(self) -> str | None:
        """Why to stop after this step, or None."""
        self._steps += 1
        answer = self._collect()
        if self._steps >= self._period:
            self._ask()
        return answer

    def reason_now(self) -> str | None:
        """The same, but waits for all ranks; for evaluation, which has no short steps."""
        answer = self._collect()
        if answer is None:
            self._ask()
            answer = self._collect()
        self._measure_anew()
        return answer

    def told(self) -> bool:
        """Whether this rank was told to stop; others may not know it yet."""
        return self._stop.reason() is not None

    def together(self) -> None:
        """Wait for all ranks. Raises Stopped on all of them if one was told to stop."""
        if reason := self.reason_now():
            raise Stopped(reason)

    def save_asked(self) -> bool:
        """Whether somebody asked for a checkpoint since the last call; True on all ranks after the same step."""
        asked, self._save_asked = self._save_asked, False
        return asked

    def close(self) -> None:
        """Finish a reduction under way, so that the group can be taken down."""
        self._collect()

    def _measure_anew(self) -> None:
        self._steps = 0
        self._since = time.monotonic()

    def _ask(self) -> None:
        step_s = (time.monotonic() - self._since) / max(1, self._steps)
        proposal = period_of(step_s) if self._processes.first else 0
        reason = self._stop.reason()
        if reason is None and self._deadline is not None and self._processes.first:
            reason = self._deadline.reason(self._period)
        flags = torch.tensor([code_of(reason), proposal, self._processes.first and self._stop.save_asked()])
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._processes.control, async_op=True)
        self._pending = (flags, work)
        self.questions += 1
        self._measure_anew()

    def _collect(self) -> str | None:
        if self._pending is None:
            return None
        flags, work = self._pending
        work.wait()
        self._pending = None
        self.answers += 1
        code, period, save = flags.tolist()
        self._period = max(1, period)
        self._save_asked = self._save_asked or bool(save)
        return REASONS[code] or None
