from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component
from hrdc_hpc.data import order

N, G = 1003, 600


def uniform(images):
    labels_N = np.zeros(images, np.int64)
    return registry.build("hrdc_hpc.data.samplers", Component("uniform"), labels_N, np.bincount(labels_N))


def step_images(sampler, step, images=N, global_batch=G):
    return order.global_batch(sampler, seed=3, stream="main", step=step, images=images, global_batch=global_batch)


def test_an_epoch_is_a_permutation_and_another_one_every_time():
    epochs = [order.permutation(3, epoch, "main", N) for epoch in range(3)]
    others = [order.permutation(4, 0, "main", N), order.permutation(3, 0, "second", N)]
    for permutation in epochs + others:
        assert permutation.dtype == np.int64
        assert np.array_equal(np.sort(permutation), np.arange(N))
    assert len({permutation.tobytes() for permutation in epochs + others}) == 5


def test_the_order_is_frozen():
    """Another order here means that no older run can be resumed or repeated."""
    assert order.permutation(3, 1, "main", 9).tolist() == [2, 5, 3, 1, 4, 8, 0, 6, 7]


def test_every_place_is_equally_likely():
    places = np.stack([order.permutation(0, epoch, "main", 6) for epoch in range(3000)])
    counts = np.stack([(places == image).sum(axis=0) for image in range(6)])
    assert ((counts - 500) ** 2 / 500).sum() < 60  # chi-square, 25 degrees of freedom: p about 0.0001


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_ties_go_by_number(keys):
    expected = sorted(range(len(keys)), key=lambda i: (keys[i], i))
    assert order.keyed_argsort(np.array(keys, np.uint64)).tolist() == expected


@given(st.integers(1, 5000), st.integers(1, 512))
def test_slices_partition_the_batch_evenly(global_batch, world_size):
    if global_batch < world_size:
        with pytest.raises(ValueError, match="cannot be shared"):
            order.rank_slice(0, world_size, global_batch)
        return
    slices = [order.rank_slice(rank, world_size, global_batch) for rank in range(world_size)]
    assert np.array_equal(np.concatenate([np.arange(global_batch)[s] for s in slices]), np.arange(global_batch))
    sizes = [s.stop - s.start for s in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 512])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(world_size):
    for step in (0, 1, 2, 17):
        # every rank has a sampler of its own and starts at this step
        parts = [
            step_images(uniform(N), step)[2][order.rank_slice(rank, world_size, G)]
            for rank in (range(world_size) if world_size < 10 else (0, 255, 511))
        ]
        whole = step_images(uniform(N), step)[2]
        expected = [whole[rank * G // world_size : (rank + 1) * G // world_size] for rank in (0, 255, 511)]
        assert np.array_equal(np.concatenate(parts), whole if world_size < 10 else np.concatenate(expected))


def test_the_remainder_is_dropped_and_is_another_one_every_epoch():
    sampler, seen = uniform(1003), []
    assert order.steps_per_epoch(1003, 100) == 10
    for epoch in range(3):
        batches = [step_images(sampler, epoch * 10 + step, 1003, 100) for step in range(10)]
        assert {batch[0] for batch in batches} == {epoch}
        assert np.array_equal(np.concatenate([batch[1] for batch in batches]), np.arange(1000))
        images = np.concatenate([batch[2] for batch in batches])
        assert len(np.unique(images)) == 1000
        seen.append(frozenset(range(1003)) - frozenset(images.tolist()))
    assert len(set(seen)) == 3


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(
        ValueError, match=r"optim.global_batch: 101 is more than the 100 images .* Set .* to 100 or less"
    ):
        order.steps_per_epoch(100, 101)


def test_too_many_ranks_and_a_rank_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"4 images cannot be shared by 5 processes.*fewer nodes or raise"):
        order.rank_slice(0, 5, 4)
    with pytest.raises(ValueError, match="rank 5 of 5 processes: must be between 0 and 4"):
        order.rank_slice(5, 5, 10)


def test_the_sampler_hands_out_one_array_that_nobody_can_change():
    sampler = uniform(50)
    first = sampler.order(0, 0, "main")
    assert sampler.order(0, 0, "main") is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    sampler.order(0, 1, "main"), sampler.order(0, 2, "main")
    assert np.array_equal(sampler.order(0, 0, "main"), first)
