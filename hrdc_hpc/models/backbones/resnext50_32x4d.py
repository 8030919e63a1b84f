"""ResNeXt-50 32x4d without its classifier: 2048 pooled features, 23.0 M parameters; torchvision's network.

The initialisation is torchvision's, too: convolutions are drawn from a normal distribution with variance
2 / fan_out.

Source: 'Aggregated Residual Transformations for Deep Neural Networks' (arXiv 1611.05431).
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
    flops=25.135e9, layers=14_400_512, activations=12_895_232, additions=5_519_360, parameters=22_979_904, features=2048
)
"""At 224 pixels."""


@options
class Options:
    """Where the weights start."""

    weights: Path | None = None
    """File with a state dict under torchvision's names, e.g. resnext50_32x4d-1a0047aa.pth; unset: random weights."""
    zero_init_residual: bool = False
    """Start the last batch norm of every block at 0, so that blocks start as identities (arXiv 1706.02677)."""


def cost(options: Options, image_size: int) -> Cost:  # noqa: ARG001 - none of them changes it
    """Return what it costs without its heads."""
    return _COST.at(image_size, counted_at=224)


def build(options: Options) -> nn.Module:
    """Return a module from images [B, 3, H, W] to pooled features [B, 2048]; ValueError if `weights` cannot be used."""
    from torchvision.models import resnext50_32x4d

    return headless(resnext50_32x4d(weights=None, zero_init_residual=options.zero_init_residual), options.weights)
