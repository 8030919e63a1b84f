"""A whole step as one CUDA graph: augmentation, forward, losses, backward and update in one launch.

A graph replays fixed addresses, so what a step reads is copied into tensors that stay where they are, and everything
that it changes (weights, momentum, statistics, averages) is changed in place, also by a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hrdc_hpc.engine.training_loss import MicroBatch

Body = Callable[[Mapping[str, MicroBatch]], None]
"""One step on what it is given, without a look at values on the host."""

_WARM_UP = 3
"""Steps before the capture: libraries choose kernels and allocate work space in the first ones."""


class StaticInputs:
    """Tensors that stay where they are, to copy one step's inputs after the other into."""

    def __init__(self, example: Mapping[str, MicroBatch]) -> None:
        """Take shapes and values of an example."""
        self.micro = {name: _like(micro) for name, micro in example.items()}

    def load(self, micro: Mapping[str, MicroBatch]) -> None:
        """Copy inputs of the same shapes."""
        for name, new in micro.items():
            old = self.micro[name]
            assert new.render == old.render, f"stream {name}: the images are made in another way than at the capture"
            for target, source in zip(_tensors(old), _tensors(new), strict=True):
                target.copy_(source, non_blocking=True)


class CapturedStep:
    """A step that was captured; called with inputs of the shapes of the example."""

    def __init__(self, body: Body, example: Mapping[str, MicroBatch]) -> None:
        """Warm up and capture. Runs the step some times: the caller puts back what it changed.

        RuntimeError (of torch) if something in the step cannot be captured.
        """
        self._inputs = StaticInputs(example)
        # a side stream, the same for both: autograd's nodes, once made, stay on the stream of their first use, and a
        # capture must not meet one of another stream
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no annotations there
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                body(self._inputs.micro)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # around the capture once more: torch leaves the side stream current if the capture fails, and what then ran
        # there would not wait for the copies that loaders make on the usual one
        with torch.cuda.stream(side), torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
            body(self._inputs.micro)

    def __call__(self, micro: Mapping[str, MicroBatch]) -> None:
        """Take a step."""
        self._inputs.load(micro)
        self._graph.replay()


def _tensors(micro: MicroBatch) -> list[Tensor]:
    return [
        *(micro.pixels[name] for name in sorted(micro.pixels)), micro.labels_B, micro.valid_B, micro.class_counts_C,
        *(micro.draws[name] for name in sorted(micro.draws)),
    ]  # fmt: skip


def _like(micro: MicroBatch) -> MicroBatch:
    return MicroBatch(
        {name: _twin(tensor) for name, tensor in micro.pixels.items()},
        micro.render,
        _twin(micro.labels_B),
        _twin(micro.valid_B),
        _twin(micro.class_counts_C),
        {name: _twin(draw) for name, draw in micro.draws.items()},
    )


def _twin(tensor: Tensor) -> Tensor:
    """Copy with the same strides, also where they leave gaps: for others the compiler would make another program."""
    twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return twin.copy_(tensor)
