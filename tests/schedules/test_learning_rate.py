"""Schedules and warm-up against closed forms, at the ends and in the middle."""

from __future__ import annotations

import math
from typing import Any

import pydantic
import pytest

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Optim
from hrdc_hpc.config.types import Component
from hrdc_hpc.engine.learning_rate import learning_rate, peak_rate
from hrdc_hpc.engine.schedules import cosine, step
from hrdc_hpc.engine.schedules.base import Schedule

CIFAR = Optim(
    epochs=200,
    global_batch=128,
    lr=0.1,
    warmup_epochs=5,
    schedule=Component("step", step.Options(milestones=(160, 180), factor=0.01)),
)


def build(component: Component) -> Schedule:
    schedule: Schedule = registry.build("hrdc_hpc.engine.schedules", component)
    return schedule


def rate_at(epoch: float, optim: Optim, steps_per_epoch: int = 97) -> float:
    return learning_rate(round(epoch * steps_per_epoch), steps_per_epoch=steps_per_epoch, optim=optim)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 1.0), (25, (1 + math.sqrt(0.5)) / 2), (50, 0.5), (75, (1 - math.sqrt(0.5)) / 2), (100, 0.0)],
)
def test_cosine(progress: float, expected: float) -> None:
    assert build(Component("cosine"))(progress, 100) == pytest.approx(expected, abs=1e-12)
    raised = build(Component("cosine", cosine.Options(final_factor=0.2)))
    assert raised(progress, 100) == pytest.approx(0.2 + 0.8 * expected, abs=1e-12)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 1.0), (159.999, 1.0), (160, 0.1), (179.999, 0.1), (180, 0.01), (199.999, 0.01)]
)
def test_step(progress: float, expected: float) -> None:
    schedule = build(Component("step", step.Options(milestones=(160, 180))))
    assert schedule(progress, 200) == pytest.approx(expected, rel=1e-12)


def test_milestones_past_the_end_are_not_reached() -> None:
    schedule = build(Component("step", step.Options(milestones=(1, 500))))
    assert schedule(199.9, 200) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "milestones"),
        ({"milestones": ()}, "at least 1"),
        ({"milestones": (180, 160)}, r"got \[180, 160\]; each milestone must be later"),
        ({"milestones": (160, 160)}, "must be later"),
        ({"milestones": (0, 160)}, "greater than 0"),
        ({"milestones": (160,), "factor": 0.0}, "greater than 0"),
        ({"milestones": (160,), "factor": 1.5}, "less than or equal to 1"),
    ],
)
def test_wrong_milestones_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        step.Options(**wrong)


def test_cifar_recipe() -> None:
    per_epoch, warmup = 97, 5 * 97
    rates = [learning_rate(s, steps_per_epoch=per_epoch, optim=CIFAR) for s in range(200 * per_epoch)]
    assert rates[:warmup] == pytest.approx([0.1 * (s + 1) / warmup for s in range(warmup)])
    assert rates[warmup - 1 : 160 * per_epoch] == [0.1] * (155 * per_epoch + 1)
    assert rates[160 * per_epoch : 180 * per_epoch] == pytest.approx([1e-3] * (20 * per_epoch))
    assert rates[180 * per_epoch :] == pytest.approx([1e-5] * (20 * per_epoch))


def test_cosine_with_warm_up_counts_the_whole_run() -> None:
    optim = Optim(epochs=180, global_batch=256, lr=0.1, warmup_epochs=5)
    per_epoch = 10
    for s in (0, 17, 48, 49, 50, 900, 1799):
        expected = 0.1 * min(1, (s + 1) / 50) * (1 + math.cos(math.pi * s / 1800)) / 2
        assert learning_rate(s, steps_per_epoch=per_epoch, optim=optim) == pytest.approx(expected, rel=1e-12)
    rates = [learning_rate(s, steps_per_epoch=per_epoch, optim=optim) for s in range(1800)]
    assert rates[:50] == sorted(rates[:50])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert 0 < rates[-1] < 1e-6
    # what the module says of the peak that is not quite reached
    at_end = build(optim.schedule)(5, 200)
    assert 1 - at_end == pytest.approx(math.sin(math.pi * 5 / 400) ** 2)
    assert 1 - at_end == pytest.approx(0.0015, abs=5e-5)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    optim = Optim(epochs=10, global_batch=256, lr=0.1)
    assert learning_rate(0, steps_per_epoch=10, optim=optim) == 0.1


def test_fractions_of_an_epoch_of_warm_up() -> None:
    def first(warmup_epochs: float) -> list[float]:
        optim = Optim(
            epochs=10, global_batch=256, lr=1.0, warmup_epochs=warmup_epochs,
            schedule=Component("step", step.Options(milestones=(9,))),
        )  # fmt: skip
        return [learning_rate(s, steps_per_epoch=10, optim=optim) for s in range(4)]

    assert first(0.25) == pytest.approx([0.4, 0.8, 1, 1])
    assert first(0.01) == [1.0] * 4


@pytest.mark.parametrize(("batch", "reference", "peak"), [(256, None, 0.1), (1024, 256, 0.4), (128, 256, 0.05)])
def test_peak_scales_linearly_with_the_batch(batch: int, reference: int | None, peak: float) -> None:
    optim = Optim(epochs=10, global_batch=batch, lr=0.1, lr_batch=reference)
    assert peak_rate(optim) == pytest.approx(peak)
    assert learning_rate(0, steps_per_epoch=10, optim=optim) == pytest.approx(peak)
    assert rate_at(5, optim, 10) == pytest.approx(peak / 2)


def test_rate_is_a_function_of_the_step_alone() -> None:
    forward = [rate_at(epoch, CIFAR) for epoch in range(200)]
    backward = [rate_at(epoch, CIFAR) for epoch in reversed(range(200))]
    assert forward == backward[::-1]
    other = Optim(epochs=200, global_batch=128, lr=0.1)
    assert rate_at(100, other) == pytest.approx(0.05)
    assert rate_at(100, CIFAR) == 0.1
