"""Exponential moving average of weights and batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hrdc_hpc.engine.buffers import FlatBuffers


def ema_weight(step: int, decay: float) -> float:
    """Weight of the new value after 0-based `step`: 1 - min(decay, (1 + step) / (10 + step)).

    The second term lets a young average forget the initial weights (as TensorFlow's ExponentialMovingAverage does).
    """
    return 1.0 - min(decay, (1 + step) / (10 + step))


class Ema:
    """A shadow copy of a network's weights and statistics."""

    def __init__(self, network: nn.Module, buffers: FlatBuffers) -> None:
        self._live = list(network.parameters())
        self._names = [name for name, _ in network.named_parameters()]
        self.weights = [weight.detach().clone() for weight in self._live]
        self._buffers = buffers
        self.flat = buffers.flat.clone()

    @torch.no_grad()
    def update(self, weight: torch.Tensor) -> None:
        """Move towards the live values by `weight`, a device scalar in [0, 1]; 0 changes nothing."""
        shadow = [*self.weights, self.flat]
        difference = torch._foreach_sub([*self._live, self._buffers.flat], shadow)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(shadow, difference)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Put the averaged weights into the network for the length of the block (statistics: FlatBuffers.holding)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, shadow in zip(self._live, self.weights, strict=True):
            keep = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(keep)

    def state(self) -> dict[str, torch.Tensor]:
        """Weights by parameter name."""
        return dict(zip(self._names, self.weights, strict=True))

    @torch.no_grad()
    def restore(self, state: dict[str, torch.Tensor], flat: torch.Tensor) -> None:
        """Take over weights by name and statistics [n]."""
        for name, weight in zip(self._names, self.weights, strict=True):
            weight.copy_(state[name])
        self.flat.copy_(flat)
