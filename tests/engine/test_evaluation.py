"""What an evaluation counts as right. Axis legend: B images, C classes, P predictions."""

from __future__ import annotations

import numpy as np
import torch

from hrdc_hpc.data.batch import DECODED, Batch, decoded
from hrdc_hpc.engine.evaluation import Evaluator


def batch_of(labels_B: torch.Tensor) -> Batch:
    images = len(labels_B)
    return Batch(
        pixels={DECODED: torch.zeros(images, 2, 2, 3, dtype=torch.uint8)},
        render=decoded,
        labels_B=labels_B,
        valid_B=torch.ones(images),
        positions_B=np.arange(images),
        indices_B=np.arange(images),
        class_counts_C=torch.bincount(labels_B).float(),
        samples_B6=np.empty((0, 6), np.int64),
        step=0,
        epoch=0,
    )


def test_an_answer_that_is_not_a_number_is_wrong():
    """Else a network that diverged would score the share of the class that argmax names: over half on a long tail."""
    probabilities_BC = torch.tensor([[0.9, 0.1], [torch.nan, torch.nan], [torch.nan, torch.nan], [0.2, 0.8]])
    correct_PC, total_C = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    Evaluator._count({"plain": probabilities_BC}, batch_of(torch.tensor([0, 0, 1, 1])), correct_PC, total_C)
    assert correct_PC.tolist() == [[1, 1]]
    assert total_C.tolist() == [2, 2]
