"""A preemption, met by plain submitit and by this package: how many steps are done twice.

    slurm/dev-cluster run --nodes 4 --grace 15 -- .venv/bin/python -m benchmarks.preemption [--record records]

Both run on two nodes of two ranks and are preempted in the middle by a job of the partition `urgent`, which sends
SIGTERM and leaves the grace that the partition has. Plain submitit runs the pattern of its documentation: a callable
that holds its progress, with a `checkpoint` method that submits it again. Its steps only count, each a tenth of a
second: what is shown is which signal it acts on, not how fast it is. Needs SLURM_CONF of a cluster where both
partitions are idle.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor

from benchmarks.report import write
from hrdc_hpc.cluster import scheduler
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.machine import describe
from hrdc_hpc.record.metrics import read_raw

STEPS, STEP_S, PREEMPT_AT = 300, 0.1, 40
_SETTLE_S = 5.0
"""A requeued job is let alone for so long before its two minutes in the queue are cut short."""
COLUMNS = ("", "starts", "steps done twice", "second start at step", "what it said of SIGTERM")


@dataclass
class Counting:
    """A training that only counts; rank 0 writes each step down."""

    out: str
    step: int = 0

    def __call__(self) -> int:
        """Go on from `step` to the end."""
        rank = submitit.JobEnvironment().global_rank
        while self.step < STEPS:
            time.sleep(STEP_S)
            self.step += 1
            if rank == 0:
                with Path(self.out).open("a") as file:
                    file.write(f"{self.step}\n")
        return self.step

    def checkpoint(self) -> DelayedSubmission:
        """Submit the same object again, with the progress that it holds."""
        return DelayedSubmission(self)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="preemption.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--record", type=Path, help="folder for preemption_<hardware>_<date>.json and .md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hrdc-preemption-") as folder:
        report: dict[str, Any] = {
            "machine": describe(), "arguments": [], "slurm": scheduler.call("sinfo", "--version").strip(),
            "submitit": submitit.__version__, "plain submitit": plain(Path(folder)), "hrdc_hpc": ours(Path(folder)),
        }  # fmt: skip
    sys.stdout.write(json.dumps({name: report[name] for name in ("plain submitit", "hrdc_hpc")}, indent=1) + "\n")
    if options.record:
        write_record(options.record, report)
    return 0


def plain(folder: Path) -> dict[str, Any]:
    """Preempt a job of plain submitit; what became of it."""
    steps = folder / "steps"
    executor = SlurmExecutor(folder / "plain")
    executor.update_parameters(
        partition="gpu", nodes=2, ntasks_per_node=2, cpus_per_task=1, time=30, signal_delay_s=90, wckey=None,
        stderr_to_stdout=True, additional_parameters={"requeue": True, "exclusive": True},
    )  # fmt: skip
    job = executor.submit(Counting(str(steps)))
    disturb(job.job_id, lambda: len(_numbers(steps)) >= PREEMPT_AT)
    done = _numbers(steps)
    starts = [0, *(i for i in range(1, len(done)) if done[i] <= done[i - 1])]
    log = (folder / "plain" / f"{job.job_id}_0_log.out").read_text()
    said = re.search(r"Bypassing signal SIGTERM", log)
    return {
        "starts": len(starts),
        "steps": STEPS,
        "done_twice": len(done) - len(set(done)),
        "second_start": done[starts[1]] - 1 if len(starts) > 1 else None,
        "said": said[0] if said else "nothing",
    }


def ours(folder: Path) -> dict[str, Any]:
    """Preempt a run of this package; what became of it."""
    command = [
        sys.executable, "-m", "hrdc_hpc.launch", "--partition", "gpu", "--nodes", "2", "--ranks-per-node", "2",
        "--sbatch", "exclusive", "--cfg", "digits_lt.yaml", "--name", "run", "--out-dir", str(folder),
        f"data.dataset.root={folder / 'digits'}", "optim.epochs=20", "log.every_steps=1", "checkpoint.every_steps=1000",
    ]  # fmt: skip
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    job = re.search(r"job (\d+)", told)
    assert job, told
    run = folder / "run"
    disturb(job[1], lambda: len(_steps(run)) >= PREEMPT_AT)
    steps = _steps(run)
    attempts = [record for record in read_raw(RunFolder(run)) if record["kind"] == "train"]
    second = [record["step"] for record in attempts if record["attempt"] == 1]
    log = (run / "logs" / f"{job[1]}_0_log.out").read_text()
    said = re.search(r"is requeued: .*", log)
    return {
        "starts": 1 + max((record["attempt"] for record in attempts), default=0),
        "steps": max(steps, default=0),
        "done_twice": len(steps) - len(set(steps)),
        "second_start": min(second) - 1 if second else None,
        "said": re.sub(r" at .*", "", said[0]) if said else "nothing",
    }


def disturb(job_id: str, at: Callable[[], bool]) -> None:
    """Preempt a job once it is far enough, and wait for its end; a requeue's two minutes are cut short."""
    _wait(at, 300)
    scheduler.call("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    pending_since: float | None = None
    deadline = time.monotonic() + 600
    while (state := scheduler.show_job(job_id)["JobState"]) not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"job {job_id} is still {state} after 10 minutes")
        pending_since = (pending_since or time.monotonic()) if state == "PENDING" else None
        if pending_since and time.monotonic() - pending_since > _SETTLE_S:
            scheduler.call("scontrol", "update", f"JobId={job_id}", "StartTime=now")
        time.sleep(0.5)


def _wait(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the run did not come so far within {seconds:.0f} s")
        time.sleep(0.1)


def _numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _steps(run: Path) -> list[int]:
    return [record["step"] for record in read_raw(RunFolder(run)) if record["kind"] == "train"]


def write_record(folder: Path, report: dict[str, Any]) -> None:
    """Write the page and the figures."""
    rows = [
        (name, str(it["starts"]), f"{it['done_twice']} of {it['steps']}", str(it["second_start"]), str(it["said"]))
        for name in ("plain submitit", "hrdc_hpc")
        for it in [report[name]]
    ]
    write(
        folder, "preemption", report, module="benchmarks.preemption",
        title="A preemption, met by plain submitit and by this package", columns=COLUMNS, rows=rows,
        notes=[
            f"{report['slurm']} (slurm/dev-cluster run --nodes 4 --grace 15), submitit {report['submitit']}."
            " Two nodes of two ranks each, once each, preempted by a job of a higher-priority partition.",
            "Plain submitit acts on SIGUSR2 only; the SIGTERM of PreemptMode=REQUEUE passes by, and the job that SLURM"
            " starts again begins with the pickle of its first submission.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
