"""The model of a step: its formulas by hand, its units, and that more work or slower networks never take less time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hrdc_hpc.scaling.model import (
    Algorithm,
    Array,
    Load,
    Parameters,
    all_reduce_s,
    bytes_per_second,
    data_s,
    exposed_s,
    largest_of,
    step_parts,
    with_rate,
)
from hrdc_hpc.scaling.prediction import Prediction, efficiency

PARAMETERS = Parameters(
    fixed_s=0.01, image_s=0.001, inside_latency_s=3e-6, inside_s_per_byte=1 / 200e9, between_latency_s=1e-5,
    between_s_per_byte=1 / 10e9, rate_share=0.8, overlap=0.5, stretch=1.2, noise=0.01, node_image_s=0,
    shared_image_s=0,
)  # fmt: skip
LOAD = Load(nodes=4, ranks_per_node=8, batch_per_rank=64, gradient_bytes=200e6, last_bytes=10e6, messages=9)


def test_an_all_reduce_by_hand() -> None:
    ring = 2 * 31 / 32 * 200e6 / 10e9 + 9 * (2 * 4 * 7 * 3e-6 + 2 * 3 * 1e-5)
    tree = 2 * 200e6 / 10e9 + 9 * (2 * 7 * 3e-6 + 2 * 2 * 1e-5)
    assert all_reduce_s(PARAMETERS, LOAD, 200e6, "ring", 9) == pytest.approx(ring)
    assert all_reduce_s(PARAMETERS, LOAD, 200e6, "tree", 9) == pytest.approx(tree)
    assert all_reduce_s(PARAMETERS, LOAD, 200e6, "faster", 9) == pytest.approx(min(ring, tree))


def test_inside_a_node_the_network_does_not_count() -> None:
    inside = replace(LOAD, nodes=1)
    ring = 2 * 7 / 8 * 200e6 / 200e9 + 2 * 7 * 3e-6
    for algorithm in ("ring", "tree", "faster"):
        assert all_reduce_s(PARAMETERS, inside, 200e6, algorithm) == pytest.approx(ring)
    slow = replace(PARAMETERS, between_s_per_byte=1.0, between_latency_s=1.0)
    assert all_reduce_s(slow, inside, 200e6, "ring") == pytest.approx(ring)
    assert all_reduce_s(PARAMETERS, replace(LOAD, nodes=1, ranks_per_node=1), 200e6, "ring") == 0


def test_the_slower_way_sets_the_rate() -> None:
    # NVLink slower than the adapters of the node together
    slow = replace(PARAMETERS, inside_s_per_byte=1 / 5e9, inside_latency_s=0, between_latency_s=0)
    assert all_reduce_s(slow, LOAD, 1e9, "tree") == pytest.approx(2 * 1e9 / 5e9)


def test_a_told_rate_is_gigabits_of_a_node() -> None:
    assert bytes_per_second(25) == 3.125e9
    free = replace(PARAMETERS, between_s_per_byte=0.0, between_latency_s=0, inside_latency_s=0)
    # 25 Gbit/s of which 80 % are had: 2.5 GB/s
    assert all_reduce_s(free, with_rate(LOAD, 25), 1e9, "tree") == pytest.approx(2 / 2.5)
    copies = replace(free, between_s_per_byte=1e-10)
    assert all_reduce_s(copies, with_rate(LOAD, 25), 1e9, "tree") == pytest.approx(2 / 2.5 + 0.2)


def test_trees_win_on_many_nodes_and_rings_never_for_small_messages() -> None:
    many = replace(LOAD, nodes=448)
    small = all_reduce_s(PARAMETERS, many, 1e4, "tree"), all_reduce_s(PARAMETERS, many, 1e4, "ring")
    assert small[0] < small[1] / 10


def test_communication_hides_behind_half_of_compute_but_the_last_bucket_never() -> None:
    whole = float(all_reduce_s(PARAMETERS, LOAD, 200e6, "ring", 9))
    last = float(all_reduce_s(PARAMETERS, LOAD, 10e6, "ring"))
    assert exposed_s(PARAMETERS, LOAD, 0.01, "ring") == pytest.approx(1.2 * whole - 0.005)
    assert exposed_s(PARAMETERS, LOAD, 10.0, "ring") == pytest.approx(1.2 * last)


def test_the_slowest_of_many_ranks() -> None:
    rng = np.random.default_rng(0)
    for ranks in (2, 8, 64, 512):
        drawn = rng.standard_normal((4000, ranks)).max(axis=1).mean()
        assert largest_of(ranks) == pytest.approx(drawn, abs=0.05)
    assert largest_of(1) == 0
    assert (np.diff(largest_of(np.arange(1.0, 600))) > 0).all()


def test_loading_is_limited_by_each_node_or_by_all_together() -> None:
    slow = replace(PARAMETERS, node_image_s=1 / 1000, shared_image_s=1 / 3000)
    assert data_s(slow, replace(LOAD, nodes=2)) == pytest.approx(64 * 8 / 1000)
    assert data_s(slow, replace(LOAD, nodes=12)) == pytest.approx(64 * 8 * 12 / 3000)
    parts = step_parts(slow, replace(LOAD, nodes=12), "ring")
    assert parts.step == pytest.approx(64 * 8 * 12 / 3000), "it hides all else"
    assert parts.step == pytest.approx(parts.compute + parts.straggler + parts.exposed + parts.wait)


@pytest.mark.parametrize("algorithm", ["ring", "tree", "faster"])
@pytest.mark.parametrize("field", ["nodes", "ranks_per_node", "batch_per_rank", "gradient_bytes", "last_bytes"])
def test_more_work_never_takes_less_time(field: str, algorithm: Algorithm) -> None:
    low = float(getattr(LOAD, field))
    steps = step_parts(PARAMETERS, replace(LOAD, **{field: np.linspace(low, 20 * low, 60).round()}), algorithm).step
    assert (np.diff(steps) >= -1e-15).all()
    assert steps[-1] > steps[0]


@pytest.mark.parametrize("field", [name for name in vars(PARAMETERS) if name not in ("overlap", "rate_share")])
def test_a_worse_cluster_never_takes_less_time(field: str) -> None:
    busy = with_rate(replace(LOAD, batch_per_rank=8), 100)
    values = np.linspace(1, 50, 40) * (getattr(PARAMETERS, field) or 1e-3)
    steps = step_parts(replace(PARAMETERS, **{field: values}), busy, "ring").step
    assert (np.diff(np.broadcast_to(steps, values.shape)) >= 0).all()


@pytest.mark.parametrize("field", ["overlap", "rate_share"])
def test_more_of_a_share_never_takes_more_time(field: str) -> None:
    busy = with_rate(replace(LOAD, batch_per_rank=8), 100)
    steps = step_parts(replace(PARAMETERS, **{field: np.linspace(0.1, 1, 40)}), busy, "ring").step
    assert (np.diff(steps) <= 0).all()
    assert steps[-1] < steps[0]


def test_what_was_measured_goes_before_the_law() -> None:
    parts = step_parts(PARAMETERS, LOAD, "ring", measured_compute=0.2, measured_data=np.nan)
    assert parts.compute == 0.2
    assert parts.data == 0


def _made(nodes: int, step_s: float, drawn_s: Array, noise: Array) -> Prediction:
    return Prediction(
        nodes=nodes, ranks_per_node=1, batch_per_rank=100, step_s=step_s, step_low_s=step_s, step_high_s=step_s,
        compute_s=step_s, straggler_s=0, exposed_s=0, wait_s=0, communication_s=0, data_s=0, drawn_s=drawn_s,
        noise=noise,
    )  # fmt: skip


def test_what_two_sizes_share_cancels_in_their_efficiency_and_what_runs_differ_by_does_not() -> None:
    """The device may be much slower or faster; all that is known of the larger size is that it takes 1.25 as long."""
    device = np.exp(0.5 * np.random.default_rng(0).standard_normal(1000))
    still = np.zeros(1000)
    base, four = _made(1, 0.1, 0.1 * device, still), _made(4, 0.125, 0.125 * device, still)
    assert efficiency(four, base) == pytest.approx((0.8, 0.8, 0.8))
    assert efficiency(four, base, [1000.0] * 3) == pytest.approx((0.8, 0.8, 0.8))
    assert efficiency(four, base, [800.0])[0] == pytest.approx(1.0), "against what was measured"
    middle, low, high = efficiency(four, base, [900.0, 1000.0, 1100.0])
    assert middle == pytest.approx(0.8)
    assert (low, high) == pytest.approx((0.8 / 1.1, 0.8 / 0.9)), "the base may as well be its fastest or slowest run"
    noise = 0.1 * np.random.default_rng(1).standard_normal(1000)
    shaken = [replace(one, noise=noise) for one in (four, base)]
    _, low, high = efficiency(*shaken, [1000.0, 1000.0])
    assert high / low == pytest.approx(math.exp(2 * 1.645 * 0.1), rel=0.05), "of one run"
    _, low, high = efficiency(*shaken, [1000.0])
    assert high / low == pytest.approx(math.exp(2 * 1.645 * math.sqrt(2) * 0.1), rel=0.1), "of two, independent"
