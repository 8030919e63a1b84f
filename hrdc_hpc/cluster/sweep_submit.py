"""Handing the elements of a sweep to SLURM, as few arrays. Torch-free."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from hrdc_hpc.cluster import array, dependencies, limits, runs, scheduler, snapshot, submission, sweep
from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.dependencies import Waits
from hrdc_hpc.cluster.jobs import Job, note_job, note_refusal, note_submitting
from hrdc_hpc.cluster.signals import terminal_waits
from hrdc_hpc.cluster.sweep import Sweep
from hrdc_hpc.cluster.sweep_members import Asked, Member
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.lease import Lease
from hrdc_hpc.record.manifest import collect


def arrays(asked: Sweep, members: Sequence[Member]) -> Iterator[tuple[RunConfig, list[Member], array.Part]]:
    """Yield what is submitted: config with the sweep's name, members and part; `after` counts over all that is yielded.

    Elements that ask for different things (one was launched by itself with a longer time limit) are different arrays.
    """
    limit, number = limits.array_limit(), 0
    for cluster in dict.fromkeys(repr(member.config.cluster) for member in members):
        group = [member for member in members if repr(member.config.cluster) == cluster]
        config = replace(group[0].config, name=asked.path.name)
        parts = array.parts(len(group), config.cluster.array_parallelism, limit)
        for part in parts:
            after = None if part.after is None else number + part.after
            yield config, group[part.first : part.first + part.count], replace(part, after=after)
        number += len(parts)


def next_number(path: Path) -> int:
    """Return the number of the next array; a folder that a refused one left is not used again."""
    taken = [int(folder.name) for folder in (path / "arrays").glob("[0-9]*")]
    return max(taken, default=0) + 1


@contextmanager
def claimed(asked: Sweep) -> Iterator[tuple[Sweep, Lease]]:
    """Have the launch of the sweep to ourselves; makes its folder, or adds to it. Yields it as it is written down,
    and the claim, which whoever keeps it for long must renew.

    A folder that this launch made is removed again if the block ends in an error before an array was handed over.
    """
    made = sweep.make(asked)
    claim = runs.claim_launch(asked.path)
    try:
        there = sweep.extended(sweep.read(asked.path), asked)
        sweep.write(there)
        if not (there.code / "hrdc_hpc" / "__init__.py").is_file():
            snapshot.take(there.code)
        elif not made:
            for note in runs.other_code(there.code):
                say(note)
        yield there, claim
    except BaseException:
        left = [path for path in asked.path.iterdir() if (path / "config.yaml").is_file()]
        if made and not left:
            runs.discard(asked.path)
        raise
    finally:
        claim.release()


def submit(
    asked: Sweep, members: Sequence[Member], command: Sequence[str], waits: Waits, *, prepare_only: bool
) -> None:
    """Claim the sweep and the elements, bring their folders up to date, submit.

    Args:
        asked: the sweep as it is to be.
        members: elements to submit.
        command: for the manifests.
        waits: what must have ended before.
        prepare_only: submit nothing.
    """
    manifest = functools.cache(lambda: collect(command))
    with claimed(asked) as (there, _), ExitStack() as claims:
        ask, todo = Asked(members), []
        for member in members:
            found = claims.enter_context(runs.claimed(member.config, member.run, manifest, ask))
            if found.state == "finished":  # since we looked
                continue
            for note in runs.prepare(found, member.config, there.code):
                say(note)
            todo.append(member)
        if prepare_only:
            say(f"prepared {there.path}; submit it with: {runs.resubmit_command(there.path)}")
            return
        submit_arrays(there, within_limit(there, todo), waits)
        say(f"sweep folder: {there.path}")


def within_limit(there: Sweep, members: list[Member]) -> list[Member]:
    """As many as may be queued; says how the others get their turn."""
    limit = limits.submit_limit()
    if limit is None:
        return members
    limit -= scheduler.jobs_of_mine()
    if len(members) <= limit:
        return members
    if limit <= 0:
        raise submission.SubmissionRefused(
            "your association may have no more jobs in the queue (MaxSubmitJobs); once some have ended:"
            f" {runs.resubmit_command(there.path)}"
        )
    say(
        f"only {limit} more jobs may be queued (MaxSubmitJobs): the first {limit} elements are submitted. For the other"
        f" {len(members) - limit}, once those have ended: {runs.resubmit_command(there.path)}"
    )
    return members[:limit]


def submit_arrays(there: Sweep, members: Sequence[Member], waits: Waits) -> Sweep:
    """Submit claimed and prepared elements as few arrays; the sweep with these, as it is written down.

    Raises SubmissionRefused; what was taken before is written down.
    """
    job_ids: list[str] = []
    for asks, group, part in arrays(there, members):
        number = next_number(there.path)
        after = None if part.after is None else job_ids[part.after]
        config = dependencies.waiting(asks, waits.of(member.element.name for member in group))
        with terminal_waits():  # jobs that were taken must be written down
            try:
                jobs = _submit_one(config, group, array.links_folder(there.path, number), part, after)
            except submission.SubmissionRefused as error:
                if not job_ids:
                    raise
                raise submission.SubmissionRefused(
                    f"{error}\n{len(job_ids)} arrays were taken before: {', '.join(job_ids)}. For the other elements,"
                    f" later: {runs.resubmit_command(there.path)}"
                ) from error
            job_ids.append(jobs[0].job_id.partition("_")[0])
            there = sweep.with_array(there, number, job_ids[-1], [member.element.name for member in group])
            sweep.write(there)
        late = "" if after is None else f", once array {after} has ended"
        say(f"array {job_ids[-1]}: {part.count} elements, {part.throttle} at a time{late}, are in the queue")
    return there


def _submit_one(
    config: RunConfig, group: Sequence[Member], links: Path, part: array.Part, after: str | None
) -> list[Job]:
    runs_ = [member.run for member in group]
    for run in runs_:
        note_submitting(run, "slurm")
    try:
        jobs = array.submit(config, runs_, links, part, after)
    except submission.SubmissionRefused as error:
        for run in runs_:
            note_refusal(run, str(error))
        raise
    for run, job in zip(runs_, jobs, strict=True):
        note_job(run, job)
    return jobs
