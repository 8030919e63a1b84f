"""Evaluation: every image exactly once, on any number of ranks with the same result.

Axis legend: B images, C classes, P predictions (each head alone and every fusion).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.batch import Batch, EvalBatches
from hrdc_hpc.data.classes import FIRST, LAST, MEDIUM, ClassInfo
from hrdc_hpc.data.normalise import normalise
from hrdc_hpc.engine.precision import Precision
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.methods.base import Method
from hrdc_hpc.models.network import Network

GROUPS = {"many": FIRST, "medium": MEDIUM, "few": LAST}

Accuracy = dict[str, dict[str, float | None]]
"""By prediction: overall, balanced, many, medium, few; top-1 as a share of 1; None for a group without images."""


class Interrupted(Exception):
    """An evaluation was left because all ranks agreed to stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Outputs:
    """What the network said of one batch."""

    batch: Batch
    features_BD: Tensor
    logits: dict[str, Tensor]


def accuracy(
    correct_PC: NDArray[np.int64], total_C: NDArray[np.int64], names: list[str], shots_C: NDArray[np.int8]
) -> Accuracy:
    """Top-1 accuracies from numbers of images; `balanced` is the mean over classes, the others are over images."""

    def share(correct_C: NDArray[np.int64], chosen_C: NDArray[np.bool_]) -> float | None:
        images = int(total_C[chosen_C].sum())
        return int(correct_C[chosen_C].sum()) / images if images else None

    seen_C = total_C > 0
    results: Accuracy = {}
    for name, correct_C in zip(names, correct_PC, strict=True):
        row = {"overall": share(correct_C, seen_C)}
        row["balanced"] = float((correct_C[seen_C] / total_C[seen_C]).mean())
        row |= {group: share(correct_C, shots_C == number) for group, number in GROUPS.items()}
        results[name] = row
    return results


class Evaluator:
    """Runs a network over the evaluation images."""

    def __init__(
        self, network: Network, method: Method, loader: EvalBatches, config: RunConfig, classes: ClassInfo,
        precision: Precision, processes: Processes,
    ) -> None:  # fmt: skip
        self._network = network
        self._method = method
        self._loader = loader
        self._config = config
        self._classes = classes
        self._precision = precision
        self._processes = processes

    @torch.no_grad()
    def run(
        self, *, told_to_stop: Callable[[], str | None] = lambda: None, see: Callable[[Outputs], None] | None = None
    ) -> Accuracy:
        """Return accuracies of every prediction, the same on every rank.

        `told_to_stop` is asked once per round of batches, by all ranks; a reason ends the evaluation with Interrupted.
        `see` is handed the outputs of this rank's batches.
        """
        correct_PC: Tensor | None = None
        names: list[str] = []
        total_C = torch.zeros(self._classes.number, dtype=torch.int64, device=self._processes.device)
        training = self._network.training
        self._network.eval()
        try:
            batches = iter(self._loader.batches())
            for _ in range(self._loader.rounds):
                if reason := told_to_stop():
                    raise Interrupted(reason)
                batch = next(batches, None)
                if batch is None:  # other ranks have one batch more
                    continue
                outputs = self.outputs(batch)
                if see:
                    see(outputs)
                predictions = self._method.predict(outputs.logits)
                if correct_PC is None:
                    names = list(predictions)
                    correct_PC = total_C.new_zeros(len(names), self._classes.number)
                self._count(predictions, batch, correct_PC, total_C)
        finally:
            self._network.train(training)
        names = names or self._names()
        if correct_PC is None:
            correct_PC = total_C.new_zeros(len(names), self._classes.number)
        correct = self._processes.sum(correct_PC.cpu()).numpy()
        total = self._processes.sum(total_C.cpu()).numpy()
        return accuracy(correct, total, names, self._classes.shots_C)

    def _names(self) -> list[str]:
        nothing = torch.zeros(1, self._classes.number)
        return list(self._method.predict(dict.fromkeys(self._method.heads, nothing)))

    def outputs(self, batch: Batch) -> Outputs:
        """Run the network, which the caller has put into evaluation mode, on one batch."""
        data = self._config.data
        images = normalise(
            batch.images_BHWC,
            data.mean,
            data.std,
            dtype=torch.float32,
            channels_last=self._config.compute.channels_last,
        )
        with self._precision.autocast():
            features_BD, logits = self._network(images)
        return Outputs(batch, features_BD.float(), {name: head.float() for name, head in logits.items()})

    @staticmethod
    def _count(predictions: dict[str, Tensor], batch: Batch, correct_PC: Tensor, total_C: Tensor) -> None:
        valid_B = batch.valid_B.to(torch.int64)
        total_C.scatter_add_(0, batch.labels_B, valid_B)
        for correct_C, probabilities_BC in zip(correct_PC, predictions.values(), strict=True):
            # argmax over nan names some class, often the most frequent: a run that diverged would score its share
            answered_B = probabilities_BC.isfinite().all(dim=1)
            right_B = (answered_B & (probabilities_BC.argmax(dim=1) == batch.labels_B)).to(torch.int64) * valid_B
            correct_C.scatter_add_(0, batch.labels_B, right_B)
