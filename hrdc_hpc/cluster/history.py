"""The attempts at a run as a story: when, where, from step to step, and why each ended. Torch-free.

Everything comes from the run folder: attempts.jsonl (who started), metrics/ (what was done), logs/ends.jsonl (why
processes left: ranks, the local controller, the batch script). What was killed writes nothing; then the attempt that
follows tells: a job that starts again under its own id was requeued by SLURM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.record.attempts import NO_FAREWELL, read_attempts
from hrdc_hpc.record.files import json_lines
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import peek
from hrdc_hpc.record.metrics import attempt_files
from hrdc_hpc.record.newest import landmarks

Cause = Literal[
    "finished", "running", "preempted", "time limit", "cancelled", "stop file", "stopped", "node lost", "killed",
    "hung", "bad node", "refused", "failed",
]  # fmt: skip
"""Why an attempt ended.

preempted, time limit, cancelled: as the job's own rank 0 found out, after it saved; stopped: saved for another reason,
e.g. a local run that was told to; node lost: SLURM requeued it without a word of its own, because a node was lost or a
preemption left no time; killed: by a signal from elsewhere; hung: its watchdog left; refused: config, data, another
writer, or a loss that diverged; failed: any other error.
"""

_OF_CODE: dict[int, Cause] = {
    Exit.HUNG: "hung", Exit.BAD_NODE: "bad node", Exit.DO_NOT_REQUEUE: "refused", Exit.REQUEUE: "stopped",
}  # fmt: skip


@dataclass(frozen=True)
class Story:
    """One attempt."""

    attempt: int
    job_id: str
    restart_count: int
    nodes: str
    """SLURM's short form, e.g. 'n[1-2]', else the host."""
    world_size: int
    began: float
    """Unix seconds, rank 0's clock."""
    ended: float
    """Time of the last thing that it wrote."""
    resumed_at: int
    """Step that it went on from; 0 also if it did not come so far."""
    last_step: int
    """Of the newest record; steps after `saved_step` are lost unless it went on."""
    saved_step: int
    """Of the newest checkpoint that it committed, else `resumed_at`."""
    cause: Cause
    words: str
    """One line: what was written about the end."""

    @property
    def progressed(self) -> bool:
        """Whether the run is further than before: a checkpoint was committed."""
        return self.saved_step > self.resumed_at


def history(run: Path) -> list[Story]:
    """All attempts, oldest first."""
    folder = RunFolder(run)
    attempts = [attempt for attempt in read_attempts(folder) if "time" in attempt]
    files, ends = attempt_files(folder), _ends(run)
    told = [landmarks(files[a["attempt"]]) if a["attempt"] in files else () for a in attempts]
    stories = [
        _story(attempt, list(records), ends, attempts[i + 1] if i + 1 < len(attempts) else None)
        for i, (attempt, records) in enumerate(zip(attempts, told, strict=True))
    ]
    for i, (story, after) in enumerate(pairwise(stories)):  # killed between the commit and its record
        stories[i] = replace(story, saved_step=max(story.saved_step, after.resumed_at))
    if stories and stories[-1].cause == "killed" and _still_held(folder, stories[-1]):
        stories[-1] = replace(stories[-1], cause="running", words="at work")
    return stories


def starts(run: Path, jobs: Sequence[str]) -> list[Story]:
    """All starts of these SLURM jobs of a run, in order; also those that ended before they began an attempt.

    What fails before (an import, the lease, no rank at all) leaves a line in logs/ends.jsonl alone. Uncounted it would
    come back for ever.

    Args:
        run: the run folder.
        jobs: ids, in the order in which the jobs begin.
    """
    stories = [story for story in history(run) if story.job_id in jobs]
    begun = {(story.job_id, story.restart_count) for story in stories}
    still: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for end in _ends(run):
        start = (str(end.get("job_id")), int(end.get("restart_count", 0)))
        if start[0] in jobs and start not in begun:
            still.setdefault(start, []).append(end)
    for (job_id, restart), ends in still.items():
        first = _telling(ends)
        stories.append(stillborn(job_id, restart, _cause_of(first), str(first["reason"]), float(first["time"])))
    return sorted(stories, key=lambda story: (jobs.index(story.job_id), story.restart_count))


