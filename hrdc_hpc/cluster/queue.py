"""What squeue and sacct say of many jobs at once. Torch-free.

One call for all jobs: the controller serves a whole cluster. `squeue --array` gives each element of an array a row of
its own, also those that pend together as `123_[4-5%2]`: nothing has to be expanded here, nor is a long list cut.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.cluster.jobs import JobState, phase_of

_FIELDS = "%i|%T|%S|%V|%N|%r"
"""Id, state, start, submission, nodes, reason; the reason is last, for it is free text."""
_JOBS_PER_CALL = 500
"""So that the command line does not grow beyond what a kernel takes."""


@dataclass(frozen=True)
class Queued:
    """A job, or an element of an array, that SLURM knows of."""

    job_id: str
    """'123', or '123_4' for an element."""
    state: JobState
    starts: float | None
    """When it started or, of one that waits, when it may start at the earliest; Unix seconds, None: not known."""
    submitted: float | None
    """Unix seconds; of a requeued job, when it was put back."""
    nodes: str
    """SLURM's short form; empty while it waits."""


def ask(job_ids: Collection[str]) -> dict[str, Queued]:
    """Return what squeue knows of jobs by their ids; those that it has forgotten are missing.

    Args:
        job_ids: '123' or '123_4'.

    Raises SchedulerError where there is no SLURM, or it does not answer.
    """
    found: dict[str, Queued] = {}
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids}, key=lambda text: (len(text), text))
    for start in range(0, len(arrays), _JOBS_PER_CALL):
        some = arrays[start : start + _JOBS_PER_CALL]
        try:
            rows = scheduler.call(
                "squeue", "--noheader", "--array", "--states=all", f"--format={_FIELDS}", f"--jobs={','.join(some)}",
                SLURM_TIME_FORMAT="%s",
            )  # fmt: skip
        except scheduler.NoSuchJob:  # all of them are forgotten
            continue
        found |= {row.job_id: row for line in rows.splitlines() if (row := _row(line)) and row.job_id in job_ids}
    return found


def accounted(job_ids: Sequence[str]) -> dict[str, str]:
    """Return sacct's word for the end of jobs, e.g. 'OUT_OF_MEMORY'; nothing where there is no accounting."""
    if not job_ids:
        return {}
    try:
        rows = scheduler.call(
            "sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(job_ids)}"
        )
    except scheduler.SchedulerError:
        return {}
    found = (line.split("|") for line in rows.splitlines() if line.count("|") == 1)
    return {job_id: state for job_id, state in found if job_id in job_ids}


def _row(line: str) -> Queued | None:
    parts = line.strip().split("|", 5)
    if len(parts) < 6:
        return None
    job_id, state, starts, submitted, nodes, reason = parts
    word = state if reason in ("", "None") else f"{state} ({reason})"
    return Queued(job_id, JobState(phase_of(state), word), _seconds(starts), _seconds(submitted), nodes)


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+", text) else None
