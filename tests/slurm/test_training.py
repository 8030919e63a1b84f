"""The main job on a real SLURM: two nodes, one rank each, finished; requeued in the middle, resumed and finished."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hrdc_hpc.engine import checkpoint
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

from runs import differing, final_state, learnt
from slurm_cluster import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(600)]

OVERRIDES = ("optim.epochs=20", "checkpoint.every_steps=10", "log.every_steps=1", "eval.every_epochs=3")


def launch(slurm: Slurm, out: Path, digits: Path, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    """`python -m hrdc_hpc.launch --partition gpu --nodes 2 --cfg digits_lt.yaml ...` as a user types it."""
    command = [
        sys.executable, "-m", "hrdc_hpc.launch", "--partition", "gpu", "--nodes", "2", "--ranks-per-node", "1",
        "--cfg", "digits_lt.yaml", "--name", name, "--out-dir", str(out),
        f"data.dataset.root={digits}", *OVERRIDES, *more,
    ]  # fmt: skip
    return subprocess.run(command, env=slurm.env, check=False, capture_output=True, text=True, timeout=300)


def logs(run: Path) -> str:
    return "\n".join(
        f"--- {file.name}\n{file.read_text(errors='replace')}" for file in sorted((run / "logs").glob("*.out"))
    )


@pytest.fixture(scope="module")
def finished(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    out = tmp_path_factory.mktemp("slurm")
    ended = launch(slurm, out, digits, "straight", "--wait")
    assert ended.returncode == 0, ended.stdout + ended.stderr + logs(out / "straight")
    assert "balanced test accuracy" in ended.stdout
    return out / "straight"


def test_two_nodes_finish(finished: Path) -> None:
    (attempt,) = read_attempts(RunFolder(finished))
    assert attempt["info"]["world_size"] == 2
    assert attempt["info"]["cluster"] == "slurm"
    assert RunFolder(finished).state() == "finished"
    assert str(finished / "code") in logs(finished), "ran from the snapshot"


def start(slurm: Slurm, finished: Path, digits: Path, name: str, *more: str) -> tuple[Path, str]:
    """Launch, and return run folder and job id once the first checkpoint is there."""
    run = finished.parent / name
    submitted = launch(slurm, finished.parent, digits, name, *more)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    job = re.search(r"job (\d+)", submitted.stdout)
    assert job, submitted.stdout
    deadline = time.monotonic() + 120
    while not checkpoint.list_checkpoints(run / "checkpoints"):
        assert time.monotonic() < deadline, logs(run)
        time.sleep(0.02)
    return run, job[1]


def repeated_steps(run: Path) -> int:
    """Steps that were trained more than once."""
    steps = [r["step"] for r in read_raw(RunFolder(run)) if r["kind"] == "train"]
    return len(steps) - len(set(steps))


def same_as_undisturbed(run: Path, finished: Path, job: str) -> None:
    attempts = read_attempts(RunFolder(run))
    assert len(attempts) >= 2, "it was over before it could be disturbed"
    assert [a["info"]["job_id"] for a in attempts] == [job] * len(attempts)
    assert [a["info"]["restart_count"] for a in attempts] == list(range(len(attempts)))
    assert RunFolder(run).state() == "finished", logs(run)
    assert differing(final_state(finished), final_state(run)) == []
    assert learnt(run) == learnt(finished)


def test_requeued_run_resumes_and_ends_the_same(finished: Path, slurm: Slurm, digits: Path) -> None:
    run, job = start(slurm, finished, digits, "requeued")
    slurm.requeue(job)
    assert slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    same_as_undisturbed(run, finished, job)


def test_warned_run_saves_and_requeues_itself(finished: Path, slurm: Slurm, digits: Path) -> None:
    """What SLURM sends before the time limit (--signal)."""
    run, job = start(slurm, finished, digits, "warned")
    slurm.run("scancel", "--signal=USR2", job)
    slurm.wait_running(job, 60, restarts=1)
    assert slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    same_as_undisturbed(run, finished, job)
    assert "SIGUSR2" in read_attempts(RunFolder(run))[1]["previous_end"]
    assert repeated_steps(run) == 0


def test_preempted_run_saves_and_requeues_itself(finished: Path, slurm: Slurm, digits: Path, tmp_path: Path) -> None:
    """SIGTERM with a grace time; submitit alone would ignore it, and start again from step 0."""
    run, job = start(slurm, finished, digits, "preempted", "--sbatch", "exclusive")
    urgent = slurm.submit("sleep 5", tmp_path, "--partition=urgent", "--nodes=4", "--exclusive")
    slurm.wait_running(job, 120, restarts=1)
    assert slurm.wait_job(job, 240) == "COMPLETED", logs(run)
    assert slurm.wait_job(urgent, 60) == "COMPLETED"
    same_as_undisturbed(run, finished, job)
    assert "SIGTERM" in read_attempts(RunFolder(run))[1]["previous_end"]
    assert repeated_steps(run) == 0


def test_cancelled_run_saves_and_stays_away_until_it_is_launched_again(
    finished: Path, slurm: Slurm, digits: Path
) -> None:
    run, job = start(slurm, finished, digits, "cancelled")
    slurm.run("scancel", job)
    assert slurm.wait_job(job, 120) == "CANCELLED", logs(run)
    assert RunFolder(run).state() == "started"
    saved = final_state(run)["step"]
    assert saved == max(r["step"] for r in read_raw(RunFolder(run)) if r["kind"] == "train")
    again = launch(slurm, finished.parent, digits, "cancelled", "--wait")
    assert again.returncode == 0, again.stdout + again.stderr + logs(run)
    assert "goes on from its last checkpoint" in again.stdout
    assert differing(final_state(finished), final_state(run)) == []
    assert repeated_steps(run) == 0
