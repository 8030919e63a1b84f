"""Torchvision's networks by name: features, weights from a file, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn
from torchvision import models

from hrdc_hpc.models.backbones import torchvision
from hrdc_hpc.models.network import Backbone, parameters

pytestmark = pytest.mark.slow

SMALL = [
    ("resnet18", 64, 512, 11_176_512),
    ("mobilenet_v3_small", 64, 1024, 1_517_856),
    ("efficientnet_b0", 64, 1280, 4_007_548),
    ("densenet121", 64, 1024, 6_953_856),
    ("convnext_tiny", 64, 768, 27_820_128),
    ("regnet_x_400mf", 64, 400, 5_094_976),
    ("shufflenet_v2_x0_5", 64, 1024, 341_792),
]
LARGE = [("vit_b_16", 224, 768, 85_798_656), ("swin_t", 224, 768, 27_519_354), ("vgg11", 224, 4096, 128_766_336)]
"""Without memory of their own: drawing so many weights takes seconds."""


def backbone(arch: str, weights: Path | None = None) -> nn.Module:
    return torchvision.build(torchvision.Options(arch=arch, weights=weights))


@pytest.mark.parametrize(("arch", "side", "features_dim", "size"), [*SMALL, *LARGE], ids=lambda value: str(value))
def test_pooled_features(arch: str, side: int, features_dim: int, size: int) -> None:
    with torch.device("meta" if size > 20_000_000 else "cpu"):
        network = backbone(arch).train()
        features = network(torch.ones(2, 3, side, side))
    assert features.shape == (2, features_dim)
    assert cast(Backbone, network).features_dim == features_dim
    assert parameters(network) == size


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_weights_from_torchvisions_file(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(7)
    donor = models.get_model(arch, weights=None).eval()
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    network = backbone(arch, tmp_path / "weights.pt").eval()
    classifier = [module for module in donor.modules() if isinstance(module, nn.Linear)][-1]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(classifier(network(images)), donor(images))


def test_training_draws_nothing() -> None:
    network = backbone("efficientnet_b0").train()  # dropout 0.2, stochastic depth up to 0.2
    before = torch.get_rng_state()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    first, second = network(images), network(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("resnet19", "no classification network 'resnet19'. Did you mean resnet18 or resnet152"),
        ("what?", "no classification network 'what?'. Known: alexnet, convnext_base, "),
        ("deeplabv3_resnet50", "no classification network"),
        ("googlenet", "googlenet trains with auxiliary classifiers"),
        ("inception_v3", "inception_v3 trains with auxiliary classifiers"),
        ("squeezenet1_0", "SqueezeNet has no linear classifier"),
    ],
)
def test_refused(arch: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        backbone(arch)
