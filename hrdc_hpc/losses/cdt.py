"""CDT: cross entropy under class-dependent temperatures.

l = -log softmax(z / a)_y with a_c = (N_max / N_c)**gamma, z the logits, N_c the training images of class c; the mean
over the global batch. Rare classes are divided by more, so the network learns larger logits for them, which makes up
for test features that deviate from the training ones.

The whole logit is divided, the head's bias included (as the public CDT code does; the equations have no bias, and
`model.bias: false` leaves it out). At inference the plain logits z are used, never z / a, which would cancel the
effect.

Source: CDT, 'Identifying and Compensating for Feature Deviation in Imbalanced Deep Learning' (arXiv 2001.01385).

Axis legend: B images of this micro-batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hrdc_hpc.config.types import NonNegativeFloat, options
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.losses.base import Loss, StepContext

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@options
class Options:
    """How much rare classes are favoured."""

    gamma: NonNegativeFloat = 0.1
    """Exponent of N_max / N_c; 0 is cross entropy. Searched in [0, .4] on CIFAR10-LT, [0, .2] on CIFAR100-LT, [0, .1]
    on iNaturalist 2018."""


def build(options: Options, classes: ClassInfo, device: torch.device) -> Loss:
    """Return the loss. It reduces by the plain mean; logits of any float type are cast to float32 first.

    Raises ValueError, naming the class, if a class has no training images.
    """
    import torch
    from torch.nn import functional

    from hrdc_hpc.losses.factors import cdt_factors, require_images

    require_images(classes, "cdt")
    factors_C = torch.tensor(cdt_factors(classes.counts_C, options.gamma), dtype=torch.float32, device=device)

    def cdt(logits_BC: Tensor, labels_B: Tensor, step: StepContext) -> Tensor:
        # CE(z / a, y), CDT (arXiv 2001.01385)
        loss_B = functional.cross_entropy(logits_BC.float() / factors_C, labels_B, reduction="none")
        return step.reduction.mean(loss_B)

    return cdt
