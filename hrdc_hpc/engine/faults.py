"""Faults on purpose: what the drill injects into real runs, told in the environment variable HRDC_FAULTS. Torch-free.

    HRDC_FAULTS='nan@7#once hang@9:rank=1 unhealthy@n2 slow_save@5'

| fault          | what happens                                                                          |
|----------------|---------------------------------------------------------------------------------------|
| nan@STEP       | the loss of the 0-based optimizer step is not a number on one rank                    |
| hang@STEP      | one rank stands still before that step                                                |
| unhealthy@NODE | every rank on the node (its name for the scheduler, or its host name) fails its check |
| slow_save@S    | every checkpoint takes S seconds longer                                               |
| slow@S         | every step takes S seconds longer                                                     |

`:rank=R` chooses the rank of nan and hang (0 unless told). `#once` makes nan and hang come in the first pass of the
run's first attempt only, as a passing fault would. A run with faults says so in its log and its metrics.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hrdc_hpc.record.health import Home

log = logging.getLogger(__name__)

VARIABLE = "HRDC_FAULTS"
_FORM = re.compile(r"(nan|hang|unhealthy|slow_save|slow)@([A-Za-z0-9._-]+)(?::rank=(\d+))?(#once)?")


@dataclass(frozen=True)
class Fault:
    """One word of the variable."""

    kind: str
    at: str
    """Step, node or seconds."""
    rank: int = 0
    once: bool = False


def parse(text: str) -> tuple[Fault, ...]:
    """Read the variable's value; ValueError that names the word and the forms allowed."""
    return tuple(_fault(word) for word in text.split())


def _fault(word: str) -> Fault:
    match = _FORM.fullmatch(word)
    if match:
        kind, at, rank, once = match.groups()
        on_step = kind in ("nan", "hang")
        fitting = at.isdecimal() if on_step else kind == "unhealthy" or re.fullmatch(r"\d+(\.\d+)?", at)
        if fitting and (on_step or not (rank or once)):
            return Fault(kind, at, int(rank or 0), bool(once))
    raise ValueError(
        f"{VARIABLE}: got {word!r}; allowed: nan@STEP, hang@STEP (with :rank=R and #once), unhealthy@NODE,"
        " slow@SECONDS, slow_save@SECONDS, with blanks between them. Unset it to train without faults"
    )


class Faults:
    """What one rank is to suffer."""

    def __init__(self, faults: tuple[Fault, ...], rank: int) -> None:
        """Suffer `faults` as rank `rank`."""
        self.faults = faults
        self._rank = rank
        self._over: set[Fault] = set()
        self._first_attempt = True

    @classmethod
    def told(cls, rank: int, environ: Mapping[str, str] = os.environ) -> Faults:
        """Those of the environment variable, said aloud. ValueError for one that is not understood."""
        text = environ.get(VARIABLE, "")
        faults = cls(parse(text), rank)
        if faults:
            log.warning("this run has faults injected on purpose: %s=%r", VARIABLE, text)
        return faults

    def __bool__(self) -> bool:
        return bool(self.faults)

    def __str__(self) -> str:
        return " ".join(
            f"{f.kind}@{f.at}" + f":rank={f.rank}" * (f.rank > 0) + "#once" * f.once for f in self.faults
        )  # fmt: skip

    @property
    def poisons(self) -> bool:
        """Whether some loss is to be poisoned, on any rank."""
        return any(fault.kind == "nan" for fault in self.faults)

    def attempt(self, number: int) -> None:
        """Say which attempt of the run this is, from 0."""
        self._first_attempt = number == 0

    def poison(self, step: int) -> float:
        """What this rank's loss of a 0-based step is multiplied by."""
        return float("nan") if self._due("nan", step) else 1.0

    def before(self, step: int) -> None:
        """Stand still, or wait a while, if it is time."""
        time.sleep(self._seconds("slow"))
        if self._due("hang", step):
            log.warning("standing still before step %d, on purpose", step)
            while True:
                time.sleep(60)

    def unhealthy(self, home: Home) -> bool:
        """Whether the health check is to fail here."""
        return any(fault.kind == "unhealthy" and fault.at in (home.node, home.host) for fault in self.faults)

    def slowly(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return `work`, slowed down as a save is to be."""
        seconds = self._seconds("slow_save")
        if not seconds:
            return work

        def slow() -> None:
            time.sleep(seconds)
            work()

        return slow

    def _seconds(self, kind: str) -> float:
        return sum(float(fault.at) for fault in self.faults if fault.kind == kind)

    def _due(self, kind: str, step: int) -> bool:
        due = False
        for fault in self.faults:
            here = fault.kind == kind and fault.rank == self._rank and int(fault.at) == step
            if here and not (fault.once and (fault in self._over or not self._first_attempt)):
                self._over.add(fault)
                due = True
        return due
