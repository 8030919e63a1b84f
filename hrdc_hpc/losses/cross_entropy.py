"""Cross entropy.

l = -log softmax(z)_y, z the logits and y the label; the mean over the global batch. It knows nothing of class counts:
the baseline of every table, and the loss of HRDC's plain head ('Long-Tailed Recognition by Hierarchical Rebalancing
Dual-Classifier').

Axis legend: B images of this micro-batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hrdc_hpc.config.types import options
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.losses.base import Loss, StepContext

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@options
class Options:
    """Cross entropy has no settings."""


def build(options: Options, classes: ClassInfo, device: torch.device) -> Loss:  # noqa: ARG001 - every loss is built so
    """Return the loss. It reduces by the plain mean; logits of any float type are cast to float32 first."""
    from torch.nn import functional

    def cross_entropy(logits_BC: Tensor, labels_B: Tensor, step: StepContext) -> Tensor:
        return step.reduction.mean(functional.cross_entropy(logits_BC.float(), labels_B, reduction="none"))

    return cross_entropy
