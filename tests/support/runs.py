"""Small real runs for tests, and what is compared between two of them."""

from __future__ import annotations

from pathlib import Path

from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.engine.compare import differing, final_state, learnt
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

__all__ = ["SMALL", "differing", "final_state", "learnt", "make_run", "open_phases"]

SMALL = """
name: {name}
data:
  dataset: {{name: digits_lt, root: "{digits}"}}
  image_size: 24
  crop_scale: [0.6, 1.0]
  flip: true
  eval_resize: 32
  mean: [0.5, 0.5, 0.5]
  std: [0.5, 0.5, 0.5]
model:
  backbone: {{name: tiny, width: 8}}
method: hrdc
optim:
  epochs: 3
  global_batch: 32
  lr: 0.1
  weight_decay: 5e-4
  warmup_epochs: 1
  ema_decay: 0.9
compute: {{device: cpu, threads: 1}}
checkpoint: {{every_steps: 5}}
eval: {{batch_size: 100}}
log: {{every_steps: 1, tensorboard: false}}
"""
"""12 steps an epoch: batch norm, momentum, an average, three epochs, saves that do not fall on epoch ends."""


def make_run(parent: Path, digits: Path, name: str, *overrides: str) -> Path:
    """Create the run folder of a small run and return its path."""
    config = loads(SMALL.format(name=name, digits=digits), "test", list(overrides))
    return RunFolder.create(parent / name, config_text=to_yaml(config), manifest={}).path


def open_phases(run: Path, attempt: int) -> set[str]:
    """Phases that an attempt had begun and not ended, from its trace."""
    begun: dict[str, int] = {}
    for record in read_raw(RunFolder(run)):
        if record["kind"] == "phase" and record["attempt"] == attempt:
            begun[record["name"]] = begun.get(record["name"], 0) + (1 if record["event"] == "begin" else -1)
    return {name for name, number in begun.items() if number > 0}
