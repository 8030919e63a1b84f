"""The main job on a real SLURM: two nodes, one rank each, finished; requeued in the middle, resumed and finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

from runs import differing, final_state
from slurm_cluster import Slurm
from slurm_runs import Lab, logs, repeated_steps, same_as_undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def lab(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Lab:
    return Lab(slurm, tmp_path_factory.mktemp("slurm"), digits)


@pytest.fixture(scope="module")
def finished(lab: Lab) -> Path:
    return lab.finished("straight")


def test_two_nodes_finish(finished: Path) -> None:
    (attempt,) = read_attempts(RunFolder(finished))
    assert attempt["info"]["world_size"] == 2
    assert attempt["info"]["cluster"] == "slurm"
    assert RunFolder(finished).state() == "finished"
    assert str(finished / "code") in logs(finished), "ran from the snapshot"


def test_requeued_run_resumes_and_ends_the_same(finished: Path, lab: Lab) -> None:
    run, job = lab.start("requeued")
    lab.slurm.requeue(job)
    assert lab.slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    same_as_undisturbed(run, finished, job)


def test_warned_run_saves_and_requeues_itself(finished: Path, lab: Lab) -> None:
    """What SLURM sends before the time limit (--signal)."""
    run, job = lab.start("warned")
    lab.slurm.run("scancel", "--signal=USR2", job)
    lab.slurm.wait_running(job, 60, restarts=1)
    assert lab.slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    same_as_undisturbed(run, finished, job)
    assert "SIGUSR2" in read_attempts(RunFolder(run))[1]["previous_end"]
    assert repeated_steps(run) == 0


def test_preempted_run_saves_and_requeues_itself(finished: Path, lab: Lab, tmp_path: Path) -> None:
    """SIGTERM with a grace time; submitit alone would ignore it, and start again from step 0."""
    run, job = lab.start("preempted", "--sbatch", "exclusive")
    urgent = lab.slurm.submit("sleep 5", tmp_path, "--partition=urgent", "--nodes=4", "--exclusive")
    lab.slurm.wait_running(job, 120, restarts=1)
    assert lab.slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    assert lab.slurm.wait_job(urgent, 60) == "COMPLETED"
    same_as_undisturbed(run, finished, job)
    assert "SIGTERM" in read_attempts(RunFolder(run))[1]["previous_end"]
    assert repeated_steps(run) == 0


def test_cancelled_run_saves_and_stays_away_until_it_is_launched_again(finished: Path, lab: Lab) -> None:
    run, job = lab.start("cancelled")
    lab.slurm.run("scancel", job)
    assert lab.slurm.wait_job(job, 120) == "CANCELLED", logs(run)
    assert RunFolder(run).state() == "started"
    saved = final_state(run)["step"]
    assert saved == max(r["step"] for r in read_raw(RunFolder(run)) if r["kind"] == "train")
    again = lab.launch("cancelled", "--wait")
    assert again.returncode == 0, again.stdout + again.stderr + logs(run)
    assert "goes on from its last checkpoint" in again.stdout
    assert differing(final_state(finished), final_state(run)) == []
    assert repeated_steps(run) == 0
