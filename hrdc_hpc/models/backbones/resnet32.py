"""ResNet-32 for images of 32 pixels: the network of the CIFAR-LT tables, 64 pooled features at width 16.

A 3x3 stem, three stages of five basic blocks with w, 2w and 4w channels at 1, 1/2 and 1/4 of the image's side, average
pooling. Where the shape changes, the way around a block takes every second pixel and fills the new channels with zeros
('option A'): it has no parameters. 463,504 parameters at width 16, 464,154 with one head of ten classes; some
public repositories use width 64, sixteen times as many, under the same name. Convolutions are drawn from a normal
distribution with variance 2 / fan_in, as in the public code of LDAM-DRW and BBN.

Source: 'Deep Residual Learning for Image Recognition' (arXiv 1512.03385), section 4.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hrdc_hpc.config.types import PositiveInt, options
from hrdc_hpc.models.cost import Cost

if TYPE_CHECKING:
    from torch import nn


@options
class Options:
    """The size, and where the weights start."""

    width: PositiveInt = 16
    """Channels of the first stage; the features are four times as many."""
    weights: Path | None = None
    """File with a state dict of this backbone; unset: random weights."""


def cost(options: Options, image_size: int) -> Cost:
    """Return what it costs without its heads; all but the stem grows with the square of the width."""
    w = options.width
    counted = Cost(
        flops=1_603_584 * w**2 + 110_592 * w,
        layers=18_944 * w,
        activations=18_944 * w,
        additions=8_960 * w,
        parameters=1_800 * w**2 + 169 * w,
        features=4 * w,
    )
    return counted.at(image_size, counted_at=32)


def build(options: Options) -> nn.Module:
    """Return a module from images [B, 3, H, W] to pooled features [B, 4 * width]; ValueError for unfit `weights`."""
    from hrdc_hpc.models.basic import CifarResNet
    from hrdc_hpc.models.weights import load_weights

    backbone = CifarResNet(options.width, blocks=5)
    if options.weights is not None:
        load_weights(backbone, options.weights)
    return backbone
