"""What a cluster does to a run, on a real SLURM: it comes back finished, with the weights of an undisturbed run.

Nobody but the job itself and SLURM acts: tests only disturb, and spare it the two minutes that SLURM lets a requeued
job wait.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hrdc_hpc.cluster.history import history
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics, read_raw

from runs import differing, final_state, learnt
from slurm_cluster import Slurm
from slurm_runs import EVERY_STEPS, Lab, logs, pids, repeated_steps, same_as_undisturbed, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(600)]


@contextmanager
def grace(slurm: Slurm, seconds: int) -> Iterator[None]:
    """Another GraceTime of the partition for a while."""
    slurm.run("scontrol", "update", "PartitionName=gpu", f"GraceTime={seconds}")
    try:
        yield
    finally:
        slurm.run("scontrol", "update", "PartitionName=gpu", "GraceTime=20")


# preemption, 2 nodes x 2 ranks


@pytest.fixture(scope="module")
def lab_of_four(lab: Lab) -> Lab:
    return replace(lab, shape=("--nodes", "2", "--ranks-per-node", "2", "--sbatch", "exclusive"))


@pytest.fixture(scope="module")
def straight_of_four(lab_of_four: Lab) -> Path:
    return lab_of_four.finished("straight-4")


@pytest.mark.parametrize("grace_s", [15, 0])
def test_preempted_by_a_higher_priority(lab_of_four: Lab, straight_of_four: Path, grace_s: int, tmp_path: Path) -> None:
    """With a grace nothing is repeated; without one at most what was not saved."""
    slurm = lab_of_four.slurm
    with grace(slurm, grace_s):
        run, job = lab_of_four.start(f"preempted-{grace_s}")
        urgent = slurm.submit("sleep 1", tmp_path, "--partition=urgent", "--nodes=4", "--exclusive")
        assert slurm.wait_job(urgent, 120) == "COMPLETED"
        assert slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    first, *_ = same_as_undisturbed(run, straight_of_four, job)
    assert int(slurm.show(job)["Restarts"]) >= 1
    assert first.cause == "preempted" if grace_s else first.cause in ("preempted", "node lost")
    assert repeated_steps(run) <= (0 if grace_s else EVERY_STEPS)
    print(f"grace {grace_s} s: ended as {first.cause}, {repeated_steps(run)} steps repeated")


# what leaves no time


def test_a_killed_rank_comes_back(lab: Lab, straight: Path) -> None:
    run, job = lab.start("killed")
    (victim,) = pids(run, rank=1)
    os.kill(victim, signal.SIGKILL)
    assert lab.slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    first, *_ = same_as_undisturbed(run, straight, job)
    assert first.cause == "killed", first
    assert repeated_steps(run) <= EVERY_STEPS + 1
    assert "a rank was killed by SIGKILL" in first.words


def test_a_hanging_rank_is_found_out(lab: Lab, straight: Path) -> None:
    """Its peer's watchdog leaves, srun ends the rank that stands still, the batch script requeues."""
    run, job = lab.start("hanging", "guard.watchdog_min_s=4", "guard.watchdog_factor=5")
    (victim,) = pids(run, rank=1)
    os.kill(victim, signal.SIGSTOP)
    assert lab.slurm.wait_job(job, 300) == "COMPLETED", logs(run)
    first, *_ = same_as_undisturbed(run, straight, job)
    assert first.cause == "hung", first
    assert repeated_steps(run) <= EVERY_STEPS + 1
    stacks = list((run / "logs").glob("stacks-*"))
    assert stacks
    assert "Thread" in stacks[0].read_text()


def test_time_limits_are_met_without_a_signal(lab: Lab, straight: Path) -> None:
    """Twice: the run knows when its job ends, how long a step takes and how long a save."""
    slow = ("cluster.environment.HRDC_FAULTS=slow@0.4", "--time", "1", "--signal-delay", "0")
    run, job = lab.submit("limited", *slow)
    assert lab.slurm.wait_job(job, 500) == "COMPLETED", logs(run)
    stories = same_as_undisturbed(run, straight, job)
    assert [story.cause for story in stories[:2]] == ["time limit"] * 2
    assert repeated_steps(run) == 0
    for story in stories:
        assert story.ended - story.began < 60, "SLURM's limit"


