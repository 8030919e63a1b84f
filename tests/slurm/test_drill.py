"""A small real drill on a real SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder

from drills import drill
from slurm_cluster import Slurm


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.dali
@pytest.mark.timeout(400)
def test_a_drill_on_slurm(tmp_path: Path, digits: Path, slurm: Slurm) -> None:
    place = ("--partition", "gpu", "--urgent-partition", "urgent", "cluster.nodes=2", "cluster.ranks_per_node=1")
    kinds = ("--kills", "4", "--kinds", "kill-rank,preempt,cancel,damaged-checkpoint", "--seed", "1")
    told = drill(tmp_path / "out", digits, *place, *kinds, env=dict(slurm.env))
    assert "4 faults of 4 kinds survived: 0 runs lost" in told["verdict"]
    ended = {fault["kind"]: fault["outcome"] for fault in told["faults"]}
    assert (ended["preempt"], ended["cancel"]) == ("preempted", "cancelled")
    assert ended["kill-rank"] in ("killed", "ended before it began"), "its moment may fall before the attempt"
    jobs = [attempt["info"]["job_id"] for attempt in read_attempts(RunFolder(tmp_path / "out" / "drill-1"))]
    assert len(set(jobs)) == 2, "only what was cancelled was launched again"
    assert told["slurm"]
