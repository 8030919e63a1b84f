"""Residual blocks of few channels: no strided 1x1 convolution reaches oneDNN's overrun; numbers stay the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hrdc_hpc.models.basic import BasicResNet, ThinnedConv


@pytest.mark.parametrize("width", [1, 3, 4, 7, 8, 16])
def test_no_strided_pointwise_convolution_of_few_channels_is_left_to_onednn(width: int) -> None:
    strided = [
        conv
        for conv in BasicResNet(width).modules()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.stride != (1, 1)
    ]
    assert len(strided) == 2
    for conv in strided:
        assert isinstance(conv, ThinnedConv) == (conv.in_channels < 8)


@pytest.mark.parametrize("side", [7, 8])
def test_thinned_convolution_is_the_strided_one(side: int) -> None:
    torch.manual_seed(0)
    ours = ThinnedConv(4, 8, 1, 2, bias=False)
    plain = nn.Conv2d(4, 8, 1, 2, bias=False).double()
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(3, 4, side, side)
    images_last = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    images_double = images.double().requires_grad_()
    found, expected = ours(images_last), plain(images_double)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    found.square().sum().backward()
    expected.square().sum().backward()
    for mine, reference in ((ours.weight, plain.weight), (images_last, images_double)):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-5, atol=1e-5)