def stillborn(job_id: str, restart: int, cause: Cause, words: str, when: float = 0.0) -> Story:
    """Return the story of a start that did not come to an attempt: it made no progress, and has no number."""
    return Story(
        attempt=-1, job_id=job_id, restart_count=restart, nodes="", world_size=1, began=when, ended=when, resumed_at=0,
        last_step=0, saved_step=0, cause=cause, words=words,
    )  # fmt: skip


def _still_held(folder: RunFolder, story: Story) -> bool:
    holder = peek(folder)
    return holder is not None and str(holder.job.get("job_id", "")) in ("", story.job_id)


def _story(
    attempt: Mapping[str, Any], records: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, Any]],
    following: Mapping[str, Any] | None,
) -> Story:  # fmt: skip
    info = attempt["info"]
    began, until = float(attempt["time"]), float(following["time"]) if following else float("inf")
    own = [end for end in ends if _is_of(end, info, began, until)]
    cause, words = _why(records, own, info, following)
    resumed = [r["step"] for r in records if r["kind"] == "phase" and (r["name"], r["event"]) == ("startup", "end")]
    saved = [r["step"] for r in records if r["kind"] == "checkpoint"]
    return Story(
        attempt=attempt["attempt"],
        job_id=str(info.get("job_id", "")),
        restart_count=int(info.get("restart_count", 0)),
        nodes=str(info.get("nodes", attempt["host"])),
        world_size=int(info.get("world_size", 1)),
        began=began,
        ended=max([began, *(float(r["time"]) for r in records)]),
        resumed_at=min(resumed, default=0),
        last_step=max((int(r["step"]) for r in records), default=0),
        saved_step=max([*saved, min(resumed, default=0)]),
        cause=cause,
        words=words,
    )


def _why(
    records: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, Any]], info: Mapping[str, Any],
    following: Mapping[str, Any] | None,
) -> tuple[Cause, str]:  # fmt: skip
    """Return the cause and one line: what the ranks, the controller or the batch script wrote, else what follows."""
    said = next((str(r["reason"]) for r in reversed(records) if r["kind"] == "end"), None)
    if said == "finished":
        return "finished", said
    if ends:
        first = _telling(ends)
        return _cause_of(first), str(first["reason"])
    if said is not None:
        return ("stopped" if said.startswith("SIG") else "failed"), said
    if following is not None and _requeued(info, following["info"]):
        return "node lost", f"{NO_FAREWELL}; SLURM requeued it: a node was lost, or a preemption left no time"
    return "killed", NO_FAREWELL


def _telling(ends: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of one attempt's ends the one that explains it: what others tell besides may be its echo."""
    named = [end for end in ends if end.get("cause")]
    named = [end for end in named if end["cause"] != "stopped"] or named  # srun may have said so, because of another
    bad = [end for end in ends if end["code"] in (Exit.BAD_NODE, Exit.DO_NOT_REQUEUE)]
    silent = [end for end in ends if end["code"] < 0 or end["code"] == Exit.HUNG]
    return min(named or bad or silent or ends, key=lambda end: end["time"])


def _cause_of(end: Mapping[str, Any]) -> Cause:
    if end.get("cause") in get_args(Cause):
        cause: Cause = end["cause"]
        return cause
    if end["code"] < 0:
        return "killed"
    return _OF_CODE.get(end["code"], "failed")


def _is_of(end: Mapping[str, Any], info: Mapping[str, Any], began: float, until: float) -> bool:
    """Whether an end is of this attempt: a job and its restart; a local job's id is a process id and comes again."""
    if str(end.get("job_id")) != str(info.get("job_id")):
        return False
    if info.get("cluster") == "slurm":
        return int(end.get("restart_count", info.get("restart_count", 0))) == int(info.get("restart_count", 0))
    return began <= float(end["time"]) < until


def _requeued(info: Mapping[str, Any], following: Mapping[str, Any]) -> bool:
    same = info.get("cluster") == "slurm" and info.get("job_id") == following.get("job_id")
    return same and int(following.get("restart_count", 0)) > int(info.get("restart_count", 0))


def _ends(run: Path) -> list[dict[str, Any]]:
    try:
        return [end for end in json_lines((RunFolder(run).logs / "ends.jsonl").read_bytes()) if "code" in end]
    except FileNotFoundError:
        return []
