"""A backbone and the heads on its pooled features.

Initial weights come from torch's default CPU generator and nothing else: seed it with `torch.manual_seed` and the same
network results on any rank, on any number of ranks, and on any device that it is moved to afterwards. The backbone
draws first, then the heads in their order.

Axis legend: B images, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Model
from hrdc_hpc.models.batch_norm import convert
from hrdc_hpc.models.heads import CosineHead

_BACKBONES = "hrdc_hpc.models.backbones"


class Backbone(Protocol):
    """What `build(options)` of a backbone's file returns: an nn.Module that also has this."""

    features_dim: int
    """D, the pooled features of an image."""

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Return pooled features [B, D]."""
        ...


class Network(nn.Module):
    """Backbone and heads. State names: `backbone.*`, `heads.<name>.weight` [C, D] and, with a bias, `.bias` [C]."""

    def __init__(self, backbone: nn.Module, heads: Sequence[str], classes: int, model: Model) -> None:
        """Draw weights and biases of the heads from U(-1/sqrt(D), 1/sqrt(D)), torch's default of a linear layer."""
        super().__init__()
        self.backbone = backbone
        self.features_dim: int = cast(Backbone, backbone).features_dim
        self.heads = nn.ModuleDict({name: _head(model, self.features_dim, classes) for name in heads})

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return pooled features [B, D] and the logits [B, C] of every head by name."""
        features_BD = self.backbone(images_BCHW)
        return features_BD, {name: head(features_BD) for name, head in self.heads.items()}


def _head(model: Model, features_dim: int, classes: int) -> nn.Module:
    if model.head == "cosine":
        return CosineHead(features_dim, classes, scale=model.cosine_scale)
    return nn.Linear(features_dim, classes, bias=model.bias)


def build_network(model: Model, heads: Sequence[str], classes: int) -> Network:
    """Build the config's backbone with a head of `classes` classes for each name in `heads`, on the CPU.

    Draws from torch's default generator. Raises ValueError for a backbone or a weights file that cannot be used.
    """
    network = Network(registry.build(_BACKBONES, model.backbone), heads, classes, model)
    convert(network, model)
    return network


def parameters(network: nn.Module) -> int:
    """Return the number of learnt values: 464,154 for resnet32 with one head of ten classes and a bias."""
    return sum(weight.numel() for weight in network.parameters())
