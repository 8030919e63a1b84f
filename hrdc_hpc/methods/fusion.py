"""How the logits of two heads become one prediction: pure functions of a weight w in [0, 1].

HRDC leaves fusion at inference undefined; these are our readings of its 'average', 'tail' and 'head' fusion.

Axis legend: B images, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PLAIN_WEIGHTS = {"average": 0.5, "tail": 0.0, "head": 1.0}
"""Weight w of the plain head in each fusion; the re-weighting head has 1 - w."""


def fuse_probabilities(plain_BC: Tensor, reweighted_BC: Tensor, weight: float) -> Tensor:
    """w * softmax(z_C) + (1 - w) * softmax(z_R) of two heads' logits [B, C]; float32 [B, C]."""
    return weight * plain_BC.float().softmax(dim=1) + (1 - weight) * reweighted_BC.float().softmax(dim=1)


def fuse_logits(plain_BC: Tensor, reweighted_BC: Tensor, weight: float) -> Tensor:
    """softmax(w * z_C + (1 - w) * z_R) of two heads' logits [B, C]; float32 [B, C]."""
    return (weight * plain_BC.float() + (1 - weight) * reweighted_BC.float()).softmax(dim=1)
