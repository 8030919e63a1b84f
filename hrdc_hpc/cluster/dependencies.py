"""Jobs that wait for others: `--after RUN|SWEEP|JOB`, and the links of a chain. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster import find_runs, scheduler, sweep
from hrdc_hpc.cluster.jobs import job_state, job_states, last_job
from hrdc_hpc.cluster.runs import resubmit_command
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.cluster.sweep import Sweep
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.folder import RunFolder


def on(after: str | None) -> str | None:
    """Return sbatch's words for 'once that has ended well'; None if there is nothing to wait for (any more).

    Args:
        after: the folder of a run, or of a sweep, or the id of a job.

    Raises:
        ValueError: it is neither, or it has ended otherwise, or runs on this machine.
    """
    if after is None:
        return None
    if re.fullmatch(r"\d+(_\d+)?", after) and not Path(after).exists():
        _refuse_if_unknown(after)
        return f"afterok:{after}"
    run = Path(after).absolute()
    if sweep.is_sweep(run):
        return _on_sweep(sweep.read(run))
    if not (run / "config.yaml").is_file():
        raise ValueError(
            f"--after: {after!r} is neither the id of a job nor the folder of a run (no config.yaml) or"
            f" sweep{find_runs.hint(after)}"
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


@dataclass(frozen=True)
class Waits:
    """What the arrays of a sweep wait for."""

    words: str | None
    """Of each of them, but for those in `each`; None: nothing."""
    each: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    """By the names of an array's elements: that element i waits for element i of another array."""

    def of(self, names: Iterable[str]) -> str | None:
        """Return sbatch's words for the array of these elements."""
        return self.each.get(tuple(names), self.words)


def of_sweep(after: str | None, names: Sequence[str]) -> Waits:
    """Return what the elements of a sweep, by name, wait for: after a sweep of as many, each for its counterpart.

    Only where the arrays are the same: SLURM pairs indices. Elsewhere all wait for all. Raises ValueError as `on`.
    """
    words = on(after)
    if words is None or after is None or not sweep.is_sweep(Path(after)):
        return Waits(words)
    there = sweep.read(Path(after).absolute())
    if len(there.elements) != len(names):
        return Waits(words)
    counterpart = {element.name: name for element, name in zip(there.elements, names, strict=True)}
    return Waits(
        words,
        {
            tuple(counterpart[name] for name in array["elements"]): f"aftercorr:{array['job_id']}"
            for array in there.arrays
            if _is_whole(there, array)
        },
    )


def _on_sweep(there: Sweep) -> str | None:
    """Words for 'once all elements have ended well'; whole arrays by their id."""
    runs = [there.run(element) for element in there.elements if RunFolder(there.run(element)).state() != "finished"]
    if not runs:
        return None
    jobs = {run: last_job(run) for run in runs}
    if new := [run.name for run, job in jobs.items() if job is None or job.kind == "local"]:
        raise ValueError(
            f"--after: {there.path} has elements that SLURM was not given, {new[0]} for one; submit them first:"
            f" {resubmit_command(there.path)}"
        )
    known = {run: job for run, job in jobs.items() if job is not None}
    try:
        states = job_states(known)
    except SchedulerError:  # sbatch will ask it again
        states = {}
    if gone := [run.name for run, state in states.items() if state.phase == "gone"]:
        raise ValueError(
            f"--after: {there.path} has elements that ended without finishing, {gone[0]} for one; go on with them:"
            f" {resubmit_command(there.path)}"
        )
    whole = [str(array["job_id"]) for array in there.arrays if _is_whole(there, array)]
    single = [job.job_id for job in known.values() if job.job_id.partition("_")[0] not in whole]
    return "afterok:" + ":".join([*whole, *single])


def _is_whole(there: Sweep, array: Mapping[str, Any]) -> bool:
    """Whether all elements of an array are still its own, and none is finished: SLURM may have forgotten that."""
    for index, name in enumerate(array["elements"]):
        job = last_job(there.path / name)
        if (
            job is None
            or job.job_id != f"{array['job_id']}_{index}"
            or RunFolder(there.path / name).state() == "finished"
        ):
            return False
    return True


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
