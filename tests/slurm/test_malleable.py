"""A range of nodes on a real SLURM: what the batch script gets, and what its ranks see of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launching import CONFIG
from slurm_cluster import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

RANK = """#!/bin/bash
[ "$1" = -u ] || exit 0  # the batch script's own question, after srun
echo "${SLURM_RESTART_COUNT:-0} $SLURM_PROCID $SLURM_STEP_NUM_TASKS $SLURMD_NODENAME $SLURM_LOCALID \
$SLURM_CPUS_PER_TASK $PYTHONSAFEPATH" >> "$(dirname "$0")/seen"
[ "$SLURM_RESTART_COUNT" ] || sleep 100
"""
"""Stands for the interpreter: every rank says what it is, and waits to be requeued."""


def seen(folder: Path, start: str, ranks: int, timeout: float = 60) -> list[tuple[int, int, str, int, int]]:
    """Rank, ranks, node, local rank and CPUs of each rank of a start, once all of them have spoken."""
    deadline = time.monotonic() + timeout
    while True:
        text = (folder / "seen").read_text() if (folder / "seen").exists() else ""
        lines = [line.split() for line in text.splitlines() if line.startswith(f"{start} ")]
        if len(lines) == ranks:
            break
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    assert all(line[6] == "1" for line in lines), "our own variables reach the ranks"
    return sorted((int(rank), int(of), node, int(local), int(cpus)) for _, rank, of, node, local, cpus, _ in lines)


def test_a_range_of_nodes_starts_on_three_and_again_on_one(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(CONFIG)
    (tmp_path / "rank").write_text(RANK)
    (tmp_path / "rank").chmod(0o755)
    options = [
        "--nodes", "1-3", "--ranks-per-node", "2", "--cpus-per-rank", "2", "--out-dir", str(tmp_path),
        f"cluster.python={tmp_path}/rank",
    ]  # fmt: skip
    environ = slurm.env | {"SBATCH_EXPORT": "NONE"}  # a user's setting that would keep all variables from the ranks
    command = [sys.executable, "-m", "hrdc_hpc.launch", "--cfg", f"{tmp_path}/small.yaml", "--partition", "gpu"]
    done = subprocess.run([*command, *options], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the time limit (60 min) must fit the smallest size" in done.stdout
    job = done.stdout.partition("job ")[2].split()[0]

    ranks = seen(tmp_path, "0", 6)
    assert [(rank, of, local, cpus) for rank, of, _, local, cpus in ranks] == [(r, 6, r % 2, 2) for r in range(6)]
    nodes = [node for _, _, node, _, _ in ranks]
    assert len(set(nodes)) == 3
    assert nodes[0::2] == nodes[1::2], "ranks of a node follow each other"

    slurm.run("scontrol", "requeue", job)
    others = slurm.submit("sleep 100", tmp_path, "--partition=gpu", "--nodes=3", "--exclusive")
    slurm.wait_running(others)
    slurm.wait_state(job, {"RUNNING", "COMPLETED"}, 60, restarts=1)
    again = seen(tmp_path, "1", 2)
    slurm.run("scancel", others)
    assert [(rank, of, local, cpus) for rank, of, _, local, cpus in again] == [(0, 2, 0, 2), (1, 2, 1, 2)]
    assert slurm.wait_job(job, 30) == "COMPLETED"
