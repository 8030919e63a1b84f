"""What the rows of a size come to: throughput, speed-up, efficiency, where the time goes. Pure, torch-free.

rate        images per second over all windows as in training; median and range over the repeats
speed-up    rate / rate of the base; the base is the smallest size of the mode that found something
efficiency  speed-up / (ranks / ranks of the base), in weak and in strong scaling alike
shares      medians of the marks inside the steps, rank 0; what they leave of the median step is 'rest'
ceilings    rate of the windows without communication, on resident images, and both
cost of a   median over the rounds of (mean step as in training - mean step of the variant in the same round):
variant     windows of a round are neighbours in time, so what disturbs all of them cancels out
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hrdc_hpc.record.measurement import Measurement, Variant
from hrdc_hpc.scaling.rows import Mode, Row, Size
from hrdc_hpc.scaling.view import StudyView

_Figure = Callable[[Measurement, Variant], float | None]

SHARES = ("waiting for data", "forward and backward", "exposed communication", "optimizer", "rest")
"""Parts of a step, in the order in which they are stacked."""
CEILINGS: tuple[Variant, ...] = ("no_sync", "resident", "resident_no_sync")


@dataclass(frozen=True, kw_only=True)
class Range:
    """Over the repeats of a size."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> Range:
        """Each figure times a factor above 0."""
        return Range(median=self.median * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A size that was asked for; figures are None where no repeat found any."""

    size: Size
    finished: int
    """Repeats with figures."""
    asked: int
    rate: Range | None = None
    """Images per second."""
    speed_up: Range | None = None
    efficiency: Range | None = None
    p50_s: float | None = None
    """Of all steps of all repeats."""
    p95_s: float | None = None
    shares_s: Mapping[str, float] | None = None
    """Seconds of a step by part, all of SHARES."""
    ceilings: Mapping[str, float] | None = None
    """Images per second by variant, of CEILINGS those that were measured."""
    costs_s: Mapping[str, float] | None = None
    """Seconds that a step would lose without communication, on resident images, with both; by variant."""
    start_up_s: float | None = None
    checkpoint_stall_s: float | None = None
    checkpoint_s: float | None = None
    energy_j: float | None = None
    """Of all GPUs, for one step."""
    troubles: Sequence[str] = ()
    """How the repeats without figures ended: 'repeats 1 and 2 failed: WHY', or 'repeat 3 queued'."""

    @property
    def shares(self) -> dict[str, float] | None:
        """Shares of a step by part; they add up to 1."""
        if self.shares_s is None:
            return None
        total = sum(self.shares_s.values())
        return {part: seconds / total for part, seconds in self.shares_s.items()}


def summaries(view: StudyView, mode: Mode) -> list[Summary]:
    """Every size of a mode that was asked for, smallest first."""
    sizes = view.sizes(mode)
    base = base_of(view, mode)
    return [_summary(view.rows_of(size), size, base) for size in sizes]


def base_of(view: StudyView, mode: Mode) -> tuple[Size, float] | None:
    """Return the size that speed-up is counted from and its median rate: the smallest that found something."""
    for size in view.sizes(mode):
        if rates := _rates(view.rows_of(size)):
            return size, statistics.median(rates)
    return None


def efficiency(rate: float, size: Size, base: tuple[Size, float]) -> float:
    """Share of the base's rate per rank that is kept."""
    of, base_rate = base
    return rate / base_rate * of.ranks / size.ranks


def _summary(rows: Sequence[Row], size: Size, base: tuple[Size, float] | None) -> Summary:
    found = [row.found for row in rows if row.images_per_s is not None and row.found is not None]
    troubles = troubles_of(rows)
    rates = _rates(rows)
    if base is None or not rates:
        return Summary(size=size, finished=0, asked=len(rows), troubles=troubles)
    rate = _range(rates)
    speed_up = rate.times(1 / base[1])
    steps = [s for row in rows for s in row.step_s]
    return Summary(
        size=size,
        finished=len(rates),
        asked=len(rows),
        rate=rate,
        speed_up=speed_up,
        efficiency=speed_up.times(base[0].ranks / size.ranks),
        p50_s=percentile(steps, 50),
        p95_s=percentile(steps, 95),
        shares_s=_shares(found, statistics.median(steps)),
        ceilings=_over(found, ceiling),
        costs_s=_over(found, paired),
        start_up_s=statistics.median(start_up(one) for one in found),
        checkpoint_stall_s=statistics.median(one.checkpoint_stall_s for one in found),
        checkpoint_s=statistics.median(one.checkpoint_s for one in found),
        energy_j=median(one.energy_j for one in found),
        troubles=troubles,
    )


def troubles_of(rows: Sequence[Row]) -> list[str]:
    """Return how the rows without figures stand, those alike in one line."""
    alike: dict[str, list[str]] = {}
    for row in rows:
        if row.images_per_s is None:
            alike.setdefault(state_of(row), []).append(str(row.repeat))
    return [
        f"repeat{'s'[: len(repeats) != 1]} {' and '.join(filter(None, (', '.join(repeats[:-1]), repeats[-1])))} {state}"
        for state, repeats in alike.items()
    ]


def state_of(row: Row) -> str:
    """Return the state of a row, and why if it says so, in one line."""
    why = " ".join(row.why.split())
    return f"{row.state}: {why}" if why else row.state


def _rates(rows: Iterable[Row]) -> list[float]:
    return [rate for row in rows if (rate := row.images_per_s) is not None]


def _range(values: Sequence[float]) -> Range:
    return Range(median=statistics.median(values), low=min(values), high=max(values))


def median(values: Iterable[float | None]) -> float | None:
    """Median of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed, between neighbours in proportion."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def start_up(found: Measurement) -> float:
    """Seconds from the start of the process to the first step."""
    parts = {name: seconds for name, seconds in found.startup_s.items() if name != "total"}
    return found.startup_s.get("total", sum(parts.values()))


def ceiling(found: Measurement, variant: Variant) -> float | None:
    """Images per second of a variant's windows; None if it has none."""
    times = [s for window in found.windows.get(variant, ()) for s in window]
    return found.global_batch * len(times) / sum(times) if times else None


def paired(found: Measurement, variant: Variant) -> float | None:
    """Seconds of a step as in training that the variant saves, by rounds; None if it was not measured."""
    pairs = zip(found.windows["as_is"], found.windows.get(variant, ()), strict=False)
    return median(statistics.fmean(whole) - statistics.fmean(part) for whole, part in pairs if whole and part)


def _over(found: Sequence[Measurement], figure: _Figure) -> dict[str, float]:
    medians = {variant: median(figure(one, variant) for one in found) for variant in CEILINGS}
    return {variant: value for variant, value in medians.items() if value is not None}


def _shares(found: Sequence[Measurement], step_s: float) -> dict[str, float]:
    marks = [shares_of(one) for one in found]
    known = {part: statistics.median(one[part] for one in marks) for part in SHARES[:-1]}
    return {**known, SHARES[-1]: max(0.0, step_s - sum(known.values()))}


def shares_of(found: Measurement) -> dict[str, float]:
    """Seconds of a step by part, as marked, without the rest."""
    share = found.shares
    return dict(
        zip(SHARES[:-1], (share.data_wait_s, share.compute_s, share.communication_s, share.optimizer_s), strict=True)
    )
