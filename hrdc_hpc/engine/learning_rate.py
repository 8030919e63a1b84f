"""The learning rate as a pure function of the step. Torch-free.

rate(s) = peak * ramp(s) * factor(s)

peak    lr, times global_batch / lr_batch where lr_batch is set: the linear scaling rule (arXiv 1706.02677)
ramp    min(1, (s + 1) / W), W the steps of the warm-up: from peak / W in the first step to the peak in the W-th
factor  the schedule's, after s / steps_per_epoch epochs of the *whole run*: milestones and the cosine are counted from
        the start of the run, not from the end of the warm-up

So 'lr .1 with 5 warm-up epochs, then x.01 at epochs 160 and 180' is written down as it is said. Under a cosine the rate
at the end of a warm-up of w of T epochs is lower than the peak, by a share of sin(pi * w / (2 * T))**2: .15 % for 5 of
200.
"""

from __future__ import annotations

from functools import cache

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Optim
from hrdc_hpc.config.types import Component
from hrdc_hpc.engine.schedules.base import Schedule

_SCHEDULES = "hrdc_hpc.engine.schedules"


@cache
def _schedule(component: Component) -> Schedule:
    """Build a schedule once, not at every step: the registry looks through a folder."""
    schedule: Schedule = registry.build(_SCHEDULES, component)
    return schedule


def peak_rate(optim: Optim) -> float:
    """Return the rate that warm-up leads to, scaled with the global batch where `lr_batch` is set."""
    return optim.lr if optim.lr_batch is None else optim.lr * optim.global_batch / optim.lr_batch


def ramp(step: int, warmup_steps: float) -> float:
    """Share of the peak rate in a 0-based step of a linear warm-up over `warmup_steps`, a fraction or 0 also."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def learning_rate(step: int, *, steps_per_epoch: int, optim: Optim) -> float:
    """Return the rate of a 0-based optimizer step."""
    factor = _schedule(optim.schedule)(step / steps_per_epoch, optim.epochs)
    return peak_rate(optim) * ramp(step, optim.warmup_epochs * steps_per_epoch) * factor
