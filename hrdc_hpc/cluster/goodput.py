"""Goodput: how much of the time since a run was submitted went into training that counts. Pure, torch-free.

All the time from the first submission to the end of the run (or to now) falls into one of these parts; their seconds
add up to it:

| part        | what it is                                                                                      |
|-------------|-------------------------------------------------------------------------------------------------|
| training    | steps that count: no later attempt went back behind them. This part's share is the goodput      |
| repeated    | steps that were, or have to be, trained again, and what a killed attempt did after its last     |
|             | record; between two records the time is shared out evenly over their steps                      |
| measuring   | a measured run's windows (config.measure): nothing is learnt                                    |
| startup     | from the start of an attempt's first rank to its first step: imports, meeting, data, compiling, |
|             | reading the checkpoint                                                                          |
| evaluation  | while training                                                                                  |
| saving      | training stands still for a checkpoint; what is written in the background costs nothing         |
| queue       | from a submission, or the last sign of life of the attempt before, to the start of the next:    |
|             | the scheduler's time, and what was lost unseen before a kill                                    |
| unsubmitted | nobody had asked for the run to go on: from the end of an attempt to the next launch            |
| other       | the rest of an attempt, e.g. closing down                                                       |

The wait before an attempt is counted as that attempt's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = ("training", "repeated", "measuring", "startup", "evaluation", "saving", "queue", "unsubmitted", "other")


@dataclass(frozen=True)
class Stay:
    """One attempt's time on its nodes, and what it wrote."""

    attempt: int
    records: Sequence[Mapping[str, Any]]
    """Its metrics, in the order in which they were written."""
    started: float
    """Unix seconds."""
    ended: float | None
    """Last sign of life, Unix seconds; None: it is at work."""


@dataclass(frozen=True)
class Goodput:
    """Where the time went."""

    seconds: dict[str, float]
    """By part, all of PARTS."""
    repeated_steps: int
    """Steps trained in vain, as far as they were recorded."""

    @property
    def total_s(self) -> float:
        """The whole time, seconds."""
        return sum(self.seconds.values())

    def share(self, part: str) -> float:
        """Share of the whole time, 0 to 1."""
        return self.seconds[part] / self.total_s if self.total_s else 0.0


@dataclass(frozen=True)
class Account:
    """The goodput of a run, and of each attempt with the wait before it."""

    run: Goodput
    attempts: dict[int, Goodput]


@dataclass(frozen=True)
class _Stretch:
    """Training from one recorded step to the next, without the evaluations and saves in between."""

    attempt: int
    first: int
    last: int | None
    """None: it was cut off before it recorded another step."""
    seconds: float


