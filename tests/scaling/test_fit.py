"""The fit on made-up rows whose truth is known: what it recovers, how often its ranges hold, what it cannot know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hrdc_hpc.config.cluster import Network
from hrdc_hpc.record.measurement import AllReduce, Measurement, Node, Share
from hrdc_hpc.scaling.fit import FAR, Observation, fit, observations
from hrdc_hpc.scaling.model import Algorithm, Load, Parameters, all_reduce_s, step_parts, with_rate
from hrdc_hpc.scaling.rows import Row, Size

pytestmark = pytest.mark.slow

TRUTH = Parameters(
    fixed_s=0.01, image_s=0.001, inside_latency_s=5e-6, inside_s_per_byte=1 / 200e9, between_latency_s=2e-5,
    between_s_per_byte=1 / 20e9, rate_share=0.9, overlap=0.3, stretch=1.1, noise=0.01, node_image_s=0,
    shared_image_s=0,
)  # fmt: skip
SLOW = replace(TRUTH, fixed_s=0.05, between_s_per_byte=1e-9, between_latency_s=1e-4, rate_share=0.95)
"""gloo over throttled links, a rank a node."""
SIZES = [(1, 1, 64), (1, 4, 64), (2, 4, 64), (4, 4, 64), (8, 4, 64), (4, 4, 16)]
SWEEP = (4e3, 64e3, 1e6, 16e6)
BYTES = 227e6


def made(
    sizes: Sequence[tuple[int, int, float]], rng: np.random.Generator, *, truth: Parameters = TRUTH, repeats: int = 3,
    algorithm: Algorithm = "ring", sent: float = BYTES, gbit: float | None = None, spread: float = 0.01,
    backend: str = "nccl",
) -> list[Observation]:  # fmt: skip
    """Rows of these sizes whose runs differ by `spread`, and whose all-reduces by 5 %."""

    def about(value: float, by: float) -> float:
        return float(value * np.exp(by * rng.standard_normal()))

    rows = []
    for nodes, gpus, batch in sizes:
        load = with_rate(Load(nodes=nodes, ranks_per_node=gpus, batch_per_rank=batch, gradient_bytes=sent,
                              last_bytes=sent / 10, messages=9), gbit)  # fmt: skip
        parts = step_parts(truth, load, algorithm)
        for repeat in range(repeats):
            run, several = about(1, spread), nodes * gpus > 1
            alone = [(int(size), about(float(all_reduce_s(truth, load, size, algorithm)), 0.05)) for size in SWEEP]
            loading = float(parts.data) if parts.wait > 0 else None
            rows.append(Observation(
                nodes=nodes, ranks_per_node=gpus, batch_per_rank=batch, step_s=about(float(parts.step) * run, 0.005),
                compute_s=about(float(parts.compute) * run, 0.005),
                busy_s=about(float(parts.compute + parts.straggler + parts.exposed) * run, 0.005) if several else None,
                data_s=None if loading is None else about(loading * run, 0.005), gradient_bytes=sent,
                last_bucket_bytes=sent / 10, buckets=9, all_reduces=alone if several else (), gbit_per_node=gbit,
                backend=backend, run=f"{nodes}x{gpus}-b{batch}-r{repeat}",
            ))  # fmt: skip
    return rows


def test_known_parameters_come_back_with_honest_errors() -> None:
    fitted = fit(made(SIZES, np.random.default_rng(3), repeats=5))
    typical = fitted.typical
    for name, within in {"fixed_s": 0.1, "image_s": 0.05, "inside_latency_s": 0.1, "inside_s_per_byte": 0.1,
                         "between_latency_s": 0.1, "between_s_per_byte": 0.05}.items():  # fmt: skip
        assert getattr(typical, name) == pytest.approx(getattr(TRUTH, name), rel=within), name
    told = {one.key: one for one in fitted.estimates if not one.held}
    assert {"fixed_s", "image_s", "between_latency_s", "between_s_per_byte"} <= told.keys()
    for name, one in told.items():
        assert one.error is not None
        assert abs(one.value - getattr(TRUTH, name)) < 4 * one.error, name
    assert fitted.median_error < 0.02
    assert fitted.worst_error < 0.06


@pytest.mark.slow
def test_about_nine_of_ten_measured_runs_lie_in_the_range() -> None:
    held_out = [(16, 4, 64), (32, 4, 64), (8, 4, 16), (2, 4, 128)]
    truths = [(TRUTH, 0.01), (TRUTH, 0.05), (replace(TRUTH, between_s_per_byte=1 / 3e9), 0.02),
              (replace(TRUTH, overlap=0.5), 0.01)]  # fmt: skip
    inside = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        truth, spread = truths[seed % len(truths)]
        fitted = fit(made(SIZES, rng, truth=truth, spread=spread), algorithm="ring")
        for size in held_out:
            (run,) = made([size], rng, truth=truth, repeats=1, spread=spread)
            one = fitted.predict(*size)
            inside.append(one.step_low_s <= run.step_s <= one.step_high_s)
    assert len(inside) == 96
    assert 0.84 <= np.mean(inside) <= 0.97


def test_ranges_are_no_wider_than_they_must_be() -> None:
    one = fit(made(SIZES, np.random.default_rng(0))).predict(16, 4, 64)
    assert (one.step_high_s - one.step_low_s) / one.step_s < 0.15
    assert sum(one.parts.values()) == pytest.approx(one.step_s)
    assert one.low < one.images_per_s < one.high
    assert one.images_per_s == pytest.approx(16 * 4 * 64 / one.step_s)


@pytest.mark.parametrize("algorithm", ["ring", "tree"])
def test_ring_or_tree_by_what_is_left(algorithm: Algorithm) -> None:
    sizes = [(1, 4, 64), (2, 4, 64), (8, 4, 64), (16, 4, 64)]
    fitted = fit(made(sizes, np.random.default_rng(1), algorithm=algorithm))
    assert fitted.algorithm == algorithm
    assert algorithm in fitted.words


def test_two_known_rates_predict_a_third() -> None:
    rng = np.random.default_rng(1)
    sizes = [(1, 1, 32), (2, 1, 32), (3, 1, 32)]
    rows = [
        row
        for gbit in (0.1, 1.0)
        for row in made(sizes, rng, truth=SLOW, sent=2e6, gbit=gbit, backend="gloo", spread=0.03)
    ]
    fitted = fit(rows)
    for gbit in (0.03, 0.3):
        for nodes in (2, 3):
            (run,) = made([(nodes, 1, 32)], rng, truth=SLOW, sent=2e6, gbit=gbit, repeats=1)
            one = fitted.predict(nodes, 1, 32, Network(gbit_per_node=gbit))
            assert one.step_s == pytest.approx(run.step_s, rel=0.15)
    with pytest.raises(ValueError, match="say which one this is over"):
        fitted.predict(2, 1, 32)
    with pytest.raises(ValueError, match="do not tell theirs"):
        fit(made(sizes, rng)).predict(2, 1, 32, Network(gbit_per_node=10))
    with pytest.raises(ValueError, match="tell it for all"):
        fit([*rows, *made(sizes, rng)])


def test_what_one_size_cannot_tell_is_held_and_widens_the_range() -> None:
    rng = np.random.default_rng(0)
    one_size = fit(made([(2, 4, 64)], rng))
    assert {"fixed_s", "inside_s_per_byte"} <= one_size.not_identified.keys()
    assert all("the rows do not tell it" in one.held for one in one_size.estimates if one.error is None)
    several = fit(made(SIZES, rng))
    guess, known = one_size.predict(2, 4, 16), several.predict(2, 4, 16)
    assert guess.step_high_s / guess.step_low_s > 1.5 * known.step_high_s / known.step_low_s
    assert one_size.predict(2, 4, 64).step_s == pytest.approx(several.predict(2, 4, 64).step_s, rel=0.05)
    assert any("one batch per rank" in note for note in one_size.notes)


def test_far_beyond_what_was_measured_is_marked() -> None:
    fitted = fit(made([(1, 4, 64), (2, 4, 64)], np.random.default_rng(0), repeats=1))
    assert not fitted.predict(2 * FAR, 4, 64).extrapolated
    assert fitted.predict(2 * FAR + 1, 4, 64).extrapolated


def test_a_shared_file_system_that_limits_is_found() -> None:
    slow = replace(TRUTH, node_image_s=1 / 2000, shared_image_s=1 / 8000)
    fitted = fit(made([(1, 4, 64), (2, 4, 64), (8, 4, 64), (16, 4, 64)], np.random.default_rng(0), truth=slow))
    assert 1 / fitted.typical.node_image_s == pytest.approx(2000, rel=0.1)
    assert 1 / fitted.typical.shared_image_s == pytest.approx(8000, rel=0.1)
    assert fitted.predict(32, 4, 64).images_per_s == pytest.approx(8000, rel=0.1)


def test_loading_that_grows_with_the_nodes_is_not_taken_to_end_soon() -> None:
    slow = replace(TRUTH, node_image_s=1 / 2000)
    fitted = fit(made([(1, 4, 64), (2, 4, 64)], np.random.default_rng(0), truth=slow))
    many = fitted.predict(16, 4, 64)
    assert many.images_per_s == pytest.approx(16 * 2000, rel=0.1)
    assert many.low < 0.7 * many.images_per_s, "but it may: what all nodes share is not known"


def test_rows_without_pairs_or_sweeps_still_give_a_fit() -> None:
    rows = [replace(row, compute_s=None, busy_s=None, all_reduces=()) for row in made(SIZES, np.random.default_rng(0))]
    fitted = fit(rows)
    assert fitted.median_error < 0.05
    assert fitted.predict(16, 4, 64).step_s == pytest.approx(0.09, rel=0.3)


def test_nodes_that_share_a_machine_keep_their_measured_compute() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for nodes in (1, 2, 3):  # the cores are shared: compute grows with the number of nodes
        shared = replace(SLOW, fixed_s=0.05 * nodes, image_s=0.001 * nodes)
        rows += made([(nodes, 1, 32)], rng, truth=shared, sent=2e6, gbit=0.3, backend="gloo")
    fitted = fit([replace(row, one_machine=row.nodes > 1) for row in rows])
    compute = [row.compute_s for row in rows if row.nodes == 3]
    assert fitted.predict(3, 1, 32).compute_s == np.median(np.array(compute, float))
    assert any("one machine" in note for note in fitted.notes)
    assert fitted.worst_error < 0.2


def _found(ranks: int, windows: dict[str, list[list[float]]], images: str = "real") -> Measurement:
    return Measurement(
        world_size=ranks, ranks_per_node=1, global_batch=8 * ranks, images=images, warm_up=1,  # type: ignore[arg-type]
        windows=windows, shares=Share(data_wait_s=0, compute_s=0, communication_s=0, optimizer_s=0),
        gradient_bytes=1000, buckets=[600, 400], all_reduces=[AllReduce(bytes=1000, seconds=[3.0, 1.0, 2.0])],
        backend="gloo", interface=None,
        nodes=[Node(name=f"n{number}", machine="m", cores=1, device="") for number in range(ranks)],
        precision="fp32", startup_s={}, checkpoint_bytes=0, checkpoint_stall_s=0, checkpoint_s=0,
    )  # fmt: skip


def _row(name: str, found: Measurement | None, state: str = "finished") -> Row:
    nodes = found.world_size if found else 4
    return Row(size=Size(nodes=nodes, ranks_per_node=1, mode="weak", global_batch=8 * nodes), repeat=1, run=name,
               state=state, found=found)  # fmt: skip


def test_rows_become_observations_and_failed_ones_are_left_out() -> None:
    windows = {"as_is": [[5.0, 5.0], [9.0, 9.0], [4.0, 6.0]], "no_sync": [[3.0]], "resident": [[4.0]],
               "resident_no_sync": [[2.0]]}  # fmt: skip
    rows = [_row("weak-2", _found(2, windows)), _row("strong-2", None, "failed"), _row("weak-2", _found(2, windows))]
    (one,) = observations(rows, Network(gbit_per_node=10))
    assert (one.step_s, one.compute_s, one.busy_s, one.data_s) == (5.0, 2.0, 4.0, 3.0)
    assert (one.nodes, one.batch_per_rank, one.gradient_bytes, one.last_bucket_bytes, one.buckets) == (
        2,
        8,
        1000,
        400,
        2,
    )
    assert (one.all_reduces, one.gbit_per_node, one.one_machine) == ([(1000, 2.0)], 10, True)
    (alone,) = observations([_row("weak-1", _found(1, {"as_is": [[3.0]], "resident": [[2.0]]}))])
    assert (alone.compute_s, alone.busy_s, alone.data_s, alone.one_machine) == (2.0, None, 3.0, False)
    (resident,) = observations([_row("r", _found(2, {"as_is": [[3.0]], "no_sync": [[2.0]]}, "resident"))])
    assert (resident.step_s, resident.compute_s, resident.busy_s, resident.data_s) == (3.0, 2.0, None, None)
    drifting = {"as_is": [[1.0], [2.0], [4.0]], "resident_no_sync": [[0.5], [1.0], [2.4]]}
    assert observations([_row("d", _found(2, drifting))])[0].compute_s == 1.0, "by the ratio within a round"
    assert observations([_row("n", _found(2, {"as_is": [[]]}))]) == []
    keeps_up = windows | {"no_sync": [[2.05]]}
    assert observations([_row("x", _found(2, keeps_up))])[0].data_s is None
    with pytest.raises(ValueError, match="no row has figures"):
        fit(observations([_row("x", None, "refused")]))


def test_nothing_heavy_is_imported_before_something_is_fitted() -> None:
    code = (
        "import sys; import hrdc_hpc.scaling.fit, hrdc_hpc.scaling.predict; "
        "print(*sorted({'torch', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True,
                          text=True)  # fmt: skip
    assert told.stdout.strip() == ""


def test_rows_of_one_node_tell_nothing_between_nodes() -> None:
    fitted = fit(made([(1, 1, 64), (1, 4, 64)], np.random.default_rng(1)))
    assert fitted.predict(2, 4, 64).extrapolated
    assert not fitted.predict(1, 4, 64).extrapolated
    assert any("no row has several nodes" in note for note in fitted.notes)
