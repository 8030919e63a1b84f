"""What it takes to finish the configured epochs at a size: time, GPU-hours, jobs. Pure, torch-free.

steps       epochs * floor(training images / global batch), as in training: the remainder of an epoch is dropped
work        steps * step time + saves * the time that training stands still for one (checkpoint.every_steps)
one job     time limit - start-up - the warning before the limit (cluster.signal_delay_s), when the run saves
jobs        work / one job, rounded up
time        work + jobs * start-up + the last checkpoint's write; waiting in the queue and evaluation are not in it
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hrdc_hpc.config.batch import refuse_unfit_batch
from hrdc_hpc.scaling.rows import Size
from hrdc_hpc.scaling.summary import Range
from hrdc_hpc.scaling.view import StudyView


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of the configured epochs at a size."""

    steps_per_epoch: int
    steps: int
    hours: Range
    """From first start to end, of the jobs together; the range follows the throughput's."""
    gpu_hours: Range
    """Of all GPUs; of all ranks where there are none."""
    jobs: int | None
    """Of the time limit; None: no limit is known."""
    start_up_s: float
    """Of all jobs."""
    checkpoint_s: float
    """For which training stands still, all saves together."""
    energy_kwh: float | None = None
    """Of all GPUs while they train; None: not measured."""


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Seconds that are no steps, as measured at a size, or at the nearest."""

    start_up_s: float = 0.0
    stall_s: float = 0.0
    last_save_s: float = 0.0
    energy_j: float | None = None
    """Of one step."""


def time_limit_min(view: StudyView) -> int | None:
    """Minutes of a job: the partition's limit, or the config's where it has none; None: jobs are not cut off."""
    if view.limits is None:
        return None
    return view.limits.max_time_min or view.config.cluster.time_min


def cost(view: StudyView, size: Size, rate: Range, overhead: Overhead) -> Cost | str:
    """Work out the cost at a rate in images per second; or say in words why there is none."""
    config = view.config
    if view.train_images is None:
        return "the number of training images is not known"
    per_epoch = view.train_images // size.global_batch
    if per_epoch == 0:
        return f"a batch of {size.global_batch:,} is more than the {view.train_images:,} training images"
    try:
        refuse_unfit_batch(config.model, replace(config.optim, global_batch=size.global_batch), size.ranks)
    except ValueError as error:
        return str(error)
    steps = config.optim.epochs * per_epoch
    limit = time_limit_min(view)
    one_job_s = None if limit is None else 60 * limit - overhead.start_up_s - config.cluster.signal_delay_s
    if one_job_s is not None and one_job_s <= 0:
        return f"a job of {limit} minutes ends before the first step (start-up takes {overhead.start_up_s:.0f} s)"
    stall_s = steps // config.checkpoint.every_steps * overhead.stall_s

    def whole(images_per_s: float) -> tuple[float, int]:
        work_s = steps * size.global_batch / images_per_s + stall_s
        jobs = 1 if one_job_s is None else max(1, math.ceil(work_s / one_job_s))
        return work_s + jobs * overhead.start_up_s + overhead.last_save_s, jobs

    middle_s, jobs = whole(rate.median)
    hours = Range(median=middle_s, low=whole(rate.high)[0], high=whole(rate.low)[0]).times(1 / 3600)
    return Cost(
        steps_per_epoch=per_epoch,
        steps=steps,
        hours=hours,
        gpu_hours=hours.times(size.ranks),
        jobs=None if one_job_s is None else jobs,
        start_up_s=jobs * overhead.start_up_s,
        checkpoint_s=stall_s + overhead.last_save_s,
        energy_kwh=None if overhead.energy_j is None else steps * overhead.energy_j / 3.6e6,
    )
