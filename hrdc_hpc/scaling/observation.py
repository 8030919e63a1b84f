"""What the fit takes of a study: one observation for each measured run. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hrdc_hpc.config.cluster import Network
from hrdc_hpc.record.measurement import Measurement
from hrdc_hpc.scaling.model import Load, bytes_per_second
from hrdc_hpc.scaling.rows import Row

_LIMITING = 1.05
"""Steps on real images that take so many times as long as on resident ones are limited by loading."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One measured run. Seconds of one step; None: not measured."""

    nodes: int
    ranks_per_node: int
    batch_per_rank: float
    step_s: float
    """As in training."""
    compute_s: float | None = None
    """Without adding gradients up, on resident images."""
    busy_s: float | None = None
    """With adding up, on resident images."""
    data_s: float | None = None
    """Loading, where it is what limits a step; None as well where it keeps up, for then only a bound is known."""
    gradient_bytes: float = 0
    last_bucket_bytes: float = 0
    buckets: int = 1
    all_reduces: Sequence[tuple[int, float]] = ()
    """Bytes and seconds of all-reduces by themselves."""
    gbit_per_node: float | None = None
    """Of the network, where the user knows it."""
    backend: str = "nccl"
    one_machine: bool = False
    """Its nodes are one machine and share cores: compute then depends on their number."""
    run: str = ""

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def size(self) -> tuple[int, int, float]:
        """What repeats have in common."""
        return self.nodes, self.ranks_per_node, self.batch_per_rank


def observations(rows: Iterable[Row], network: Network | None = None) -> list[Observation]:
    """Return an observation for each row that found something; `network`: what all these rows ran over, if known.

    Rows over other networks are passed in another call. Rows of two modes that are the same run count once.
    """
    found: dict[str, Observation] = {}
    for row in rows:
        if row.found is not None and any(row.found.windows.get("as_is", ())):
            found.setdefault(row.run, _observation(row.run, row.found, network))
    return list(found.values())


def _observation(run: str, found: Measurement, network: Network | None) -> Observation:
    as_is, no_sync, resident, neither = (
        _typical(found, variant) for variant in ("as_is", "no_sync", "resident", "resident_no_sync")
    )
    assert as_is is not None
    if found.images == "resident":  # as_is is on resident images already
        resident, neither = resident or as_is, neither or no_sync
        no_sync = None
    if found.world_size == 1:  # nothing to add up
        neither, no_sync = neither or resident, no_sync or (as_is if found.images == "real" else None)
    limited = no_sync is not None and neither is not None and no_sync > _LIMITING * neither
    machines = {node.machine for node in found.nodes}
    return Observation(
        nodes=max(1, found.world_size // found.ranks_per_node),
        ranks_per_node=found.ranks_per_node,
        batch_per_rank=found.batch_per_rank,
        step_s=as_is,
        compute_s=neither,
        busy_s=resident if found.world_size > 1 and found.images == "real" else None,
        data_s=no_sync if limited else None,
        gradient_bytes=found.gradient_bytes,
        last_bucket_bytes=found.buckets[-1] if found.buckets else found.gradient_bytes,
        buckets=max(1, len(found.buckets)),
        all_reduces=[(one.bytes, statistics.median(one.seconds)) for one in found.all_reduces if one.seconds],
        gbit_per_node=network.gbit_per_node if network else None,
        backend=found.backend,
        one_machine=len(found.nodes) > len(machines),
        run=run,
    )


def _typical(found: Measurement, variant: str) -> float | None:
    """Return the typical step of a variant, None if it has no window.

    That as in training: the median over the rounds of the mean step, so that a disturbed round does not count. The
    others: that times the median of their ratios to it in the same round, for what disturbs a round disturbs both.
    """
    as_is = [statistics.fmean(steps) for steps in found.windows["as_is"] if steps]
    typical = statistics.median(as_is)
    if variant == "as_is":
        return typical
    rounds = [statistics.fmean(steps) for steps in found.windows.get(variant, ()) if steps]
    ratios = [
        mine / beside for mine, beside in zip(rounds, as_is, strict=False)
    ]  # a stopped run has an uneven last one
    return typical * statistics.median(ratios) if ratios else None


def loads(rows: Sequence[Observation]) -> Load:
    """Return their sizes as arrays [n]."""
    rates = [np.nan if row.gbit_per_node is None else bytes_per_second(row.gbit_per_node) for row in rows]
    return Load(
        nodes=np.array([row.nodes for row in rows], float),
        ranks_per_node=np.array([row.ranks_per_node for row in rows], float),
        batch_per_rank=np.array([row.batch_per_rank for row in rows], float),
        gradient_bytes=np.array([row.gradient_bytes for row in rows], float),
        last_bytes=np.array([row.last_bucket_bytes for row in rows], float),
        messages=np.array([row.buckets for row in rows], float),
        bytes_per_s=np.array(rates, float),
    )
