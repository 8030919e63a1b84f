"""What the report of a scaling study is made of, as plain values. Torch-free.

The report needs neither a folder nor a fitted model, only this: the study fills `rows`, `config` and `limits`, the
fitted model `fit` and `predictions`. A view without rows but with predictions is a prediction on paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.scaling.rows import Mode, Row, Size

EFFICIENCY = 0.8
"""That more nodes must keep at least, where the user does not say."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a model expects of a size, measured or not."""

    size: Size
    step_s: float
    images_per_s: float
    low: float
    """Images per second; the truth is between low and high about nine times in ten."""
    high: float
    extrapolated: bool = False
    """So far beyond what was measured that the range itself is a guess; not on paper, where assumptions make it."""
    efficiency_low: float | None = None
    """Against the mode's base, 0 to 1: the range is that of the ratio, in which what both share cancels."""
    efficiency_high: float | None = None
    """None: not known, and the range of the images per second is taken."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds of a step by part of the model, e.g. compute, data, exposed communication."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One figure of the fitted model."""

    name: str
    """In words, e.g. 'bandwidth between nodes'."""
    value: float
    unit: str
    error: float | None = None
    """Standard error, in the same unit; None where it is not known."""
    held: str = ""
    """Why it was not fitted but held at this value; '': it was fitted."""


@dataclass(frozen=True, kw_only=True)
class Residual:
    """A measured run beside what the fitted model makes of it."""

    size: Size
    run: str
    measured_s: float
    """Of a step."""
    fitted_s: float

    @property
    def error(self) -> float:
        """Fitted against measured, as a share: 0.1 is 10 % too slow."""
        return self.fitted_s / self.measured_s - 1


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The fitted model, for people."""

    model: str
    """In one line, e.g. 'step = max(data, compute + exposed communication); ring all-reduce'."""
    parameters: Sequence[Parameter] = ()
    residuals: Sequence[Residual] = ()
    assumptions: Sequence[str] = ()
    """What it takes for granted, a sentence each; also what could not be told apart."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the partition allows; None: no limit, or not known."""

    partition: str | None = None
    max_nodes: int | None = None
    max_time_min: int | None = None


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """A study as its report shows it, whatever is there by now."""

    name: str
    config: RunConfig
    """As training would run: global batch, epochs, rate, checkpoints, time limit."""
    rows: Sequence[Row] = ()
    """All of them, in any order; those without figures as well. A run that counts in two modes has a row in each."""
    train_images: int | None = None
    """Of an epoch; None: not known, and there is no time to finish."""
    predictions: Sequence[Predicted] = ()
    """Sizes to show, in any order, measured ones among them: a mode's fitted curve goes through all of its sizes."""
    fit: Fit | None = None
    limits: Limits | None = None
    wanted: float = EFFICIENCY
    """Efficiency, 0 to 1."""
    command: str = ""
    """That made the study."""
    date: str = ""
    warnings: Sequence[str] = ()
    """What the study itself has to say, beside what the rows tell, e.g. a model that could not be fitted and why."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that the JSON should hold, e.g. the fitted model's own values."""

    @property
    def on_paper(self) -> bool:
        """Whether nothing was meant to be measured."""
        return not self.rows

    @property
    def modes(self) -> list[Mode]:
        """Modes with a row or a prediction, weak first."""
        some = {row.size.mode for row in self.rows} | {one.size.mode for one in self.predictions}
        return [mode for mode in ("weak", "strong") if mode in some]

    def sizes(self, mode: Mode) -> list[Size]:
        """Sizes of a mode that were asked for, smallest first."""
        return sorted({row.size for row in self.rows if row.size.mode == mode}, key=order)

    def rows_of(self, size: Size) -> list[Row]:
        """Return the rows of a size by repeat."""
        return sorted((row for row in self.rows if row.size == size), key=lambda row: row.repeat)


def order(size: Size) -> tuple[int, int, int]:
    """Sort sizes from few ranks to many."""
    return size.ranks, size.nodes, size.global_batch
