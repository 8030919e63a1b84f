"""Every method and every loss survives torch.compile: same losses, gradients close to float64's, no break in the graph.

The lists come from the folders: a method or loss to come is tested without a line here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hrdc_hpc.config import registry
from hrdc_hpc.engine import compiling
from hrdc_hpc.engine.compiling import pick_compile, pick_graph
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.training_loss import TrainingLoss, whole
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics

from ranks import Ranks, StopWhen
from runs import differing, final_state, learnt, make_run
from steps import Small, alone, config_of, losses_of, parts_of, small_step

pytestmark = pytest.mark.timeout(600)

EVERY = [f"method={name}" for name in registry.names("hrdc_hpc.methods")]
EVERY += [f"method={{name: ce, loss: {name}}}" for name in registry.names("hrdc_hpc.losses") if name != "cross_entropy"]


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Processes]:
    with alone(tmp_path / "meet.json", config_of()) as processes:
        yield processes


class InDouble(nn.Module):
    """A network in float64 behind the same interface."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images):
        return self.network(images.double())


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_compiled_equals_eager(method: str, single: Processes, recwarn: pytest.WarningsRecorder) -> None:
    config, compiled = config_of(method), config_of(method, "compute.compile=true")
    parts = parts_of(config, single)
    eager = [losses_of(small_step(config, parts, single, seed), parts, config, 12) for seed in range(3)]
    step = small_step(compiled, parts, single, 0)
    assert step.compiled
    got = losses_of(step, parts, compiled, 12)
    for number, (loss, three) in enumerate(zip(got, zip(*eager, strict=True), strict=True)):
        spread = max(three) - min(three)
        assert abs(loss - three[0]) < 0.02 * spread, f"step {number}: {loss}, eager {three}"
    assert got != eager[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_gradients_of_one_compiled_step_against_float64(method: str, single: Processes) -> None:
    config = config_of(method)
    parts = parts_of(config, single)
    micro = {"main": whole(next(iter(parts.loaders["main"].batches(3, 4))), {})}
    scalars = {name: torch.tensor(value) for name, value in parts.method.scalars(2, 4).items()}
    gradients = {}
    for name in ("compiled", "float64"):
        torch.manual_seed(0)
        network: nn.Module = Small(parts.method.heads)
        loss = TrainingLoss(InDouble(network) if name == "float64" else network, parts.method, config, parts.precision)
        # without fullgraph the compiler would quietly leave out what it cannot follow
        run = torch.compile(loss, dynamic=False, fullgraph=True) if name == "compiled" else loss
        run(micro, scalars)[0].backward()
        gradients[name] = {key: weight.grad for key, weight in network.named_parameters()}
    for key, wanted in gradients["float64"].items():
        assert wanted is not None
        error = (gradients["compiled"][key].double() - wanted).norm() / wanted.norm().clamp(min=1e-3)
        assert error < 1e-5, f"{key}: {error}"


@pytest.mark.slow
@pytest.mark.dali
def test_compiled_on_two_ranks(tmp_path: Path, digits: Path) -> None:
    """DDP cuts the compiled graph at its buckets; a run that was stopped compiles again and goes on bit for bit."""

    def make(name: str, compiled: bool) -> Path:
        return make_run(
            tmp_path, digits, name, f"compute.compile={str(compiled).lower()}", "optim.epochs=1",
            "optim.warmup_epochs=0", "model.backbone={name: tiny, width: 2}",
        )  # fmt: skip

    eager, compiled, stopped = make("eager", False), make("compiled", True), make("stopped", True)
    for run in (eager, compiled):
        Ranks(run, 2).finish(timeout_s=400)
    Ranks(stopped, 2, stop=StopWhen(stopped / "config.yaml")).finish(timeout_s=400)  # the file is there: at once
    assert RunFolder(stopped).state() == "started"
    Ranks(stopped, 2).finish(timeout_s=400)

    starts = [next(r for r in read_metrics(RunFolder(run)) if r["kind"] == "start") for run in (eager, compiled)]
    assert [start["compiled"] for start in starts] == [False, True]
    curves = [[r["loss"] for r in learnt(run) if r["kind"] == "train"] for run in (eager, compiled)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert differing(final_state(compiled), final_state(stopped)) == []
    assert learnt(compiled) == learnt(stopped)


def test_where_the_compiler_does_not_work(
    single: Processes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise OSError("cc: command not found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        RuntimeError, match=r"compute\.compile: torch\.compile does not work on 1 of 1 ranks; on this one: OSError: cc:"
    ):
        pick_compile(config_of("compute.compile=true").compute, single)
    on_gpu = Processes(0, 1, torch.device("cuda"), 1, single.control, single.store)
    monkeypatch.setattr(compiling, "_trouble", lambda _: "OSError: cc: command not found")
    with caplog.at_level(logging.WARNING):
        assert not pick_compile(config_of().compute, on_gpu)
    assert "Training goes on without it" in caplog.text
    monkeypatch.setattr(compiling, "_trouble", lambda _: None)
    assert pick_compile(config_of().compute, on_gpu)
    assert not pick_compile(config_of().compute, single)  # unset, on a CPU


def test_who_captures_a_graph(single: Processes) -> None:
    unset, on, off = (config_of(*o).compute for o in ([], ["compute.cuda_graph=true"], ["compute.cuda_graph=false"]))
    gpu = Processes(0, 1, torch.device("cuda"), 1, single.control, single.store)
    gpus = Processes(0, 4, torch.device("cuda"), 1, single.control, single.store)
    assert [pick_graph(unset, gpu, resident=resident) for resident in (True, False)] == [True, False]
    assert [pick_graph(compute, gpu, resident=False) for compute in (on, off)] == [True, False]
    assert not pick_graph(on, single, resident=True)
    assert not pick_graph(unset, gpus, resident=True)
    with pytest.raises(ValueError, match=r"compute\.cuda_graph: true needs a single rank; this run has 4"):
        pick_graph(on, gpus, resident=True)
