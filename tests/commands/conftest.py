"""Runs to ask: a trained one on encoded images, and one on small images in memory that only looks like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.record.folder import RunFolder

from ranks import Ranks
from runs import make_run

CIFAR = """
name: cifar
data:
  dataset: {{name: cifar10_lt, root: "{root}"}}
  levels: {{by: rank, ranks: [3, 4, 3]}}
  image_size: 32
  eval_resize: 32
  crop: padded
  mean: [0.4914, 0.4822, 0.4465]
  std: [0.2023, 0.1994, 0.2010]
model: {{backbone: {{name: tiny, width: 4}}}}
method: ce
optim: {{epochs: 1, global_batch: 128}}
compute: {{device: cpu, threads: 1}}
eval: {{batch_size: 100}}
"""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A finished run, two ranks."""
    run = make_run(tmp_path_factory.mktemp("commands"), digits, "run")
    Ranks(run, 2).finish()
    return run


@pytest.fixture(scope="session")
def cifar_run(tmp_path_factory: pytest.TempPathFactory, cifar10: Path) -> Path:
    """The folder of a run with a checkpoint of the initial weights: what they say is no worse to compare."""
    import torch

    from hrdc_hpc.data.index import class_info, open_split
    from hrdc_hpc.engine import checkpoint
    from hrdc_hpc.engine.buffers import FlatBuffers
    from hrdc_hpc.engine.parts import build_model
    from hrdc_hpc.engine.state import about

    config = loads(CIFAR.format(root=cifar10))
    folder = RunFolder.create(tmp_path_factory.mktemp("commands") / "cifar", config_text=to_yaml(config), manifest={})
    train, val = (open_split(config.data, split) for split in ("train", "val"))
    classes = class_info(train, config.data)
    network, _ = build_model(config, classes, torch.device("cpu"))
    state = {"step": 7, "network": dict(network.state_dict()), "buffers": {"mean": FlatBuffers(network).flat}}
    told = about(config, f"{train.fingerprint}-{val.fingerprint}", "fp32", 1, classes, {})
    checkpoint.save(folder.checkpoints, 7, state, told, lease_check=lambda: None, keep_last=1)
    return folder.path
