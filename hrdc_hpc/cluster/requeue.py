"""After a stop whose checkpoint is on disk: does the job come back? Rank 0 alone decides. Torch-free."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.history import Cause, Story, starts, stillborn
from hrdc_hpc.cluster.jobs import jobs_of_launch
from hrdc_hpc.cluster.policy import NEVER, Verdict, verdict
from hrdc_hpc.cluster.signals import STOPPED_BY_FILE
from hrdc_hpc.config.load import loads
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record.attempts import NO_FAREWELL
from hrdc_hpc.record.folder import RunFolder

log = logging.getLogger(__name__)


class RequeuesUsedUp(ValueError):
    """The job came back as often as cluster.requeue allows."""


NOT_PREEMPTED = ("None", "Unknown", "N/A", "")
"""What scontrol shows as PreemptTime of a job that is not being preempted."""


@dataclass(frozen=True)
class End:
    """How an attempt that saved ended."""

    code: Exit
    cause: Cause
    words: str


def cause_of_stop(reasons: Iterable[str], job: Mapping[str, str]) -> tuple[Cause, str]:
    """Return why a job was told to stop, and a line; from what was received and from `scontrol show job`.

    SIGUSR2 and SIGUSR1 are a warning of the time limit or of preemption. SIGTERM is also what scancel sends, and a
    cancelled job that requeues itself would not obey its user: that takes SLURM's word that it was preempted or timed
    out, or that the job simply runs. Then srun sent it, because a peer has failed, or somebody's kill: 'stopped'.
    """
    if STOPPED_BY_FILE in reasons:
        return "stop file", "stopped by the file `stop`; remove it and launch again to go on"
    if job.get("PreemptTime", "None") not in NOT_PREEMPTED:
        return "preempted", f"preempted at {job['PreemptTime']}"
    if "SIGTERM" not in reasons or job.get("Reason") == "TimeLimit" or job.get("JobState") == "TIMEOUT":
        return "time limit", "time limit"
    if job.get("JobState") == "RUNNING":  # scancel makes it COMPLETING before its signal is there
        return "stopped", "stopped by SIGTERM, though SLURM has not ended the job: a peer has failed?"
    return "cancelled", "cancelled (SIGTERM without preemption)"


def after_stop(reasons: Iterable[str], run: Path, place: Place) -> End:
    """Requeue the job if it should come back; what to leave with.

    Called once every rank's part of the checkpoint is committed. Outside SLURM whoever started the process reads the
    code. Where SLURM cannot be asked or refuses (--no-requeue, a container without scontrol), the code still says
    REQUEUE, for the batch script or a chain to act on.
    """
    reasons = tuple(reasons)
    if place.job.get("cluster") != "slurm":
        return _outside_slurm(reasons)
    job_id = str(place.job["job_id"])
    try:
        shown = _show(job_id, sure="SIGTERM" in reasons)
        restart = int(place.job.get("restart_count", 0))
        if has_requeued(shown, restart):
            return End(Exit.REQUEUE, "preempted", "SLURM has requeued it: preempted without a grace, or by scontrol")
        cause, words = cause_of_stop(reasons, shown)
        if cause == "stopped":  # the batch script sees how srun ended, and knows better
            return End(Exit.REQUEUE, cause, words)
        judged = judge_after(run, job_id, restart, cause)
        if not judged.comes_back:
            log.info("job %s is not requeued: %s; saved, and the same launch command resumes", job_id, judged.why)
            return End(Exit.DO_NOT_REQUEUE, cause, f"{words}; not requeued: {judged.why}")
        scheduler.requeue(job_id)
        log.info("job %s is requeued: %s", job_id, words)
    except scheduler.SchedulerError as error:
        log.error("job %s could not be requeued (%s); saved, and the same launch command resumes", job_id, error)
        return End(Exit.REQUEUE, "stopped", f"stopped by {reasons[0]}; could not be requeued: {error}")
    return End(Exit.REQUEUE, cause, words)


def judge_after(run: Path, job_id: str, restart: int, cause: Cause | None = None) -> Verdict:
    """Judge the starts of this launch of a run, once one has ended.

    Args:
        run: the run folder.
        job_id: of the job or array element.
        restart: its restart count.
        cause: of this start's end, where its own records cannot know it.
    """
    stories = starts(run, jobs_of_launch(run, job_id))
    if not any((story.job_id, story.restart_count) == (job_id, restart) for story in stories):
        stories.append(stillborn(job_id, restart, cause or "failed", "ended before it began"))
    if cause is None and stories[-1].cause == "running":
        cause = "killed"  # srun has ended; its lease has not expired yet
    if cause is not None:
        stories[-1] = replace(stories[-1], cause=cause)
    return judge(run, stories)


def judge_start(run: Path, job_id: str) -> Verdict:
    """Judge before an attempt begins, by the starts before it.

    A chain's next link does not go on where the one before would not have come back. Within one job a person may have
    requeued what would not: then only the caps count.
    """
    stories = starts(run, jobs_of_launch(run, job_id))
    if stories and stories[-1].job_id == job_id:
        if stories[-1].cause in NEVER:
            return Verdict(True, "requeued by a person")
        if stories[-1].words == NO_FAREWELL or stories[-1].cause == "running":
            # and now it starts again; on a node that is cut off it may still be at work
            stories[-1] = replace(stories[-1], cause="node lost")
    elif stories and stories[-1].cause == "running":
        stories[-1] = replace(stories[-1], cause="killed")  # the link before has ended; its lease has not expired yet
    return judge(run, stories)


def judge(run: Path, stories: Sequence[Story]) -> Verdict:
    """Judge by the caps in the run's config."""
    cluster = loads(RunFolder(run).config.read_text(), str(RunFolder(run).config)).cluster
    return verdict(stories, cluster.requeue, on_gpus=cluster.gpus_per_node > 0)


def has_requeued(shown: Mapping[str, str], restart: int) -> bool:
    """Whether SLURM has put the job back into the queue since it started: it counts at once."""
    return int(shown.get("Restarts") or 0) > restart


def _outside_slurm(reasons: Sequence[str]) -> End:
    if STOPPED_BY_FILE in reasons:
        cause, words = cause_of_stop(reasons, {})
        return End(Exit.DO_NOT_REQUEUE, cause, words)
    log.info("stopped by %s and saved: start the run again to go on", ", ".join(reasons))
    return End(Exit.REQUEUE, "time limit" if reasons[0] == "time limit" else "stopped", f"stopped by {reasons[0]}")


def _show(job_id: str, *, sure: bool, tries: int = 3, pause_s: float = 2.0) -> dict[str, str]:
    """`scontrol show job`; without an answer empty, unless it takes one to be `sure`: then SchedulerError."""
    for left in reversed(range(tries)):
        try:
            return scheduler.show_job(job_id)
        except scheduler.NoSuchJob:
            raise
        except scheduler.SchedulerError:
            if not sure:
                return {}
            if not left:
                raise
            time.sleep(pause_s)
    raise AssertionError("unreachable")
