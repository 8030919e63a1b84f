"""One training step: forward, backward, reduction, update. Nothing here waits for the device.

The step is made to be captured: fixed shapes, schedule values as device scalars, and a step whose gradients are not
finite is a no-op decided on the device.

Axis legend: B images of a micro-batch, G of the global batch, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.batch import Batch, Pixels, Render
from hrdc_hpc.data.normalise import normalise
from hrdc_hpc.engine.buffers import FlatBuffers
from hrdc_hpc.engine.ema import Ema
from hrdc_hpc.engine.precision import Precision
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.losses.base import Reduction, StepContext
from hrdc_hpc.methods.base import Inputs, Method
from hrdc_hpc.models.network import Network

LR, EMA_WEIGHT = "lr", "ema_weight"

_NEW_NAME = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}
"""DDP must not broadcast rank 0's buffers, they are averaged by our own rule; the option was renamed after 2.11."""


@dataclass(frozen=True)
class MicroBatch:
    """A piece of this rank's share of one step, of one stream."""

    pixels: Pixels
    render: Render
    labels_B: Tensor
    valid_B: Tensor
    class_counts_C: Tensor
    draws: dict[str, Tensor] = field(default_factory=dict)


def pieces(batch: Batch, draws: Mapping[str, Tensor], number: int) -> Iterator[MicroBatch]:
    """Cut a rank's batch into `number` consecutive pieces that differ by one image at most."""
    images = len(batch.labels_B)
    edges = [i * images // number for i in range(number + 1)]
    for low, high in itertools.pairwise(edges):
        part = slice(low, high)
        yield MicroBatch(
            {name: tensor[part] for name, tensor in batch.pixels.items()},
            batch.render,
            batch.labels_B[part],
            batch.valid_B[part],
            batch.class_counts_C,
            {name: draw[part] for name, draw in draws.items()},
        )


class TrainingLoss(nn.Module):
    """Network and method as one module, so that DDP sees one forward however often a method calls the network."""

    def __init__(self, network: Network, method: Method, config: RunConfig, precision: Precision) -> None:
        super().__init__()
        self.network = network
        self._method = method
        self._precision = precision
        self._global_batch = config.optim.global_batch
        self._data = config.data
        self._channels_last = config.compute.channels_last

    def _prepare(self, images_BHWC: Tensor) -> Tensor:
        return normalise(
            images_BHWC, self._data.mean, self._data.std, dtype=torch.float32, channels_last=self._channels_last
        )

    def forward(
        self, micro: Mapping[str, MicroBatch], scalars: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's share of the global loss and of its parts (float32 scalars)."""
        inputs = {name: Inputs(self._prepare(m.render(m.pixels)), m.labels_B) for name, m in micro.items()}
        main = micro[self._method.streams[0].name]
        step = StepContext(Reduction(self._global_batch, main.valid_B, main.class_counts_C), scalars, main.draws)
        with self._precision.autocast():
            return self._method.training_loss(self.network, inputs, step)


class TrainStep:
    """Owns the optimizer, the loss scaler and the moving average; one call is one optimizer step."""

    def __init__(
        self, network: Network, method: Method, config: RunConfig, precision: Precision, processes: Processes
    ) -> None:
        self.network = network
        self.buffers = FlatBuffers(network)
        self.ema = Ema(network, self.buffers) if config.optim.ema_decay is not None else None
        self.scaler = precision.scaler()
        self._accumulation = config.optim.accumulation
        self._world_size = processes.world_size
        device = processes.device
        self._streams = [stream.name for stream in method.streams]
        self._scalar_names = [LR, EMA_WEIGHT, *method.scalars(0, config.optim.epochs)]
        self._scalars = torch.zeros(len(self._scalar_names), device=device)
        self._scalar_views = {name: self._scalars[i] for i, name in enumerate(self._scalar_names)}
        self.optimizer = self._make_optimizer(config)
        self.nonfinite = torch.zeros((), device=device)
        """Steps skipped because their gradients were not finite."""
        self.nonfinite_in_a_row = torch.zeros((), device=device)
        """How many of the last steps were skipped without one between them that was not."""
        self.grad_norm = torch.zeros((), device=device)
        self.loss = torch.zeros((), device=device)
        """This rank's share of the last step's loss; the shares of all ranks add up to it."""
        self.parts: dict[str, Tensor] = {}
        self._ddp = DistributedDataParallel(
            TrainingLoss(network, method, config, precision), gradient_as_bucket_view=True, **_OWN_BUFFERS
        )

    def _make_optimizer(self, config: RunConfig) -> torch.optim.SGD:
        optim = config.optim
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self._scalar_views[LR],
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            nesterov=optim.nesterov,
            fused=True,  # the fused kernel honours found_inf on the device
        )
        if optim.momentum:
            # torch leaves a momentum buffer uninitialised if the first step is skipped; zeros equal its first step
            for weight in self.network.parameters():
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer

    def rebind_rate(self) -> None:
        """Make the optimizer read the device scalar again, after its state was loaded."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._scalar_views[LR]

    def rehearse(self, batches: Mapping[str, Batch]) -> None:
        """Run forward and backward twice and forget them.

        DDP lays its buckets out anew after the first backward. Another layout sums in another order, so the steps after
        a resume would differ in the last bit from those of an undisturbed run. Done at every start, before weights are
        restored, every real step runs on the final layout. It also warms up kernels and allocators.
        """
        integers = {n: b.clone() for n, b in self.network.named_buffers() if not b.is_floating_point()}
        with self.buffers.holding(self.buffers.flat.clone()):
            for _ in range(2):
                self._forward_backward(batches, {})
        for name, value in integers.items():
            self.network.get_buffer(name).copy_(value)
        self.optimizer.zero_grad(set_to_none=False)

    def __call__(
        self, batches: Mapping[str, Batch], draws: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, float]
    ) -> None:
        """Take one step on this rank's share of the global batch of each stream."""
        self._load_scalars(scalars)
        before = self.buffers.flat.clone()
        self.optimizer.zero_grad(set_to_none=False)
        self._forward_backward(batches, draws)
        self._update(before)

    def _load_scalars(self, scalars: Mapping[str, float]) -> None:
        assert scalars.keys() == set(self._scalar_names), f"{sorted(scalars)} are not {sorted(self._scalar_names)}"
        on_gpu = self._scalars.is_cuda
        values = torch.tensor([scalars[name] for name in self._scalar_names], pin_memory=on_gpu)
        self._scalars.copy_(values, non_blocking=True)

    def _forward_backward(self, batches: Mapping[str, Batch], draws: Mapping[str, Mapping[str, Tensor]]) -> None:
        cut = [pieces(batches[name], draws.get(name, {}), self._accumulation) for name in self._streams]
        total = torch.zeros_like(self.loss)
        parts: dict[str, Tensor] = {}
        for i, micro in enumerate(zip(*cut, strict=True)):
            last = i == self._accumulation - 1
            with nullcontext() if last else self._ddp.no_sync():
                loss, some = self._ddp(dict(zip(self._streams, micro, strict=True)), self._scalar_views)
                # DDP averages gradients over the ranks; the shares are meant to be added up
                scaled = loss * self._world_size
                (self.scaler.scale(scaled) if self.scaler else scaled).backward()
            total = total + loss.detach()
            parts = {name: parts.get(name, 0) + value.detach() for name, value in some.items()}
        self.loss, self.parts = total, parts

    @torch.no_grad()
    def _update(self, buffers_before: Tensor) -> None:
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        self.grad_norm = torch.nn.utils.get_total_norm(gradients)
        # gradients are already reduced, so all ranks come to the same verdict without asking each other
        bad = (~torch.isfinite(self.grad_norm)).to(torch.float32)
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by the fused kernel
        self.optimizer.step()
        if self.scaler:
            self.scaler.update()
        self.buffers.flat.copy_(torch.where(bad.bool(), buffers_before, self.buffers.flat))
        self.nonfinite += bad
        self.nonfinite_in_a_row.copy_((self.nonfinite_in_a_row + 1) * bad)
        if self.ema:
            self.ema.update(self._scalar_views[EMA_WEIGHT] * (1 - bad))
