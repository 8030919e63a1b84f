"""Nodes that are lost, and a controller that restarts, on a SLURM whose nodes have links of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.cluster.ends import read_ends
from hrdc_hpc.cluster.history import history
from hrdc_hpc.cluster.jobs import Job
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

from runs import differing, final_state
from slurm_cluster import Slurm
from slurm_runs import EVERY_STEPS, Lab, logs, pids, repeated_steps, same_as_undisturbed, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def lab(hosts: Slurm, tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Lab:
    """Runs of one node and one rank: a lost one goes on working, alone."""
    return Lab(hosts, tmp_path_factory.mktemp("lost"), digits, ("--nodes", "1", "--ranks-per-node", "1"))


@pytest.fixture(scope="module")
def straight(lab: Lab) -> Path:
    return lab.finished("straight")


def test_a_lost_node_is_replaced_and_its_ghost_cannot_write(lab: Lab, straight: Path) -> None:
    """The node with its link down goes on training on the shared folder; the job that SLURM starts elsewhere wins."""
    run, job = lab.start("lost", "cluster.environment.HRDC_FAULTS=slow@0.3")
    lost = history(run)[0].nodes
    (ghost,) = pids(run)
    lab.slurm.link(lost, "down")
    try:
        lab.slurm.wait_running(job, 120, restarts=1)
        wait_for(lambda: len(history(run)) == 2, run)
        taken_over = history(run)[1].began
        wait_for(lambda: ghost not in pids(run), run, 60)
        assert lab.slurm.wait_job(job, 300) == "COMPLETED", logs(run)
    finally:
        lab.slurm.reconnect(lost)
    first, second = same_as_undisturbed(run, straight, job)
    assert (first.cause, second.cause) == ("refused", "finished")
    assert second.nodes != lost
    assert repeated_steps(run) > 0, "the ghost was at work"
    late = [r for r in read_raw(RunFolder(run)) if r["attempt"] == first.attempt and r["time"] > taken_over]
    assert {r["kind"] for r in late} <= {"end", "phase"}, "neither a checkpoint nor a result"
    ends = read_ends(run, Job("slurm", job))
    assert any("LeaseLost" in end["reason"] for end in ends if end["restart_count"] == 0), ends


def test_a_controller_that_restarts_disturbs_nobody(lab: Lab, straight: Path) -> None:
    """Neither a run, nor its wish to be requeued."""
    run, job = lab.start("controller", "cluster.environment.HRDC_FAULTS=slow@0.1")
    lab.slurm.run("scancel", "--signal=USR2", job)
    lab.slurm.restart("slurmctld")
    assert lab.slurm.wait_job(job, 300) == "COMPLETED", logs(run)
    same_as_undisturbed(run, straight, job)
    assert repeated_steps(run) <= EVERY_STEPS
    assert differing(final_state(straight), final_state(run)) == []
