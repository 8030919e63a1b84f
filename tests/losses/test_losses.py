"""Values and gradients of the losses against a second formulation in float64, and what every loss has to keep to."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component
from hrdc_hpc.losses import cdt, hierarchical, label_smoothing
from hrdc_hpc.losses.base import Loss, Reduction, StepContext

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
COMPONENTS = {
    "cross_entropy": Component("cross_entropy"),
    "cdt": Component("cdt", cdt.Options(gamma=0.3)),
    "hierarchical": Component("hierarchical", hierarchical.Options(gamma=0.3)),
    "label_smoothing": Component("label_smoothing", label_smoothing.Options(smoothing=0.2)),
}
FACTORS: dict[str, Floats] = {
    "cross_entropy": np.ones(CLASSES.number),
    "cdt": slow_factors(CLASSES, 0.3, capped=False),
    "hierarchical": slow_factors(CLASSES, 0.3, capped=True),
    "label_smoothing": np.ones(CLASSES.number),
}
SMOOTHING = {"label_smoothing": 0.2}


def wanted(name: str, logits_BC: Floats, labels_B: NDArray[np.int64]) -> Floats:
    """The loss of each image [B], written down a second time."""
    share = SMOOTHING.get(name, 0.0)
    loss_B = cross_entropy(logits_BC, labels_B, FACTORS[name])
    return (1 - share) * loss_B - share * log_softmax(logits_BC / FACTORS[name]).mean(axis=1)


every_loss = pytest.mark.parametrize("name", COMPONENTS)


def test_every_loss_is_tested() -> None:
    assert set(registry.names("hrdc_hpc.losses")) == set(COMPONENTS)


def make(name: str, classes: Any = CLASSES, device: str = "cpu") -> Loss:
    loss: Loss = registry.build("hrdc_hpc.losses", COMPONENTS[name], classes, torch.device(device))
    return loss


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_value(name: str, seed: int) -> None:
    logits_BC, labels_B = make_batch(13, seed=seed)
    loss = make(name)(tensor(logits_BC), torch.from_numpy(labels_B), context(labels_B))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted(name, logits_BC, labels_B).mean(), rel=1e-6)


@every_loss
def test_gradient(name: str) -> None:
    logits_BC, labels_B = make_batch(5)
    factors_C = FACTORS[name]
    ours = tensor(logits_BC)
    make(name)(ours, torch.from_numpy(labels_B), context(labels_B)).backward()
    assert ours.grad is not None

    def value(logits_BC: Floats) -> float:
        return float(wanted(name, logits_BC, labels_B).mean())

    differences = np.empty_like(logits_BC)
    for place in np.ndindex(logits_BC.shape):
        nudge = np.zeros_like(logits_BC)
        nudge[place] = 1e-5
        differences[place] = (value(logits_BC + nudge) - value(logits_BC - nudge)) / 2e-5
    np.testing.assert_allclose(ours.grad.numpy(), differences, rtol=1e-4, atol=1e-8)
    # (softmax(z / a) - target) / (a * G), the target onehot(y) or smoothed
    share = SMOOTHING.get(name, 0.0)
    target_BC = (1 - share) * np.eye(len(COUNTS))[labels_B] + share / len(COUNTS)
    closed = (np.exp(log_softmax(logits_BC / factors_C)) - target_BC) / factors_C / len(labels_B)
    np.testing.assert_allclose(ours.grad.numpy(), closed, rtol=1e-5, atol=1e-8)


def test_losses_differ_and_meet_where_they_should() -> None:
    logits_BC, labels_B = make_batch(13)

    def value(name: str, options: Any = None, counts: tuple[int, ...] = COUNTS) -> float:
        component = Component(name, options) if options else COMPONENTS[name]
        loss = registry.build("hrdc_hpc.losses", component, make_classes(counts), torch.device("cpu"))
        return float(loss(tensor(logits_BC), torch.from_numpy(labels_B), context(labels_B)).item())

    assert len({value(name) for name in COMPONENTS}) == len(COMPONENTS)
    plain = value("cross_entropy")
    assert value("cdt", cdt.Options(gamma=0)) == plain
    assert value("hierarchical", hierarchical.Options(gamma=0)) == plain
    assert value("label_smoothing", label_smoothing.Options(smoothing=0)) == plain
    # a cap at the mean of equal factors changes nothing
    steps = (200,) * 4 + (50,) * 4 + (5,) * 3
    assert value("cdt", counts=steps) == pytest.approx(value("hierarchical", counts=steps), rel=1e-6)


@every_loss
def test_shares_of_ranks_and_pieces_add_up(name: str) -> None:
    logits_BC, labels_B = make_batch(17)
    loss, whole = make(name), tensor(logits_BC)
    full = loss(whole, torch.from_numpy(labels_B), context(labels_B))
    full.backward()
    edges = [0, 4, 6, 8, 11, 14, 17]  # ranks of 6, 5 and 6 images, two pieces each
    pieces = tensor(logits_BC)
    shares = [
        loss(pieces[low:high], torch.from_numpy(labels_B[low:high]), context(labels_B, slice(low, high)))
        for low, high in itertools.pairwise(edges)
    ]
    torch.stack(shares).sum().backward()
    assert sum(share.item() for share in shares) == pytest.approx(full.item(), rel=1e-6)
    assert pieces.grad is not None
    torch.testing.assert_close(pieces.grad, whole.grad)


@every_loss
def test_unreadable_images_weigh_nothing(name: str) -> None:
    logits_BC, labels_B = make_batch(6)
    valid_B = torch.tensor([1.0, 1, 0, 1, 0, 1])
    step = StepContext(Reduction(6, valid_B, torch.ones(len(COUNTS))), {}, {})
    ours = tensor(logits_BC)
    loss = make(name)(ours, torch.from_numpy(labels_B), step)
    loss.backward()
    expected = wanted(name, logits_BC, labels_B)[[0, 1, 3, 5]].sum() / 6
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert ours.grad is not None
    assert ours.grad.abs().sum(dim=1).gt(0).float().tolist() == valid_B.tolist()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_widened_first(name: str, dtype: torch.dtype) -> None:
    logits_BC, labels_B = make_batch(13)
    labels, step = torch.from_numpy(labels_B), context(labels_B)
    half = (torch.from_numpy(logits_BC) * 20).to(dtype)
    loss = make(name)
    with torch.autocast("cpu", dtype=dtype):
        got = loss(half, labels, step)
    assert got.dtype == torch.float32
    assert got.item() == loss(half.float(), labels, step).item()
    expected = wanted(name, half.double().numpy(), labels_B).mean()
    assert got.item() == pytest.approx(expected, rel=1e-6)


@every_loss
def test_runs_without_a_value_in_sight(name: str) -> None:
    # on the meta device a host sync or a shape that depends on data raises: what a captured graph cannot have
    loss = make(name, device="meta")
    logits = torch.empty(8, len(COUNTS), device="meta", requires_grad=True)
    reduction = Reduction(8, torch.ones(8, device="meta"), torch.ones(len(COUNTS), device="meta"))
    loss(logits, torch.zeros(8, dtype=torch.int64, device="meta"), StepContext(reduction, {}, {})).backward()
    assert logits.grad is not None
    assert logits.grad.shape == (8, len(COUNTS))


@pytest.mark.parametrize("name", ["cdt", "hierarchical"])
def test_empty_class_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=rf"loss {name}: 1 of 3 classes without training images: 'class1'"):
        make(name, make_classes((4, 0, 2)))
    make("cross_entropy", make_classes((4, 0, 2)))


def test_weighted_mean_is_torchs_over_the_global_batch() -> None:
    logits_BC, labels_B = make_batch(17)
    labels = torch.from_numpy(labels_B)
    weights_C = torch.tensor([min(COUNTS) / n for n in COUNTS])
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits_BC), labels, weight=weights_C.double())

    def share(part: slice) -> float:
        loss_B = torch.from_numpy(cross_entropy(logits_BC[part], labels_B[part]))
        return float(context(labels_B, part).reduction.weighted_mean(loss_B, labels[part], weights_C))

    assert share(slice(None)) == pytest.approx(expected.item(), rel=1e-6)
    edges = [0, 4, 6, 8, 11, 14, 17]
    shares = [share(slice(low, high)) for low, high in itertools.pairwise(edges)]
    assert sum(shares) == pytest.approx(expected.item(), rel=1e-6)
