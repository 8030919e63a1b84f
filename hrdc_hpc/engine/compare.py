"""Did two runs end the same? Their last checkpoints bit for bit, and what their metrics say was learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hrdc_hpc.engine import checkpoint
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics

_TIMINGS = {
    "attempt", "time", "images_per_s", "data_wait", "compute", "communication", "optimizer", "mfu", "eta_s", "seconds",
    "stall_s",
}  # fmt: skip
_LEARNT = ("train", "eval", "eval_ema")


def final_state(run: Path) -> dict[str, Any]:
    """Return everything in the newest checkpoint. Raises RuntimeError if that is damaged, or if there is none."""
    found = checkpoint.latest(RunFolder(run).checkpoints, on_damaged=_no_damage)
    if found is None:
        raise RuntimeError(f"{run}: no checkpoint to compare")
    return checkpoint.load(found.path)


def learnt(run: Path) -> list[dict[str, Any]]:
    """Return the metrics without what depends on the clock: losses, accuracies, schedules, sample order."""
    return [
        {key: value for key, value in record.items() if key not in _TIMINGS}
        for record in read_metrics(RunFolder(run))
        if record["kind"] in _LEARNT
    ]


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Return the places where two nested states are not identical bit for bit."""
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


def differences(run: Path, other: Path) -> list[str]:
    """Return where two finished runs differ: places in their last checkpoints, and metrics; empty if nowhere."""
    found = differing(final_state(run), final_state(other))
    mine, theirs = learnt(run), learnt(other)
    if len(mine) != len(theirs):
        return [*found, f"metrics: {len(mine)} records and {len(theirs)}"]
    return found + [f"metrics: {a['kind']} of step {a['step']}" for a, b in zip(mine, theirs, strict=True) if a != b]


def _no_damage(path: Path, why: str) -> None:
    raise RuntimeError(f"{path} is damaged: {why}")
