"""SGD as the config asks for it: what decays, a rate that lies on the device, momentum that starts at zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hrdc_hpc.config.schema import Optim


def decays(weight: nn.Parameter) -> bool:
    """Whether a parameter is a weight: biases and the scales and shifts of batch norm are vectors."""
    return weight.ndim > 1


def make_optimizer(network: nn.Module, optim: Optim, rate: Tensor) -> torch.optim.SGD:
    """Return SGD that reads its learning rate from `rate`, a scalar on the device, at every step.

    The kernel is the fused one: it honours `found_inf` on the device, so that a step can be skipped without the host.
    """
    weights = list(network.parameters())
    if optim.weight_decay_on == "weights":
        groups = [
            {"params": [w for w in weights if decays(w)], "weight_decay": optim.weight_decay},
            {"params": [w for w in weights if not decays(w)], "weight_decay": 0.0},
        ]
    else:
        groups = [{"params": weights, "weight_decay": optim.weight_decay}]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=rate,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        fused=True,
    )
    if optim.momentum:
        # torch leaves a momentum buffer uninitialised if the first step is skipped; zeros equal its first step
        for weight in weights:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def momenta(network: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Momentum by parameter name; none without momentum. The tensors are the optimizer's own."""
    return {
        name: optimizer.state[weight]["momentum_buffer"]
        for name, weight in network.named_parameters()
        if "momentum_buffer" in optimizer.state[weight]
    }


@torch.no_grad()
def clip(gradients: list[Tensor], norm: Tensor, largest: float) -> None:
    """Scale gradients down, in place, where their common norm, a device scalar, is longer than `largest`.

    factor = min(1, largest / norm), as torch.nn.utils.clip_grad_norm_ has it but for its 1e-6 in the denominator.
    """
    torch._foreach_mul_(gradients, torch.clamp(largest / norm, max=1.0))
