"""Torchvision's classification networks as backbones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrdc_hpc.models.weights import load_weights

if TYPE_CHECKING:
    from torch import nn


def headless(network: nn.Module, weights: Path | None) -> nn.Module:
    """Take the classifier off, so that the network returns pooled features [B, D], and set `features_dim` to D.

    The classifier is the last linear layer, under whatever name. Loads `weights` if given; ValueError if they cannot be
    used or the network ends in no linear layer.
    """
    from torch import nn

    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"backbone: {type(network).__name__} has no linear classifier with pooled features before it")
    name, classifier = linear[-1]
    network.set_submodule(name, nn.Identity())
    backbone: Any = network  # torch's stub takes tensors and modules as attributes only
    backbone.features_dim = classifier.in_features
    if weights is not None:
        load_weights(network, weights, drop=f"{name}.")
    return network
