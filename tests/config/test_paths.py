"""Relative paths are taken from the folder in which a run was launched."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.config.load import loads
from hrdc_hpc.config.paths import absolute

CONFIG = """
name: run
data: {dataset: {name: image_folder, root: photographs}}
model: {backbone: {name: resnet50, weights: start.pt}}
method: ce
optim: {epochs: 1, global_batch: 1}
"""


def test_every_path_of_a_config_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = loads(CONFIG)
    frozen = absolute(config)
    assert frozen.out_dir == tmp_path / "runs"
    assert frozen.data.dataset.options.root == tmp_path / "photographs"
    assert frozen.model.backbone.options.weights == tmp_path / "start.pt"
    assert absolute(frozen) == frozen
    assert frozen.optim == config.optim