class Activity:
    """What rank 0 is doing, from the marks that it writes: one of PARTS."""

    def __init__(self, phase: str = "startup") -> None:
        """`phase`: what the first record finds it at; 'training' where the beginning is not known."""
        self._phase = phase
        self._evaluating = False
        self._saving: int | None = None
        self._writing: set[int] = set()

    @property
    def part(self) -> str:
        """What the time from now on counts as."""
        if self._evaluating:
            return "evaluation"
        if self._saving is not None or (self._phase == "leaving" and self._writing):
            return "saving"
        return self._phase if self._phase in PARTS else "other"

    def after(self, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        if record["kind"] == "save":  # the copy is made; from here on a thread writes
            self._saving = None
        if record["kind"] != "phase":
            return
        name, begins, step = record["name"], record["event"] == "begin", int(record["step"])
        if name == "evaluate":
            self._evaluating = begins
        elif name == "save" and begins:
            self._saving = step
            self._writing.add(step)
        elif name == "save":
            self._writing.discard(step)
            self._saving = None if self._saving == step else self._saving
        elif name == "train":
            self._phase = "training" if begins else "leaving"
        elif name == "measure":
            self._phase = "measuring" if begins else "leaving"
        elif name == "startup":
            self._phase = "startup" if begins else "between"


def account(
    stays: Sequence[Stay], submitted: Iterable[float] = (), *, until: float | None = None, saved_step: int | None = None
) -> Account:
    """Divide up the time of a run.

    Args:
        stays: the attempts, oldest first.
        submitted: when jobs were handed over, Unix seconds.
        until: now, if the run is waiting or at work; None if it is over: the time ends with the last attempt.
        saved_step: the step that the run has to go on from; None if it is finished, or at work.
    """
    asked = sorted(submitted)
    spent = {stay.attempt: dict.fromkeys(PARTS, 0.0) for stay in stays}
    stretches: list[_Stretch] = []
    before = min([*asked, *(stay.started for stay in stays)], default=0.0)
    for i, stay in enumerate(stays):
        following = stays[i + 1].started if i + 1 < len(stays) else float("inf")
        started = max(before, stay.started)
        _add_wait(spent[stay.attempt], before, started, asked, first=i == 0)
        # a node that was cut off may go on writing while its successor is at work
        ended = max(started, min(stay.ended if stay.ended is not None else until or started, following))
        stretches += _walk(stay, started, ended, spent[stay.attempt])
        before = ended
    repeated = _divide(stretches, saved_step, {stay.attempt for stay in stays if stay.ended is not None}, spent)
    attempts = {number: Goodput(seconds, repeated.get(number, 0)) for number, seconds in spent.items()}
    tail = dict.fromkeys(PARTS, 0.0)
    if until is not None and (asked or stays):
        _add_wait(tail, before, max(before, until), asked, first=not stays)
    total = {part: tail[part] + sum(one.seconds[part] for one in attempts.values()) for part in PARTS}
    return Account(Goodput(total, sum(repeated.values())), attempts)


def _add_wait(seconds: dict[str, float], since: float, until: float, asked: Sequence[float], *, first: bool) -> None:
    """Share out the time between two attempts: a launch in between ends a time in which nobody had asked."""
    launched = next((time for time in asked if since < time <= until), since) if not first else since
    seconds["unsubmitted"] += launched - since
    seconds["queue"] += until - launched


def _walk(stay: Stay, started: float, ended: float, seconds: dict[str, float]) -> list[_Stretch]:
    """Add up everything but training; return training in stretches."""
    activity, since = Activity(), started
    stretches: list[_Stretch] = []
    at, trained = None, 0.0
    for record in stay.records:
        now = min(max(float(record["time"]), since), ended)
        if activity.part == "training":
            trained += now - since
        else:
            seconds[activity.part] += now - since
        since = now
        activity.after(record)
        step = _reached(record)
        if step is not None:
            # a lower step than before: it went back to its checkpoint by itself
            stretches.append(_Stretch(stay.attempt, step if at is None else min(at, step), step, trained))
            at, trained = step, 0.0
    if activity.part == "training":
        trained += ended - since
    else:
        seconds[activity.part] += ended - since
    return [*stretches, _Stretch(stay.attempt, at or 0, None, trained)] if trained else stretches


def _reached(record: Mapping[str, Any]) -> int | None:
    """Return the step that training has come to, if the record tells; what a thread writes is of an earlier one."""
    kind = record["kind"]
    marks = kind == "phase" and (record["name"], record["event"]) not in (("startup", "begin"), ("save", "end"))
    return int(record["step"]) if marks or kind in ("train", "eval", "eval_ema") else None


def _divide(
    stretches: Sequence[_Stretch], saved_step: int | None, over: set[int], spent: Mapping[int, dict[str, float]]
) -> dict[int, int]:
    """Share out training into what counts and what was in vain; return the steps in vain by attempt."""
    repeated: dict[int, int] = {}
    kept = float("inf") if saved_step is None else saved_step
    for stretch in reversed(stretches):
        last = stretch.last
        if last is None:
            in_vain = 1.0 if stretch.attempt in over else 0.0
        else:
            lost = max(0, last - int(max(stretch.first, min(kept, last))))
            in_vain = lost / (last - stretch.first) if lost else 0.0
            repeated[stretch.attempt] = repeated.get(stretch.attempt, 0) + lost
        spent[stretch.attempt]["repeated"] += in_vain * stretch.seconds
        spent[stretch.attempt]["training"] += (1 - in_vain) * stretch.seconds
        kept = min(kept, stretch.first)
    return repeated


def line(goodput: Goodput) -> str:
    """One line for people: the share of training, then the other parts that took 0.1 % or more, largest first.

    A measured run trains nothing, and has no such share.
    """
    rest = sorted((part for part in PARTS[1:] if goodput.share(part) >= 0.001), key=lambda part: -goodput.share(part))
    first = [] if goodput.seconds["measuring"] else [f"{100 * goodput.share('training'):.1f} %"]
    words = [*first, *(f"{p} {100 * goodput.share(p):.1f} %" for p in rest)]
    steps = goodput.repeated_steps
    return ", ".join(words) + (f"; {steps} step{'s'[: steps != 1]} trained twice" if steps else "")
