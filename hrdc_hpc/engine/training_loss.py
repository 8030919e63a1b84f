"""Network and method as one module, and what it is given: pieces of a rank's share of a step.

Axis legend: B images of a micro-batch, G of the global batch, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.batch import Batch, Pixels, Render
from hrdc_hpc.data.normalise import apply, scale_and_shift
from hrdc_hpc.engine.precision import Precision
from hrdc_hpc.losses.base import Reduction, StepContext
from hrdc_hpc.methods.base import Forward, Inputs, Method


@dataclass(frozen=True)
class MicroBatch:
    """A piece of this rank's share of one step, of one stream; all tensors on the device."""

    pixels: Pixels
    render: Render
    labels_B: Tensor
    valid_B: Tensor
    class_counts_C: Tensor
    draws: dict[str, Tensor] = field(default_factory=dict)


def whole(batch: Batch, draws: Mapping[str, Tensor]) -> MicroBatch:
    """Return a rank's batch as one piece."""
    return MicroBatch(
        dict(batch.pixels), batch.render, batch.labels_B, batch.valid_B, batch.class_counts_C, dict(draws)
    )


def pieces(batch: MicroBatch, number: int) -> Iterator[MicroBatch]:
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
            {name: draw[part] for name, draw in batch.draws.items()},
        )


class TrainingLoss(nn.Module):
    """Pixels to loss as one module, so that DDP and the compiler see one forward however a method uses the network."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Forward, method: Method, config: RunConfig, precision: Precision) -> None:
        super().__init__()
        self.network = network
        self._method = method
        self._precision = precision
        self._global_batch = config.optim.global_batch
        self._channels_last = config.compute.channels_last
        # buffers, not a cache: the compiler follows them, and they move with the module
        for name, constant in zip(("scale", "shift"), scale_and_shift(config.data.mean, config.data.std), strict=True):
            self.register_buffer(name, constant, persistent=False)

    def _prepare(self, images_BHWC: Tensor) -> Tensor:
        return apply(images_BHWC, self.scale, self.shift, channels_last=self._channels_last)

    def forward(
        self, micro: Mapping[str, MicroBatch], scalars: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's share of the global loss and of its parts (float32 scalars)."""
        inputs = {name: Inputs(self._prepare(m.render(m.pixels)), m.labels_B) for name, m in micro.items()}
        main = micro[self._method.streams[0].name]
        step = StepContext(Reduction(self._global_batch, main.valid_B, main.class_counts_C), scalars, main.draws)
        with self._precision.autocast():
            return self._method.training_loss(self.network, inputs, step)
