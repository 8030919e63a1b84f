"""What tests do with a cluster of slurm/dev-cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEV_CLUSTER = Path(__file__).resolve().parents[2] / "slurm" / "dev-cluster"

SETTLE_S = 5.0
"""Of the two minutes that SLURM gives a requeued job's processes to end, what tests leave."""
ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
}


@dataclass(frozen=True)
class Slurm:
    """A running cluster, with nodes n1, n2, ..."""

    folder: Path
    env: Mapping[str, str]
    """Environment for commands: SLURM_CONF set, nothing of an outer SLURM."""

    def run(self, *command: str | Path, check: bool = True, timeout: float = 120, cwd: Path | None = None) -> str:
        """Output and errors of a command; AssertionError with them where it fails, unless `check` is off."""
        done = subprocess.run(
            command, env=self.env, cwd=cwd, timeout=timeout, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def submit(self, script: str, folder: Path, *options: str) -> str:
        """Id of a new batch job, whose output goes to `folder`/ID.out (appended to after a requeue)."""
        text = folder / "job.sh"
        text.write_text(f"#!/bin/bash\n{script}\n")
        out = ["--open-mode=append", f"--output={folder}/%A.out", f"--chdir={folder}"]
        return self.run("sbatch", "--parsable", *out, *options, text).split()[-1]  # behind warnings

    def show(self, job_id: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        text = self.run("scontrol", "--oneliner", "show", "job", job_id)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait_state(self, job_id: str, states: set[str], timeout: float, *, restarts: int = 0) -> str:
        """The job's state once it is one of `states`, after `restarts` requeues at least.

        A requeued job that waits out its two minutes is started at once.
        """
        deadline = time.monotonic() + timeout
        pending_since: float | None = None
        while True:
            job = self.show(job_id)
            if job["JobState"] in states and int(job["Restarts"]) >= restarts:
                return job["JobState"]
            if job["JobState"] == "PENDING" and int(job["Restarts"]) > 0:
                pending_since = pending_since or time.monotonic()
                # not at once: the end of the start before, if it comes in late, would be taken for this one's
                if time.monotonic() - pending_since > SETTLE_S:
                    self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now", check=False)
            else:
                pending_since = None
            assert time.monotonic() < deadline, f"job {job_id} not {states} within {timeout} s, but {job}"
            time.sleep(0.2)

    def wait_job(self, job_id: str, timeout: float) -> str:
        """The state in which the job ended: COMPLETED, FAILED, CANCELLED, ..."""
        return self.wait_state(job_id, ENDED, timeout)

    def wait_running(self, job_id: str, timeout: float = 60, *, restarts: int = 0) -> None:
        """Return once the job runs."""
        self.wait_state(job_id, {"RUNNING"}, timeout, restarts=restarts)

    def requeue(self, job_id: str, timeout: float = 60) -> None:
        """Requeue a running job, and return once it runs again."""
        restarts = int(self.show(job_id)["Restarts"]) + 1
        self.run("scontrol", "requeue", job_id)
        self.wait_state(job_id, {"RUNNING", *ENDED}, timeout, restarts=restarts)


def clean_environment() -> dict[str, str]:
    """The environment without an outer SLURM's variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN_"))}


def dev_cluster(arguments: list[str], code: int = 0, **environ: str) -> str:
    """Output and errors of slurm/dev-cluster; AssertionError with them if it does not end with `code`."""
    done = subprocess.run(
        [sys.executable, DEV_CLUSTER, *arguments], env=os.environ | environ, timeout=120, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == code, f"dev-cluster {arguments} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout
