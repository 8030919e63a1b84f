"""How long a training step takes on any number of nodes: a model of few parameters. Torch-free.

    step     = max(data, busy)                      batches are read and decoded ahead, beside the rest
    busy     = compute x (1 + noise x E_p) + exposed
    compute  = fixed + image x b                    b images of a rank: launches, then arithmetic and memory
    exposed  = max(stretch x all - overlap x compute, stretch x last)
    all      = sum over the buckets of the time of an all-reduce; last: that of the last bucket
    data     = max(b g / node rate, b p / shared rate)

N nodes of g ranks each, p = N g. While backward goes on, buckets that are ready are sent, so that `overlap` of compute
hides communication; the last bucket is ready when backward ends and hides behind nothing (Li et al., 'PyTorch
Distributed', arXiv 2006.15704, section 3.2.3). `stretch`: communication takes so many times as long inside a step,
where it shares memory and cores with backward, as by itself.

An all-reduce of M bytes (alpha-beta: a message costs a latency a, then each byte; Thakur et al., 'Optimization of
Collective Communication Operations in MPICH', 2005; the two forms and their latencies as in NCCL's own tuning model,
src/graph/tuning.cc):

    ring     2 (p - 1) / p x M x B + 2 N (g - 1) a_inside + 2 (N - 1) a_between
    tree     2 M x B + 2 (g - 1) a_inside + 2 ceil(log2 N) a_between

B is the seconds per byte of the slower of the two ways: between two ranks of a node, or between nodes, where it is what
all adapters of a node do together. Inside one node it is always a ring. The bytes of different stages overlap (they are
sent in chunks), latencies add up.

E_p is the expected largest of p standard normal numbers: all wait for the slowest rank. Blom's approximation,
E_p = F^-1((p - .375) / (p + .25)) ('Statistical Estimates and Transformed Beta-Variables', 1958).

All functions take plain numbers or numpy arrays that broadcast, and return arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Values: TypeAlias = "float | Array"
Algorithm = Literal["ring", "tree", "faster"]
"""'faster': the faster of the two for each size, which is what NCCL aims at."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What a cluster, a device and a network cost. Seconds unless said otherwise; numbers, or arrays of draws."""

    fixed_s: Values
    """Part of compute that does not grow with the images of a rank."""
    image_s: Values
    """Compute of one more image."""
    inside_latency_s: Values
    """a_inside: from rank to rank in a node."""
    inside_s_per_byte: Values
    """Of one rank to the next in its node."""
    between_latency_s: Values
    """a_between: from node to node."""
    between_s_per_byte: Values
    """Of all adapters of a node together; where the network's rate is told: what comes on top of it, e.g. copies."""
    rate_share: Values
    """Share of a told network rate that all-reduces get."""
    overlap: Values
    """Share of compute behind which communication hides."""
    stretch: Values
    """How many times as long communication takes inside a step."""
    noise: Values
    """Standard deviation of a rank's compute, as a share of it."""
    node_image_s: Values
    """Loading of one image by one node: 1 / images per second of a node's loaders; 0: they keep up."""
    shared_image_s: Values
    """The same of what all nodes share."""


PARAMETERS = tuple(field.name for field in fields(Parameters))


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of them: numbers or arrays of one shape."""

    nodes: Values
    ranks_per_node: Values
    batch_per_rank: Values
    gradient_bytes: Values
    """That one all-reduce of all gradients sends."""
    last_bytes: Values
    """Of them in the bucket that is sent last."""
    messages: Values
    """Buckets."""
    bytes_per_s: Values = np.nan
    """Told rate of a node's network; nan: not told."""

    @property
    def ranks(self) -> Array:
        """p."""
        return np.asarray(self.nodes, float) * self.ranks_per_node


def largest_of(ranks: Values) -> Array:
    """E_p: expected largest of p standard normal numbers; 0 for one."""
    quantile = NormalDist().inv_cdf
    shares = (np.asarray(ranks, float) - 0.375) / (np.asarray(ranks, float) + 0.25)
    return np.asarray(np.vectorize(lambda share: quantile(share) if share > 0.5 else 0.0, otypes=[float])(shares))


