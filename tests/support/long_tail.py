"""Long-tailed classes and batches for tests, and losses written down a second time: numpy, float64, no torch.

Axis legend: B images, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hrdc_hpc.config.schema import Levels
from hrdc_hpc.data.classes import ClassInfo, group_classes
from hrdc_hpc.losses.base import Reduction, StepContext

Floats = NDArray[np.float64]

COUNTS = (500, 301, 160, 101, 100, 60, 33, 20, 19, 7, 1)
"""Both sides of both thresholds: 4 head, 4 medium, 3 tail classes."""


def make_classes(counts: tuple[int, ...] | NDArray[np.int64] = COUNTS, levels: Levels | None = None) -> ClassInfo:
    counts_C = np.asarray(counts, np.int64)
    groups_C = group_classes(counts_C, levels or Levels(), "data.levels")
    return ClassInfo(tuple(f"class{c}" for c in range(len(counts_C))), counts_C, groups_C, groups_C)


def read_counts(shared_data: Path, name: str) -> NDArray[np.int64]:
    return np.loadtxt(shared_data / "counts" / name, dtype=np.int64)


def make_batch(images: int, classes: int = len(COUNTS), seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Logits [B, C], exactly representable in float32, and labels [B]."""
    random = np.random.default_rng(seed)
    logits_BC = (random.normal(size=(images, classes)) * 3).astype(np.float32).astype(np.float64)
    return logits_BC, random.integers(classes, size=images)


def context(labels_B: NDArray[np.int64], part: slice = slice(None), /, **scalars: float) -> StepContext:
    """Context of one piece of a global batch whose labels are `labels_B`."""
    counts_C = torch.bincount(torch.from_numpy(labels_B), minlength=len(COUNTS)).float()
    reduction = Reduction(len(labels_B), torch.ones(len(labels_B[part])), counts_C)
    return StepContext(reduction, {name: torch.tensor(value) for name, value in scalars.items()}, {})


def tensor(logits_BC: Floats) -> torch.Tensor:
    return torch.tensor(logits_BC, dtype=torch.float32, requires_grad=True)


# the second formulation


def log_softmax(logits_BC: Floats) -> Floats:
    shifted_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
    return np.asarray(shifted_BC - np.log(np.exp(shifted_BC).sum(axis=1, keepdims=True)))


def cross_entropy(logits_BC: Floats, labels_B: NDArray[np.int64], factors_C: Floats | float = 1.0) -> Floats:
    """Loss of every image, [B], of logits divided by factors."""
    return np.array([-row[y] for row, y in zip(log_softmax(logits_BC / factors_C), labels_B, strict=True)])


def slow_factors(classes: ClassInfo, gamma: float, *, capped: bool) -> Floats:
    """Eq. 8 class by class."""
    counts = classes.counts_C.tolist()
    free = [(max(counts) / n) ** gamma for n in counts]
    if not capped:
        return np.array(free)
    result = []
    for factor, level in zip(free, classes.levels_C.tolist(), strict=True):
        same = [f for f, other in zip(free, classes.levels_C.tolist(), strict=True) if other == level]
        result.append(min(factor, sum(same) / len(same)))
    return np.array(result)
