"""What a launch of a sweep tells before it submits, and what it asks. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hrdc_hpc.cluster import submission
from hrdc_hpc.cluster.sweep_members import Member, Verdict
from hrdc_hpc.config.schema import Cluster

_LISTED = 40
"""Elements that are named one by one."""


def table(verdicts: Sequence[Verdict]) -> str:
    """One line for each element, or the numbers alone where there are many that are new."""
    width = max(len(verdict.member.element.name) for verdict in verdicts)
    signs = {"submit": "+", "finished": "=", "at work": "."}
    lines = [f"{signs[v.act]} {v.member.element.name:{width}}  {v.why}" for v in verdicts]
    if len(lines) > _LISTED:
        lines = [*lines[: _LISTED // 2], f"  ... {len(lines) - _LISTED} more ...", *lines[-_LISTED // 2 :]]
    counts = [(sum(v.act == act for v in verdicts), act) for act in ("submit", "at work", "finished")]
    words = {"submit": "to submit", "at work": "running or queued", "finished": "finished"}
    return "\n".join([*lines, f"{len(verdicts)} elements: {', '.join(f'{n} {words[act]}' for n, act in counts if n)}"])


def _hours(cluster: Cluster) -> tuple[float, str]:
    """Hours of one element at most, and of what: GPUs, or CPU cores where no GPU is asked for."""
    each = cluster.gpus_per_node or submission.ranks_per_node(cluster) * cluster.cpus_per_rank
    return cluster.nodes * each * cluster.time_min / 60, "GPU" if cluster.gpus_per_node else "CPU"


def cost(members: Sequence[Member]) -> str:
    """The most that the elements can use until their first time limit."""
    cluster = members[0].config.cluster
    hours, what = _hours(cluster)
    each = cluster.gpus_per_node or submission.ranks_per_node(cluster) * cluster.cpus_per_rank
    return (
        f"{len(members)} elements x {cluster.nodes} nodes x {each} {what}s x {cluster.time_min} minutes"
        f" = at most {len(members) * hours:.4g} {what}-hours, {cluster.array_parallelism} elements at a time"
    )


def confirm(members: Sequence[Member], yes: bool) -> None:
    """Ask before a large sweep. Raises ValueError if the answer is no, or nobody is there to give one."""
    cluster = members[0].config.cluster
    hours = len(members) * _hours(cluster)[0]
    if yes or (len(members) <= cluster.ask_elements and hours <= cluster.ask_hours):
        return
    limit = f"more than {cluster.ask_elements} elements or {cluster.ask_hours:g} hours (--ask-elements, --ask-hours)"
    if not sys.stdin.isatty():
        raise ValueError(f"{limit} are submitted only when they are confirmed: add --yes. Nothing was submitted.")
    sys.stdout.write(f"{limit}: submit? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("not confirmed. Nothing was submitted.")
