"""The jobs that were submitted for a run, and whether the last one is still there. Torch-free."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.record.files import append_durably, json_lines
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import peek

Kind = Literal["slurm", "local"]
Phase = Literal["queued", "running", "gone"]

_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}


@dataclass(frozen=True)
class Job:
    """A job that was handed over; `job_id` of a local one is the process id of its controller."""

    kind: Kind
    job_id: str
    since: float = 0.0
    """Unix seconds, on the clock of the launcher: it did not exist before. Process ids of local jobs come again."""


@dataclass(frozen=True)
class JobState:
    """Where a job is: waiting, at work, or gone for good; and the scheduler's own word for it."""

    phase: Phase
    word: str


_FORGOTTEN = JobState("gone", "no longer known to SLURM")


def note_submitting(run: Path, kind: Kind) -> None:
    """Write down, durably, that a job is about to be handed over. Only the holder of the launch writes here."""
    _note(run, {"event": "submitting", "kind": kind})


def note_job(run: Path, job: Job, chain: str | None = None) -> None:
    """Write down the job that was taken; `chain`: the first job of the dependency chain that it is a link of."""
    entry = {"event": "submitted", "kind": job.kind, "job_id": job.job_id, "since": job.since}
    _note(run, entry if chain is None else {**entry, "chain": chain})


def note_refusal(run: Path, why: str) -> None:
    """Write down that the job was not taken."""
    _note(run, {"event": "refused", "why": why})


def last_job(run: Path) -> Job | None:
    """The newest submission of the run; None if there was none."""
    taken = all_jobs(run)
    return taken[-1] if taken else None


def all_jobs(run: Path) -> list[Job]:
    """Every job that was taken, oldest first: a chain has several in the queue at once."""
    taken = (entry for entry in _entries(run) if entry.get("event") == "submitted")
    return [Job(entry["kind"], entry["job_id"], entry["since"]) for entry in taken]


def jobs_of_launch(run: Path, job_id: str) -> list[str]:
    """Ids of the jobs that were submitted together with this one, itself among them, in order: a chain's links."""
    taken = [entry for entry in _entries(run) if entry.get("event") == "submitted"]
    chain = next((entry.get("chain") for entry in reversed(taken) if entry["job_id"] == job_id), None)
    return [entry["job_id"] for entry in taken if entry.get("chain") == chain] if chain else [job_id]


def jobs_of_last_launch(run: Path) -> list[Job]:
    """The newest job, of a chain all links, in order; empty if there was none."""
    taken = all_jobs(run)
    links = jobs_of_launch(run, taken[-1].job_id) if taken else []
    return [job for job in taken[-len(links) :] if job.job_id in links]


def chained_after(run: Path, job_id: str) -> list[str]:
    """Ids of a chain's links after this one."""
    links = jobs_of_launch(run, job_id)
    return links[links.index(job_id) + 1 :]


def cut_off(run: Path) -> bool:
    """Whether the last launch was killed while it submitted: nobody wrote down if its job was taken."""
    entries = _entries(run)
    return bool(entries) and entries[-1].get("event") == "submitting"


def _note(run: Path, entry: dict[str, Any]) -> None:
    _path(run).parent.mkdir(exist_ok=True)
    append_durably(_path(run), (json.dumps({"time": time.time(), **entry}) + "\n").encode())


def _entries(run: Path) -> list[dict[str, Any]]:
    try:
        return list(json_lines(_path(run).read_bytes()))
    except FileNotFoundError:
        return []


def _path(run: Path) -> Path:
    return RunFolder(run).logs / "jobs.jsonl"


def job_state(run: Path, job: Job) -> JobState:
    """Ask the scheduler, or this machine, where the job is. Raises SchedulerError if SLURM does not answer."""
    if job.kind == "local":
        if _controller_lives(run, job):
            return JobState("running", "running on this machine")
        holder = peek(RunFolder(run))
        if holder is not None and holder.job.get("cluster") == "local" and holder.job.get("job_id") == job.job_id:
            return JobState("running", "stopping, because its controller was killed")
        return JobState("gone", "ended")
    try:
        return _slurm_state(*scheduler.queue_state(job.job_id))
    except scheduler.NoSuchJob:
        return _FORGOTTEN


def job_states(jobs: Mapping[Path, Job]) -> dict[Path, JobState]:
    """Where the jobs of several runs are, by run folder; SLURM is asked once. Raises SchedulerError."""
    answer = scheduler.queue_states(job.job_id for job in jobs.values() if job.kind == "slurm")
    found = {}
    for run, job in jobs.items():
        if job.kind == "local":
            found[run] = job_state(run, job)
        else:
            found[run] = _slurm_state(*answer[job.job_id]) if job.job_id in answer else _FORGOTTEN
    return found


def _slurm_state(state: str, reason: str) -> JobState:
    word = state if reason in ("", "None") else f"{state} ({reason})"
    return JobState(phase_of(state), word)


def phase_of(state: str) -> Phase:
    """Where a job in SLURM's state `state`, in full, is."""
    if state in _QUEUED:
        return "queued"
    return "running" if state in _RUNNING else "gone"


def _controller_lives(run: Path, job: Job) -> bool:
    """Whether the process is there and is this run's controller; numbers come again. A zombie has no command line."""
    with contextlib.suppress(ChildProcessError):  # ours, if this is the launcher that started it: leave no zombie
        os.waitpid(int(job.job_id), os.WNOHANG)
    try:
        words = Path("/proc", job.job_id, "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return os.fsencode(RunFolder(run).logs) in words
