"""HRDC's loss against a second formulation in float64, its predictions, and one graph for all epochs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from torch import Tensor

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component
from hrdc_hpc.losses import cdt, hierarchical
from hrdc_hpc.losses.base import Reduction, StepContext
from hrdc_hpc.methods.base import Inputs, Method
from hrdc_hpc.methods.fusion import fuse_logits, fuse_probabilities
from hrdc_hpc.methods.hrdc import Hrdc, Options

from long_tail import (
    COUNTS,
    Floats,
    context,
    cross_entropy,
    log_softmax,
    make_batch,
    make_classes,
    slow_factors,
    tensor,
)

CLASSES = make_classes()


def make(device: str = "cpu", **options: Any) -> Method:
    component = Component("hrdc", Options(**options))
    method: Method = registry.build("hrdc_hpc.methods", component, CLASSES, torch.device(device))
    return method


def inputs(labels: Tensor) -> dict[str, Inputs]:
    return {"main": Inputs(torch.zeros(len(labels), 3, 4, 4, device=labels.device), labels)}


def network_of(plain: Tensor, reweighted: Tensor) -> Any:
    def network(images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return images_BCHW.flatten(1), {"plain": plain, "reweighted": reweighted}

    return network


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("rebalancing", ["hierarchical", "cdt"])
def test_loss_and_gradient(alpha: float, rebalancing: str) -> None:
    plain_BC, labels_B = make_batch(9, seed=1)
    reweighted_BC, _ = make_batch(9, seed=2)
    component = {
        "hierarchical": Component("hierarchical", hierarchical.Options(gamma=0.2)),
        "cdt": Component("cdt", cdt.Options(gamma=0.2)),
    }[rebalancing]
    factors_C = slow_factors(CLASSES, 0.2, capped=rebalancing == "hierarchical")
    plain, reweighted = tensor(plain_BC), tensor(reweighted_BC)
    loss, parts = make(loss=component).training_loss(
        network_of(plain, reweighted), inputs(torch.from_numpy(labels_B)), context(labels_B, alpha=alpha)
    )
    loss.backward()

    l_plain = cross_entropy(plain_BC, labels_B).mean()
    l_reweighted = cross_entropy(reweighted_BC, labels_B, factors_C).mean()
    assert parts["plain"].item() == pytest.approx(l_plain, rel=1e-6)
    assert parts["reweighted"].item() == pytest.approx(l_reweighted, rel=1e-6)
    assert loss.item() == pytest.approx(alpha * l_plain + (1 - alpha) * l_reweighted, rel=1e-6)

    def gradient(logits_BC: Floats, factors_C: Floats | float) -> Floats:
        off = np.exp(log_softmax(logits_BC / factors_C)) - np.eye(CLASSES.number)[labels_B]
        return np.asarray(off / factors_C / len(labels_B))

    assert plain.grad is not None
    assert reweighted.grad is not None
    np.testing.assert_allclose(plain.grad, alpha * gradient(plain_BC, 1.0), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(reweighted.grad, (1 - alpha) * gradient(reweighted_BC, factors_C), rtol=1e-5, atol=1e-8)


def test_defaults_are_the_papers() -> None:
    method = make()
    assert method.heads == ("plain", "reweighted")
    assert [(stream.name, stream.sampler) for stream in method.streams] == [("main", None)]
    assert method.draws == {}
    assert method.primary == "fused_tail"
    logits_BC, labels_B = make_batch(9)
    logits = tensor(logits_BC)
    _, parts = method.training_loss(
        network_of(logits, logits), inputs(torch.from_numpy(labels_B)), context(labels_B, alpha=0.5)
    )
    assert parts["plain"].item() == pytest.approx(cross_entropy(logits_BC, labels_B).mean(), rel=1e-6)
    factors_C = slow_factors(CLASSES, 0.1, capped=True)
    assert parts["reweighted"].item() == pytest.approx(cross_entropy(logits_BC, labels_B, factors_C).mean(), rel=1e-6)


def test_either_loss_can_be_replaced() -> None:
    logits_BC, labels_B = make_batch(9)
    logits = tensor(logits_BC)
    method = make(loss=Component("cross_entropy"), plain_loss=Component("cdt", cdt.Options(gamma=0.2)))
    _, parts = method.training_loss(
        network_of(logits, logits), inputs(torch.from_numpy(labels_B)), context(labels_B, alpha=0.5)
    )
    factors_C = slow_factors(CLASSES, 0.2, capped=False)
    assert parts["reweighted"].item() == pytest.approx(cross_entropy(logits_BC, labels_B).mean(), rel=1e-6)
    assert parts["plain"].item() == pytest.approx(cross_entropy(logits_BC, labels_B, factors_C).mean(), rel=1e-6)


def test_shares_of_pieces_add_up() -> None:
    logits_BC, labels_B = make_batch(11)
    other_BC, _ = make_batch(11, seed=5)
    labels, method = torch.from_numpy(labels_B), make()

    def share(part: slice) -> float:
        loss, _ = method.training_loss(
            network_of(tensor(logits_BC)[part], tensor(other_BC)[part]),
            inputs(labels[part]),
            context(labels_B, part, alpha=0.3),
        )
        return float(loss.item())

    parts = [slice(0, 4), slice(4, 5), slice(5, 11)]
    assert sum(share(part) for part in parts) == pytest.approx(share(slice(None)), rel=1e-6)


def test_losses_see_the_features() -> None:
    seen = []

    def loss(logits_BC: Tensor, labels_B: Tensor, step: StepContext) -> Tensor:
        seen.append(step.features_BD)
        return logits_BC.sum()

    logits_BC, labels_B = make_batch(9)
    Hrdc(Options(), loss, loss).training_loss(
        network_of(tensor(logits_BC), tensor(logits_BC)),
        inputs(torch.from_numpy(labels_B)),
        context(labels_B, alpha=0.5),
    )
    assert [features is not None and features.shape == (9, 48) for features in seen] == [True, True]


def graph_of(loss: Tensor) -> list[str]:
    names, open_nodes = [], [loss.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is not None:
            names.append(node.name())
            open_nodes += [child for child, _ in node.next_functions]
    return names


@pytest.mark.parametrize("name", ["parabola", "equal", "segmented", "cosine"])
def test_graph_is_the_same_in_every_epoch(name: str) -> None:
    logits_BC, labels_B = make_batch(9)
    method = make(weighting=name)
    graphs = []
    for epoch in range(10):
        loss, _ = method.training_loss(
            network_of(tensor(logits_BC), tensor(logits_BC)),
            inputs(torch.from_numpy(labels_B)),
            context(labels_B, **method.scalars(epoch, 10)),
        )
        graphs.append(graph_of(loss))
    assert sum("AccumulateGrad" in node for node in graphs[0]) == 2
    assert all(graph == graphs[0] for graph in graphs)


def test_runs_without_a_value_in_sight() -> None:
    # on the meta device a host sync, or a branch on alpha, raises
    plain, reweighted = (torch.empty(8, len(COUNTS), device="meta", requires_grad=True) for _ in range(2))
    reduction = Reduction(8, torch.ones(8, device="meta"), torch.ones(len(COUNTS), device="meta"))
    step = StepContext(reduction, {"alpha": torch.ones((), device="meta")}, {})
    method = make("meta")
    labels = torch.zeros(8, dtype=torch.int64, device="meta")
    loss, _ = method.training_loss(network_of(plain, reweighted), inputs(labels), step)
    loss.backward()
    assert plain.grad is not None
    assert reweighted.grad is not None
    assert len(method.predict({"plain": plain, "reweighted": reweighted})) == 5


# predictions


def logits_of_both(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {head: torch.from_numpy(make_batch(9, seed=seed)[0]).to(dtype) for seed, head in enumerate(make().heads)}


@pytest.mark.parametrize("fuse", ["probabilities", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_predictions_are_float32_probabilities(fuse: str, dtype: torch.dtype) -> None:
    predictions = make(fuse=fuse).predict(logits_of_both(dtype))
    assert list(predictions) == ["plain", "reweighted", "fused_average", "fused_tail", "fused_head"]
    for probabilities_BC in predictions.values():
        assert probabilities_BC.dtype == torch.float32
        assert probabilities_BC.shape == (9, len(COUNTS))
        assert probabilities_BC.min() >= 0
        torch.testing.assert_close(probabilities_BC.sum(dim=1), torch.ones(9))


def test_fusions_by_definition() -> None:
    logits = logits_of_both()
    plain, reweighted = (np.exp(log_softmax(logits[head].double().numpy())) for head in ("plain", "reweighted"))
    probabilities = make(fuse="probabilities").predict(logits)
    np.testing.assert_allclose(probabilities["plain"], plain, rtol=1e-5)
    np.testing.assert_allclose(probabilities["reweighted"], reweighted, rtol=1e-5)
    np.testing.assert_allclose(probabilities["fused_average"], (plain + reweighted) / 2, rtol=1e-5)
    mean_logits = (logits["plain"] + logits["reweighted"]).double().numpy() / 2
    by_logits = make(fuse="logits").predict(logits)
    np.testing.assert_allclose(by_logits["fused_average"], np.exp(log_softmax(mean_logits)), rtol=1e-5)
    assert not torch.allclose(by_logits["fused_average"], probabilities["fused_average"])
    for predictions in (probabilities, by_logits):
        assert torch.equal(predictions["fused_tail"], predictions["reweighted"])
        assert torch.equal(predictions["fused_head"], predictions["plain"])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_fusion_at_any_weight_of_half_precision_logits(weight: float) -> None:
    plain, reweighted = logits_of_both(torch.bfloat16).values()
    exact = [logits.double().numpy() for logits in (plain, reweighted)]
    probabilities = weight * np.exp(log_softmax(exact[0])) + (1 - weight) * np.exp(log_softmax(exact[1]))
    np.testing.assert_allclose(fuse_probabilities(plain, reweighted, weight), probabilities, rtol=1e-5)
    fused = np.exp(log_softmax(weight * exact[0] + (1 - weight) * exact[1]))
    np.testing.assert_allclose(fuse_logits(plain, reweighted, weight), fused, rtol=1e-5)


def test_inference_never_divides_by_the_factors() -> None:
    logits = logits_of_both()
    strong = make(loss=Component("hierarchical", hierarchical.Options(gamma=0.9))).predict(logits)
    none = make(loss=Component("cross_entropy")).predict(logits)
    assert all(torch.equal(strong[name], none[name]) for name in none)


@pytest.mark.parametrize("fusion", ["tail", "average", "head"])
def test_primary_is_a_prediction(fusion: str) -> None:
    method = make(fusion=fusion)
    assert method.primary == f"fused_{fusion}"
    assert method.primary in method.predict(logits_of_both())


def test_wrong_options_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{"weighting": "linear"}, {"fusion": "both"}, {"fuse": 1}, {"segmented_share": 1.5}]
    for options in wrong:
        with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
            Options(**options)


def test_empty_class_is_named() -> None:
    with pytest.raises(ValueError, match="'class2'"):
        registry.build("hrdc_hpc.methods", Component("hrdc"), make_classes((9, 5, 0)), torch.device("cpu"))
