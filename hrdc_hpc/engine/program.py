"""A trained network as a program of torch operators that needs nothing of this package.

Axis legend: B images, C classes, D features, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data.normalise import apply, scale_and_shift
from hrdc_hpc.methods.base import Method
from hrdc_hpc.models.network import Network

Answer = dict[str, Tensor | dict[str, Tensor]]


class PixelsToAnswer(nn.Module):
    """From pixels to probabilities, in float32 and with the images' axes in the order in which a decoder gives them."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, method: Method, data: Data) -> None:
        super().__init__()
        self.network = network
        self._method = method
        for name, constant in zip(("scale", "shift"), scale_and_shift(data.mean, data.std), strict=True):
            self.register_buffer(name, constant)

    def forward(self, images_BHWC: Tensor) -> Answer:
        """Return 'probabilities' {prediction: [B, C]}, 'logits' {head: [B, C]} and 'features' [B, D], all float32."""
        images_BCHW = apply(images_BHWC, self.scale, self.shift, channels_last=False)
        features_BD, logits = self.network(images_BCHW)
        return {"probabilities": self._method.predict(logits), "logits": logits, "features": features_BD}


def to_program(network: Network, method: Method, data: Data, *, batch: int | None) -> ExportedProgram:
    """Turn a network on the CPU into a program from uint8 images [B, side, side, 3]; `batch` None: for any B.

    The network is changed: frozen, in evaluation mode, in torch's usual memory format.
    """
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            # statistics are views of one tensor, see FlatBuffers; the file holds each on its own
            module.register_buffer(name, buffer.clone())
    network.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    side = data.image_size
    # two images as an example: a size of 1 would be taken for a constant
    example_BHWC = torch.zeros(batch or 2, side, side, 3, dtype=torch.uint8)
    sizes = {"images_BHWC": {0: Dim("batch")}} if batch is None else None
    with torch.no_grad():
        program = torch.export.export(PixelsToAnswer(network, method, data), (example_BHWC,), dynamic_shapes=sizes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program
