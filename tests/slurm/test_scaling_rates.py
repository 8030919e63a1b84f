"""A network of three known speeds: what two of them cost tells what the third one does, on real runs of 1, 2, 3 nodes.

All nodes are this machine: the figures show the method, not scaling.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest

from hrdc_hpc.config.cluster import Network
from hrdc_hpc.scaling import collect, study
from hrdc_hpc.scaling.fit import Fitted, Observation, fit, observations

from slurm_cluster import Slurm
from slurm_runs import logs

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(900)]

RATES = (20, 40, 80)
"""Mbit/s, each way. ResNet-32 has gradients of 1.9 MB, which take 3 nodes about 1 s at the slowest, .25 s at the
fastest; at 16 px the rest of the step takes .03 s, more where the machine is busy."""
WITHIN = 0.20
BATCH = 2
"""Images per rank."""


@contextmanager
def throttled(hosts: Slurm, rate: int) -> Iterator[None]:
    """All nodes at a rate, for the length of the block."""
    hosts.rate("all", f"{rate}mbit")
    try:
        yield
    finally:
        hosts.rate("all", "none")


def measure(hosts: Slurm, out: Path, digits: Path, rate: int, nodes: str) -> Path:
    """The study of some numbers of nodes at a rate, by the command that a user types; its folder."""
    with throttled(hosts, rate):
        ended = subprocess.run(
            [
                sys.executable, "-m", "hrdc_hpc.scaling", "--cfg", "digits_lt.yaml", "--partition", "gpu",
                "--nodes", nodes, "--ranks-per-node", "1", "--repeats", "1", "--batch-per-rank", str(BATCH),
                "--images", "resident", "--in-turn", "--wait", "--yes", "--name", f"at-{rate}", "--out-dir", str(out),
                f"data.dataset.root={digits}", "model.backbone=resnet32", "compute.threads=1",
                "data.image_size=16", "data.eval_resize=16",
                "measure.steps=5", "measure.rounds=3", "measure.warm_up=1",
                f"cluster.network.gbit_per_node={rate / 1000}",
            ],
            env=hosts.env, check=False, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    folder = out / f"at-{rate}"
    assert ended.returncode == 0, "\n".join([ended.stdout, ended.stderr, *map(logs, folder.glob("weak-*"))])
    assert "one machine" in ended.stdout, "the report says that this is no scaling"
    return folder


def rows_of(folder: Path, rate: int) -> list[Observation]:
    found = collect.rows(study.read(folder))
    assert [row.state for row in found] == ["finished"] * len(found)
    return observations(found, Network(gbit_per_node=rate / 1000))


def predicted(known: Fitted, row: Observation, rate: int) -> float:
    """Seconds of a step of that size over a network of another rate."""
    there = Network(gbit_per_node=rate / 1000)
    return known.predict(row.nodes, row.ranks_per_node, row.batch_per_rank, network=there).step_s


def test_two_rates_tell_the_third(hosts: Slurm, digits: Path, tmp_path: Path) -> None:
    sizes: Mapping[int, str] = {RATES[0]: "1,2,3"} | {rate: "2,3" for rate in RATES[1:]}
    rows = {rate: rows_of(measure(hosts, tmp_path, digits, rate, nodes), rate) for rate, nodes in sizes.items()}
    for row in rows[RATES[0]]:
        assert row.compute_s is not None
        if row.nodes > 1:
            assert row.step_s - row.compute_s >= row.step_s / 2, f"communication on {row.nodes} nodes is too short"
    wrong = {}
    for left_out in RATES:
        known = fit(list(chain.from_iterable(rows[rate] for rate in RATES if rate != left_out)))
        for row in rows[left_out]:
            if row.nodes == 1:  # sends nothing
                continue
            seconds = predicted(known, row, left_out)
            print(f"{left_out} Mbit/s, {row.nodes} nodes: {seconds:.3f} s predicted, {row.step_s:.3f} s measured")
            if abs(seconds / row.step_s - 1) > WITHIN:
                wrong[left_out, row.nodes] = (seconds, row.step_s)
    assert not wrong
