"""One training step: forward, backward, reduction, update. Nothing here waits for the device.

The step is made to be captured: fixed shapes, schedule values as device scalars, and a step whose gradients are not
finite is a no-op decided on the device.

Axis legend: B images of a micro-batch, G of the global batch, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.batch import Batch
from hrdc_hpc.engine.buffers import FlatBuffers
from hrdc_hpc.engine.clock import Mark, StepClock
from hrdc_hpc.engine.compiling import pick_compile, pick_graph
from hrdc_hpc.engine.ema import Ema
from hrdc_hpc.engine.gradients import Exchange, adding_up
from hrdc_hpc.engine.graph import CapturedStep
from hrdc_hpc.engine.optimizer import clip, make_optimizer, momenta
from hrdc_hpc.engine.precision import Precision
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.training_loss import MicroBatch, TrainingLoss, pieces, whole
from hrdc_hpc.methods.base import Method
from hrdc_hpc.models.network import Network

log = logging.getLogger(__name__)

LR, EMA_WEIGHT = "lr", "ema_weight"
POISON = "poison"
"""What the loss is multiplied by, in runs with faults injected on purpose only."""

_NEW_NAME = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}
"""DDP must not broadcast rank 0's buffers, they are averaged by our own rule; the option was renamed after 2.11."""


