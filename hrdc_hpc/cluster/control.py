"""Telling a run to save, to stop, or to leave the queue. Torch-free."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from hrdc_hpc.cluster import queue, scheduler
from hrdc_hpc.cluster.ends import note_end
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.jobs import all_jobs
from hrdc_hpc.cluster.overview import Overview
from hrdc_hpc.cluster.runs import Refused
from hrdc_hpc.cluster.signals import SAVE_FILE, STOP_FILE
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import peek

_AGAIN = "the same launch command goes on from there"


def cancel(row: Overview) -> str:
    """Cancel all jobs of a run; returns what happens now.

    Raises Refused if there is nothing to cancel, SchedulerError if SLURM does not take it.
    """
    run = Path(row.run)
    _refuse_if_over(row, "cancelled")
    jobs = all_jobs(run)
    if jobs and jobs[-1].kind == "local":
        return _end_process(run, int(jobs[-1].job_id), f"job {jobs[-1].job_id} on this machine")
    ids = [job.job_id for job in jobs if job.kind == "slurm"] or ([row.job_id] if row.job_id else [])
    if ids:
        there = ids
        if len(ids) > 1 or row.state == "unknown":  # else the row's state is that of the one job, just asked
            there = [found.job_id for found in queue.ask(ids).values() if found.state.phase != "gone"]
        if not there:
            raise Refused(f"{run}: none of its jobs is in the queue any more; nothing was cancelled")
        scheduler.call("scancel", *there)
        what = f"job{'s'[: len(there) > 1]} {', '.join(there)} cancelled"
        if row.state == "running":
            return f"{what}: it saves first, ends, and is not requeued; {_AGAIN}"
        for job_id in there:  # SLURM forgets it in minutes
            words = "cancelled while it waited"
            note_end(run, job_id=job_id, rank=None, code=Exit.DO_NOT_REQUEUE, reason=words, cause="cancelled")
        saved = f"what was saved up to step {row.saved_step} stays; {_AGAIN}" if row.saved_step else "nothing was lost"
        return f"{what} while waiting: {saved}"
    holder = peek(RunFolder(run))
    if holder is None or holder.host != socket.gethostname():
        where = f"; it is held by {holder}" if holder else ""
        raise Refused(f"{run}: it was not started by a launch, so end it where it runs{where}")
    return _end_process(run, holder.pid, str(holder))


def switch(row: Overview, name: str) -> str:
    """Leave the file that tells a run to save, or to save and stop; returns what happens now.

    Args:
        row: the run.
        name: 'save' or 'stop'.

    Raises Refused for a run that does not run: it would not see the file.
    """
    assert name in (SAVE_FILE, STOP_FILE)
    _refuse_if_over(row, "told to " + name)
    waiting = row.state in ("queued", "requeued")
    if waiting and name == STOP_FILE:
        raise Refused(f"{row.run} waits in the queue; take it out with: python -m hrdc_hpc.status cancel {row.run}")
    if waiting:
        raise Refused(f"{row.run} waits in the queue: there is nothing new to save")
    Path(row.run, name).touch()
    if name == SAVE_FILE:
        return "it saves at the next step, and goes on"
    return f"it saves at the next step and ends, and is not requeued; {_AGAIN}"


def _refuse_if_over(row: Overview, what: str) -> None:
    if row.state == "finished":
        raise Refused(f"{row.run} is finished: there is nothing to be {what}")
    if row.state in ("stopped", "failed", "lost", "prepared"):
        why = f": {row.word}" if row.word else ""
        raise Refused(f"{row.run} is {row.state}{why}; nothing of it runs or waits, so nothing was {what}")


def _end_process(run: Path, pid: int, who: str) -> str:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        raise Refused(f"{run}: {who} is gone; nothing was cancelled") from None
    return f"{who} was told to stop: it saves first, then ends; {_AGAIN}"
