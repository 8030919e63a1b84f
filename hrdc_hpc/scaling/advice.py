"""What a study advises: the most nodes worth asking for, what they cost, what they ask of the run. Torch-free.

Measured and predicted figures are never mixed: each sentence says which it is. Efficiency of a prediction is against
the measured base where there is one, else against the smallest predicted size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hrdc_hpc.record.figures import number
from hrdc_hpc.scaling import cost, large_batch, words
from hrdc_hpc.scaling.caveats import disturbed
from hrdc_hpc.scaling.cost import Cost, Overhead
from hrdc_hpc.scaling.rows import Mode, Size
from hrdc_hpc.scaling.summary import Range, Summary, base_of, efficiency, summaries
from hrdc_hpc.scaling.view import Predicted, StudyView, order

_ROUNDING = 1e-9
"""Of an efficiency: what is exactly as wanted is enough."""
_CLEARLY = 1.02
"""Times the throughput of another size: no longer the same."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A predicted size, with what follows from it."""

    predicted: Predicted
    speed_up: Range
    efficiency: Range
    cost: Cost | str
    """Or why there is none."""
    measured: float | None
    """Images per second, median; None where the size was not measured."""

    @property
    def size(self) -> Size:
        """The predicted size."""
        return self.predicted.size


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Of one mode."""

    mode: Mode
    base: Size | None
    """What efficiency is against: measured, else predicted; None: there is nothing to go by."""
    measured: Sequence[Summary]
    costs: Mapping[Size, Cost | str]
    """Of the measured sizes with figures."""
    expected: Sequence[Expected]
    most: Summary | None
    """Largest measured size at or above the wanted efficiency."""
    most_expected: Expected | None
    """The same of the predicted sizes; only where it is larger than all that have figures."""
    sentences: Sequence[str]


def advise(view: StudyView, mode: Mode) -> Advice:
    """Put a mode of a study into advice."""
    measured = summaries(view, mode)
    done = [one for one in measured if one.rate is not None]
    costs = {one.size: cost.cost(view, one.size, one.rate, _overhead(done, one.size)) for one in done if one.rate}
    expected = _expectations(view, mode, done)
    base = base_of(view, mode)
    enough = view.wanted - _ROUNDING
    kept = [one for one in done if one.efficiency and one.efficiency.median >= enough]
    largest = done[-1].size.ranks if done else 0
    beyond = [one for one in expected if one.size.ranks > largest and one.efficiency.median >= enough]
    found = Advice(
        mode=mode,
        base=base[0] if base else expected[0].size if expected else None,
        measured=measured,
        costs=costs,
        expected=expected,
        most=kept[-1] if kept else None,
        most_expected=beyond[-1] if beyond else None,
        sentences=(),
    )
    return _with_sentences(view, found)


def _overhead(done: Sequence[Summary], size: Size) -> Overhead:
    """Start-up and checkpoints as measured at the size nearest to this one; nothing where nothing was measured."""
    if not done:
        return Overhead()
    near = min(done, key=lambda one: abs(one.size.ranks - size.ranks))
    return Overhead(
        start_up_s=near.start_up_s or 0.0,
        stall_s=near.checkpoint_stall_s or 0.0,
        last_save_s=near.checkpoint_s or 0.0,
        energy_j=near.energy_j if near.size == size else None,
    )


def _expectations(view: StudyView, mode: Mode, done: Sequence[Summary]) -> list[Expected]:
    predictions = sorted((one for one in view.predictions if one.size.mode == mode), key=lambda one: order(one.size))
    if not predictions:
        return []
    base = base_of(view, mode) or (predictions[0].size, predictions[0].images_per_s)
    rates = {one.size: one.rate.median for one in done if one.rate}

    def of(one: Predicted) -> Expected:
        rate = Range(median=one.images_per_s, low=one.low, high=one.high)
        kept = _kept(one, base)
        return Expected(
            predicted=one,
            speed_up=kept.times(one.size.ranks / base[0].ranks),
            efficiency=kept,
            cost=cost.cost(view, one.size, rate, _overhead(done, one.size)),
            measured=rates.get(one.size),
        )

    return [of(one) for one in predictions]


def _kept(one: Predicted, base: tuple[Size, float]) -> Range:
    """Efficiency of a predicted size."""
    middle, low, high = (efficiency(rate, one.size, base) for rate in (one.images_per_s, one.low, one.high))
    low = low if one.efficiency_low is None else one.efficiency_low
    high = high if one.efficiency_high is None else one.efficiency_high
    return Range(median=middle, low=min(low, middle), high=max(high, middle))


def _with_sentences(view: StudyView, found: Advice) -> Advice:
    doubt = (
        ["The base was disturbed (see the warnings): do not rely on this advice."]
        if disturbed(view, found.mode)
        else []
    )
    said = [*doubt, *_of_measured(view, found), *_of_predicted(view, found)]
    best = found.most_expected or found.most
    price = (found.most_expected.cost if found.most_expected else found.costs.get(best.size)) if best else None
    if best and isinstance(price, Cost):
        said += large_batch.of_the_batch(view.config, best.size.global_batch)
        if found.mode == "strong" and found.base:
            share, of_base = (one.global_batch / one.ranks for one in (best.size, found.base))
            said += large_batch.of_the_share(view.config, share, of_base, words.worker(view))
    if best:
        said += _of_limits(view, best.size)
    return Advice(**{**vars(found), "sentences": said})


def _of_measured(view: StudyView, found: Advice) -> list[str]:
    done = {one.size: one.efficiency for one in found.measured if one.efficiency is not None}
    if view.on_paper:
        return []
    if found.most is None or found.base is None:
        return ["Nothing has been measured in this mode yet."]
    sizes, most = list(done), found.most.size
    larger = sizes[sizes.index(most) + 1 :]
    has = {size: f"{words.named(view, size)} {words.percent_text(kept)}" for size, kept in done.items()}
    wanted, name = f"{100 * view.wanted:g} %", words.named(view, most)
    if len(sizes) == 1:
        said = [f"Only {name} has figures: what more would bring has not been measured."]
    elif most == found.base:
        said = [f"Measured: no size above {name} keeps {wanted} efficiency; {has[larger[0]]}."]
    else:
        times = number(found.most.speed_up.median if found.most.speed_up else None)
        said = [
            f"Measured: the largest size that keeps {wanted} efficiency is {name}, with"
            f" {words.percent_text(done[most])} and {times} times the throughput of {words.named(view, found.base)}."
        ]
        said.append(f"Larger: {has[larger[0]]}." if larger else "Nothing larger was measured.")
    more = []
    if done[most].low < view.wanted - _ROUNDING:
        more.append(f"One of its repeats is below {wanted}: a close call.")
    below = [size for size in sizes[: sizes.index(most)] if done[size].median < view.wanted - _ROUNDING]
    if below:
        more.append(f"Smaller sizes are below {wanted} ({words.listed(view, below)}): look for the reason first.")
    rates = {one.size: one.rate.median for one in found.measured if one.rate is not None}
    fastest = max(sizes, key=lambda size: rates[size])
    if rates[fastest] > _CLEARLY * rates[sizes[-1]]:
        more.append(f"Throughput is highest on {words.named(view, fastest)}: more make it slower.")
    return [" ".join(said), *more, *_price(view, found)]


def _price(view: StudyView, found: Advice) -> list[str]:
    """Time and GPU-hours at the most nodes, against the base."""
    if found.most is None or found.base is None:
        return []
    price, base = found.costs[found.most.size], found.costs[found.base]
    epochs = words.counted(view.config.optim.epochs, "epoch")
    if isinstance(price, str):
        return [f"No time for {epochs}: {price}."]
    said = f"{epochs} take {_costs(view, price)} on {words.named(view, found.most.size)}"
    if isinstance(base, Cost) and found.most.size != found.base:
        said += f", against {_costs(view, base)} on {words.named(view, found.base)}"
    return [said + ". Evaluation and waiting in the queue are not in it."]


def _costs(view: StudyView, price: Cost) -> str:
    limit = cost.time_limit_min(view)
    several = price.jobs is not None and price.jobs > 1 and limit
    jobs = f" in {price.jobs} jobs of {words.time_text(60 * limit)}" if several and limit else ""
    hours = number(price.gpu_hours.median)
    return f"{words.time_text(3600 * price.hours.median)}{jobs} and {hours} {words.worker(view)}-hours"


def _of_predicted(view: StudyView, found: Advice) -> list[str]:
    """What the model says of sizes larger than all that were measured."""
    largest = max((one.size.ranks for one in found.measured if one.rate), default=0)
    beyond = [one for one in found.expected if one.size.ranks > largest]
    if not beyond:
        return []
    wanted, most = f"{100 * view.wanted:g} %", found.most_expected
    how = "On paper" if view.on_paper else "Predicted, not measured"
    if most is None:
        return [f"{how}: no larger size keeps {wanted}; {_would_have(view, beyond[0])}."]
    next_one = beyond[beyond.index(most) + 1] if most is not beyond[-1] else None
    if most.size == found.base:
        lone = f"only {words.named(view, most.size)} was asked for: give more sizes to compare"
        none = f"no size above {words.named(view, most.size)} keeps {wanted}"
        said = [f"{how}: {none}; {_would_have(view, next_one)}." if next_one else f"{how}: {lone}."]
    else:
        largest_one = "; larger was not predicted" if next_one is None else f"; {_would_have(view, next_one)}"
        said = [
            f"{how}: up to {words.named(view, most.size)} would keep {wanted}, with"
            f" {words.percent_text(most.efficiency)}{largest_one}."
        ]
    return [" ".join(said), *_doubts(view, most), *_price_of(view, most, measured=bool(largest))]


def _would_have(view: StudyView, one: Expected) -> str:
    return f"{words.named(view, one.size)} would have {words.percent_text(one.efficiency)}"


def _doubts(view: StudyView, most: Expected) -> list[str]:
    said = []
    if most.efficiency.low < view.wanted - _ROUNDING:
        said.append(f"The range reaches below {100 * view.wanted:g} %: measure it before you rely on it.")
    if most.predicted.extrapolated:
        said.append("It lies far beyond what was measured: the range itself is a guess.")
    return [" ".join(said)] if said else []


def _price_of(view: StudyView, most: Expected, *, measured: bool) -> list[str]:
    if not isinstance(most.cost, Cost):
        return [f"No time for {words.named(view, most.size)}: {most.cost}."]
    epochs = words.counted(view.config.optim.epochs, "epoch")
    without = "" if measured else " Start-up, checkpoints and evaluation are not in it."
    return [f"{epochs} would take {_costs(view, most.cost)} on {words.named(view, most.size)}.{without}"]


def _of_limits(view: StudyView, size: Size) -> list[str]:
    limits = view.limits
    if limits is None or limits.max_nodes is None:
        return []
    where = f"Partition {limits.partition}" if limits.partition else "The partition"
    allowed = words.counted(limits.max_nodes, "node")
    if size.nodes > limits.max_nodes:
        return [f"{where} allows {allowed} for a job: {words.named(view, size)} cannot be asked for there."]
    return [f"{where} allows {allowed} for a job."]
