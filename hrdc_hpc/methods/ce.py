"""One linear head, one loss: the baseline of every table, and any loss on its own.

Training loss: the loss's mean over the global batch, cross entropy by default; with `loss: cdt` it is the CDT method.
Prediction: softmax of the plain logits.

Axis legend: B images of this micro-batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component, Kind, options
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.losses.base import Loss, StepContext
from hrdc_hpc.methods.base import Forward, Inputs, Method, Stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LOSSES = "hrdc_hpc.losses"
_PLAIN = "plain"
HEADS = (_PLAIN,)
"""Names of the heads, whatever the options."""


@options
class Options:
    """The loss."""

    loss: Annotated[Component, Kind(_LOSSES)] = Component("cross_entropy")
    """Loss of the only head."""


class SingleHead:
    """One head under one loss, in every epoch the same."""

    def __init__(self, loss: Loss) -> None:
        self.heads: tuple[str, ...] = HEADS
        self.streams: tuple[Stream, ...] = (Stream("main"),)
        self.draws: Mapping[str, int] = {}
        self.primary: str = _PLAIN
        self._loss = loss

    def scalars(self, epoch: int, epochs: int) -> dict[str, float]:  # noqa: ARG002 - the contract of all methods
        """Return nothing: no schedule."""
        return {}

    def training_loss(
        self, network: Forward, inputs: Mapping[str, Inputs], step: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the head's loss, a float32 scalar, which has no parts."""
        main = inputs["main"]
        features_BD, logits = network(main.images_BCHW)
        return self._loss(logits[_PLAIN], main.labels_B, replace(step, features_BD=features_BD)), {}

    def predict(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the head's probabilities, float32 [B, C]."""
        return {_PLAIN: logits[_PLAIN].float().softmax(dim=1)}


def build(options: Options, classes: ClassInfo, device: torch.device) -> Method:
    """Return the method; ValueError where the loss cannot be built for these classes."""
    return SingleHead(registry.build(_LOSSES, options.loss, classes, device))
