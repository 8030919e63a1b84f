"""The moving average against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hrdc_hpc.engine.buffers import FlatBuffers, for_rank
from hrdc_hpc.engine.ema import Ema, ema_weight


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def test_weight_grows_to_the_decay() -> None:
    assert ema_weight(0, 0.999) == pytest.approx(0.9)
    assert ema_weight(90, 0.999) == pytest.approx(1 - 91 / 100)
    assert ema_weight(10**6, 0.999) == pytest.approx(0.001)


def test_average_follows_the_recursion() -> None:
    net = network()
    flat = FlatBuffers(net)
    ema = Ema(net, flat)
    expected = net[0].weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            net[0].weight.add_(1.0)
            flat.flat.mul_(0.5)
        ema.update(torch.tensor(0.25))
        expected = expected + 0.25 * (net[0].weight.detach() - expected)
        assert step >= 0
    torch.testing.assert_close(ema.state()["0.weight"], expected)
    live = net[0].weight.detach().clone()
    with ema.in_network():
        torch.testing.assert_close(net[0].weight.detach(), expected)
    assert torch.equal(net[0].weight, live)
    assert torch.equal(ema.state()["0.weight"], ema.weights[0])


def test_flat_buffers_are_the_networks_own() -> None:
    net = network()
    flat = FlatBuffers(net)
    assert flat.flat.numel() == 16
    net(torch.randn(8, 3, 12, 12))
    assert torch.equal(net[1].running_mean, flat.flat[:4])
    assert net[1].running_mean.abs().sum() > 0
    own = flat.flat.clone()
    with flat.holding(torch.zeros(16)):
        assert net[3].running_var.sum() == 0
    assert torch.equal(flat.flat, own)
    net.load_state_dict({name: torch.ones_like(value) for name, value in net.state_dict().items()})
    assert flat.flat.sum() == 16


def test_statistics_of_ranks() -> None:
    by_rank, mean = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([2.0, 4.0])
    assert for_rank(by_rank, mean, 1, 2).tolist() == [3.0, 6.0]
    assert for_rank(by_rank, mean, 2, 3).tolist() == [2.0, 4.0]
