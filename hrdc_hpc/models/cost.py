"""What a network costs on paper: arithmetic, memory traffic and parameters, without building it. Torch-free.

Every backbone's file has `cost(options, image_size) -> Cost`. The counts are those of engine/flops.py and
engine/roofline.py on the real network (a test compares), with one exception: torch's counter takes the backward of
grouped convolutions for that of full ones, so these are three times the forward instead, less what the first layer
needs no gradient for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Traffic:
    """Bytes that one image's share of a training step moves; see the head of engine/roofline.py."""

    eager: float
    fused: float
    bound: float


def traffic(
    *, layers: float, activations: float, additions: float, parameters: float, batch: float, half: bool
) -> Traffic:
    """Bytes of one image's share of a step on `batch` images: the formulas at the head of engine/roofline.py.

    layers, activations, additions: elements that convolutions and linear layers, activation functions and residual
    additions put out for one image; `half`: 16-bit activations, else fp32.
    """
    element, parameter = (2, 30) if half else (4, 32)
    share = parameters * parameter / batch
    return Traffic(
        eager=element * (14 * layers + 5 * activations + 6 * additions) + share,
        fused=element * (14 * layers + 5 * additions) + share,
        bound=element * (7 * layers + 3 * additions) + share,
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one image in training, and of the network as a whole."""

    flops: float
    """Forward and backward of matrix products and convolutions, two for each multiply-add."""
    layers: float
    """Elements that convolutions and linear layers put out."""
    activations: float
    """Elements that activation functions put out."""
    additions: float
    """Elements that residual additions put out."""
    parameters: int
    features: int
    """Pooled features of an image."""

    def at(self, side: int, *, counted_at: int) -> Cost:
        """Return it for images of `side` pixels; it was counted at `counted_at`.

        Convolutions grow with the area: exact where both sides are multiples of the network's stride.
        """
        area = (side / counted_at) ** 2
        return replace(
            self,
            flops=self.flops * area,
            layers=self.layers * area,
            activations=self.activations * area,
            additions=self.additions * area,
        )

    def with_heads(self, heads: int, classes: int, *, bias: bool = True) -> Cost:
        """Add classifiers on the pooled features: a forward product and two backward of features x classes each."""
        return replace(
            self,
            flops=self.flops + heads * 6 * self.features * classes,
            layers=self.layers + heads * classes,
            parameters=self.parameters + heads * classes * (self.features + bias),
        )

    def traffic(self, batch: float, *, half: bool) -> Traffic:
        """Return the bytes of one image's share of a step on `batch` images of a device."""
        return traffic(
            layers=self.layers,
            activations=self.activations,
            additions=self.additions,
            parameters=self.parameters,
            batch=batch,
            half=half,
        )
