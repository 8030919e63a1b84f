"""Batch-norm statistics of all layers as one flat tensor: one copy, one reduction, one gather for the whole network.

Every rank keeps the statistics of its own share of the batches. Evaluations and checkpoints use their average over the
ranks, taken on a copy: neither an evaluation nor an unplanned save changes what is learnt afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class FlatBuffers:
    """All floating-point buffers of a module, moved into one tensor `flat` [n] that they are views of."""

    def __init__(self, module: nn.Module) -> None:
        owners = [
            (owner, name)
            for owner in module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        buffers = [owner.get_buffer(name) for owner, name in owners]
        device = next(module.parameters()).device
        total = sum(buffer.numel() for buffer in buffers)
        self.flat = torch.empty(total, device=device)
        start = 0
        for (owner, name), buffer in zip(owners, buffers, strict=True):
            assert buffer.dtype == torch.float32, f"buffer {name} is {buffer.dtype}, not float32"
            view = self.flat[start : start + buffer.numel()].view(buffer.shape)
            view.copy_(buffer)
            owner.register_buffer(name, view)
            start += buffer.numel()

    @contextmanager
    def holding(self, values: torch.Tensor) -> Iterator[None]:
        """Put `values` [n] in the network for the length of the block."""
        own = self.flat.clone()
        self.flat.copy_(values)
        try:
            yield
        finally:
            self.flat.copy_(own)


def for_rank(by_rank: torch.Tensor, mean: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """Return the statistics [n] that a rank starts from: its row of [W, n] on as many ranks, else the mean [n]."""
    return by_rank[rank] if len(by_rank) == world_size else mean
