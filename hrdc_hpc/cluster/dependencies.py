"""Jobs that wait for others: `--after RUN|JOB`, and the links of a chain. Torch-free."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hrdc_hpc.cluster import find_runs, scheduler
from hrdc_hpc.cluster.jobs import job_state, last_job
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.folder import RunFolder


def on(after: str | None) -> str | None:
    """Return sbatch's words for 'once that has ended well'; None if there is nothing to wait for (any more).

    Args:
        after: a run folder, or the id of a job.

    Raises:
        ValueError: it is neither, or it has ended otherwise, or runs on this machine.
    """
    if after is None:
        return None
    if re.fullmatch(r"\d+(_\d+)?", after) and not Path(after).exists():
        _refuse_if_unknown(after)
        return f"afterok:{after}"
    run = Path(after).absolute()
    if not (run / "config.yaml").is_file():
        raise ValueError(
            f"--after: {after!r} is neither the id of a job nor a run folder (no config.yaml){find_runs.hint(after)}"
        )
    if RunFolder(run).state() == "finished":
        return None
    job = last_job(run)
    if job is None or job.kind == "local":
        where = "runs on this machine alone, and SLURM cannot wait for it" if job else "was not launched yet"
        raise ValueError(f"--after: {run} {where}; launch it first, on SLURM")
    try:
        state = job_state(run, job)
    except SchedulerError:  # sbatch will ask it again
        return f"afterok:{job.job_id}"
    if state.phase == "gone":
        raise ValueError(
            f"--after: {run} is not finished, and its job {job.job_id} has ended ({state.word}); go on with it first:"
            f" launch --resume {run}"
        )
    return f"afterok:{job.job_id}"


def _refuse_if_unknown(job_id: str) -> None:
    """SLURM takes a dependency on a job that it does not know for one that is met: the new job would start at once."""
    with suppress(SchedulerError):  # a controller that does not answer now is asked again by sbatch
        try:
            scheduler.queue_state(job_id)
        except scheduler.NoSuchJob:
            raise ValueError(
                f"--after: SLURM knows no job {job_id} (any more), so there is nothing to wait for. Give an id that"
                " squeue shows, or the folder of a run; or leave --after out to start at once"
            ) from None


def waiting(config: RunConfig, dependency: str | None) -> RunConfig:
    """Return the config of a job that waits; one that can never start is removed from the queue, not left there."""
    if dependency is None:
        return config
    if given := config.cluster.sbatch.get("dependency"):
        dependency = f"{given},{dependency}"
    return _with(config, {"dependency": dependency, "kill-on-invalid-dep": "yes"})


def link(config: RunConfig, dependency: str | None) -> RunConfig:
    """Return the config of a link of a chain: what would be a requeue is the next link."""
    return waiting(_with(config, {"no-requeue": True}), dependency)


def _with(config: RunConfig, options: dict[str, str | int | bool]) -> RunConfig:
    return replace(config, cluster=replace(config.cluster, sbatch={**config.cluster.sbatch, **options}))
