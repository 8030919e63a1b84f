"""Shapes, sizes and initial weights of backbones and heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hrdc_hpc.config.schema import Model
from hrdc_hpc.config.types import Component
from hrdc_hpc.models.backbones import resnet50, resnext50_32x4d, tiny
from hrdc_hpc.models.heads import CosineHead
from hrdc_hpc.models.network import Network, build_network, parameters

HEADS = ("plain", "reweighted")


def small(heads: tuple[str, ...] = HEADS, classes: int = 10, *, seed: int = 0, bias: bool = True) -> Network:
    torch.manual_seed(seed)
    return build_network(Model(backbone=Component("tiny"), bias=bias), heads, classes)


@pytest.mark.parametrize("side", [24, 32, 48])
def test_tiny_shapes(side: int) -> None:
    network = small().eval()
    assert network.features_dim == 64
    images = torch.randn(3, 3, side, side)
    features, logits = network(images)
    assert features.shape == (3, 64)
    assert {name: head.shape for name, head in logits.items()} == dict.fromkeys(HEADS, (3, 10))
    for name in HEADS:
        head = network.heads[name]
        assert isinstance(head, nn.Linear)
        torch.testing.assert_close(logits[name], features @ head.weight.T + head.bias)
    last = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.contiguous(memory_format=torch.channels_last))[0], features)


def test_tiny_size() -> None:
    assert parameters(small().backbone) == 77_392
    wide = build_network(Model(backbone=Component("tiny", tiny.Options(width=8))), HEADS, 10)
    assert wide.features_dim == 32
    assert parameters(wide.backbone) == 19_624


def test_resnet32_has_the_parameters_of_the_papers() -> None:
    network = build_network(Model(backbone=Component("resnet32")), ("plain",), 10)
    assert parameters(network) == 464_154
    assert parameters(network.backbone) == 463_504
    no_bias = build_network(Model(backbone=Component("resnet32"), head="cosine"), ("plain",), 10)
    assert parameters(no_bias) == 464_144


@pytest.mark.parametrize(
    ("name", "backbone", "with_heads"),
    [("resnet50", 23_508_032, 56_873_948), ("resnext50_32x4d", 22_979_904, 56_345_820)],
)
def test_large_sizes(name: str, backbone: int, with_heads: int) -> None:
    with torch.device("meta"):
        network = build_network(Model(backbone=Component(name)), HEADS, 8142)
        features, logits = network.eval()(torch.empty(2, 3, 224, 224))
    assert network.features_dim == 2048
    assert features.shape == (2, 2048)
    assert {head: values.shape for head, values in logits.items()} == dict.fromkeys(HEADS, (2, 8142))
    assert parameters(network.backbone) == backbone
    assert parameters(network) == with_heads
    assert not [key for key in network.state_dict() if ".fc." in key]


def test_heads_follow_the_method_and_the_config() -> None:
    assert list(small(("plain",)).heads) == ["plain"]
    with_bias, without = small(), small(bias=False)
    assert "heads.reweighted.bias" in with_bias.state_dict()
    assert [key for key in without.state_dict() if key.startswith("heads")] == [f"heads.{n}.weight" for n in HEADS]


def test_initial_weights_are_a_function_of_the_seed() -> None:
    one = small(seed=3).state_dict()
    torch.set_num_threads(2)
    try:
        again = small(seed=3).state_dict()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one[key], again[key]) for key in one)
    other = small(seed=4).state_dict()
    assert not torch.equal(one["heads.plain.weight"], other["heads.plain.weight"])
    assert not torch.equal(one["backbone.stem.0.weight"], other["backbone.stem.0.weight"])


def test_head_initialisation() -> None:
    network = small(classes=2000)
    bound = 1 / math.sqrt(network.features_dim)
    for name in HEADS:
        weight = network.get_parameter(f"heads.{name}.weight")
        assert weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
        assert network.get_parameter(f"heads.{name}.bias").abs().max().item() <= bound
    assert not torch.equal(
        network.get_parameter("heads.plain.weight"), network.get_parameter("heads.reweighted.weight")
    )


# cosine heads


def cosine(scale: float = 30.0) -> CosineHead:
    torch.manual_seed(0)
    model = Model(backbone=Component("tiny"), head="cosine", cosine_scale=scale, bias=True)
    head = build_network(model, ("plain",), 10).heads["plain"]
    assert isinstance(head, CosineHead)
    assert list(head.state_dict()) == ["weight"]
    return head


def test_cosine_head_is_its_formula() -> None:
    head, features = cosine(), torch.randn(6, 64) * torch.logspace(-6, 6, 6)[:, None]
    weights = head.weight.double()
    cosines = (features.double() @ weights.T) / (features.double().norm(dim=1)[:, None] * weights.norm(dim=1))
    torch.testing.assert_close(head(features).double(), 30 * cosines, rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradcheck(head.double(), (features[2:4].double().requires_grad_(),))


def test_cosine_head_stays_in_fp32_under_autocast() -> None:
    head, features = cosine(), torch.randn(6, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(features), cosine()(features))
        assert head(features.bfloat16()).dtype == torch.float32


def test_cosine_head_of_a_zero_feature() -> None:
    features = torch.randn(3, 64)
    features[1] = 0
    features.requires_grad_()
    head = cosine()
    logits = head(features)
    nn.functional.cross_entropy(logits, torch.tensor([1, 2, 3])).backward()
    assert logits[1].eq(0).all()
    assert features.grad is not None
    assert head.weight.grad is not None
    assert features.grad[1].eq(0).all()
    assert features.grad[0].any()
    assert head.weight.grad.isfinite().all()


def test_backbone_initialisation() -> None:
    backbone = small().backbone
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            tolerance = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance), name
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


@pytest.mark.parametrize(
    ("name", "options"), [("resnet50", resnet50.Options), ("resnext50_32x4d", resnext50_32x4d.Options)]
)
@pytest.mark.parametrize("zeros", [True, False])
def test_zero_init_residual(name: str, options: Callable[..., object], zeros: bool) -> None:
    model = Model(backbone=Component(name, options(zero_init_residual=zeros)))
    backbone = build_network(model, ("plain",), 2).backbone
    last = [weight for key, weight in backbone.named_parameters() if key.endswith("bn3.weight")]
    assert len(last) == 16
    assert all(weight.eq(0 if zeros else 1).all() for weight in last)


def test_every_weight_learns() -> None:
    network = small()
    labels = torch.arange(16) % 10
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(25):
        _, logits = network(images)
        loss = sum(nn.functional.cross_entropy(logits[name], labels) for name in HEADS)
        assert isinstance(loss, torch.Tensor)
        optimizer.zero_grad()
        loss.backward()
        unused = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert not unused
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2 * math.log(10), rel=0.2)
    assert losses[-1] < 0.05
