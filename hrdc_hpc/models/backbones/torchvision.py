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
from hrdc_hpc.models.headless import headless

if TYPE_CHECKING:
    from torch import nn

_AUXILIARY = ("googlenet", "inception_v3")


@options
class Options:
    """Which network, and where its weights start."""

    arch: str
    """Torchvision's name of the network, e.g. efficientnet_b0."""
    weights: Path | None = None
    """File with a state dict under the names of the installed torchvision; unset: random weights. Where a published
    file is older: torch.save(torchvision.models.get_model(arch, weights='DEFAULT').state_dict(), path)."""


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
