"""Classifiers on pooled features; imported where a network is built, never by the login node.

Axis legend: B images, C classes, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST = 1e-12
"""Length under which a vector counts as zero: it has no direction."""


class CosineHead(nn.Linear):
    """logits_c = scale * <f / |f|, w_c / |w_c|>: classes differ by direction alone, not by the length of their weights.

    No bias; weights are drawn as those of a linear layer and have the same state name, `weight` [C, D]. Computed in the
    weights' own precision, float32, under autocast as well. A feature of zeros gives logits of 0 and no gradient.

    Source: 'Dynamic Few-Shot Visual Learning without Forgetting' (arXiv 1804.09501), eq. 4, with a learnt scale;
    LDAM (arXiv 1906.07413) has a fixed one, s = 30, in its public code.
    """

    def __init__(self, features_dim: int, classes: int, *, scale: float) -> None:
        super().__init__(features_dim, classes, bias=False)
        self.scale = scale

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return logits [B, C] between -scale and scale."""
        with torch.autocast(features_BD.device.type, enabled=False):
            directions_BD = _unit(features_BD.to(self.weight.dtype))
            cosines_BC: Tensor = nn.functional.linear(directions_BD, _unit(self.weight))
            return self.scale * cosines_BC

    def extra_repr(self) -> str:
        """Say what a printed network shows of it."""
        return f"{super().extra_repr()}, scale={self.scale}"


def _unit(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean lengths; rows of zeros stay zeros and get no gradient, where 1/|f| has no end."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    directions: Tensor = rows / lengths.masked_fill(lengths < _SMALLEST, float("inf"))
    return directions
