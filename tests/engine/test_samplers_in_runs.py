"""Samplers that rebalance where they are used: a run's parts, and a loader of encoded images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component
from hrdc_hpc.data.index import open_split
from hrdc_hpc.data.loader import TrainLoader
from tests.data.images import folder_data, write_set

from steps import CLASSES, alone, config_of, images_of, parts_of

PACKAGE = "hrdc_hpc.data.samplers"


@pytest.mark.parametrize("name", ["class_balanced", "square_root", "progressive", "reversed"])
def test_a_run_takes_the_order_of_its_sampler(name: str, tmp_path: Path) -> None:
    config = config_of(f"data.sampler={name}")
    images = images_of(config)
    sampler = registry.build(
        PACKAGE, Component(name), images.train.labels_N, images.classes.counts_C, epochs=config.optim.epochs
    )
    with alone(tmp_path / "meet.json", config) as processes:
        parts = parts_of(config, processes, images)
        loader, per_epoch = parts.loaders["main"], parts.steps_per_epoch
        assert per_epoch == 120 // 24
        taken = list(loader.batches(0, 4 * per_epoch))
    for epoch in range(4):
        indices_N = np.concatenate([batch.indices_B for batch in taken if batch.epoch == epoch])
        assert np.array_equal(indices_N, sampler.order(config.seed, epoch, "main"))
    # losses learn how often each class came
    counts_C = torch.stack([batch.class_counts_C for batch in taken]).sum(dim=0)
    labels_N = images.train.labels_N[np.concatenate([batch.indices_B for batch in taken])]
    assert counts_C.tolist() == np.bincount(labels_N, minlength=CLASSES).tolist()


@pytest.mark.dali
def test_an_image_that_comes_twice_in_a_batch_is_two_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = folder_data(write_set(tmp_path / "set", {"a": 14, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}))
    index = open_split(data, "train")
    sampler = registry.build(PACKAGE, Component("class_balanced"), index.labels_N, index.counts_C, epochs=2)

    def batches(first: int, rank: int = 0, world_size: int = 1) -> list[tuple[list[int], torch.Tensor]]:
        with TrainLoader(
            index, data, sampler, classes=3, seed=5, stream="main", global_batch=8, cores=1, rank=rank,
            world_size=world_size, device=torch.device("cpu"),
        ) as loader:  # fmt: skip
            return [(batch.indices_B.tolist(), batch.images_BHWC.clone()) for batch in loader.batches(first, 4)]

    straight = batches(0)
    indices, pixels = straight[0]
    rare = np.flatnonzero(index.labels_N > 0).tolist()
    twice = [[place for place, number in enumerate(indices) if number == image] for image in rare]
    assert max(map(len, twice)) > 1
    for places in twice:
        for one, other in pairwise(places):
            assert not torch.equal(pixels[one], pixels[other])  # each has a crop of its own
    for (numbers, whole), (again, resumed) in zip(straight[2:], batches(2), strict=True):
        assert numbers == again
        assert torch.equal(whole, resumed)
    parts = [batches(0, rank, 3) for rank in range(3)]
    for step, (numbers, whole) in enumerate(straight):
        assert [number for part in parts for number in part[step][0]] == numbers
        assert torch.equal(torch.cat([part[step][1] for part in parts]), whole)
