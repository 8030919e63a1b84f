"""How fast memory and arithmetic let a training step be. Compute nodes only.

Bytes that a step moves between device memory and chip, per image (an estimate: caches, buffers of single kernels, the
images themselves and pooling are left out):

    eager   e (14 A + 5 L + 6 R) + P / B
    fused   e (14 A + 5 R) + P / B       batch norm, ReLU and addition as one kernel
    bound   e (7 A + 3 R) + P / B        these fused into the convolutions beside them

e bytes of an element, A elements that convolutions and linear layers put out, L elements that activation functions put
out, R elements that residual additions put out, P bytes that parameters and optimizer cost a step, B images of a batch.
Each figure counts reads and writes of one tensor of the size of a layer's output:

    14 A  forward: the layer writes x (1), batch norm reads x for its statistics and again to normalise it, and writes y
          (3), the next layer reads y (1). Backward: batch norm reads x and the gradient of y twice and writes that of x
          (5), the layer reads the latter for each of its two products (2), and its input's values (1), and writes its
          input's gradient (1).
    7 A   forward: x is written, and read where the next layer normalises it on the way (2). Backward: the gradient of y
          is written while x is read for the sums of batch norm (2), and both are read again by the two products (2),
          which read the input's values (1).
    5 L   an activation by itself reads and writes (2), and backward reads two and writes one (3).
    6 R   an addition by itself reads two and writes one (3); backward, two gradients are added where branches meet (3).
    5 R   fused: the shortcut is read (1) and its gradient written (1); the sum of two gradients (3).
    3 R   bound: the sum is written, the shortcut read (2); backward the shortcut's gradient is read (1).
    P     weight, momentum and gradient in fp32 are each written and read once (24 bytes a parameter), and two more
          reads in forward and backward (8 bytes); in half precision a copy is written and read twice instead (6).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hrdc_hpc.engine.flops import traced_logits
from hrdc_hpc.models.cost import Traffic, traffic

_LAYERS = ("convolution", "mm", "addmm", "bmm")
_ACTIVATIONS = ("relu", "relu_", "relu6", "gelu", "silu", "silu_", "hardswish", "hardswish_", "hardtanh", "hardtanh_")
_ADDITIONS = ("add", "add_")


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Adds up the elements that layers, activations and residual additions of the forward put out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.layers = self.activations = self.additions = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator and count it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(result, Tensor):
            if name in _LAYERS:
                self.layers += result.numel()
            elif name in _ACTIVATIONS:
                self.activations += result.numel()
            elif name in _ADDITIONS and all(isinstance(part, Tensor) and part.dim() > 1 for part in args[:2]):
                self.additions += result.numel()
        return result


def bytes_per_image(network: nn.Module, image_size: int, *, batch: int, half: bool) -> Traffic:
    """Estimate what one image's share of a step on `batch` images moves; `half`: 16-bit activations, else fp32.

    `network` as of `flops_per_image`; nothing is computed.
    """
    sizes = _Sizes()
    with sizes:
        traced_logits(network, image_size)
    return traffic(
        layers=sizes.layers,
        activations=sizes.activations,
        additions=sizes.additions,
        parameters=sum(weight.numel() for weight in network.parameters()),
        batch=batch,
        half=half,
    )


def measure_bandwidth(device: torch.device, *, megabytes: int | None = None) -> float:
    """Bytes per second that a large copy reads and writes: the memory's speed as a program can have it."""
    count = (megabytes or (2048 if device.type == "cuda" else 128)) * 1_000_000 // 4
    source, target = torch.ones(count, device=device), torch.zeros(count, device=device)
    return 2 * 4 * count / _seconds(lambda: target.copy_(source), device)


def measure_matmul(device: torch.device, precision: str, *, side: int | None = None) -> float:
    """FLOP/s of a large square matrix product: the arithmetic's speed as a program can have it.

    fp32 is TF32 where convolutions may use it.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side = side or (8192 if device.type == "cuda" else 1024)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return 2.0 * side**3 / _seconds(lambda: torch.mm(left, right, out=out), device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def synchronize(device: torch.device) -> None:
    """Wait for the device, if it works on its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of one call, of three rounds of about 0.1 s, after one that is not counted."""

    def timed(calls: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    timed(1)
    calls = max(1, math.ceil(0.1 / max(timed(1), 1e-6)))
    return statistics.median(timed(calls) for _ in range(3))
