"""Alpha from epoch to epoch against closed forms, at the ends and in the middle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component
from hrdc_hpc.methods import weighting
from hrdc_hpc.methods.hrdc import Options

from long_tail import make_classes


def alpha(epoch: int, epochs: int, **options: Any) -> float:
    component = Component("hrdc", Options(**options))
    method = registry.build("hrdc_hpc.methods", component, make_classes(), torch.device("cpu"))
    scalars = method.scalars(epoch, epochs)
    assert list(scalars) == ["alpha"]
    return float(scalars["alpha"])


@pytest.mark.parametrize(
    ("name", "epoch", "expected"),
    [
        ("parabola", 0, 1.0),
        ("parabola", 50, 0.5625),
        ("parabola", 100, 0.25),
        ("parabola", 199, 2.5e-5),
        ("equal", 0, 0.5),
        ("equal", 100, 0.5),
        ("equal", 199, 0.5),
        ("segmented", 0, 1.0),
        ("segmented", 119, 1.0),
        ("segmented", 120, 0.0),
        ("segmented", 199, 0.0),
        ("cosine", 0, 1.0),
        ("cosine", 100, math.sqrt(0.5)),
        ("cosine", 199, math.sin(math.pi / 400)),
    ],
)
def test_closed_forms_over_200_epochs(name: str, epoch: int, expected: float) -> None:
    assert alpha(epoch, 200, weighting=name) == pytest.approx(expected, rel=1e-9)


def test_parabola_is_the_default() -> None:
    assert [alpha(epoch, 4) for epoch in range(4)] == [1.0, 0.5625, 0.25, 0.0625]


@pytest.mark.parametrize(("share", "ones"), [(0.0, 0), (0.25, 3), (0.3, 3), (0.55, 6), (1.0, 10)])
def test_segment_ends_where_the_share_says(share: float, ones: int) -> None:
    run = [alpha(epoch, 10, weighting="segmented", segmented_share=share) for epoch in range(10)]
    assert run == [1.0] * ones + [0.0] * (10 - ones)


def test_segment_gains_no_epoch_by_rounding() -> None:
    assert 0.55 * 100 > 55
    assert [weighting.segmented(epoch, 100, 0.55) for epoch in (54, 55)] == [1.0, 0.0]


@pytest.mark.parametrize("name", ["parabola", "equal", "segmented", "cosine"])
def test_alpha_never_rises_and_stays_a_share(name: str) -> None:
    run = [alpha(epoch, 37, weighting=name) for epoch in range(37)]
    assert all(0 <= value <= 1 for value in run)
    assert run == sorted(run, reverse=True)
