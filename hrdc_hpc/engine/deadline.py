"""The time limit, met without a signal: when to stop so that the last save is on disk before the end. Torch-free.

margin = heed_s + 2 * save_s + leave_s

heed_s   from the moment at which rank 0 finds that it is time to the step after which all ranks stop: up to k + 1 steps
         (see agreement.py), each as long as the longest of the last ones, or one batch of an evaluation
save_s   the longest save so far, from the gathering of the state to the commit; twice, because one may be under way.
         Before the first it is estimated from the bytes of the state
leave_s  the barrier, the requeue, the end of the processes

The margin takes at most half of the time that is left when the first step begins: a job that is too short says so, and
still gets on.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

TIME_LIMIT = "time limit"
LEAVE_S = 5.0
_SLOW_DISK = 50e6
"""Bytes per second that a shared file system gives one writer at a bad moment; only until a save was measured."""
_FEWEST_S = 1.0
"""A save, however small."""
_LARGEST_SHARE = 0.5


class StepTimes:
    """Seconds of the last steps, as the host sees them."""

    def __init__(self, number: int = 100) -> None:
        """Remember the last `number`."""
        self._last: deque[float] = deque(maxlen=number)

    def add(self, seconds: float) -> None:
        """Remember a step."""
        self._last.append(seconds)

    def __len__(self) -> int:
        return len(self._last)

    @property
    def longest(self) -> float:
        """Of the last steps; 0 before the first."""
        return max(self._last, default=0.0)

    @property
    def typical(self) -> float:
        """Median of the last steps; 0 before the first."""
        return statistics.median(self._last) if self._last else 0.0


def margin_s(*, longest_step_s: float, steps_to_heed: int, round_s: float, save_s: float) -> float:
    """Seconds before the end at which to say stop; see above. `round_s`: the longest batch of an evaluation."""
    return max(steps_to_heed * longest_step_s, round_s) + 2 * save_s + LEAVE_S


def stop_at(end: float, begun: float, margin: float) -> float:
    """When to say stop, on the clock of `end`; `begun`: when the first step began."""
    return end - min(margin, _LARGEST_SHARE * max(0.0, end - begun))


def estimated_save_s(state_bytes: int) -> float:
    """Seconds of a save that was never measured."""
    return _FEWEST_S + state_bytes / _SLOW_DISK


class Deadline:
    """Answers 'is it time?' on rank 0, from what was measured. On ranks that know no end it never is."""

    def __init__(self, end_time: Callable[[], float | None], times: StepTimes) -> None:
        """`end_time`: when the job ends, Unix seconds, or None; `times`: of the training loop."""
        self._end_time = end_time
        self._times = times
        self._started = time.time()
        self._begun: float | None = None
        self._save_s = 0.0
        self._measured = False
        self._round_s = 0.0
        self._warned = False

    def begin(self, state_bytes: int) -> None:
        """The first step is about to be taken."""
        self._begun = time.time()
        self._save_s = estimated_save_s(state_bytes)

    def saved(self, seconds: float) -> None:
        """Remember how long a save took."""
        self._save_s = max(self._save_s, seconds) if self._measured else seconds
        self._measured = True

    def evaluated(self, seconds: float) -> None:
        """Remember how long a batch of an evaluation took, all ranks' answers included."""
        self._round_s = max(self._round_s, seconds)

    def reason(self, period: int) -> str | None:
        """'time limit' if it is time to stop, where ranks ask each other every `period` steps."""
        end = self._end_time()
        if end is None or self._begun is None:
            return None
        margin = margin_s(
            longest_step_s=self._times.longest, steps_to_heed=period + 1, round_s=self._round_s, save_s=self._save_s
        )
        stop = stop_at(end, self._begun, margin)
        if stop > end - margin:
            self._warn(end, margin)
        return TIME_LIMIT if time.time() >= stop else None

    def _warn(self, end: float, margin: float) -> None:
        if self._warned or self._begun is None:
            return
        self._warned = True
        log.warning(
            "the time limit is too short: start-up took %.0f s and %.0f s were left for training, of which %.0f s are"
            " needed to stop in time (step %.2g s, save %.2g s%s). The run may be killed before its save is on disk,"
            " and gets on slowly: raise cluster.time_min",
            self._begun - self._started, end - self._begun, margin, self._times.longest, self._save_s,
            "" if self._measured else ", estimated",
        )  # fmt: skip
