"""What the engine asks of a method.

A method file holds `Options` and `build(options, classes, device) -> Method`. The engine wraps network and method in
one module for DDP, so a method may call the network as often as it likes in a step.

Axis legend: B images of this micro-batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hrdc_hpc.config.types import Component
from hrdc_hpc.losses.base import StepContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """A sequence of training images. The first stream of a method uses the run's own sampler (sampler None)."""

    name: str
    sampler: Component | None = None


@dataclass(frozen=True)
class Inputs:
    """One micro-batch of one stream."""

    images_BCHW: Tensor
    """Normalised, in the network's memory format."""
    labels_B: Tensor


class Forward(Protocol):
    """The network as a method sees it."""

    def __call__(self, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return pooled features [B, D] and the logits [B, C] of every head by name."""
        ...


class Method(Protocol):
    """Heads, training loss and prediction."""

    heads: tuple[str, ...]
    """Names of the linear classifiers on the pooled features."""
    streams: tuple[Stream, ...]
    draws: Mapping[str, int]
    """Random numbers per image that the method wants, by purpose."""
    primary: str
    """The prediction that is reported first and that 'best' refers to."""

    def scalars(self, epoch: int, epochs: int) -> dict[str, float]:
        """Schedule values of a 0-based epoch; the same keys in every epoch."""
        ...

    def training_loss(
        self, network: Forward, inputs: Mapping[str, Inputs], step: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's share of the global loss, and shares of its parts for the log (all scalars)."""
        ...

    def predict(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return class probabilities [B, C], float32, by name: each head alone and every fusion."""
        ...
