"""FLOPs and bytes of networks against the figures that they are known for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Model
from hrdc_hpc.config.types import Component
from hrdc_hpc.engine.flops import flops_per_image, peak_flops, sheet_peak
from hrdc_hpc.engine.roofline import bytes_per_image
from hrdc_hpc.models.backbones import resnet32, resnet50, resnext50_32x4d, tiny, torchvision
from hrdc_hpc.models.network import Network, build_network

pytestmark = pytest.mark.slow


def _network(file: ModuleType, heads: int, classes: int) -> Network:
    model = Model(backbone=Component(file.__name__.rpartition(".")[2], file.Options()))
    return build_network(model, [f"head_{number}" for number in range(heads)], classes)


def test_flops_of_known_networks() -> None:
    assert flops_per_image(_network(resnet50, 1, 1000), 224) == pytest.approx(24.3e9, rel=2e-3)
    assert flops_per_image(_network(resnet32, 1, 10), 32) == pytest.approx(0.412e9, rel=2e-3)
    assert flops_per_image(_network(resnext50_32x4d, 1, 1000), 224) == pytest.approx(25.1e9, rel=5e-3)


def test_flops_of_one_convolution_by_hand() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    first, second = 2 * 16 * 16 * 8 * 27, 2 * 16 * 16 * 4 * 8
    # the images need no gradient: the first layer's backward is one product, the second's two
    assert flops_per_image(layer, 16) == 2 * first + 3 * second


@pytest.mark.parametrize(
    ("file", "heads", "classes", "side", "batch", "megabytes"),
    [
        (resnet50, 1, 1000, 224, 256, (477, 373, 194)),
        (resnet50, 2, 8142, 224, 256, (481, 377, 198)),
        (resnext50_32x4d, 1, 1000, 224, 256, (602, 465, 233)),
        (resnet32, 2, 10, 32, 128, (13.3, 10.1, 5.2)),
    ],
)
def test_bytes_of_known_networks(
    file: ModuleType, heads: int, classes: int, side: int, batch: int, megabytes: tuple[float, float, float]
) -> None:
    traffic = bytes_per_image(_network(file, heads, classes), side, batch=batch, half=True)
    assert (traffic.eager / 1e6, traffic.fused / 1e6, traffic.bound / 1e6) == pytest.approx(megabytes, rel=0.03)


@pytest.mark.parametrize(
    ("file", "options", "side"),
    [
        (resnet50, resnet50.Options(), 224),
        (resnet50, resnet50.Options(), 160),
        (resnext50_32x4d, resnext50_32x4d.Options(), 224),
        (resnet32, resnet32.Options(width=24), 32),
        (tiny, tiny.Options(width=24), 64),
        *[(torchvision, torchvision.Options(arch=arch), 224) for arch in ("resnet18", "resnet101", "densenet121")],
        *[(torchvision, torchvision.Options(arch=arch), 224) for arch in ("mobilenet_v3_small", "convnext_tiny")],
    ],
)
def test_costs_on_paper_are_those_of_the_real_network(file: ModuleType, options: Any, side: int) -> None:
    name = file.__name__.rpartition(".")[2]
    with torch.device("meta"):
        network = build_network(Model(backbone=Component(name, options)), ["plain", "reweighted"], 100)
    cost = file.cost(options, side).with_heads(2, 100)
    assert cost.parameters == sum(weight.numel() for weight in network.parameters())
    assert cost.features == network.features_dim
    for half in (True, False):
        traffic, paper = bytes_per_image(network, side, batch=16, half=half), cost.traffic(16, half=half)
        assert (paper.eager, paper.fused, paper.bound) == pytest.approx(
            (traffic.eager, traffic.fused, traffic.bound), rel=1e-6
        )
    assert cost.flops == pytest.approx(_three_times_the_forward(network, side), rel=1e-3)
    assert cost.flops == pytest.approx(flops_per_image(network, side), rel=1e-3)


def _three_times_the_forward(network: nn.Module, side: int) -> float:
    """FLOPs by the forward alone, backward costs twice as much; but the images need no gradient."""
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    stem: list[int] = []
    handle = first.register_forward_hook(lambda _, __, out: stem.append(2 * out.numel() * first.weight[0].numel()))
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    handle.remove()
    return 3.0 * counter.get_total_flops() - stem[0]


def test_every_backbone_method_and_data_set_tells_what_it_costs_on_paper() -> None:
    for kind, has in (("models.backbones", "cost"), ("methods", "HEADS"), ("data.datasets", "known")):
        package = f"hrdc_hpc.{kind}"
        assert all(hasattr(registry.module(package, name), has) for name in registry.names(package)), package


def test_counting_leaves_the_network_alone() -> None:
    network = _network(resnet32, 2, 10)
    network.backbone.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flops_per_image(network, 32)
    bytes_per_image(network, 32, batch=8, half=False)
    assert network.training
    assert not network.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize(
    ("gpu", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "fp32", 156),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-SXM2-16GB", "fp32", 15.7),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", 80),
        ("NVIDIA A10G", "bf16", None),
    ],
)
def test_peaks_by_the_name_of_the_gpu(gpu: str, precision: str, tflops: float | None) -> None:
    peak = sheet_peak(gpu, precision, tf32=True)
    assert peak == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_peak_of_a_cpu_is_what_the_user_says() -> None:
    cpu = torch.device("cpu")
    assert peak_flops(cpu, "fp32") is None
    assert peak_flops(cpu, "fp32", 0.2) == pytest.approx(2e11)
