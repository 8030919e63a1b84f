"""Residual networks of basic blocks for small images; imported where a network is built, never by the login node.

Axis legend: B images, D features.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

AVX2_BLOCK = 8
"""Channels in a register; see ThinnedConv."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    kind = ThinnedConv if kernel == 1 and stride > 1 and inputs < AVX2_BLOCK else nn.Conv2d
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class ThinnedConv(nn.Conv2d):
    """A strided 1x1 convolution, which takes the pixels that it needs before it computes.

    oneDNN's gradient of the weights writes past its workspace where such a convolution has fewer than 8 input channels
    in channels_last on a CPU with AVX2 and without AVX-512 (github.com/uxlfoundation/oneDNN issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        down, across = self.stride
        return functional.conv2d(x[:, :, ::down, ::across], self.weight)


class Thinned(nn.Module):
    """Every second pixel, and zeros for the channels that are new: a way around without parameters ('option A')."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self._before = new_channels // 2
        self._after = new_channels - self._before

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, channels + new_channels, ceil(H / 2), ceil(W / 2)]."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self._before, self._after))


class Block(nn.Module):
    """relu(x + BN(conv(relu(BN(conv(x)))))); where the shape changes the way around is a 1x1 convolution or Thinned."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, thinned: bool = False) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if thinned and stride == 2:
            self.shortcut = Thinned(outputs - inputs)
        elif stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outputs, H / stride, W / stride]."""
        inner = self.bn1(self.conv1(x)).relu()
        outer: Tensor = self.bn2(self.conv2(inner)) + self.shortcut(x)
        return outer.relu()


class BasicResNet(nn.Module):
    """Stem of stride 2 and one basic block per stage, with w, 2w and 4w channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features_dim = 4 * width
        self.stem = nn.Sequential(_conv(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return pooled features [B, D]."""
        maps: Tensor = self.stages(self.stem(images_BCHW))
        return maps.mean(dim=(2, 3))


class CifarResNet(nn.Module):
    """Stem of stride 1 and three stages of `blocks` basic blocks each, with w, 2w and 4w channels."""

    def __init__(self, width: int, *, blocks: int) -> None:
        super().__init__()
        self.features_dim = 4 * width
        self.stem = nn.Sequential(_conv(3, width, 3, 1), nn.BatchNorm2d(width), nn.ReLU())
        layers: list[nn.Module] = []
        before = width
        for channels in (width, 2 * width, 4 * width):
            for number in range(blocks):
                stride = 2 if number == 0 and channels > width else 1
                layers.append(Block(before, channels, stride, thinned=True))
                before = channels
        self.stages = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return pooled features [B, D]."""
        maps: Tensor = self.stages(self.stem(images_BCHW))
        return maps.mean(dim=(2, 3))
