"""The samplers that rebalance: their distribution, and that it depends on nothing but seed, epoch and stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Data
from hrdc_hpc.config.types import Component
from hrdc_hpc.data import order
from hrdc_hpc.data.by_class import first_above
from hrdc_hpc.data.datasets import image_folder
from hrdc_hpc.data.plan import Plan

PACKAGE = "hrdc_hpc.data.samplers"
REBALANCING = ("class_balanced", "square_root", "progressive", "reversed")
COUNTS = np.array([400, 97, 50, 20, 7, 2, 1])
EPOCHS = 5


def labels_of(counts_C):
    """Labels in an order of their own, as in a data set that is not sorted by class."""
    return np.repeat(np.arange(len(counts_C)), counts_C)[order.permutation(1, 0, "labels", int(counts_C.sum()))]


def make(name, counts_C=COUNTS, epochs=EPOCHS):
    return registry.build(PACKAGE, Component(name), labels_of(counts_C), counts_C, epochs=epochs)


def expected(name, epoch, counts_C=COUNTS):
    """Formulas of the papers, class by class."""
    counts, classes = counts_C.tolist(), len(counts_C)
    shares = {
        "uniform": [n / sum(counts) for n in counts],
        "class_balanced": [1 / classes for _ in counts],
        "square_root": [n**0.5 / sum(m**0.5 for m in counts) for n in counts],
        "reversed": [(max(counts) / n) / sum(max(counts) / m for m in counts) for n in counts],
    }
    if name == "progressive":
        passed = epoch / (EPOCHS - 1)
        pairs = zip(shares["uniform"], shares["class_balanced"], strict=True)
        return np.array([(1 - passed) * by_image + passed * by_class for by_image, by_class in pairs])
    return np.array(shares[name])


def chi_square(seen, chances):
    wanted = chances * seen.sum()
    return ((seen - wanted) ** 2 / wanted).sum()


def test_all_are_there():
    assert registry.names(PACKAGE) == sorted(["uniform", *REBALANCING])


@pytest.mark.parametrize("name", REBALANCING)
@pytest.mark.parametrize("epoch", [0, 2, EPOCHS - 1])
def test_classes_and_images_come_as_often_as_the_formula_says(name, epoch):
    sampler, labels_N = make(name), labels_of(COUNTS)
    # the same epoch under many seeds
    drawn = np.concatenate([sampler.order(seed, epoch, "main") for seed in range(300)])
    chances_C = expected(name, epoch)
    # 6 degrees of freedom: p = 0.0001 at 27.9
    assert chi_square(np.bincount(labels_N[drawn], minlength=len(COUNTS)), chances_C) < 27.9
    chances_N = (chances_C / COUNTS)[labels_N]
    # 576 degrees of freedom: mean 576, standard deviation 34; p = 0.0001 at 709
    assert chi_square(np.bincount(drawn, minlength=len(labels_N)), chances_N) < 709


@pytest.mark.parametrize("name", REBALANCING)
def test_neighbouring_positions_and_epochs_are_independent(name):
    sampler, labels_N = make(name, COUNTS[:3]), labels_of(COUNTS[:3])
    drawn = np.stack([labels_N[sampler.order(seed, 1, "main")] for seed in range(300)])
    one, other = drawn[:, 0::2][:, :273], drawn[:, 1::2]
    later = np.stack([labels_N[sampler.order(seed, 2, "main")] for seed in range(300)])
    for first, second in ((one, other), (drawn, later)):
        table = np.bincount((3 * first + second).ravel(), minlength=9).reshape(3, 3)
        margins = table.sum(axis=1)[:, None] * table.sum(axis=0) / table.sum()
        assert ((table - margins) ** 2 / margins).sum() < 23.5  # 4 degrees of freedom: p = 0.0001


@pytest.mark.parametrize("name", REBALANCING)
def test_an_order_depends_on_seed_epoch_and_stream_alone(name):
    sampler = make(name)
    first = sampler.order(3, 1, "main")
    others = [sampler.order(4, 1, "main"), sampler.order(3, 2, "main"), sampler.order(3, 1, "second")]
    assert first.shape == (len(labels_of(COUNTS)),)
    assert first.dtype == np.int64
    assert len({array.tobytes() for array in (first, *others)}) == 4
    assert np.array_equal(make(name).order(3, 1, "main"), first)  # another process, asked in another order
    assert sampler.order(3, 1, "main") is not first  # no longer cached: drawn anew
    assert np.array_equal(sampler.order(3, 1, "main"), first)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_the_orders_are_frozen():
    """Another order here means that no older run with these samplers can be resumed or repeated."""
    orders = {name: make(name, np.array([6, 2, 1])).order(3, 1, "main").tolist() for name in REBALANCING}
    assert orders == {
        "class_balanced": [0, 0, 5, 3, 8, 2, 5, 5, 2],
        "square_root": [0, 0, 5, 1, 8, 6, 8, 5, 7],
        "progressive": [0, 0, 5, 1, 2, 6, 8, 5, 6],
        "reversed": [1, 3, 5, 2, 5, 8, 5, 5, 5],
    }


@pytest.mark.parametrize("name", REBALANCING)
@pytest.mark.parametrize("world_size", [1, 3, 64])
def test_a_step_takes_the_same_samples_on_any_number_of_ranks(name, world_size, tmp_path):
    data = Data(dataset=Component("image_folder", image_folder.Options(root=tmp_path)))
    labels_N = labels_of(COUNTS)
    sizes_N2 = np.column_stack([100 + labels_N, 300 - labels_N]).astype(np.int32)

    def plan():
        return Plan(sizes_N2, labels_N, data, make(name), classes=len(COUNTS), seed=3, stream="main", global_batch=100)

    whole = plan()
    assert whole.steps_per_epoch == len(labels_N) // 100 == 5
    for step in (0, 4, 7):
        epoch, positions_G, indices_G = whole.place(step)
        parts = []
        for rank in range(world_size):  # every rank has a sampler of its own and starts at this step
            own = order.rank_slice(rank, world_size, 100)
            parts.append(plan().samples(epoch, positions_G[own]).table_B6)
        assert np.array_equal(np.concatenate(parts), whole.samples(epoch, positions_G).table_B6)
        assert np.array_equal(np.concatenate(parts)[:, 0], indices_G)


def test_the_tail_of_inaturalist_comes_as_often_as_its_head(shared_data):
    counts_C = np.loadtxt(shared_data / "counts" / "inat18_counts.txt", dtype=np.int64)
    labels_N = labels_of(counts_C)
    seen_C = np.bincount(labels_N[make("class_balanced", counts_C).order(0, 0, "main")], minlength=8142)
    assert len(labels_N) == seen_C.sum() == 437_513
    assert seen_C.min() > 20  # of 53.7 on average
    head, tail = seen_C[counts_C > 100].mean(), seen_C[counts_C < 20].mean()
    assert head == pytest.approx(tail, rel=0.02)  # standard deviation of their ratio: 0.5 %
    # each image of the rarest classes, not always the same one
    rarest = np.flatnonzero(counts_C == 2)
    drawn = make("class_balanced", counts_C).order(0, 1, "main")
    assert np.isin(np.flatnonzero(np.isin(labels_N, rarest)), drawn).mean() > 0.999


@given(
    st.lists(st.sampled_from([0.0, 1e-9, 1e-5, 0.01, 1.0]), min_size=1, max_size=40).filter(any),
    st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
)
def test_the_table_finds_what_a_search_finds(widths, numbers):
    ends_C = np.cumsum(widths)
    ends_C /= ends_C[-1]
    drawn_N = np.array([*numbers, 0.0, *ends_C[ends_C < 1], *np.nextafter(ends_C, 0)])
    assert np.array_equal(first_above(ends_C, drawn_N), np.searchsorted(ends_C, drawn_N, side="right"))


def test_progressive_goes_from_instances_to_classes():
    start, end = make("progressive").probabilities(0), make("progressive").probabilities(EPOCHS - 1)
    assert start == pytest.approx(COUNTS / COUNTS.sum())
    assert end == pytest.approx(np.full(len(COUNTS), 1 / len(COUNTS)))
    assert make("progressive").probabilities(EPOCHS) == pytest.approx(end)  # only measurements go on so long
    assert make("progressive", epochs=1).probabilities(0) == pytest.approx(start)


@pytest.mark.parametrize("name", REBALANCING)
def test_classes_without_images_are_never_drawn(name):
    counts_C = np.array([0, 3, 0, 0, 5, 1, 0])
    sampler, labels_N = make(name, counts_C), labels_of(counts_C)
    drawn = np.concatenate([sampler.order(seed, 1, "main") for seed in range(100)])
    assert np.unique(labels_N[drawn]).tolist() == [1, 4, 5]
    assert sampler.probabilities(1).sum() == pytest.approx(1)
