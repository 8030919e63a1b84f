"""Hierarchical rebalancing: cross entropy under class-dependent temperatures that are capped level by level.

l = -log softmax(z / a')_y, the mean over the global batch (eq. 9), with a'_c = min(a_c, mean of a over the level of c)
(eq. 8) and a_c = (N_max / N_c)**gamma as in `cdt`. The levels are head, medium and tail, `data.levels` in the config;
the means are those of the uncapped factors, the cap is applied once, and a level without classes is skipped.

The whole logit is divided, the head's bias included (the equations have no bias; `model.bias: false` leaves it out). At
inference the plain logits z are used, never z / a', which would cancel the effect.

Source: 'Long-Tailed Recognition by Hierarchical Rebalancing Dual-Classifier'. The paper does not give gamma.

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
    """Exponent of N_max / N_c; 0 is cross entropy. Start at .2 on CIFAR10-LT, at .1 on CIFAR100-LT, ImageNet-LT and
    iNaturalist 2018. Searched in [0, .4] on CIFAR10-LT, [0, .2] on CIFAR100-LT, [0, .1] on iNaturalist 2018."""


def build(options: Options, classes: ClassInfo, device: torch.device) -> Loss:
    """Return the loss. It reduces by the plain mean; logits of any float type are cast to float32 first.

    Raises ValueError, naming the class, if a class has no training images.
    """
    import torch
    from torch.nn import functional

    from hrdc_hpc.losses.factors import hierarchical_factors, require_images

    require_images(classes, "hierarchical")
    factors = hierarchical_factors(classes.counts_C, classes.levels_C, options.gamma)
    factors_C = torch.tensor(factors, dtype=torch.float32, device=device)

    def hierarchical(logits_BC: Tensor, labels_B: Tensor, step: StepContext) -> Tensor:
        # CE(z / a', y), eq. 9 of HRDC
        loss_B = functional.cross_entropy(logits_BC.float() / factors_C, labels_B, reduction="none")
        return step.reduction.mean(loss_B)

    return hierarchical
