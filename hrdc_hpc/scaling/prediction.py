"""Steps of sizes that were not measured, with the range that they lie in about nine times in ten. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hrdc_hpc.scaling.model import Algorithm, Array, Load, Parameters, Parts, step_parts

LOW, HIGH = 5.0, 95.0
"""Percentiles of the range."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A step of one size, as the model has it. Ranges hold about nine of ten measured runs."""

    nodes: int
    ranks_per_node: int
    batch_per_rank: float
    step_s: float
    step_low_s: float
    step_high_s: float
    compute_s: float
    straggler_s: float
    """Waiting for the slowest rank."""
    exposed_s: float
    """Communication that hides behind nothing."""
    wait_s: float
    """For data, when all else is done."""
    communication_s: float
    """All of it by itself, hidden or not."""
    data_s: float
    """Loading of a step's images, which goes on beside the rest."""
    extrapolated: bool = False
    """Beyond four times the largest size that was measured, or nothing was."""
    drawn_s: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    """Draws of the step, [draws]; those of two sizes of one model belong together, one by one."""
    noise: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    """Draws of the logarithm of a measured step over the model's, [draws]."""

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def global_batch(self) -> float:
        """Images of a step."""
        return self.ranks * self.batch_per_rank

    @property
    def images_per_s(self) -> float:
        """Of all ranks."""
        return self.global_batch / self.step_s

    @property
    def low(self) -> float:
        """Images per second: the range's slow end."""
        return self.global_batch / self.step_high_s

    @property
    def high(self) -> float:
        """Images per second: the range's fast end."""
        return self.global_batch / self.step_low_s

    @property
    def parts(self) -> Mapping[str, float]:
        """Seconds by part; they add up to the step."""
        return {
            "compute": self.compute_s,
            "slowest rank": self.straggler_s,
            "exposed communication": self.exposed_s,
            "data wait": self.wait_s,
        }


def predict(
    typical: Parameters,
    drawn: Parameters,
    load: Load,
    algorithm: Algorithm,
    noise: Array,
    *,
    compute_s: float | None = None,
    data_s: float | None = None,
    extrapolated: bool,
) -> Prediction:
    """Return the step of one size: `typical` parameters, and its range over `drawn` ones and `noise` (both [draws]).

    `noise`: draws of the logarithm of a measured run over the model's. Measured compute and loading go before the
    model's.
    """
    middle = step_parts(typical, load, algorithm, measured_compute=_value(compute_s), measured_data=_value(data_s))
    around = step_parts(drawn, load, algorithm, measured_compute=_value(compute_s), measured_data=_value(data_s))
    low, high = np.percentile(around.step * np.exp(noise), (LOW, HIGH))
    step = float(middle.step)
    return Prediction(
        nodes=int(load.nodes),
        ranks_per_node=int(load.ranks_per_node),
        batch_per_rank=float(load.batch_per_rank),
        step_s=step,
        step_low_s=min(float(low), step),
        step_high_s=max(float(high), step),
        **_seconds(middle),
        extrapolated=extrapolated,
        drawn_s=np.broadcast_to(around.step, noise.shape),
        noise=noise,
    )


def efficiency(one: Prediction, base: Prediction, rates: Sequence[float] = ()) -> tuple[float, float, float]:
    """Return images per second and rank over those of the base, and the range of that about nine times in ten.

    What is not known of both alike cancels, for draws of both are divided one by one.

    Args:
        one: a size.
        base: the size that it is compared with, of the same model.
        rates: images per second of the base's measured runs: efficiency is then against their median, and the range
            also holds what another choice of them, and a run of the size, would change. Without: the model's alone.
    """
    alone = one.batch_per_rank / one.step_s * base.step_s / base.batch_per_rank
    drawn = one.batch_per_rank / one.drawn_s * base.drawn_s / base.batch_per_rank
    middle = alone
    if rates:
        rng = np.random.default_rng(3)
        median = statistics.median(rates)
        middle = one.images_per_s / one.ranks / (median / base.ranks)
        if len(rates) > 1:
            again = np.median(rng.choice(rates, (len(drawn), len(rates))), axis=1) / median
        else:  # how far apart its repeats would be is not known, but how far runs are from the model
            again = np.exp(-rng.permutation(base.noise))
        drawn = drawn * middle / alone * np.exp(-one.noise) / again
    low, high = np.percentile(drawn, (LOW, HIGH))
    return middle, min(float(low), middle), max(float(high), middle)


def _seconds(parts: Parts) -> dict[str, float]:
    return {
        "compute_s": float(parts.compute),
        "straggler_s": float(parts.straggler),
        "exposed_s": float(parts.exposed),
        "wait_s": float(parts.wait),
        "communication_s": float(parts.communication),
        "data_s": float(parts.data),
    }


def _value(seconds: float | None) -> float:
    return np.nan if seconds is None else seconds
