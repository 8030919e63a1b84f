"""slurm/dev-cluster as its README describes it: a real SLURM that requeues and preempts, and that ends whole."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cli
from devcluster.processes import start_time
from devcluster.record import read_record
from devcluster.settings import Folder

from slurm_cluster import GRACE_S, Slurm, dev_cluster, new_folder, traces

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A new folder for a cluster of the test's own."""
    with new_folder() as path:
        yield path


def test_a_step_spans_nodes(slurm: Slurm) -> None:
    names = slurm.run("srun", "--quiet", "--nodes=4", "--ntasks-per-node=1", "printenv", "SLURMD_NODENAME").split()
    assert sorted(names) == ["n1", "n2", "n3", "n4"]


def test_jobs_may_ask_for_memory_or_not(slurm: Slurm) -> None:
    for memory in ([], ["--mem=1G"], ["--mem-per-cpu=100M"]):
        assert slurm.run("srun", "--quiet", "--nodes=2", *memory, "echo", "here").split() == ["here", "here"]


def test_a_batch_job_starts_steps_on_all_its_nodes(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(
        "srun bash -c 'echo $SLURM_PROCID $SLURMD_NODENAME'", tmp_path, "--nodes=2", "--ntasks-per-node=2"
    )
    assert slurm.wait_job(job, 60) == "COMPLETED"
    lines = (tmp_path / f"{job}.out").read_text().splitlines()
    assert sorted(lines) == ["0 n1", "1 n1", "2 n2", "3 n2"]


def test_a_requeued_job_keeps_its_id_and_counts(slurm: Slurm, tmp_path: Path) -> None:
    script = "echo ${SLURM_RESTART_COUNT:-0} >> starts\n[ -e go ] || srun sleep 100"
    job = slurm.submit(script, tmp_path, "--nodes=2")
    slurm.wait_running(job)
    while not (tmp_path / "starts").exists():
        time.sleep(0.1)
    (tmp_path / "go").touch()
    slurm.requeue(job)
    assert slurm.wait_job(job, 60) == "COMPLETED"
    assert (tmp_path / "starts").read_text().split() == ["0", "1"]


def test_an_urgent_job_preempts(slurm: Slurm, tmp_path: Path) -> None:
    """The job hears SIGTERM, has time, and is back after the urgent one."""
    (tmp_path / "step.sh").write_text(
        "trap 'date +%s%N > told; scontrol requeue $SLURM_JOB_ID' TERM; touch ready; sleep 100 & wait; wait\n"
    )
    job = slurm.submit(
        "[ -e told ] && exit 0\nsrun --nodes=1 --ntasks=1 bash step.sh", tmp_path, "--nodes=4", "--exclusive"
    )
    while not (tmp_path / "ready").exists():
        time.sleep(0.1)
    urgent = slurm.submit("date +%s%N > urgent", tmp_path, "--partition=urgent", "--nodes=4", "--exclusive")
    assert slurm.wait_job(urgent, 60) == "COMPLETED"
    assert int((tmp_path / "told").read_text()) < int((tmp_path / "urgent").read_text())
    assert slurm.wait_job(job, 60) == "COMPLETED"
    assert slurm.show(job)["Restarts"] == "1"


def test_the_grace_can_be_taken_away_while_it_runs(slurm: Slurm, tmp_path: Path) -> None:
    """Without grace SLURM itself requeues a job that dies of SIGTERM; with grace it takes it for ended."""
    job = slurm.submit("[ $SLURM_RESTART_COUNT ] && exit 0\nsrun sleep 100", tmp_path, "--nodes=4", "--exclusive")
    slurm.wait_running(job)
    slurm.run("scontrol", "update", "PartitionName=gpu", "GraceTime=0")
    try:
        urgent = slurm.submit("true", tmp_path, "--partition=urgent", "--nodes=4", "--exclusive")
        assert slurm.wait_job(urgent, 60) == "COMPLETED"
    finally:
        slurm.run("scontrol", "update", "PartitionName=gpu", f"GraceTime={GRACE_S}")
    assert slurm.wait_job(job, 60) == "COMPLETED"
    assert slurm.show(job)["Restarts"] == "1"


def test_run_beside_another_cluster_leaves_nothing(slurm: Slurm, folder: Path) -> None:
    said = dev_cluster(
        ["run", f"--dir={folder}", "--nodes=1", "--", "bash", "-c", "sinfo -h -p gpu -o %D/%T; exit 7"], code=7
    )
    assert said == "1/idle\n"
    assert not folder.exists()
    assert traces(folder) == []
    assert len(slurm.run("sinfo", "--noheader", "--Node", "--partition=gpu", "--states=idle").splitlines()) == 4


def test_down_ends_jobs_that_do_not_want_to(folder: Path, tmp_path: Path) -> None:
    dev_cluster(["up", f"--dir={folder}"])
    exported = dev_cluster(["env", f"--dir={folder}"])
    assert exported == f"export SLURM_CONF={folder}/slurm.conf\n"
    (tmp_path / "step.sh").write_text(
        "trap '' TERM HUP\nsetsid env --ignore-environment sleep 1000 &\n"
        "echo $! $$ > pids-$SLURMD_NODENAME\nwait\nsleep 1000\n"
    )
    slurm = Slurm(folder, os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"})
    slurm.submit("trap '' TERM\nsrun bash step.sh", tmp_path, "--nodes=2")
    while len(pids := [int(pid) for path in tmp_path.glob("pids-*") for pid in path.read_text().split()]) < 4:
        time.sleep(0.1)
    said = dev_cluster(["up", f"--dir={folder}"], code=cli.FAILED)
    assert "runs in" in said
    assert "end it first" in said
    started = time.monotonic()
    dev_cluster(["down", f"--dir={folder}"])
    assert time.monotonic() - started < 15
    assert [pid for pid in pids if start_time(pid) is not None] == []
    assert traces(folder) == []
    assert not folder.exists()
    assert "no cluster in" in dev_cluster(["down", f"--dir={folder}"], code=cli.FAILED)


def test_a_cluster_ends_with_its_owner(folder: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as owner:
        dev_cluster(["up", f"--dir={folder}", "--nodes=1", f"--owner={owner.pid}"])
        owner.kill()
    deadline = time.monotonic() + 20
    while traces(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert traces(folder) == []
    assert not folder.exists()


def test_a_killed_supervisor_leaves_nothing_that_down_does_not_end(folder: Path, tmp_path: Path) -> None:
    dev_cluster(["up", f"--dir={folder}", "--nodes=1"])
    slurm = Slurm(folder, os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"})
    job = slurm.submit("echo $$ > pid; sleep 1000", tmp_path)
    slurm.wait_running(job)
    pid, _ = read_record(Folder(folder))["supervisor"]
    os.kill(pid, signal.SIGKILL)
    dev_cluster(["down", f"--dir={folder}"])
    assert traces(folder) == []
    assert not folder.exists()


def test_a_failed_up_says_why_and_leaves_nothing_running(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "slurmd"
    broken.write_text("#!/bin/sh\necho this slurmd is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    said = dev_cluster(["up", f"--dir={folder}"], code=cli.FAILED, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "slurmd-n1" in said
    assert "ended at once" in said
    assert "this slurmd is broken" in said
    assert traces(folder) == []
    dev_cluster(["up", f"--dir={folder}"])  # clears what the failed one left
