"""Ranks that put a small network with batch norm over all ranks through one training step, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrdc_hpc.config.schema import Compute, Model
from hrdc_hpc.config.types import Component
from hrdc_hpc.engine.place import Place, Stop
from hrdc_hpc.models.batch_norm import convert

CHANNELS = 3


def two_norms() -> nn.Sequential:
    """A network in which a wrong gradient of the second norm reaches everything before it."""
    torch.manual_seed(5)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    network = nn.Sequential(nn.BatchNorm2d(CHANNELS, momentum=0.3), conv, nn.Tanh(), nn.BatchNorm2d(CHANNELS)).double()
    for weight in network.parameters():
        nn.init.normal_(weight)
    return network


def one_step(network: nn.Module, images: Tensor, pull: Tensor) -> dict[str, Any]:
    """Outputs, gradients of sum(outputs * pull), running statistics, and the outputs in evaluation afterwards."""
    images = images.clone().requires_grad_()
    outputs = network.train()(images)
    (outputs * pull).sum().backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    evaluated = network.eval()(images)
    return {
        "outputs": outputs.detach(), "images": images.grad, "gradients": gradients,
        "buffers": dict(network.named_buffers()), "evaluated": evaluated.detach(),
    }  # fmt: skip


def step_in_sync(run: Path, place: Place, stop: Stop) -> None:
    """Take this rank's share of what lies in inputs.pt and leave the results beside it."""
    from hrdc_hpc.engine.processes import open_processes

    inputs = torch.load(run / "inputs.pt")
    network = convert(two_norms(), Model(backbone=Component("tiny"), batch_norm="sync"))
    with open_processes(place, Compute(device="cpu", threads=1)):
        share = {name: inputs[name].split(inputs["shares"])[place.rank] for name in ("images", "pull")}
        torch.save(one_step(network, **share), run / f"rank-{place.rank}.pt")
