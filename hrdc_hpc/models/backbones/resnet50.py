"""ResNet-50 without its classifier: 2048 pooled features, 23.5 M parameters; torchvision's network and initialisation.

The stride lies in the 3x3 convolution of a block ('v1.5'). Convolutions are drawn from a normal distribution with
variance 2 / fan_out.

Source: 'Deep Residual Learning for Image Recognition' (arXiv 1512.03385).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hrdc_hpc.config.types import options
from hrdc_hpc.models.cost import Cost
from hrdc_hpc.models.headless import headless

if TYPE_CHECKING:
    from torch import nn


_COST = Cost(
    flops=24.287e9, layers=11_113_984, activations=9_608_704, additions=5_519_360, parameters=23_508_032, features=2048
)
"""At 224 pixels."""


@options
class Options:
    """Where the weights start."""

    weights: Path | None = None
    """File with a state dict under torchvision's names, e.g. resnet50-11ad3fa6.pth; unset: random weights."""
    zero_init_residual: bool = False
    """Start the last batch norm of every block at 0, so that blocks start as identities (arXiv 1706.02677)."""


def cost(options: Options, image_size: int) -> Cost:  # noqa: ARG001 - none of them changes it
    """Return what it costs without its heads."""
    return _COST.at(image_size, counted_at=224)


def build(options: Options) -> nn.Module:
    """Return a module from images [B, 3, H, W] to pooled features [B, 2048]; ValueError if `weights` cannot be used."""
    from torchvision.models import resnet50

    return headless(resnet50(weights=None, zero_init_residual=options.zero_init_residual), options.weights)
