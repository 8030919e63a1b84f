"""The main job on a real SLURM: two nodes, one rank each, finished; requeued in the middle, resumed and finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

from runs import differing, final_state
from slurm_runs import Lab, logs, repeated_steps, same_as_undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(600)]


def test_two_nodes_finish(straight: Path) -> None:
    (attempt,) = read_attempts(RunFolder(straight))
    assert attempt["info"]["world_size"] == 2
    assert attempt["info"]["cluster"] == "slurm"
    assert RunFolder(straight).state() == "finished"
    assert str(straight / "code") in logs(straight), "ran from the snapshot"


def test_requeued_run_resumes_and_ends_the_same(straight: Path, lab: Lab) -> None:
    run, job = lab.start("requeued")
    lab.slurm.requeue(job)
    assert lab.slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    same_as_undisturbed(run, straight, job)


def test_warned_run_saves_and_requeues_itself(straight: Path, lab: Lab) -> None:
    """What SLURM sends before the time limit (--signal)."""
    run, job = lab.start("warned")
    lab.slurm.run("scancel", "--signal=USR2", job)
    lab.slurm.wait_running(job, 60, restarts=1)
    assert lab.slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    same_as_undisturbed(run, straight, job)
    assert "SIGUSR2" in read_attempts(RunFolder(run))[1]["previous_end"]
    assert repeated_steps(run) == 0


def test_preempted_run_saves_and_requeues_itself(straight: Path, lab: Lab, tmp_path: Path) -> None:
    """SIGTERM with a grace time; submitit alone would ignore it, and start again from step 0."""
    run, job = lab.start("preempted", "--sbatch", "exclusive")
    urgent = lab.slurm.submit("sleep 5", tmp_path, "--partition=urgent", "--nodes=4", "--exclusive")
    lab.slurm.wait_running(job, 120, restarts=1)
    assert lab.slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    assert lab.slurm.wait_job(urgent, 60) == "COMPLETED"
    same_as_undisturbed(run, straight, job)
    assert "SIGTERM" in read_attempts(RunFolder(run))[1]["previous_end"]
    assert repeated_steps(run) == 0


def test_cancelled_run_saves_and_stays_away_until_it_is_launched_again(straight: Path, lab: Lab) -> None:
    run, job = lab.start("cancelled")
    lab.slurm.run("scancel", job)
    assert lab.slurm.wait_job(job, 120) == "CANCELLED", logs(run)
    assert RunFolder(run).state() == "started"
    saved = final_state(run)["step"]
    assert saved == max(r["step"] for r in read_raw(RunFolder(run)) if r["kind"] == "train")
    again = lab.launch("cancelled", "--wait")
    assert again.returncode == 0, again.stdout + again.stderr + logs(run)
    assert "goes on from its last checkpoint" in again.stdout
    assert differing(final_state(straight), final_state(run)) == []
    assert repeated_steps(run) == 0
