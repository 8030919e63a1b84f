"""HRDC: two linear heads on one backbone, a plain one and a re-weighting one.

Training loss (eq. 5): alpha * l_C + (1 - alpha) * l_R. l_C is the plain head's loss, cross entropy; l_R the
re-weighting head's, hierarchical rebalancing; alpha = ((T - T_max) / T_max)**2 with T the 0-based epoch, so that
representation is learnt first and rare classes come into focus later.

Prediction: p = w * softmax(z_C) + (1 - w) * softmax(z_R) on plain logits, never divided by the loss's factors.
`average` is w = .5, `tail` w = 0, `head` w = 1. So `fused_tail` equals `reweighted` and `fused_head` equals `plain`;
both are reported under both names because the paper's Table 6 has them as fusions and its Table 5 as classifiers.

Source: 'Long-Tailed Recognition by Hierarchical Rebalancing Dual-Classifier'. Where it is silent or at
odds with itself:
- alpha weighs the losses only, as eq. 5 says; the paper's overview says that the predicted outputs are fused by it
  during training, which is another method.
- Fusion at inference is not defined there; `tail` is the default because it is the paper's best row.

Axis legend: B images of this micro-batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component, Fraction, Kind, options
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.losses.base import Loss, StepContext
from hrdc_hpc.methods import weighting
from hrdc_hpc.methods.base import Forward, Inputs, Method, Stream
from hrdc_hpc.methods.fusion import PLAIN_WEIGHTS, fuse_logits, fuse_probabilities

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LOSSES = "hrdc_hpc.losses"
_PLAIN, _REWEIGHTED = "plain", "reweighted"
HEADS = (_PLAIN, _REWEIGHTED)
"""Names of the heads, whatever the options."""


@options
class Options:
    """The two losses, how they are weighed over training, and how the two heads predict together."""

    loss: Annotated[Component, Kind(_LOSSES)] = Component("hierarchical")
    """Loss of the re-weighting head."""
    plain_loss: Annotated[Component, Kind(_LOSSES)] = Component("cross_entropy")
    """Loss of the plain head."""
    weighting: Literal["parabola", "equal", "segmented", "cosine"] = "parabola"
    """Schedule of alpha, the share of the plain head's loss, from epoch to epoch."""
    segmented_share: Fraction = 0.6
    """weighting segmented: share of the epochs that train the plain head, before those of the re-weighting head."""
    fusion: Literal["tail", "average", "head"] = "tail"
    """The prediction that is reported first: the re-weighting head, both, or the plain head."""
    fuse: Literal["probabilities", "logits"] = "probabilities"
    """What the fusions average."""


class Hrdc:
    """Plain and re-weighting head with dynamic weights."""

    def __init__(self, options: Options, loss: Loss, plain_loss: Loss) -> None:
        self.heads: tuple[str, ...] = HEADS
        self.streams: tuple[Stream, ...] = (Stream("main"),)
        self.draws: Mapping[str, int] = {}
        self.primary: str = f"fused_{options.fusion}"
        self._options = options
        self._loss = loss
        self._plain_loss = plain_loss

    def scalars(self, epoch: int, epochs: int) -> dict[str, float]:
        """Return alpha of a 0-based epoch."""
        match self._options.weighting:
            case "parabola":
                alpha = weighting.parabola(epoch, epochs)
            case "equal":
                alpha = weighting.equal()
            case "segmented":
                alpha = weighting.segmented(epoch, epochs, self._options.segmented_share)
            case "cosine":
                alpha = weighting.cosine(epoch, epochs)
        return {"alpha": alpha}

    def training_loss(
        self, network: Forward, inputs: Mapping[str, Inputs], step: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return alpha * l_C + (1 - alpha) * l_R, and both; float32 scalars.

        Both heads are in the graph in every epoch, also where alpha is 0 or 1: it can be captured once.
        """
        main = inputs["main"]
        features_BD, logits = network(main.images_BCHW)
        step = replace(step, features_BD=features_BD)
        plain = self._plain_loss(logits[_PLAIN], main.labels_B, step)
        reweighted = self._loss(logits[_REWEIGHTED], main.labels_B, step)
        alpha = step.scalars["alpha"]
        return alpha * plain + (1 - alpha) * reweighted, {_PLAIN: plain, _REWEIGHTED: reweighted}

    def predict(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return probabilities of each head and of every fusion, float32 [B, C]."""
        plain_BC, reweighted_BC = (logits[head].float() for head in self.heads)
        fuse = fuse_logits if self._options.fuse == "logits" else fuse_probabilities
        heads = {_PLAIN: plain_BC.softmax(dim=1), _REWEIGHTED: reweighted_BC.softmax(dim=1)}
        return heads | {f"fused_{name}": fuse(plain_BC, reweighted_BC, w) for name, w in PLAIN_WEIGHTS.items()}


def build(options: Options, classes: ClassInfo, device: torch.device) -> Method:
    """Return the method; ValueError where a loss cannot be built for these classes."""
    loss = registry.build(_LOSSES, options.loss, classes, device)
    return Hrdc(options, loss, registry.build(_LOSSES, options.plain_loss, classes, device))
