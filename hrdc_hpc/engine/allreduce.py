"""How long all-reduces take by themselves, from a few bytes to all gradients, by the way that gradients take."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from hrdc_hpc.engine.clock import Moment, event, seconds
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.roofline import synchronize
from hrdc_hpc.record.measurement import AllReduce

_SMALLEST = 4096
_GROWTH = 4
_MOST, _FEWEST = 20, 3
"""Repetitions of one size that are timed."""


def sizes(largest: int) -> list[int]:
    """Bytes from 4 kB to `largest`, each four times the one before; the last step may be shorter."""
    found = []
    size = _SMALLEST
    while size < largest:
        found.append(size)
        size *= _GROWTH
    return [*found, largest]


def sweep(
    processes: Processes, largest: int, number_format: str, between: Callable[[], None], *, within_s: float = 10.0
) -> tuple[list[AllReduce], str | None]:  # fmt: skip
    """Measure all sizes up to `largest` bytes in about `within_s` seconds; called by all ranks.

    Sizes that would take too long are left out, and the second value says so. `number_format` is that of the
    gradients: 'fp32' or 'bf16'. `between` is called before each size, on all ranks; what it raises comes through.
    """
    found: list[AllReduce] = []
    wanted = sizes(largest)
    began = time.monotonic()
    expected_s = 0.0
    for i, size in enumerate(wanted):
        between()
        left_s = within_s - (time.monotonic() - began)
        if not processes.from_first((_FEWEST + 1) * expected_s < left_s):
            return found, f"all-reduces of more than {wanted[i - 1]} bytes were left out: they take too long"
        measured = _measure(processes, size, number_format, left_s / (len(wanted) - i))
        found.append(measured)
        following = wanted[i + 1] / size if i + 1 < len(wanted) else 1
        expected_s = max(measured.seconds) * following
    return found, None


def _measure(processes: Processes, size: int, number_format: str, for_s: float) -> AllReduce:
    """Repeat one size for about so many seconds; the first time, in which ways are opened, is not counted."""
    dtype = torch.bfloat16 if number_format == "bf16" else torch.float32
    values = torch.zeros(max(1, size // dtype.itemsize), dtype=dtype, device=processes.device)
    once = torch.zeros(1, device=processes.device)
    first_s = _timed(values, once, processes)
    number = processes.from_first(int(min(_MOST, max(_FEWEST, for_s / max(first_s, 1e-9) - 1))))
    own = torch.tensor([_timed(values, once, processes) for _ in range(number)], dtype=torch.float64)
    return AllReduce(bytes=values.numel() * dtype.itemsize, seconds=processes.largest(own).tolist())


def _timed(values: torch.Tensor, once: torch.Tensor, processes: Processes) -> float:
    """Seconds of one all-reduce, of this rank. A tiny one before it lets all ranks begin together."""
    on_gpu = processes.device.type == "cuda"
    dist.all_reduce(once)
    start = _now(on_gpu)
    dist.all_reduce(values)
    end = _now(on_gpu)
    synchronize(processes.device)
    return seconds(start, end)


def _now(on_gpu: bool) -> Moment:
    """On a GPU the moment at which its stream, which waits for what is sent, comes to this point."""
    if not on_gpu:
        return time.perf_counter()
    moment = event()
    moment.record()
    return moment
