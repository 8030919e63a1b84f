"""What only a GPU can show: steps without a wait, one captured graph, compiled and mixed steps beside eager ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hrdc_hpc.config import registry
from hrdc_hpc.engine.processes import Processes

from runs import differing
from steps import alone, config_of, losses_of, parts_of, small_step

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

ON = ("compute.device=cuda", "compute.compile=false", "compute.cuda_graph=false", "compute.precision=fp32")
STEPS = 20
METHODS = [f"method={name}" for name in registry.names("hrdc_hpc.methods")]
METHODS += [f"method={{name: ce, loss: {name}}}" for name in registry.names("hrdc_hpc.losses")]


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Processes]:
    with alone(tmp_path / "meet.json", config_of(*ON)) as processes:
        yield processes


def curve(single: Processes, overrides: Sequence[str], seed: int = 0) -> list[float]:
    config = config_of(*ON, *overrides)
    parts = parts_of(config, single)
    step = small_step(config, parts, single, seed)
    assert step.captured == config.compute.cuda_graph
    return losses_of(step, parts, config, STEPS)


def within_the_spread(single: Processes, method: str, overrides: Sequence[str], share: float) -> None:
    """The losses lie no further from eager fp32's than a share of the spread of three seeds."""
    eager = [curve(single, [method], seed) for seed in range(3)]
    got = curve(single, [method, *overrides])
    for number, (loss, three) in enumerate(zip(got, zip(*eager, strict=True), strict=True)):
        assert abs(loss - three[0]) < share * (max(three) - min(three)), f"step {number}: {loss}, eager {three}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [["compute.cuda_graph=true"], ["compute.cuda_graph=true", "compute.compile=true"]])
def test_a_captured_step_equals_eager(method: str, how: list[str], single: Processes) -> None:
    within_the_spread(single, method, how, 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_step_equals_eager(method: str, single: Processes) -> None:
    within_the_spread(single, method, ["compute.compile=true"], 0.1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("graph", ["false", "true"])
def test_mixed_precision_and_memory_format_stay_within_the_spread(
    precision: str, graph: str, single: Processes
) -> None:
    how = [f"compute.precision={precision}", f"compute.cuda_graph={graph}"]
    within_the_spread(single, "method=hrdc", how, 1.0)
    within_the_spread(single, "method=hrdc", ["compute.channels_last=false"], 0.1)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_host_never_waits(precision: str, single: Processes) -> None:
    config = config_of(*ON, f"compute.precision={precision}", "optim.ema_decay=0.9", "optim.clip_norm=1.0")
    parts = parts_of(config, single)
    step = small_step(config, parts, single)
    scalars = {"lr": 0.1, "ema_weight": 0.1, **parts.method.scalars(0, 4)}
    for number, batch in enumerate(parts.loaders["main"].batches(0, 8)):
        if number < 3:  # kernels are chosen and constants put on the device in the first ones
            step({"main": batch}, {}, scalars)
            continue
        with no_waiting():
            step({"main": batch}, {}, scalars)
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting():
        step.loss.item()


def test_a_step_that_is_not_finite_changes_nothing_in_a_graph(single: Processes) -> None:
    config = config_of(*ON, "compute.cuda_graph=true", "optim.ema_decay=0.9")
    parts = parts_of(config, single)
    step = small_step(config, parts, single)
    losses_of(step, parts, config, 3)
    before = {name: weight.clone() for name, weight in step.network.state_dict().items() if weight.is_floating_point()}
    batch = next(iter(parts.loaders["main"].batches(3, 4)))
    scalars = {"lr": 0.1, "ema_weight": 0.1, **parts.method.scalars(0, 4)}
    step({"main": batch}, {}, {**scalars, "alpha": float("nan")})
    after = {name: weight for name, weight in step.network.state_dict().items() if weight.is_floating_point()}
    assert step.nonfinite.item() == 1
    assert differing(before, after) == []
    step({"main": batch}, {}, scalars)
    assert step.nonfinite_in_a_row.item() == 0
    assert differing(before, dict(step.network.state_dict()))


def test_two_deterministic_runs_are_identical(tmp_path: Path) -> None:
    overrides = (*ON, "compute.deterministic=true")
    with alone(tmp_path / "meet.json", config_of(*overrides)) as processes:
        one, other = (curve(processes, ["compute.deterministic=true"]) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    assert one == other


def test_the_clock_reads_events(single: Processes) -> None:
    config = config_of(*ON)
    parts = parts_of(config, single)
    step = small_step(config, parts, single)
    losses_of(step, parts, config, 5)
    shares = step.clock.read()
    assert shares["compute"] > 0
    assert shares["optimizer"] > 0
    assert set(step.clock.read().values()) == {0.0}
