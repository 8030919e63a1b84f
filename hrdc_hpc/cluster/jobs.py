"""The jobs that were submitted for a run, and whether the last one is still there. Torch-free."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.record.folder import RunFolder

Kind = Literal["slurm", "local"]

_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}


@dataclass(frozen=True)
class Job:
    """A job that was handed over; `job_id` of a local one is the process id of its controller."""

    kind: Kind
    job_id: str


@dataclass(frozen=True)
class JobState:
    """Where a job is: waiting, at work, or gone for good; and the scheduler's own word for it."""

    phase: Literal["queued", "running", "gone"]
    word: str


def note_job(run: Path, job: Job) -> None:
    """Remember a submission in logs/jobs.jsonl. Only the holder of the launch writes here."""
    with (RunFolder(run).logs / "jobs.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "kind": job.kind, "job_id": job.job_id}) + "\n")


def last_job(run: Path) -> Job | None:
    """The newest submission of the run; None if there was none."""
    try:
        lines = (RunFolder(run).logs / "jobs.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return None
    entry = json.loads(lines[-1])
    return Job(entry["kind"], entry["job_id"])


def job_state(run: Path, job: Job) -> JobState:
    """Ask the scheduler, or this machine, where the job is. Raises SchedulerError if SLURM does not answer."""
    if job.kind == "local":
        lives = _controller_lives(run, job)
        return JobState("running", "running on this machine") if lives else JobState("gone", "ended")
    try:
        state, reason = scheduler.queue_state(job.job_id)
    except scheduler.NoSuchJob:
        return JobState("gone", "no longer known to SLURM")
    word = state if reason in ("", "None") else f"{state} ({reason})"
    if state in _QUEUED:
        return JobState("queued", word)
    return JobState("running" if state in _RUNNING else "gone", word)


def _controller_lives(run: Path, job: Job) -> bool:
    """Whether the process is there and is this run's controller; numbers come again. A zombie has no command line."""
    with contextlib.suppress(ChildProcessError):  # ours, if this is the launcher that started it: leave no zombie
        os.waitpid(int(job.job_id), os.WNOHANG)
    try:
        words = Path("/proc", job.job_id, "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return os.fsencode(RunFolder(run).logs) in words
