"""Gradients over the ranks: added up by DDP's buckets, in float32 or, at half the traffic, in bfloat16."""

# annotations stay objects here: DDP compares those of a hook with its own types
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket  # torch.distributed does not export it by name to type checkers

from hrdc_hpc.engine.clock import Mark, StepClock

Hook = Callable[[Any, GradBucket], torch.futures.Future[torch.Tensor]]


class Exchange:
    """Whether gradients go over the network; the hook asks for every bucket, on the host, outside compiled code."""

    def __init__(self) -> None:
        self.on = True
        """False, for measurements: what a network without any delay would cost. Ranks learn different things then."""
        self.sizes: list[int] | None = None
        """Bytes of each bucket are noted here in the order in which they are ready, if it is a list."""


def adding_up(number_format: str, clock: StepClock, taint: torch.Tensor, exchange: Exchange) -> Hook:
    """Return DDP's communication hook: the sum over the ranks, not DDP's mean, for a rank has a *share* of the loss.

    `number_format` is 'fp32' or 'bf16': buckets are rounded to bfloat16, added up in it and widened again. The clock is
    told when the last bucket is ready, for then this rank's own gradients are complete. `taint`, a scalar on the
    device, becomes nan when one of this rank's own is not finite: in the sum it cannot be seen whose it was.
    """
    narrow = number_format == "bf16"

    def hook(_: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.is_last():
            clock.mark(Mark.GRADIENTS)
        buffer = bucket.buffer()
        taint.add_(buffer.sum() * 0)
        sent = buffer.to(torch.bfloat16) if narrow else buffer
        if exchange.sizes is not None:
            exchange.sizes.append(sent.numel() * sent.element_size())
        if not exchange.on:
            unsent: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            unsent.set_result(buffer.copy_(sent) if narrow else buffer)
            return unsent
        work = dist.all_reduce(sent, async_op=True)
        assert work is not None

        def received(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
            summed = done.value()[0]
            return buffer.copy_(summed) if narrow else summed

        return work.get_future().then(received)

    return hook
