"""Interleaved timing by the benchmark protocol: A-B-A-B in several rounds, warm-up dropped, medians and paired ratios.

What shares a machine with other work slows down for a while and recovers; contenders that take turns are slowed alike,
and ratios within a round cancel what the round had in common. Torch-free.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Contender:
    """Something that takes training steps."""

    name: str
    run: Callable[[int], None]
    """Take that many steps, and return once the device is done with them."""
    images: int
    """Images of a step."""


@dataclass
class Timing:
    """What was measured of one contender; a reason instead of rates where it failed."""

    images_per_s: list[float] = field(default_factory=list)
    """One rate a round."""
    first_s: float | None = None
    """Seconds of the first step, with whatever is made only once (kernels are chosen, graphs captured, compiled)."""
    steps: int = 0
    """Timed steps of a round."""
    failed: str | None = None

    def summary(self) -> dict[str, Any]:
        """Median and range over the rounds, as plain values."""
        if self.failed or not self.images_per_s:
            return {"failed": self.failed or "no round was completed"}
        rates = self.images_per_s
        return {
            "images_per_s": statistics.median(rates), "range": [min(rates), max(rates)], "rounds": rates,
            "steps_per_round": self.steps, "first_s": self.first_s,
        }  # fmt: skip


@dataclass(frozen=True)
class Length:
    """How long a turn is."""

    rounds: int = 3
    seconds: float = 3.0
    """Of one turn, if `steps` is not set."""
    steps: int | None = None
    """Timed steps of one turn."""
    warm_up: int = 1
    """Steps at the start of each turn that are not timed: others have been on the device since."""


def race(
    contenders: Sequence[Contender],
    length: Length,
    *,
    say: Callable[[str], None] = lambda _: None,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Let contenders take turns; what fails is left out of the following rounds, and its reason kept.

    `between` is called before each turn (to hand memory back, say), `say` with what is being done.
    """
    timings = {one.name: Timing() for one in contenders}
    for one in contenders:
        say(f"{one.name}: first steps")
        between()
        _with_reason(timings[one.name], partial(_begin, one, timings[one.name], length))
    for number in range(length.rounds):
        for one in contenders:
            timing = timings[one.name]
            if timing.failed is None:
                say(f"round {number + 1} of {length.rounds}: {one.name}")
                between()
                _with_reason(timing, partial(_turn, one, timing, length))
    return timings


def _with_reason(timing: Timing, work: Callable[[], None]) -> None:
    """Do `work`; keep the reason if it fails: one rung that a machine cannot climb must not cost the others."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever a compiler or a driver raises becomes the row's reason
        timing.failed = reason(error)


def reason(error: BaseException) -> str:
    """Return the kind of the error and the first line of what it says, in 200 characters at most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]


def _begin(one: Contender, timing: Timing, length: Length) -> None:
    timing.first_s = _seconds(one, 1)
    if length.steps is not None:
        timing.steps = length.steps
        return
    per_step = _seconds(one, 1)
    # a captured step is so short that one of them says nothing
    few = min(50, math.floor(0.1 * length.seconds / max(per_step, 1e-6)))
    if few > 1:
        per_step = _seconds(one, few) / few
    timing.steps = max(1, round(length.seconds / per_step))


def _turn(one: Contender, timing: Timing, length: Length) -> None:
    one.run(length.warm_up)
    timing.images_per_s.append(one.images * timing.steps / _seconds(one, timing.steps))


def _seconds(one: Contender, steps: int) -> float:
    start = time.perf_counter()
    one.run(steps)
    return time.perf_counter() - start


def paired(ours: Timing, other: Timing) -> dict[str, Any] | None:
    """Return median and range of the ratio ours / other within a round; None where one of them failed."""
    if ours.failed or other.failed or not ours.images_per_s:
        return None
    ratios = [a / b for a, b in zip(ours.images_per_s, other.images_per_s, strict=True)]
    return {"ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
