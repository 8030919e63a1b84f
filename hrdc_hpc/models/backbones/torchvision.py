"""Any of torchvision's classification networks by its name, without its classifier: from alexnet to wide_resnet101_2.

| arch | features | parameters |
|---|---|---|
| resnet18 | 512 | 11.2 M |
| resnet34 | 512 | 21.3 M |
| resnet101 | 2048 | 42.5 M |
| resnet152 | 2048 | 58.1 M |
| mobilenet_v3_small | 1024 | 1.5 M |
| efficientnet_b0 | 1280 | 4.0 M |
| densenet121 | 1024 | 7.0 M |
| convnext_tiny | 768 | 27.8 M |
| vit_b_16 | 768 | 85.8 M |

Network and initialisation are torchvision's, with one difference: dropout and stochastic depth are off. They would draw
from a generator that a resumed run does not restore. vit_* and maxvit_t take images of 224 pixels only. The squeezenets
have no pooled features before their classifier; googlenet and inception_v3 have auxiliary classifiers, which are no
heads of a method: these are refused.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from hrdc_hpc.config.types import options
from hrdc_hpc.models.cost import Cost
from hrdc_hpc.models.headless import headless

if TYPE_CHECKING:
    from torch import nn

_AUXILIARY = ("googlenet", "inception_v3")
_COSTS = {
    "resnet18": (10.645e9, 2_483_712, 2_308_096, 752_640, 11_176_512, 512),
    "resnet34": (21.743e9, 3_738_112, 3_562_496, 1_379_840, 21_284_672, 512),
    "resnet101": (46.560e9, 16_231_936, 14_726_656, 8_931_328, 42_500_160, 2_048),
    "resnet152": (68.833e9, 22_554_112, 21_048_832, 13_146_112, 58_143_808, 2_048),
    "mobilenet_v3_small": (0.322e9, 1_416_680, 1_270_128, 53_312, 1_517_856, 1_024),
    "efficientnet_b0": (2.286e9, 6_747_036, 6_157_916, 210_112, 4_007_548, 1_280),
    "densenet121": (16.763e9, 6_899_200, 15_667_456, 0, 6_953_856, 1_024),
    "convnext_tiny": (26.700e9, 13_434_624, 8_580_096, 2_145_024, 27_820_128, 768),
    "vit_b_16": (105.147e9, 23_894_544, 7_262_208, 3_782_400, 85_798_656, 768),
}
"""At 224 pixels: FLOPs, elements of layers, activations and additions, parameters, features."""


@options
class Options:
    """Which network, and where its weights start."""

    arch: str
    """Torchvision's name of the network, e.g. efficientnet_b0."""
    weights: Path | None = None
    """File with a state dict under the names of the installed torchvision; unset: random weights. Where a published
    file is older: torch.save(torchvision.models.get_model(arch, weights='DEFAULT').state_dict(), path)."""


def cost(options: Options, image_size: int) -> Cost:
    """Return what it costs without its heads; ValueError for a network that is not counted without torchvision."""
    if options.arch not in _COSTS:
        raise ValueError(
            f"model.backbone.arch: what {options.arch} costs is not known on paper, only that of {', '.join(_COSTS)};"
            " measure it on one node instead (python -m hrdc_hpc.scaling --nodes 1)"
        )
    flops, layers, activations, additions, parameters, features = _COSTS[options.arch]
    counted = Cost(
        flops=flops,
        layers=layers,
        activations=activations,
        additions=additions,
        parameters=parameters,
        features=features,
    )
    return counted.at(image_size, counted_at=224)


def build(options: Options) -> nn.Module:
    """Return a module from images [B, 3, H, W] to pooled features [B, D]; ValueError for unfit `arch` or `weights`."""
    from torch import nn
    from torchvision import models
    from torchvision.ops import StochasticDepth

    known = models.list_models(module=models)
    if options.arch not in known:
        close = get_close_matches(options.arch, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}"
        raise ValueError(f"model.backbone.arch: torchvision has no classification network '{options.arch}'. {hint}")
    if options.arch in _AUXILIARY:
        raise ValueError(
            f"model.backbone.arch: {options.arch} trains with auxiliary classifiers, which no method here has;"
            " take another network, e.g. resnet50 or efficientnet_b0"
        )
    network = models.get_model(options.arch, weights=None)
    for module in network.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    return headless(network, options.weights)
