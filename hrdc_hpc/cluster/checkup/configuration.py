"""A config and its data set: what would stop a launch, and what would be slow. Torch-free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence

from hrdc_hpc.cluster import submission
from hrdc_hpc.cluster.checkup.finding import Finding, Role, ok, problem, warning
from hrdc_hpc.cluster.jobs import Kind
from hrdc_hpc.cluster.shape import ranks_per_node
from hrdc_hpc.config.load import load
from hrdc_hpc.config.nodes import node_range
from hrdc_hpc.config.paths import absolute
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.preflight import preflight


def check(cfg: str, overrides: Sequence[str], role: Role) -> Iterator[Finding]:
    """Yield findings on a config, its data set, what it asks of the cluster, and how its batch fits its ranks."""
    kind: Kind = "local" if role == "machine" else "slurm"
    try:
        config = absolute(load(cfg, overrides))
        submission.check(kind, config, config.out_dir / config.name)
        notes = submission.notes(kind, config, ask=shutil.which("scontrol") is not None)
    except ValueError as error:
        yield problem("config", str(error), "a launch would stop with these words", "as they say")
        return
    yield ok("config", f"{cfg}: {config.method.name}, {config.data.dataset.name}, {config.out_dir / config.name}")
    for note in notes:
        yield Finding("config", "ok", note)
    try:
        preflight(config.data)
        yield ok("data", config.data.dataset.name + " is there")
    except ValueError as error:
        yield problem("data", str(error), "a launch would stop with these words", "as they say")
    yield _fit(config, role)


def _fit(config: RunConfig, role: Role) -> Finding:
    cluster, batch = config.cluster, config.optim.global_batch
    per_node = ranks_per_node(cluster)
    _, nodes = node_range(cluster.nodes)
    ranks = per_node * nodes
    found = f"{nodes} node{'s'[: nodes > 1]} x {per_node} ranks; a batch of {batch} is {batch / ranks:g} images a rank"
    if batch % ranks:
        return warning("batch", found, "uneven: all ranks wait for the fullest", f"a global_batch that {ranks} divides")
    cores = len(os.sched_getaffinity(0))
    if role != "login" and cluster.cpus_per_rank * per_node > cores:
        return warning(
            "batch", f"{found}; {cluster.cpus_per_rank * per_node} cores asked for on a node, {cores} here",
            "loader and ranks share cores", "lower cluster.cpus_per_rank or ranks_per_node",
        )  # fmt: skip
    return ok("batch", found)
