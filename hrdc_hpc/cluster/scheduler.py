"""What SLURM says of a job, and asking it to requeue one; by its command-line programs. Torch-free."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable

from hrdc_hpc.cluster.signals import shielded

TIMEOUT_S = 20
"""How long one call may take; a busy controller answers in seconds."""


_IN_THE_QUEUE = "Job is pending execution"
"""scontrol's words for ESLURM_JOB_PENDING."""


class SchedulerError(RuntimeError):
    """SLURM cannot be asked, or refused."""


class NoSuchJob(SchedulerError):
    """SLURM does not know the job (any more)."""


def call(program: str, *args: str, **environ: str) -> str:
    """Run a SLURM program, shielded from stop signals; its standard output. Raises SchedulerError, NoSuchJob.

    `environ`: variables that it gets besides this process's own, e.g. SLURM_TIME_FORMAT='%s'.
    """
    path = shutil.which(program)
    if path is None:
        raise SchedulerError(f"{program} is not on the PATH")
    command = f"{program} {' '.join(args)}"
    try:
        with shielded():
            done = subprocess.run(
                [path, *args], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
                env=os.environ | environ,
            )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(f"{command}: {error}") from error
    if done.returncode == 0:
        return done.stdout
    kind = NoSuchJob if "invalid job id" in done.stderr.lower() else SchedulerError
    raise kind(f"{command}: {done.stderr.strip() or f'exit code {done.returncode}'}")


def show_job(job_id: str) -> dict[str, str]:
    """`scontrol show job`, e.g. {'JobState': 'RUNNING', 'PreemptTime': 'None', ...}; the first of a key's values."""
    fields: dict[str, str] = {}
    for key, value in re.findall(r"(\S+?)=(\S*)", call("scontrol", "--oneliner", "show", "job", job_id)):
        fields.setdefault(key, value)
    return fields


def queue_state(job_id: str) -> tuple[str, str]:
    """State and reason of a job, e.g. ('PENDING', 'Resources'). Raises NoSuchJob once SLURM has forgotten it."""
    lines = call("squeue", "--noheader", "--states=all", "--format=%T|%r", f"--jobs={job_id}").splitlines()
    if not lines:
        raise NoSuchJob(f"job {job_id} is not in the queue")
    state, _, reason = lines[0].strip().partition("|")
    return state, reason


def queue_states(job_ids: Iterable[str]) -> dict[str, tuple[str, str]]:
    """States and reasons of jobs, by one question for all; jobs that SLURM has forgotten are left out.

    `job_ids`: of jobs and of array elements ('12_3'), all of whose siblings are in the answer too.
    """
    asked = ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))
    if not asked:
        return {}
    try:
        text = call("squeue", "--noheader", "--states=all", "--array", "--format=%F_%K|%T|%r", f"--jobs={asked}")
    except NoSuchJob:
        return {}
    found = {}
    for line in text.splitlines():
        job_id, state, reason = line.strip().split("|", 2)
        found[job_id.removesuffix("_N/A")] = (state, reason)
    return found


def jobs_of_mine() -> int:
    """Return how many jobs of this user are queued or running; each element of an array counts."""
    return len(call("squeue", "--me", "--noheader", "--array", "--format=%i").splitlines())


def requeue(job_id: str, tries: int = 4, pause_s: float = 2.0) -> None:
    """Put a running job back into the queue; asks again while the controller restarts. Raises SchedulerError.

    One that SLURM has put there already is no error: 24.11 does so with a preempted job before its grace is over.
    """
    for left in reversed(range(tries)):
        try:
            call("scontrol", "requeue", job_id)
        except NoSuchJob:
            raise
        except SchedulerError as error:
            if _IN_THE_QUEUE in str(error):
                return
            if not left:
                raise
            time.sleep(pause_s)
        else:
            return
