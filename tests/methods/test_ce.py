"""The single-head method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component
from hrdc_hpc.losses import cdt
from hrdc_hpc.methods import ce
from hrdc_hpc.methods.base import Inputs, Method

from long_tail import context, cross_entropy, log_softmax, make_batch, make_classes, slow_factors, tensor

CLASSES = make_classes()


def make(loss: Component | None = None) -> Method:
    component = Component("ce", ce.Options(loss=loss)) if loss else Component("ce")
    method: Method = registry.build("hrdc_hpc.methods", component, CLASSES, torch.device("cpu"))
    return method


def test_loss() -> None:
    logits_BC, labels_B = make_batch(9)

    def network(images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return images_BCHW.flatten(1), {"plain": tensor(logits_BC)}

    inputs = {"main": Inputs(torch.zeros(9, 3, 4, 4), torch.from_numpy(labels_B))}
    for loss, factors_C in (
        (None, np.ones(CLASSES.number)),
        (Component("cdt", cdt.Options(gamma=0.2)), slow_factors(CLASSES, 0.2, capped=False)),
    ):
        value, parts = make(loss).training_loss(network, inputs, context(labels_B))
        assert value.item() == pytest.approx(cross_entropy(logits_BC, labels_B, factors_C).mean(), rel=1e-6)
        assert parts == {}


def test_prediction_and_contract() -> None:
    method = make()
    assert method.heads == ("plain",)
    assert method.primary == "plain"
    assert [(stream.name, stream.sampler) for stream in method.streams] == [("main", None)]
    assert method.scalars(0, 10) == method.scalars(9, 10) == {}
    logits_BC, _ = make_batch(9)
    predictions = method.predict({"plain": torch.from_numpy(logits_BC).to(torch.bfloat16)})
    assert list(predictions) == ["plain"]
    assert predictions["plain"].dtype == torch.float32
    np.testing.assert_allclose(predictions["plain"], np.exp(log_softmax(logits_BC)), atol=0.02)
    torch.testing.assert_close(predictions["plain"].sum(dim=1), torch.ones(9))
