"""How many ranks a job has, on the fewest and the most nodes that it may get. Torch-free."""

from __future__ import annotations

from hrdc_hpc.config.batch import refuse_unfit_batch
from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.nodes import node_range
from hrdc_hpc.config.schema import RunConfig


def ranks_per_node(cluster: Cluster) -> int:
    """Processes per node: as set, else one per GPU, else one."""
    return cluster.ranks_per_node or cluster.gpus_per_node or 1


def is_malleable(cluster: Cluster) -> bool:
    """Whether SLURM chooses the number of nodes."""
    fewest, most = node_range(cluster.nodes)
    return fewest < most


def refuse_unfit_sizes(config: RunConfig) -> None:
    """Raise ValueError if the batch cannot be cut for a size that the job may have; the ranks would find out later."""
    fewest, most = node_range(config.cluster.nodes)
    ranks = ranks_per_node(config.cluster)
    for nodes in range(most, fewest - 1, -1):  # the largest first: what it can cut, fewer ranks mostly can
        try:
            refuse_unfit_batch(config.model, config.optim, nodes * ranks)
        except ValueError as error:
            size = f"cluster.nodes {config.cluster.nodes}, {ranks} rank{'s'[: ranks > 1]} on each of {nodes}: "
            raise ValueError(f"{size}{error}") from error


def notes(config: RunConfig) -> list[str]:
    """What the user of a range of nodes should know before it starts."""
    if not is_malleable(config.cluster):
        return []
    fewest, most = node_range(config.cluster.nodes)
    ranks = ranks_per_node(config.cluster)
    found = [
        f"on {fewest} to {most} nodes ({fewest * ranks} to {most * ranks} ranks), whatever SLURM gives at each start:"
        f" the time limit ({config.cluster.time_min} min) must fit the smallest size, or the run stops, saves and comes"
        " back"
    ]
    if config.model.batch_norm == "per_rank":
        found.append(
            "model.batch_norm: per_rank takes its statistics over each rank's images, so results depend on the size;"
            " sync and ghost do not"
        )
    return found
