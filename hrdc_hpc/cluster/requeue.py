"""After a stop whose checkpoint is on disk: does the job come back? Rank 0 alone decides. Torch-free."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.engine.place import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """Whether to ask SLURM for a requeue, and why."""

    requeue: bool
    why: str


def decide(reasons: Iterable[str], job: Mapping[str, str]) -> Decision:
    """Decide from what was received, and from `scontrol show job` if that included SIGTERM (else it is not looked at).

    SIGUSR2 and SIGUSR1 alone are a warning of the time limit or of preemption. SIGTERM is also what scancel sends, and
    a cancelled job that requeues itself would not obey its user: that takes SLURM's word that it was preempted or timed
    out.
    """
    if "SIGTERM" not in reasons:
        return Decision(True, "time limit or preemption")
    if job.get("PreemptTime", "None") not in ("None", "Unknown", "N/A", ""):
        return Decision(True, f"preempted at {job['PreemptTime']}")
    if job.get("Reason") == "TimeLimit" or job.get("JobState") == "TIMEOUT":
        return Decision(True, "time limit")
    return Decision(False, "cancelled (SIGTERM without preemption)")


def after_stop(reasons: Iterable[str], place: Place) -> Exit:
    """Requeue the job if it should come back; the exit code to leave with.

    Called once every rank's part of the checkpoint is committed. Outside SLURM whoever started the process reads the
    code. Where SLURM cannot be asked or refuses (--no-requeue), the code still says REQUEUE, for a chain to act on.
    """
    reasons = tuple(reasons)
    if place.job.get("cluster") != "slurm":
        log.info("stopped by %s and saved: start the run again to go on", ", ".join(reasons))
        return Exit.REQUEUE
    job_id = str(place.job["job_id"])
    try:
        decision = decide(reasons, _show_job(job_id) if "SIGTERM" in reasons else {})
        if not decision.requeue:
            log.info("job %s is not requeued: %s; saved, and the same launch command resumes", job_id, decision.why)
            return Exit.DO_NOT_REQUEUE
        scheduler.requeue(job_id)
        log.info("job %s is requeued: %s", job_id, decision.why)
    except scheduler.SchedulerError as error:
        log.error("job %s could not be requeued (%s); saved, and the same launch command resumes", job_id, error)
    return Exit.REQUEUE


def _show_job(job_id: str, tries: int = 3, pause_s: float = 2.0) -> dict[str, str]:
    for left in reversed(range(tries)):
        try:
            return scheduler.show_job(job_id)
        except scheduler.NoSuchJob:
            raise
        except scheduler.SchedulerError:
            if not left:
                raise
            time.sleep(pause_s)
    raise AssertionError("unreachable")
