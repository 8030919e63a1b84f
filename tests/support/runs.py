"""Small real runs for tests, and what is compared between two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics, read_raw

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

_TIMINGS = {
    "attempt", "time", "images_per_s", "data_wait", "compute", "communication", "optimizer", "mfu", "eta_s", "seconds",
    "stall_s",
}  # fmt: skip


def make_run(parent: Path, digits: Path, name: str, *overrides: str) -> Path:
    """Create the run folder of a small run and return its path."""
    config = loads(SMALL.format(name=name, digits=digits), "test", list(overrides))
    return RunFolder.create(parent / name, config_text=to_yaml(config), manifest={}).path


def final_state(run: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint."""
    found = checkpoint.latest(RunFolder(run).checkpoints, on_damaged=_no_damage)
    assert found
    return checkpoint.load(found.path)


def _no_damage(path: Path, why: str) -> None:
    raise AssertionError(f"{path}: {why}")


def learnt(run: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock: losses, accuracies, schedules, sample order."""
    return [
        {key: value for key, value in record.items() if key not in _TIMINGS}
        for record in read_metrics(RunFolder(run))
        if record["kind"] in ("train", "eval", "eval_ema")
    ]


def open_phases(run: Path, attempt: int) -> set[str]:
    """Phases that an attempt had begun and not ended, from its trace."""
    begun: dict[str, int] = {}
    for record in read_raw(RunFolder(run)):
        if record["kind"] == "phase" and record["attempt"] == attempt:
            begun[record["name"]] = begun.get(record["name"], 0) + (1 if record["event"] == "begin" else -1)
    return {name for name, number in begun.items() if number > 0}


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Places where two nested states are not identical bit for bit."""
    import torch

    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place}: keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [d for key in one for d in differing(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or (one.shape, one.dtype) != (other.shape, other.dtype):
            return [place]
        bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
        return [] if torch.equal(*bits) else [place]
    return [] if one == other else [f"{place}: {one} != {other}"]
