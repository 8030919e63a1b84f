"""Cross entropy on smoothed labels.

l = -(1 - e) * log p_y - e / C * sum_c log p_c with p = softmax(z), z the logits, y the label, e the smoothing and C the
number of classes; the mean over the global batch. It knows nothing of class counts: 'LabelSmooth' of the paper's
Table 5.

Source: 'Rethinking the Inception Architecture for Computer Vision' (arXiv 1512.00567), section 7.

Axis legend: B images of this micro-batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hrdc_hpc.config.types import options
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.losses.base import Loss, StepContext

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@options
class Options:
    """How much is taken from the label."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread evenly over all classes; 0 is cross entropy."""


def build(options: Options, classes: ClassInfo, device: torch.device) -> Loss:  # noqa: ARG001 - every loss is built so
    """Return the loss. It reduces by the plain mean; logits of any float type are cast to float32 first."""
    from torch.nn import functional

    def label_smoothing(logits_BC: Tensor, labels_B: Tensor, step: StepContext) -> Tensor:
        loss_B = functional.cross_entropy(
            logits_BC.float(), labels_B, reduction="none", label_smoothing=options.smoothing
        )
        return step.reduction.mean(loss_B)

    return label_smoothing