class TrainStep:
    """Owns the optimizer, the loss scaler and the moving average; one call is one optimizer step."""

    def __init__(
        self, network: Network, method: Method, config: RunConfig, precision: Precision, processes: Processes, *,
        resident: bool = False, poisonable: bool = False,
    ) -> None:  # fmt: skip
        """Build on every rank. `resident`: the data set lies in the device's memory; `poisonable`: see faults.py."""
        device, compute = processes.device, config.compute
        self.network = network
        self.buffers = FlatBuffers(network)
        self.ema = Ema(network, self.buffers) if config.optim.ema_decay is not None else None
        self.scaler = precision.scaler()
        if self.scaler:
            self.scaler.scale(torch.zeros((), device=device))  # makes its tensors, which otherwise the first step does
        self.clock = StepClock(device)
        self.exchange = Exchange()
        self.compiled = pick_compile(compute, processes)
        self.captured = False
        """Whether steps are replays of one CUDA graph; known after the rehearsal."""
        self._capture = pick_graph(compute, processes, resident=resident)
        self._must_capture = bool(compute.cuda_graph)
        self._graph: CapturedStep | None = None
        self._accumulation = config.optim.accumulation
        self._clip_norm = config.optim.clip_norm
        self._streams = [stream.name for stream in method.streams]
        self._poisonable = poisonable
        self._scalar_names = [LR, EMA_WEIGHT, *[POISON] * poisonable, *method.scalars(0, config.optim.epochs)]
        self._scalars = torch.zeros(len(self._scalar_names), device=device)
        self._scalar_views = {name: self._scalars[i] for i, name in enumerate(self._scalar_names)}
        self.optimizer = make_optimizer(network, config.optim, self._scalar_views[LR])
        self.nonfinite = torch.zeros((), device=device)
        """Steps skipped because their gradients were not finite."""
        self.nonfinite_in_a_row = torch.zeros((), device=device)
        """How many of the last steps were skipped without one between them that was not."""
        self.taint = torch.zeros(2, device=device)
        """Of this rank alone, until it is zeroed: steps with a loss that was not finite; nan if a gradient was not."""
        self.grad_norm = torch.zeros((), device=device)
        """Of the last step's gradient over all parameters, before it was clipped."""
        self.loss = torch.zeros((), device=device)
        """This rank's share of the last step's loss; the shares of all ranks add up to it."""
        self.parts: dict[str, Tensor] = {}
        self._loss = TrainingLoss(network, method, config, precision).to(device)
        if self.compiled:
            # inside DDP, whose buckets then cut the compiled graph, so that reduction still overlaps with backward
            self._loss.compile(dynamic=False)
        self._number_format = compute.gradients
        self._ddp = self._over_ranks() if processes.world_size > 1 else None

    def _over_ranks(self) -> DistributedDataParallel:
        ddp = DistributedDataParallel(self._loss, gradient_as_bucket_view=True, **_OWN_BUFFERS)
        hook = adding_up(self._number_format, self.clock, self.taint[1], self.exchange)
        ddp.register_comm_hook(None, hook)
        return ddp

    def gradient_bytes(self) -> int:
        """What one all-reduce of all gradients sends, in the format that they are added up in."""
        trained = sum(weight.numel() for weight in self._loss.parameters() if weight.requires_grad)
        return trained * (2 if self._number_format == "bf16" else 4)

    @property
    def execution(self) -> dict[str, bool]:
        """How the step is carried out; another way of it may differ in the last bits."""
        return {"compiled": self.compiled, "cuda_graph": self.captured}

    def momenta(self) -> dict[str, Tensor]:
        """Momentum by parameter name, the optimizer's own tensors: a resume copies into them."""
        return momenta(self.network, self.optimizer)

    # starting

    def rehearse(
        self, batches: Mapping[str, Batch], draws: Mapping[str, Mapping[str, Tensor]],
        between: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Run forward and backward twice and forget them; compile and capture where that is wanted.

        DDP lays its buckets out anew after the first backward. Another layout sums in another order, so the steps after
        a resume would differ in the last bit from those of an undisturbed run. Done at every start, before weights are
        restored, every real step runs on the final layout. It also warms up kernels and allocators.
        `between` is called after each part, on all ranks; what it raises comes through.
        """
        inputs = self._inputs(batches, draws)
        with self.everything_kept():
            if self._capture:  # on a stream of its own: nothing of the graph may have run on another one before
                self._try_to_capture(inputs)
                between()
            for _ in range(0 if self._graph else 2):
                self._forward_backward(inputs)
                between()
        self._clear_gradients()

    def _try_to_capture(self, inputs: Mapping[str, MicroBatch]) -> None:
        try:
            self._graph = CapturedStep(self._take, inputs)
        except RuntimeError as error:
            if self._must_capture:
                raise RuntimeError(
                    f"compute.cuda_graph: the step could not be captured: {error}. Leave compute.cuda_graph unset"
                ) from error
            log.warning("the step could not be captured as a CUDA graph, and is launched kernel by kernel: %s", error)
            if self.scaler:  # it may have broken off after unscale_, which twice is an error; its value is put back
                self.scaler.update(1.0)
        self.captured = self._graph is not None

    @contextmanager
    def everything_kept(self) -> Iterator[None]:
        """Put back, in place, all that a step changes."""
        integers = [buffer for buffer in self.network.buffers() if not buffer.is_floating_point()]
        changing = [*self.network.parameters(), self.buffers.flat, *integers, *self.momenta().values()]
        changing += [self.nonfinite, self.nonfinite_in_a_row, self.taint]
        if self.ema:
            changing += [*self.ema.weights, self.ema.flat]
        before = [tensor.detach().clone() for tensor in changing]
        scaler = self.scaler.state_dict() if self.scaler else {}
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(changing, before, strict=True):
                    tensor.copy_(value)
            if self.scaler:
                self.scaler.load_state_dict(scaler)

    # stepping

    def __call__(
        self, batches: Mapping[str, Batch], draws: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, float]
    ) -> None:
        """Take one step on this rank's share of the global batch of each stream."""
        self._load_scalars(scalars)
        inputs = self._inputs(batches, draws)
        self.clock.mark(Mark.BEGIN)
        if self._graph:
            self._graph(inputs)
        else:
            self._take(inputs)
        self.clock.mark(Mark.DONE)

    def _inputs(self, batches: Mapping[str, Batch], draws: Mapping[str, Mapping[str, Tensor]]) -> dict[str, MicroBatch]:
        return {name: whole(batches[name], draws.get(name, {})) for name in self._streams}

    def _load_scalars(self, scalars: Mapping[str, float]) -> None:
        assert scalars.keys() == set(self._scalar_names), f"{sorted(scalars)} are not {sorted(self._scalar_names)}"
        on_gpu = self._scalars.is_cuda
        values = torch.tensor([scalars[name] for name in self._scalar_names], pin_memory=on_gpu)
        self._scalars.copy_(values, non_blocking=True)

    def _take(self, inputs: Mapping[str, MicroBatch]) -> None:
        """The step itself, which can be captured: nothing here looks at a value."""
        before = self.buffers.flat.clone()
        self._clear_gradients()
        self._forward_backward(inputs)
        if self._ddp is None:
            self.clock.mark(Mark.GRADIENTS)
        self.clock.mark(Mark.REDUCED)
        self._update(before)

    def _clear_gradients(self) -> None:
        # DDP's gradients are views of its buckets; alone, backward may write new ones instead of adding to zeros
        self.optimizer.zero_grad(set_to_none=self._ddp is None)

    def _forward_backward(self, inputs: Mapping[str, MicroBatch]) -> None:
        cut = [pieces(inputs[name], self._accumulation) for name in self._streams]
        total = torch.zeros_like(self.loss)
        parts: dict[str, Tensor] = {}
        module = self._ddp or self._loss
        for i, micro in enumerate(zip(*cut, strict=True)):
            last = i == self._accumulation - 1
            with nullcontext() if last or not self._ddp else self._ddp.no_sync():
                loss, some = module(dict(zip(self._streams, micro, strict=True)), self._scalar_views)
                if self._poisonable:
                    loss = loss * self._scalar_views[POISON]
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            total = total + loss.detach()
            parts = {name: parts.get(name, 0) + value.detach() for name, value in some.items()}
        self.loss, self.parts = total, parts
        self.taint[0] += ~torch.isfinite(total)

    @torch.no_grad()
    def _update(self, buffers_before: Tensor) -> None:
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        self.grad_norm = torch.nn.utils.get_total_norm(gradients)
        if self._clip_norm is not None:
            clip(gradients, self.grad_norm, self._clip_norm)
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
