"""Whether a job comes back after an attempt: by the cause of its end, with a cap each. Pure; torch-free.

| cause                  | comes back                                                              |
|------------------------|-------------------------------------------------------------------------|
| preempted, node lost   | until requeue.preemptions                                               |
| time limit             | until requeue.time_limits                                               |
| killed, failed         | until requeue.failures                                                  |
| hung                   | until requeue.hangs                                                     |
| bad node               | until requeue.bad_nodes, on other nodes                                 |
| cancelled, stop file   | no: a person wanted it                                                  |
| refused                | no: config, data, another writer or a diverged loss would be the same   |
| finished               | no                                                                      |

And whatever the cause, not after `without_progress` attempts in a row that committed no new checkpoint, nor after
requeue.gpu_hours. Counted are the attempts under one job id: a person who launches again starts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hrdc_hpc.cluster.history import Cause, Story
from hrdc_hpc.config.cluster import Requeue

CLUSTER_ENDED: tuple[Cause, ...] = ("preempted", "node lost")
"""Ends that say nothing about the run."""

_CAPS: dict[Cause, str] = {
    "preempted": "preemptions", "node lost": "preemptions", "time limit": "time_limits", "stopped": "time_limits",
    "killed": "failures", "failed": "failures", "hung": "hangs", "bad node": "bad_nodes",
}  # fmt: skip
"""Cause: its cap in cluster.requeue. Causes that are not here never come back."""
NEVER: dict[Cause, str] = {
    "cancelled": "cancelled",
    "stop file": "stopped by the file `stop` in the run folder",
    "refused": "the same would come again",
    "finished": "finished",
}


@dataclass(frozen=True)
class Verdict:
    """Whether the job comes back, and why (not)."""

    comes_back: bool
    why: str


def verdict(stories: Sequence[Story], caps: Requeue, *, on_gpus: bool = False) -> Verdict:
    """Judge after the last of a job's attempts.

    Args:
        stories: the job's attempts, oldest first; the last one has ended, and is not 'running'.
        caps: the run's cluster.requeue.
        on_gpus: whether each rank holds a GPU; names the unit of the hours.
    """
    if not stories:
        return Verdict(True, "nothing was attempted yet")
    last = stories[-1]
    if last.cause in NEVER:
        return Verdict(False, NEVER[last.cause])
    cap = _CAPS[last.cause]
    alike = sum(_CAPS.get(story.cause) == cap for story in stories)
    allowed: int = getattr(caps, cap)
    if alike > allowed:
        return Verdict(False, f"{last.cause}: {alike} times, and cluster.requeue.{cap} allows {allowed}")
    if reason := _no_progress(stories, caps):
        return Verdict(False, reason)
    hours = sum((story.ended - story.began) * story.world_size for story in stories) / 3600
    if caps.gpu_hours is not None and hours >= caps.gpu_hours:
        unit = "GPU-hours" if on_gpus else "rank-hours"
        return Verdict(False, f"{hours:.1f} {unit} are used, and cluster.requeue.gpu_hours allows {caps.gpu_hours:g}")
    return Verdict(True, f"{last.cause} ({alike} of {allowed})")


def _no_progress(stories: Sequence[Story], caps: Requeue) -> str | None:
    """Why no further attempt is worth it, if the last ones committed no checkpoint. A cluster may end more of them."""
    vain = []
    for story in reversed(stories):
        if story.progressed:
            break
        vain.append(story)
    own = [story for story in vain if story.cause not in CLUSTER_ENDED]
    for number, field in ((len(own), "without_progress"), (len(vain), "without_progress_preempted")):
        allowed: int = getattr(caps, field)
        if number >= allowed and (field != "without_progress" or vain[0].cause not in CLUSTER_ENDED):
            saved = vain[0].resumed_at or max(story.saved_step for story in stories)  # it may not have come so far
            return (
                f"{number} attempts in a row made no progress (no checkpoint after step {saved}), and"
                f" cluster.requeue.{field} is {allowed}"
            )
    return None
