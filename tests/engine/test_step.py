"""The training step against plain PyTorch, over ranks and micro-batches, and where gradients are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import Compute, RunConfig
from hrdc_hpc.data.normalise import normalise
from hrdc_hpc.engine.learning_rate import learning_rate
from hrdc_hpc.engine.parts import Parts, build_model, build_parts, open_images
from hrdc_hpc.engine.place import Place
from hrdc_hpc.engine.processes import Processes, open_processes
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics

from norm_free import train_norm_free
from ranks import Ranks
from runs import SMALL, make_run

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Processes]:
    place = Place(0, 1, 0, 1, tmp_path / "meet.json", {"cpus_per_rank": 1})
    with open_processes(place, Compute(device="cpu", threads=1)) as processes:
        yield processes


def small(digits: Path, *overrides: str) -> RunConfig:
    return loads(SMALL.format(name="small", digits=digits), "test", list(overrides))


def parts_of(config: RunConfig, processes: Processes) -> Parts:
    return build_parts(config, open_images(config, processes, local_first=True), processes)


def test_ce_equals_a_plain_pytorch_loop(tmp_path: Path, digits: Path, alone: Processes) -> None:
    run = make_run(tmp_path, digits, "ce", "method=ce", "optim.ema_decay=null")
    Ranks(run, 1).finish()
    ours = [r["loss"] for r in read_metrics(RunFolder(run)) if r["kind"] == "train"]

    config = small(digits, "method=ce", "optim.ema_decay=null")
    parts = parts_of(config, alone)
    network, _ = build_model(config, parts.images.classes, alone.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, fused=True)
    plain = []
    for step, batch in enumerate(parts.loaders["main"].batches(0, 36)):
        for group in optimizer.param_groups:
            # ours is a float32 scalar on the device
            group["lr"] = float(np.float32(learning_rate(step, steps_per_epoch=12, optim=config.optim)))
        images = normalise(batch.images_BHWC, (0.5,) * 3, (0.5,) * 3, dtype=torch.float32, channels_last=True)
        _, logits = network(images)
        loss = functional.cross_entropy(logits["plain"], batch.labels_B, reduction="none").sum() / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plain.append(loss.item())
    parts.close()
    assert len(ours) == 36
    assert ours == plain


def test_every_image_weighs_the_same_on_any_number_of_ranks_and_pieces(tmp_path: Path, digits: Path) -> None:
    results = []
    for world_size, pieces in ((1, 1), (1, 3), (2, 1), (3, 1), (3, 2)):
        overrides = (f"optim.accumulation={pieces}", "optim.global_batch=32")
        run = make_run(tmp_path, digits, f"norm-free-{world_size}-{pieces}", *overrides)
        Ranks(run, world_size, target=train_norm_free).finish()
        results.append(torch.load(run / "norm_free.pt", weights_only=True))
    one = results[0]
    assert one["losses"][-1] != one["losses"][0]
    for other in results[1:]:
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
        for name, weight in one["weights"].items():
            torch.testing.assert_close(other["weights"][name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_nonfinite_step_changes_nothing(precision: str, digits: Path, alone: Processes) -> None:
    config = small(digits, f"compute.precision={precision}")
    parts = parts_of(config, alone)
    blank = {"main": parts.loaders["main"].blank()}
    parts.step.rehearse(blank, {})
    scalars = {"lr": 0.1, "ema_weight": 0.5, **parts.method.scalars(0, 3)}
    batches = list(parts.loaders["main"].batches(0, 2))
    parts.close()
    network, step = parts.step.network, parts.step

    def everything() -> list[torch.Tensor]:
        momenta = [s["momentum_buffer"] for s in step.optimizer.state.values()]
        assert step.ema
        flat = [*network.parameters(), step.buffers.flat, step.ema.flat, *step.ema.weights, *momenta]
        return [tensor.detach().clone() for tensor in flat]

    for batch in (blank["main"], *batches):  # the very first step is skipped, too
        before = everything()
        poisoned = {**scalars, "alpha": float("nan")}
        skipped = step.nonfinite.item()
        step({"main": batch}, {}, poisoned)
        assert step.nonfinite.item() == skipped + 1
        for old, new in zip(before, everything(), strict=True):
            assert torch.equal(old, new)
        for _ in range(20):  # fp16: until the loss scale has come down far enough
            step({"main": batch}, {}, scalars)
            if step.nonfinite.item() == skipped + 1:
                break
            skipped = step.nonfinite.item() - 1
        assert not torch.equal(before[0], everything()[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_follows_fp32(precision: str, tmp_path: Path, digits: Path) -> None:
    curves = {}
    for name in ("fp32", precision):
        run = make_run(tmp_path, digits, name, f"compute.precision={name}", "optim.epochs=2")
        Ranks(run, 1).finish()
        curves[name] = [r["loss"] for r in read_metrics(RunFolder(run)) if r["kind"] == "train"]
    assert curves[precision] != curves["fp32"]
    assert curves[precision][0] == pytest.approx(curves["fp32"][0], rel=0.02)
    assert sum(curves[precision]) / 24 == pytest.approx(sum(curves["fp32"]) / 24, rel=0.1)