def test_a_node_that_fails_its_check_is_kept_away_from(lab: Lab, straight: Path) -> None:
    run, job = lab.submit("unhealthy", "cluster.environment.HRDC_FAULTS=unhealthy@n1")
    assert lab.slurm.wait_job(job, 300) == "COMPLETED", logs(run)
    assert RunFolder(run).state() == "finished"
    stories = history(run)
    assert [story.cause for story in stories] == ["bad node", "finished"]
    assert "n1" in lab.slurm.expand(stories[0].nodes)
    assert "n1" not in lab.slurm.expand(stories[1].nodes)
    assert lab.slurm.show(job)["ExcNodeList"] == "n1"
    assert differing(final_state(straight), final_state(run)) == []


@pytest.mark.parametrize(("fault", "outcome"), [("nan@25:rank=1#once", "transient"), ("nan@25:rank=1", "skipped")])
def test_a_loss_that_is_not_a_number(lab: Lab, straight: Path, fault: str, outcome: str) -> None:
    """Done again once: what does not come again leaves no trace in the weights, what does is left out and told."""
    run, job = lab.submit(f"nan-{outcome}", f"cluster.environment.HRDC_FAULTS={fault}")
    assert lab.slurm.wait_job(job, 300) == "COMPLETED", logs(run)
    assert RunFolder(run).state() == "finished"
    told = [record for record in read_raw(RunFolder(run)) if record["kind"] == "nonfinite"]
    assert [record["outcome"] for record in told] == ["replaying", outcome], told
    same = differing(final_state(straight), final_state(run)) == []
    assert same == (outcome == "transient")


def test_a_chain_needs_no_requeue(lab: Lab, straight: Path) -> None:
    """For sites that allow none: the next link goes on, and the last one has nothing to do."""
    run, first = lab.submit("chain", "--chain", "3")
    second, last = (str(int(first) + more) for more in (1, 2))
    wait_for(lambda: bool(checkpoint.list_checkpoints(run / "checkpoints")), run)
    lab.slurm.run("scancel", "--signal=USR2", first)
    for link, state in ((first, "FAILED"), (second, "COMPLETED"), (last, "COMPLETED")):
        assert lab.slurm.wait_job(link, 240) == state, logs(run)
    assert [(story.job_id, story.cause) for story in history(run)] == [(first, "stopped"), (second, "finished")]
    assert differing(final_state(straight), final_state(run)) == []
    assert learnt(run) == learnt(straight)
    assert repeated_steps(run) == 0


def test_a_range_of_nodes_takes_what_there_is(lab: Lab, straight: Path, tmp_path: Path) -> None:
    """Started on 3 nodes, preempted, started again on the one that is left: the same images in the same order."""
    slurm, shape = lab.slurm, ("--nodes", "1-3", "--ranks-per-node", "1", "--sbatch", "exclusive")
    idle = ("sinfo", "--noheader", "--Node", "--partition=gpu", "--states=idle")
    wait_for(lambda: len(slurm.run(*idle).splitlines()) == 4, straight)
    run, job = replace(lab, shape=shape).start("malleable")
    urgent = slurm.submit("sleep 900", tmp_path, "--partition=urgent", "--nodes=3", "--exclusive")
    assert slurm.wait_job(job, 300) == "COMPLETED", logs(run)
    slurm.run("scancel", urgent)
    assert [story.world_size for story in history(run)] == [3, 1]
    assert [story.job_id for story in history(run)] == [job, job]
    assert repeated_steps(run) == 0
    assert samples(run) == samples(straight)


def samples(run: Path) -> list[str]:
    """Hash of the images, crops and flips of every step's global batch."""
    return [record["samples"] for record in read_metrics(RunFolder(run)) if record["kind"] == "train"]
