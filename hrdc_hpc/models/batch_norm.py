"""What batch norm takes its statistics over: each rank's images, those of all ranks, or fixed groups of them.

All kinds have the state names of nn.BatchNorm2d, so that weights and checkpoints move between them, and all evaluate
alike, with the running statistics.

Axis legend: B images of a forward pass on this rank, C channels, H and W a map's sides, n groups, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hrdc_hpc.config.schema import Model

_OVER_IMAGES = (0, 2, 3)


def convert(network: nn.Module, model: Model) -> nn.Module:
    """Replace every nn.BatchNorm2d inside `network` by the config's kind, with the same parameters and statistics."""
    match model.batch_norm:
        case "per_rank":
            return network
        case "sync":
            return _replace(network, SyncBatchNorm2d)
        case "ghost":
            return _replace(network, lambda norm: GhostBatchNorm2d(norm, model.ghost_size))


def _replace(module: nn.Module, make: Callable[[nn.BatchNorm2d], nn.Module]) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, make(child))
        else:
            _replace(child, make)
    return module


class _Norm(nn.BatchNorm2d):
    """A batch norm that takes over parameters and statistics of another, and follows its own rule in training."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        assert norm.affine
        assert norm.track_running_stats
        assert norm.momentum is not None
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.rate = norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    @torch.no_grad()
    def _learn(self, mean_C: Tensor, var_C: Tensor) -> None:
        """Move the running statistics towards a mean and an unbiased variance; in place, they are views of one flat."""
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.rate)
        self.running_var.lerp_(var_C.to(self.running_var.dtype), self.rate)


class GhostBatchNorm2d(_Norm):
    """Batch norm over groups of `size` consecutive images of this rank's piece of the global batch.

    Shares and pieces are consecutive and whole numbers of groups, so the groups are the same on any number of ranks.
    The running statistics are updated once per forward pass, by the mean over the groups of their means and of their
    unbiased variances: their average over the ranks, which evaluations use, is what one rank would have.

    Source: 'Train longer, generalize better' (arXiv 1705.08741), algorithm 1, but for the running statistics: there
    the groups update them one after the other, which depends on how many of them a rank has.
    """

    def __init__(self, norm: nn.BatchNorm2d, size: int) -> None:
        super().__init__(norm)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H, W] in the memory format of `x`; ValueError in training if B is no multiple of the size."""
        if not self.training:
            return super().forward(x)
        if len(x) % self.size:
            raise ValueError(
                f"ghost batch norm: {len(x)} images are no multiple of model.ghost_size, {self.size};"
                " change it, optim.global_batch, optim.accumulation or the number of ranks"
            )
        # torch's kernel, once a group, leaves mean and unbiased variance in a row each; faster on a CPU than var_mean
        # and arithmetic on a view [n, size, ...], in forward and backward
        means_nC = self.running_mean.new_zeros(len(x) // self.size, self.num_features)
        vars_nC = torch.ones_like(means_nC)
        normalised = [
            functional.batch_norm(group, mean_C, var_C, self.weight, self.bias, True, 1.0, self.eps)
            for group, mean_C, var_C in zip(x.chunk(len(means_nC)), means_nC, vars_nC, strict=True)
        ]
        self._learn(means_nC.mean(0), vars_nC.mean(0))
        return torch.cat(normalised)

    def extra_repr(self) -> str:
        """Say what a printed network shows of it."""
        return f"{self.num_features}, size={self.size}"


class SyncBatchNorm2d(_Norm):
    """Batch norm over the images of all ranks of the default process group; ranks may have unequal shares.

    In training all ranks must run forward and backward alike. Alone or without a process group it is plain. torch's own
    SyncBatchNorm is not used: it serves GPUs only, and makes the host wait for them in every layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H, W]; in training it waits for the other ranks."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        y: Tensor
        y, mean_C, var_C = _OverRanks.apply(x, self.weight, self.bias, self.eps)
        self._learn(mean_C, var_C)
        return y


class _OverRanks(torch.autograd.Function):
    """Normalises by mean and variance of all ranks' images; the gradient is that of the sum of the ranks' losses.

    With xhat = (x - mean) / std over N values a channel and g = dL/dy:
    dL/dx = weight / std * (g - sum(g) / N - xhat * sum(g * xhat) / N), sums over all ranks
    (arXiv 1502.03167, section 3). Those of weight and bias stay this rank's share, as all gradients before DDP's sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return y [B, C, H, W], mean and unbiased variance [C] of all ranks' images."""
        wide = x.to(weight_C.dtype)
        mean_C, var_C, values = _moments(wide)
        std_inverse_C = torch.rsqrt(var_C + eps)
        ctx.save_for_backward(x, weight_C, mean_C, std_inverse_C, values)
        scale_C = weight_C * std_inverse_C
        y = torch.addcmul(_by_channel(bias_C - mean_C * scale_C), wide, _by_channel(scale_C)).to(x.dtype)
        unbiased_C = var_C * (values / (values - 1))
        ctx.mark_non_differentiable(mean_C, unbiased_C)
        return y, mean_C, unbiased_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, weight and bias."""
        x, weight_C, mean_C, std_inverse_C, values = ctx.saved_tensors
        wide = grad.to(weight_C.dtype)
        xhat = (x.to(weight_C.dtype) - _by_channel(mean_C)) * _by_channel(std_inverse_C)
        own_2C = torch.stack([wide.sum(_OVER_IMAGES), (wide * xhat).sum(_OVER_IMAGES)])
        all_2C = own_2C.clone()
        dist.all_reduce(all_2C)
        grad_mean_C, slope_C = all_2C / values
        inner = wide - _by_channel(grad_mean_C) - xhat * _by_channel(slope_C)
        return (inner * _by_channel(weight_C * std_inverse_C)).to(x.dtype), own_2C[1], own_2C[0], None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and number of values a channel (a scalar) over all ranks; one round of messages.

    Ranks' moments are joined as in Chan, Golub and LeVeque (1979): squares of differences, which do not cancel.
    """
    var_C, mean_C = torch.var_mean(x, _OVER_IMAGES, correction=0)
    own_3C = torch.stack([mean_C, var_C, torch.full_like(mean_C, x.numel() / x.shape[1])])
    by_rank = [torch.empty_like(own_3C) for _ in range(dist.get_world_size())]
    dist.all_gather(by_rank, own_3C)
    means_WC, vars_WC, values_WC = torch.stack(by_rank, dim=1)
    values_C = values_WC.sum(0)
    shares_WC = values_WC / values_C
    mean_C = (means_WC * shares_WC).sum(0)
    var_C = ((vars_WC + (means_WC - mean_C).square()) * shares_WC).sum(0)
    return mean_C, var_C, values_C[0]


def _by_channel(values_C: Tensor) -> Tensor:
    return values_C[:, None, None]
