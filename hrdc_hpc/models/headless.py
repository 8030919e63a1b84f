"""Torchvision's residual networks as backbones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hrdc_hpc.models.weights import load_weights

if TYPE_CHECKING:
    from torch import nn
    from torchvision.models import ResNet


def headless(network: ResNet, weights: Path | None) -> nn.Module:
    """Take the classifier `fc` off, so that the network returns pooled features [B, D], and set `features_dim` to D.

    Loads `weights` if given; ValueError if they cannot be used.
    """
    from torch import nn

    features_dim = network.fc.in_features
    backbone: nn.Module = network
    backbone.fc = nn.Identity()
    backbone.features_dim = features_dim
    if weights is not None:
        load_weights(backbone, weights)
    return backbone
