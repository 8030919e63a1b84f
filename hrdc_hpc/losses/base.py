"""What a loss is given and what it returns.

A loss file holds `Options` and `build(options, classes, device) -> Loss`. The loss returns this rank's and this
micro-batch's *share* of the loss of the global batch: the shares of all ranks and micro-batches add up to the mean over
the G images of the global batch (or to the weighted mean over it). Reductions go through `Reduction`, in float32.

Axis legend: B images of this micro-batch, G of the global batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reduction:
    """From a loss per image to this micro-batch's share of the global batch's loss."""

    images: int
    """G, images in the global batch."""
    valid_B: Tensor
    """float32 [B]: 1, or 0 for an image that could not be read."""
    class_counts_C: Tensor
    """float32 [C]: images of each class in the global batch, known to every rank from the stateless order."""

    def mean(self, loss_B: Tensor) -> Tensor:
        """Share of the plain mean: sum(loss_B) / G; a scalar."""
        return (loss_B.float() * self.valid_B).sum() / self.images

    def weighted_mean(self, loss_B: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
        """Share of sum(w*loss) / sum(w), w the weights of the images' classes, over the global batch; a scalar."""
        total = (weights_C * self.class_counts_C).sum()
        return (loss_B.float() * weights_C[labels_B] * self.valid_B).sum() / total


@dataclass(frozen=True)
class StepContext:
    """What a loss may know of the step beside logits and labels."""

    reduction: Reduction
    scalars: Mapping[str, Tensor]
    """Schedule values as device scalars, such as 'alpha'; see Method.scalars."""
    draws: Mapping[str, Tensor]
    """float32 [B, n] uniform random numbers in [0, 1) per purpose; see Method.draws."""
    features_BD: Tensor | None = None


class Loss(Protocol):
    """A training loss on one head's logits."""

    def __call__(self, logits_BC: Tensor, labels_B: Tensor, step: StepContext) -> Tensor:
        """Return this micro-batch's share of the global loss, a float32 scalar."""
        ...
