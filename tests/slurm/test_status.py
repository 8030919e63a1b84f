"""Status of jobs on a real SLURM: waiting, running, requeued, finished; elements of an array."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.cluster.jobs import Job, last_job, note_job

from attempts import empty_run
from slurm_cluster import SETTLE_S, Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]


def status(slurm: Slurm, *arguments: str | Path) -> dict[str, dict[str, Any]]:
    """What `status --json` tells, by the run's name."""
    told = json.loads(slurm.run(sys.executable, "-m", "hrdc_hpc.status", "--json", *arguments))
    assert told["slurm"] in ("asked", "not needed"), told["slurm"]
    return {Path(run["run"]).name: run for run in told["runs"]}


def wait(slurm: Slurm, run: Path, fits: Callable[[dict[str, Any]], bool], timeout_s: float = 90) -> dict[str, Any]:
    """The run's row as soon as it fits."""
    deadline = time.monotonic() + timeout_s
    while not fits(row := status(slurm, run)[run.name]):
        assert time.monotonic() < deadline, row
        time.sleep(0.4)
    return row


@pytest.mark.dali
def test_a_run_from_the_queue_to_its_end(slurm: Slurm, tmp_path: Path, digits: Path) -> None:
    run = tmp_path / "runs" / "one"
    command = [
        sys.executable, "-m", "hrdc_hpc.launch", "--partition", "gpu", "--cfg", "digits_lt.yaml", "--name", "one",
        "--out-dir", str(run.parent), "--sbatch", "begin=now+1hour", f"data.dataset.root={digits}",
        "optim.epochs=15", "checkpoint.every_steps=20", "log.every_steps=1", "eval.every_epochs=10",
    ]  # fmt: skip
    subprocess.run(command, env=slurm.env, check=True, capture_output=True, text=True, timeout=60)
    job = last_job(run)
    assert job is not None
    try:
        row = status(slurm, run)["one"]
        assert (row["state"], row["word"], row["job_id"]) == ("queued", "PENDING (BeginTime)", job.job_id)
        assert 3000 < row["may_start"] - time.time() < 3700
        slurm.run("scontrol", "update", f"JobId={job.job_id}", "StartTime=now")
        row = wait(slurm, run, lambda row: row["state"] == "running")
        assert (row["doing"], row["attempt"], row["nodes"]) == ("starting up", None, "n1")
        row = wait(slurm, run, lambda row: row["doing"] == "training" and row["saved_step"])
        assert row["steps"] == 180
        slurm.run("scontrol", "requeue", job.job_id)
        row = wait(slurm, run, lambda row: row["state"] == "requeued")
        assert row["word"] == "PENDING (BeginTime)"
        assert 60 < row["may_start"] - time.time() < 180
        time.sleep(SETTLE_S)
        slurm.run("scontrol", "update", f"JobId={job.job_id}", "StartTime=now")
        row = wait(slurm, run, lambda row: row["state"] == "running")
        assert (row["doing"], row["attempts"]) == ("starting up", 1)
        row = wait(slurm, run, lambda row: row["state"] == "finished", 120)
    finally:
        slurm.run("scancel", job.job_id, check=False)
    assert (row["step"], row["attempts"], row["saved_step"]) == (180, 2, 180)
    seconds = row["goodput"]["seconds"]
    assert sum(seconds.values()) == pytest.approx(row["attempts_list"][-1]["ended"] - job.since, abs=0.5)
    assert seconds["queue"] > SETTLE_S
    assert min(seconds["training"], seconds["startup"]) > 1
    page = slurm.run(sys.executable, "-m", "hrdc_hpc.status", run)
    assert "goodput" in page
    log = slurm.run(sys.executable, "-m", "hrdc_hpc.status", "logs", run, "--attempt", "1", "--lines", "1000")
    assert f"job {job.job_id} start 1\n" in log
    assert f"job {job.job_id} start 0\n" not in log


def test_elements_of_an_array_each_have_their_state(slurm: Slurm, tmp_path: Path) -> None:
    """squeue shows those that pend as one row: 12_[3-5%2]."""
    script = "[ $SLURM_ARRAY_TASK_ID = 0 ] && exit 1; sleep 300"
    array = slurm.submit(script, tmp_path, "--array=0-5%2", "--partition=gpu", "--no-requeue")
    out = tmp_path / "runs"
    try:
        for n in range(6):
            note_job(empty_run(out, f"e{n}"), Job("slurm", f"{array}_{n}", time.time()))
        deadline = time.monotonic() + 60
        wanted = {"e0": "lost", "e1": "running", "e2": "running", "e3": "queued", "e4": "queued", "e5": "queued"}
        while (states := {name: row["state"] for name, row in status(slurm, "--out-dir", out).items()}) != wanted:
            assert time.monotonic() < deadline, states
            time.sleep(0.5)
        rows = status(slurm, "--out-dir", out)
        assert "FAILED" in rows["e0"]["word"]
        assert rows["e4"]["word"] == "PENDING (JobArrayTaskLimit)"
        said = slurm.run(sys.executable, "-m", "hrdc_hpc.status", "cancel", "--out-dir", out, "e4")
        assert f"job {array}_4 cancelled while waiting" in said
        states = {name: row["state"] for name, row in status(slurm, "--out-dir", out).items()}
        assert (states["e3"], states["e4"], states["e5"]) == ("queued", "stopped", "queued")
    finally:
        slurm.run("scancel", array, check=False)