def all_reduce_s(
    parameters: Parameters, load: Load, sent: Values, algorithm: Algorithm, messages: Values = 1.0
) -> Array:
    """Seconds of `messages` all-reduces over all ranks that together send `sent` bytes; 0 on one rank."""
    p = load.ranks
    nodes, inside = np.asarray(load.nodes, float), np.asarray(load.ranks_per_node, float) - 1
    rate = np.asarray(load.bytes_per_s, float)
    told = np.where(np.isnan(rate), 0.0, 1 / np.where(np.isnan(rate), 1.0, rate)) / parameters.rate_share
    between = np.where(nodes > 1, parameters.between_s_per_byte + told, 0.0)
    per_byte = np.maximum(np.where(inside > 0, parameters.inside_s_per_byte, 0.0), between)
    a_inside, a_between = parameters.inside_latency_s, parameters.between_latency_s
    ring = 2 * (p - 1) / p * sent * per_byte + messages * (2 * nodes * inside * a_inside + 2 * (nodes - 1) * a_between)
    if algorithm == "ring":
        return np.asarray(ring)
    tree = 2 * np.asarray(sent) * per_byte + messages * (
        2 * inside * a_inside + 2 * np.ceil(np.log2(nodes)) * a_between
    )
    return np.asarray(np.where(nodes > 1, tree if algorithm == "tree" else np.minimum(ring, tree), ring))


def compute_s(parameters: Parameters, load: Load) -> Array:
    """Forward, backward and update of a rank that waits for nobody."""
    return np.asarray(parameters.fixed_s + parameters.image_s * np.asarray(load.batch_per_rank, float))


def waiting_s(parameters: Parameters, load: Load, compute: Values) -> Array:
    """Waiting for the slowest of all ranks."""
    return np.asarray(compute * (parameters.noise * largest_of(load.ranks)))


def exposed_s(parameters: Parameters, load: Load, compute: Values, algorithm: Algorithm) -> Array:
    """Communication that does not hide behind backward."""
    whole = all_reduce_s(parameters, load, load.gradient_bytes, algorithm, load.messages)
    last = all_reduce_s(parameters, load, load.last_bytes, algorithm)
    late = parameters.stretch * whole - parameters.overlap * np.asarray(compute)
    return np.asarray(np.maximum(late, parameters.stretch * last))


def data_s(parameters: Parameters, load: Load) -> Array:
    """Reading and decoding the images of a step."""
    images = np.asarray(load.batch_per_rank, float)
    each = images * load.ranks_per_node * parameters.node_image_s
    return np.asarray(np.maximum(each, images * load.ranks * parameters.shared_image_s))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the time of a step goes, seconds; the step is their sum but for `data`, which only counts as `wait`."""

    compute: Array
    straggler: Array
    """Waiting for the slowest rank."""
    exposed: Array
    """Communication that hides behind nothing."""
    data: Array
    """Loading, which goes on beside the rest."""
    wait: Array
    """What is left of it when the rest is done."""
    communication: Array
    """All of it by itself, hidden or not."""

    @property
    def step(self) -> Array:
        """The whole step."""
        return self.compute + self.straggler + self.exposed + self.wait


def step_parts(
    parameters: Parameters,
    load: Load,
    algorithm: Algorithm,
    *,
    measured_compute: Values | None = None,
    measured_data: Values | None = None,
) -> Parts:
    """Return the parts of a step. Compute and loading that were measured, where not nan, go before the model's."""
    compute, data = compute_s(parameters, load), data_s(parameters, load)
    if measured_compute is not None:
        compute = np.where(np.isnan(measured_compute), compute, measured_compute)
    if measured_data is not None:
        data = np.where(np.isnan(measured_data), data, measured_data)
    straggler = waiting_s(parameters, load, compute)
    exposed = exposed_s(parameters, load, compute, algorithm)
    wait = np.maximum(data - (compute + straggler + exposed), 0)
    communication = all_reduce_s(parameters, load, load.gradient_bytes, algorithm, load.messages)
    return Parts(
        compute=compute, straggler=straggler, exposed=exposed, data=data, wait=wait, communication=communication
    )


def with_rate(load: Load, gbit_per_node: float | None) -> Load:
    """Return the load over a network of that rate; None: not told."""
    return load if gbit_per_node is None else replace(load, bytes_per_s=bytes_per_second(gbit_per_node))


def bytes_per_second(gbit: float) -> float:
    """1 Gbit/s is 125,000,000 bytes a second."""
    return gbit * 1e9 / 8
