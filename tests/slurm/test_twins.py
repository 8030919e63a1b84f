"""The plain sbatch twins: real jobs, also requeued and with a killed rank, and in step with what launch submits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hrdc_hpc.cluster import teardown
from hrdc_hpc.cluster.history import history
from hrdc_hpc.drill.hit import ranks_by_environ
from hrdc_hpc.engine.checkpoint_files import list_checkpoints
from hrdc_hpc.record.folder import RunFolder

from runs import differing, final_state, learnt
from slurm_cluster import DEV_CLUSTER, Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(300)]

TWINS = [DEV_CLUSTER.parent / name for name in ("train.sbatch", "array.sbatch")]


def prepare(slurm: Slurm, out: Path, digits: Path, name: str) -> Path:
    """`launch --prepare` as in the scripts' heads."""
    slurm.run(
        sys.executable, "-m", "hrdc_hpc.launch", "--prepare", "--cfg", "digits_lt.yaml", "--name", name,
        "--out-dir", out, f"data.dataset.root={digits}", "optim.epochs=20", "checkpoint.every_steps=10",
        "log.every_steps=1", "eval.every_epochs=5",
    )  # fmt: skip
    return out / name


def sbatch(slurm: Slurm, twin: Path, out: Path, argument: Path, *options: str) -> str:
    environ = dict(slurm.env) | {"PYTHON": sys.executable, "RANKS_PER_NODE": "2"}
    command = ["sbatch", "--parsable", "--partition=gpu", "--mincpus=2", *options, str(twin), str(argument)]
    done = subprocess.run(command, env=environ, cwd=out, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def logs(out: Path) -> str:
    files = [*sorted(out.glob("*.out")), *sorted(out.glob("*/logs/*_log.out"))]
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')}" for file in files)


def wait_for_checkpoint(run: Path, more_than: int = 0) -> None:
    deadline = time.monotonic() + 60
    while len(list_checkpoints(run / "checkpoints")) <= more_than:
        assert time.monotonic() < deadline, logs(run.parent)
        time.sleep(0.02)


def test_a_run_is_warned_and_loses_a_rank_and_ends_under_the_same_job(
    slurm: Slurm, digits: Path, tmp_path: Path
) -> None:
    """SIGUSR2 requeues it from rank 0, SIGKILL of a rank from the batch script."""
    run = prepare(slurm, tmp_path, digits, "one")
    job = sbatch(slurm, TWINS[0], tmp_path, run)
    wait_for_checkpoint(run)
    slurm.run("scancel", "--signal=USR2", job)
    slurm.wait_running(job, 60, restarts=1)
    there = len(list_checkpoints(run / "checkpoints"))
    deadline = time.monotonic() + 60
    while not (ranks := ranks_by_environ(job, 1, run)) or len(history(run)) < 2:
        assert time.monotonic() < deadline, logs(tmp_path)
        time.sleep(0.1)
    assert there
    os.kill(ranks[1], signal.SIGKILL)
    assert slurm.wait_state(job, {"COMPLETED", "FAILED"}, 120, restarts=2) == "COMPLETED", logs(tmp_path)
    assert [(story.job_id, story.world_size, story.cause) for story in history(run)] == [
        (job, 2, "time limit"), (job, 2, "killed"), (job, 2, "finished"),
    ]  # fmt: skip
    assert RunFolder(run).state() == "finished"


def test_an_array_trains_the_runs_of_a_list_the_same(slurm: Slurm, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "with a blank"
    runs = [prepare(slurm, out, digits, name) for name in ("a", "b")]
    (tmp_path / "runs.txt").write_text("".join(f"{run}\n" for run in runs))
    job = sbatch(slurm, TWINS[1], tmp_path, tmp_path / "runs.txt", "--array=1-2")
    for element in (1, 2):
        assert slurm.wait_job(f"{job}_{element}", 120) == "COMPLETED", logs(tmp_path)
    assert [history(run)[0].job_id for run in runs] == [f"{job}_1", f"{job}_2"]
    assert differing(*map(final_state, runs)) == []
    assert learnt(runs[0]) == learnt(runs[1])


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_what_comes_after_srun_is_what_launch_submits(twin: Path) -> None:
    ours = "\n".join(teardown.after_srun('"$run"', '"$python"'))
    theirs = twin.read_text()
    for part in (r"rc=\$\?", r"for pause(.|\n)*exit \$rc"):
        found = re.search(part, ours)
        assert found, part
        assert found[0] in theirs
    assert teardown.TRAP in theirs
    assert f"{teardown.TRAP_AT_FIRST}\n" in theirs
