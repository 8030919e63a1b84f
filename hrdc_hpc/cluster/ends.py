"""Why processes left: logs/ends.jsonl, one line for each rank that did not simply finish. Torch-free.

A rank that is killed cannot write; the local controller or SLURM's accounting knows of it, and its peers' errors are
here.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster.jobs import Job
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record.files import json_lines
from hrdc_hpc.record.folder import RunFolder


def note_end(run: Path, *, job_id: str, rank: int | None, code: int, reason: str, **more: str | int) -> None:
    """Append one line with a single write(2), so that ranks do not mix theirs; a full disk must not hide the cause.

    Args:
        run: the run folder.
        job_id: id of the job.
        rank: which rank; None for the job as a whole.
        code: exit code, or minus the number of the signal that killed it.
        reason: one line.
        more: further fields.
    """
    entry = {"time": time.time(), "job_id": job_id, "rank": rank, "host": socket.gethostname(), "code": code}
    line = json.dumps({**entry, "reason": reason, **more}) + "\n"
    try:
        descriptor = os.open(_path(run), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        os.write(2, f"cannot write {_path(run)}: {error}\n{line}".encode())


def note_rank_end(run: Path, place: Place, code: int, reason: str, **more: str | int) -> None:
    """Append the end of one rank; further fields as for note_end."""
    start = int(place.job.get("restart_count", 0))
    job_id = str(place.job["job_id"])
    note_end(run, job_id=job_id, rank=place.rank, code=code, reason=reason, restart_count=start, **more)


def read_ends(run: Path, job: Job) -> list[dict[str, Any]]:
    """All ends of a job, oldest first; torn lines are left out.

    A local job's id is a process id, which comes again: what was written before the job began is another's. Nodes of a
    cluster have clocks of their own, and its job ids do not come again.
    """
    try:
        entries = json_lines(_path(run).read_bytes())
    except FileNotFoundError:
        return []
    since = job.since if job.kind == "local" else 0.0
    return [entry for entry in entries if entry.get("job_id") == job.job_id and entry["time"] >= since]


def log_path(run: Path, job_id: str, rank: int = 0) -> Path:
    """Output of a rank (submitit's name for it); all attempts under one job id append to the same file."""
    return RunFolder(run).logs / f"{job_id}_{rank}_log.out"


def _path(run: Path) -> Path:
    return RunFolder(run).logs / "ends.jsonl"
