"""A small residual network with batch norm for images of about 32 pixels: trains in minutes on a CPU.

A 3x3 stem of stride 2 and three basic residual blocks with w, 2w and 4w channels at 1/2, 1/4 and 1/8 of the image's
side; average pooling to 4w features. At width 16: 64 features, 77 k parameters. Convolutions are drawn from a normal
distribution with variance 2 / fan_out, batch norms start at scale 1 and shift 0.

Source: basic blocks of 'Deep Residual Learning for Image Recognition' (arXiv 1512.03385); the layout is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hrdc_hpc.config.types import PositiveInt, options
from hrdc_hpc.models.cost import Cost

if TYPE_CHECKING:
    from torch import nn


@options
class Options:
    """The size."""

    width: PositiveInt = 16
    """Channels of the first block; the features are four times as many."""


def cost(options: Options, image_size: int) -> Cost:
    """Return what it costs without its heads; all but the stem grows with the square of the width."""
    w = options.width
    counted = Cost(
        flops=70_656 * w**2 + 27_648 * w,
        layers=1_344 * w,
        activations=1_152 * w,
        additions=448 * w,
        parameters=298 * w**2 + 69 * w,
        features=4 * w,
    )
    return counted.at(image_size, counted_at=32)


def build(options: Options) -> nn.Module:
    """Return a module from images [B, 3, H, W] to pooled features [B, 4 * width]; H and W at least 8."""
    from hrdc_hpc.models.basic import BasicResNet

    return BasicResNet(options.width)
