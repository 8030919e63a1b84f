"""FLOPs of a network and of a device: what the model FLOPs utilisation is made of. Compute nodes only.

MFU = images per second x model FLOPs per image / peak FLOPs per second of the device. Model FLOPs are those of the
network's matrix products and convolutions, forward and backward, two for each multiply-add: what is recomputed,
normalised or added does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_SPECS: dict[str, tuple[float | None, float | None, float]] = {
    # name in torch.cuda.get_device_name: TFLOP/s in half precision, TF32, fp32; the longest name that fits is taken
    "B200": (2250, 1100, 75),
    "GH200": (989.4, 494.7, 66.9),
    "H200": (989.4, 494.7, 66.9),
    "H200 NVL": (835.5, 417.5, 60),
    "H100": (989.4, 494.7, 66.9),
    "H100 NVL": (835.5, 417.5, 60),
    "H100 PCIe": (756, 378, 51),
    "A100": (312, 156, 19.5),
    "A10": (125, 62.5, 31.2),
    "A30": (165, 82, 10.3),
    "A40": (149.7, 74.8, 37.4),
    "V100": (125, None, 15.7),
    "V100-PCIE": (112, None, 14),
    "T4": (65, None, 8.1),
    "L4": (121, 60, 30.3),
    "L40": (181, 90.5, 90.5),
    "L40S": (362, 183, 91.6),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 6000 Ada": (364.2, 182.1, 91.1),
    "RTX 2080 Ti": (53.8, None, 13.4),
    "RTX 3090": (71, 35.6, 35.6),
    "RTX 3090 Ti": (80, 40, 40),
    "RTX 4090": (165.2, 82.6, 82.6),
}
"""Dense peaks of NVIDIA's data sheets, sums in fp32; None: no tensor cores for it."""
_NO_BF16 = ("V100", "T4", "RTX 2080")


def flops_per_image(network: nn.Module, image_size: int) -> float:
    """Return the model FLOPs of one image in training: forward and backward, 2 per multiply-add.

    `network` is called with images [1, 3, S, S] and returns a tensor, or tuples and mappings of them. Its backward
    counts what autograd computes: twice the forward, except that the first layer needs no gradient for the images.
    Nothing is computed, and `network` stays as it is: it is traced on weights without memory.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _of_convolution})
    with counter:
        torch.autograd.backward(traced_logits(network, image_size))
    return float(counter.get_total_flops())


def _of_convolution(
    gradient_shape: Sequence[int], _images: Any, weight_shape: Sequence[int], *rest: Any, **_: Any
) -> float:
    """FLOPs of a convolution's backward: each gradient that is wanted costs as much as the forward.

    torch's own formula counts the weights' gradient of a grouped convolution once for each group.
    """
    images_wanted, weights_wanted, _bias = rest[-1]
    positions = gradient_shape[0] * math.prod(gradient_shape[2:])
    return float(2 * positions * math.prod(weight_shape) * (images_wanted + weights_wanted))


def traced_logits(network: nn.Module, image_size: int) -> Tensor:
    """Return the sum of the logits of one image, a meta tensor, for the dispatch modes that are on."""
    state = {
        name: torch.empty_like(value, device="meta")
        for name, value in [*network.named_parameters(), *network.named_buffers()]
    }
    for name, value in network.named_parameters():
        state[name].requires_grad_(value.requires_grad)
    images_BCHW = torch.empty(1, 3, image_size, image_size, device="meta")
    with torch.enable_grad(), _evaluating(network):
        output = torch.func.functional_call(network, state, (images_BCHW,))
        return torch.stack([part.sum() for part in _tensors(output) if part.requires_grad]).sum()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of the block: batch norm in training mode wants more than one image."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(tuple(output.values()))
    else:
        for item in output:
            yield from _tensors(item)


def peak_flops(device: torch.device, precision: str, peak_tflops: float | None = None) -> float | None:
    """Return the dense peak of the device in FLOP/s: `peak_tflops` if the user knows it, else its data sheet's.

    `precision` is 'fp32', 'bf16' or 'fp16'; 'fp32' means TF32 where convolutions may use it, as torch lets them by
    default. None where it is not known: on a CPU, on another GPU, or in a precision that the GPU only emulates.
    """
    if peak_tflops is not None:
        return peak_tflops * 1e12
    if device.type != "cuda":
        return None
    return sheet_peak(torch.cuda.get_device_name(device), precision, tf32=torch.backends.cudnn.allow_tf32)


def sheet_peak(gpu: str, precision: str, *, tf32: bool) -> float | None:
    """Return the dense peak of a GPU by its name, such as 'NVIDIA H100 80GB HBM3', in FLOP/s; None if not known."""
    spec = _spec(gpu)
    if spec is None or (precision == "bf16" and any(old in gpu for old in _NO_BF16)):
        return None
    half, tensor32, single = spec
    peak = half if precision != "fp32" else (tensor32 if tf32 and tensor32 is not None else single)
    return None if peak is None else peak * 1e12


def _spec(gpu: str) -> tuple[float | None, float | None, float] | None:
    words = f" {gpu.replace('-', ' ')} "
    fitting = [name for name in _SPECS if f" {name.replace('-', ' ')} " in words]
    return _SPECS[max(fitting, key=len)] if fitting else None
