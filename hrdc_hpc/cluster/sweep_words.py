"""What a launch of a sweep tells before it submits, and what it asks. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hrdc_hpc.cluster.shape import ranks_per_node
from hrdc_hpc.cluster.sweep_members import Member, Verdict
from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.nodes import node_range

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


def asked(cluster: Cluster) -> tuple[int, int, str]:
    """Most nodes of an element, and of what how much on each: GPUs, or CPU cores where no GPU is asked for."""
    cpus = ranks_per_node(cluster) * cluster.cpus_per_rank
    _, nodes = node_range(cluster.nodes)
    return (nodes, cluster.gpus_per_node, "GPU") if cluster.gpus_per_node else (nodes, cpus, "CPU")


def hours(members: Sequence[Member]) -> float:
    """The most hours that the elements can use until their first time limits."""
    found = ((*asked(member.config.cluster), member.config.cluster.time_min) for member in members)
    return sum(nodes * each * minutes / 60 for nodes, each, _, minutes in found)


def cost(members: Sequence[Member]) -> str:
    """One line: how much the elements can use, as the first of them asks for it."""
    cluster = members[0].config.cluster
    nodes, each, what = asked(cluster)
    at_once = min(len(members), cluster.array_parallelism)
    return (
        f"{len(members)} elements x {nodes} nodes x {each} {what}s x {cluster.time_min} minutes"
        f" = at most {hours(members):.4g} {what}-hours, {at_once} elements at a time"
    )


def confirm(members: Sequence[Member], yes: bool) -> None:
    """Ask before a large sweep. Raises ValueError if the answer is no, or nobody is there to give one."""
    cluster = members[0].config.cluster
    if yes or (len(members) <= cluster.ask_elements and hours(members) <= cluster.ask_hours):
        return
    limit = f"more than {cluster.ask_elements} elements or {cluster.ask_hours:g} hours (--ask-elements, --ask-hours)"
    if not sys.stdin.isatty():
        raise ValueError(f"{limit} are submitted only when they are confirmed: add --yes. Nothing was submitted.")
    sys.stdout.write(f"{limit}: submit? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("not confirmed. Nothing was submitted.")
