"""Initial weights from a file: what fits is loaded, everything else is refused with what is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hrdc_hpc.config.schema import Model
from hrdc_hpc.config.types import Component
from hrdc_hpc.models.backbones import resnet50
from hrdc_hpc.models.basic import BasicResNet
from hrdc_hpc.models.network import build_network
from hrdc_hpc.models.weights import load_weights

pytestmark = pytest.mark.slow


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Another network's weights and statistics, with a classifier, as torchvision's files have one."""
    torch.manual_seed(7)
    backbone = BasicResNet(8)
    backbone(torch.randn(4, 3, 32, 32))
    return {**backbone.state_dict(), "fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)}


def saved(content: Any, folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save(content, path)
    return path


def test_round_trip_without_the_classifier(state: dict[str, Tensor], tmp_path: Path) -> None:
    backbone = BasicResNet(8)
    load_weights(backbone, saved(state, tmp_path))
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert backbone.state_dict()["stem.1.num_batches_tracked"] == 1


def test_files_from_before_batches_were_counted(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    backbone = BasicResNet(8)
    load_weights(backbone, saved(old, tmp_path))
    assert torch.equal(backbone.state_dict()["stem.1.running_mean"], state["stem.1.running_mean"])


def test_resnet50_from_torchvisions_names(tmp_path: Path) -> None:
    from torchvision.models import resnet50 as whole

    torch.manual_seed(7)
    donor = whole(weights=None)
    path = saved(donor.state_dict(), tmp_path)
    torch.manual_seed(0)
    model = Model(backbone=Component("resnet50", resnet50.Options(weights=path)))
    network = build_network(model, ("plain",), 3).eval()
    donor.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[0], donor.eval()(images))


def test_missing_unexpected_and_misshapen(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["stem.0.weight"]
    state["layer9.weight"] = torch.zeros(1)
    state["stages.0.conv1.weight"] = torch.zeros(2, 2)
    backbone = BasicResNet(8)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    path = saved(state, tmp_path)
    with pytest.raises(ValueError, match="does not fit this backbone") as error:
        load_weights(backbone, path)
    lines = str(error.value).splitlines()
    assert str(path) in lines[0]
    assert lines[1:4] == [
        "  missing (1): stem.0.weight",
        "  unexpected (1): layer9.weight",
        "  wrong shape (1): stages.0.conv1.weight is [2, 2], should be [8, 8, 3, 3]",
    ]
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_another_width_lists_the_first_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wrong shape \(45\): stem\.0\.weight is \[16, 3, 3, 3\].* and 40 more"):
        load_weights(BasicResNet(8), saved(BasicResNet(16).state_dict(), tmp_path))


def test_state_dict_inside_a_checkpoint(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a state dict: epoch, state_dict are no tensors\. .*save it alone"):
        load_weights(BasicResNet(8), saved({"epoch": 3, "state_dict": state}, tmp_path))


def test_not_a_dict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a Tensor, not a dict of tensors"):
        load_weights(BasicResNet(8), saved(torch.zeros(3), tmp_path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"backbone.weights: no file {tmp_path / 'nowhere.pt'}")):
        load_weights(BasicResNet(8), tmp_path / "nowhere.pt")


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_truncated(keep: int, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"weights\.pt cannot be read as tensors only"):
        load_weights(BasicResNet(8), path)


class Trap:
    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.sprung),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = saved({"stem.0.weight": Trap(tmp_path / "sprung")}, tmp_path)
    with pytest.raises(ValueError, match="cannot be read as tensors only"):
        load_weights(BasicResNet(8), path)
    assert not (tmp_path / "sprung").exists()
    torch.load(path, weights_only=False)  # the trap was live
    assert (tmp_path / "sprung").exists()
