"""Batch norm over fixed groups: real runs learn the same on 1, 2 and 4 ranks, but for the order of float32 sums.

The groups are the same images on any number of ranks, so only the order in which gradients are summed differs: 1e-7 of
the loss at first. Training at this rate amplifies any difference, about tenfold every few steps at first, until it has
grown to what the paths of two runs differ by. So the bounds are tight where that has not happened yet and are on means
over 20 steps where it has.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine.parts import build_parts, open_images
from hrdc_hpc.engine.place import Place
from hrdc_hpc.engine.processes import open_processes
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics

from ranks import Ranks
from runs import SMALL, make_run

pytestmark = [pytest.mark.dali, pytest.mark.timeout(600)]

STEPS, WINDOW = 200, 20
SETTINGS = [
    "optim.global_batch=64", "model.ghost_size=16", "optim.epochs=34", "eval.every_epochs=34",
    "checkpoint.every_steps=1000",
]  # fmt: skip
"""204 steps, 6 an epoch."""


def losses(parent: Path, digits: Path, batch_norm: str, ranks: int) -> NDArray[np.float64]:
    run = make_run(parent, digits, f"{batch_norm}-{ranks}", f"model.batch_norm={batch_norm}", *SETTINGS)
    Ranks(run, ranks).finish(timeout_s=300)
    found = [record["loss"] for record in read_metrics(RunFolder(run)) if record["kind"] == "train"]
    return np.array(found[:STEPS])


def apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances relative to the first."""
    return np.abs(one - other) / one


def windows(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    return curve.reshape(-1, WINDOW).mean(axis=1)


def within_bounds(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two loss curves are as near as rounding leaves them.

    Measured with seeds 0 and 1, 1 rank against 2 and against 4: at most 1e-7 in the first three steps, 2.6e-3 in
    the first 20, 1.5 % between the means of a window and 0.7 % on average over the windows. Per-rank batch norm on 2
    ranks against 1, the same seeds: at least 1.9e-3, 2.0e-2, 4.8 % and 3.2 %. Each bound lies between the two.
    """
    of_windows = apart(windows(one), windows(other))
    distances = apart(one, other)
    return (
        distances[:3].max() < 2e-6
        and distances[:WINDOW].max() < 1e-2
        and of_windows.max() < 0.04
        and of_windows.mean() < 0.02
    )


@pytest.mark.slow
def test_loss_curves_on_one_two_and_four_ranks(tmp_path: Path, digits: Path) -> None:
    alone = losses(tmp_path, digits, "ghost", 1)
    assert len(alone) == STEPS
    assert alone[-WINDOW:].mean() < alone[:WINDOW].mean() / 3  # it has learnt
    for ranks in (2, 4):
        assert within_bounds(alone, losses(tmp_path, digits, "ghost", ranks)), f"on {ranks} ranks"
    # the bounds can tell: this is how far batch norm over each rank's own images is away
    per_rank = [losses(tmp_path, digits, "per_rank", ranks) for ranks in (1, 2)]
    assert apart(*per_rank)[:3].max() > 2e-6
    assert apart(*per_rank)[:WINDOW].max() > 1e-2
    assert apart(*map(windows, per_rank)).max() > 0.04
    assert apart(*map(windows, per_rank)).mean() > 0.02


def test_batch_that_breaks_a_group_is_refused_before_training(tmp_path: Path, digits: Path) -> None:
    overrides = ["model.batch_norm=ghost", "model.ghost_size=12"]
    config = loads(SMALL.format(name="unfit", digits=digits), "test", overrides)
    place = Place(0, 1, 0, 1, tmp_path / "meet.json", {"cpus_per_rank": 1})
    with open_processes(place, Compute(device="cpu", threads=1)) as processes:
        images = open_images(config, processes, local_first=True)
        with pytest.raises(ValueError, match=r"model\.ghost_size: got 12, .* makes pieces of 32 images"):
            build_parts(config, images, processes)
