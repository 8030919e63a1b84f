"""What is believed of the model's parameters before anything is measured, and draws of what is believed. Torch-free.

A parameter's logarithm is taken as normal: `centre` is its median, `spread` the standard deviation of its logarithm,
so that 0.1 means about 10 % and 1.0 a factor of e either way. A spread of 0 fixes it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hrdc_hpc.scaling.model import PARAMETERS, Array, Parameters
from hrdc_hpc.scaling.observation import Observation


@dataclass(frozen=True)
class Belief:
    """Of one parameter."""

    centre: float
    spread: float
    source: str
    """In words: where the centre comes from."""

    @property
    def is_used(self) -> bool:
        """Whether it plays a part: 0 cannot grow."""
        return self.centre > 0 and self.spread > 0


Beliefs = Mapping[str, Belief]
"""By the name of the parameter; all of PARAMETERS."""

TOPS = {"overlap": 1.0, "rate_share": 1.0, "noise": 0.5, "stretch": 10.0}
"""Largest values; the others have none."""
WORDS = {
    "fixed_s": ("compute that does not grow with the batch", "s"),
    "image_s": ("compute of an image", "s"),
    "inside_latency_s": ("latency inside a node", "s"),
    "inside_s_per_byte": ("all-reduce inside a node", "s/byte"),
    "between_latency_s": ("latency between nodes", "s"),
    "between_s_per_byte": ("all-reduce between nodes", "s/byte"),
    "rate_share": ("share of the network's rate that all-reduces get", ""),
    "overlap": ("share of compute that hides communication", ""),
    "stretch": ("communication inside a step, against by itself", "times"),
    "noise": ("spread of a rank's step", "share"),
    "node_image_s": ("loading of an image by a node", "s"),
    "shared_image_s": ("loading of an image from what all nodes share", "s"),
}
"""Of each parameter: what it is, and its unit."""

OVERLAP = Belief(0.5, 0.4, "backward is two thirds of compute, and most of it comes before the last bucket: assumed")
STRETCH = Belief(1.0, 0.2, "communication takes as long inside a step as by itself: assumed")
RATE_SHARE = Belief(0.85, 0.1, "85 % of a network's rate reach large all-reduces: assumed")
NOISE = Belief(0.01, 0.7, "a rank's steps differ by 1 %: assumed")
ROOM = 32
"""Times what loading gave that all nodes share, where rows do not say how much."""
UNLIMITED = Belief(0.0, 0.0, "loading keeps up in all rows")


def weak(rows: Sequence[Observation]) -> dict[str, Belief]:
    """Return beliefs for a fit without a profile: orders of magnitude, which a few rows overrule."""
    compute = statistics.median(row.compute_s or row.busy_s or row.step_s for row in rows)
    batch = statistics.median(row.batch_per_rank for row in rows)
    gloo = any(row.backend == "gloo" for row in rows)
    several = [row for row in rows if row.nodes > 1] or rows
    told = all(row.gbit_per_node is not None for row in several)
    order = "order of magnitude only"
    return {
        "fixed_s": Belief(0.1 * compute, 1.0, "a tenth of compute: assumed"),
        "image_s": Belief(0.9 * compute / batch, 3.0, order),
        "inside_latency_s": Belief(5e-5 if gloo else 3e-6, 2.0, order),
        "inside_s_per_byte": Belief(1e-9 if gloo else 5e-12, 3.0, order),
        "between_latency_s": Belief(1e-4 if gloo else 1e-5, 2.0, order),
        "between_s_per_byte": (
            Belief(5e-10 if gloo else 1e-12, 1.5, "copies beside the network: " + order)
            if told
            else Belief(1e-9 if gloo else 5e-11, 3.0, order)
        ),
        "rate_share": loosened(RATE_SHARE) if told else Belief(0.85, 0.0, "no row tells its network's rate"),
        "overlap": loosened(OVERLAP),
        "stretch": Belief(1.0, 0.4, STRETCH.source),
        "noise": loosened(NOISE),
        **loading(rows),
    }


def loosened(belief: Belief) -> Belief:
    """Return a belief that rows overrule easily: a factor of e either way is nothing out of the way."""
    return replace(belief, spread=max(belief.spread, 1.0)) if belief.is_used else belief


def loading(rows: Sequence[Observation]) -> dict[str, Belief]:
    """Return beliefs in loading: as fast as the fastest row that it limits; where it limits none, that it keeps up."""
    limited = [(row.batch_per_rank / row.data_s, row) for row in rows if row.data_s]
    if not limited:
        return {"node_image_s": UNLIMITED, "shared_image_s": UNLIMITED}
    node = max(rate * row.ranks_per_node for rate, row in limited)
    total = max(rate * row.ranks for rate, row in limited)
    return {
        "node_image_s": Belief(1 / node, 1.5, "the fastest row that loading limits"),
        # so far off that only rows make it bind, and so loose that the ranges hold that it soon may
        "shared_image_s": Belief(1 / (ROOM * total), 2.0, f"{ROOM} times what loading gave: assumed"),
    }


def used(beliefs: Beliefs) -> list[str]:
    """Names of the parameters that are not fixed, in the order of PARAMETERS."""
    return [name for name in PARAMETERS if beliefs[name].is_used]


def parameters_of(beliefs: Beliefs, logs: Array) -> Parameters:
    """Return parameters whose used ones have these logarithms, [k] or [draws, k]; the others are at their centres.

    The parameters are numbers or arrays [draws].
    """
    values: dict[str, float | Array] = {name: belief.centre for name, belief in beliefs.items()}
    for number, name in enumerate(used(beliefs)):
        top = TOPS.get(name, math.inf)
        values[name] = np.minimum(np.exp(np.asarray(logs)[..., number]), top)
    return Parameters(**values)


def draws(beliefs: Beliefs, count: int, seed: int = 0) -> Array:
    """Return logarithms of the used parameters, [count, k], drawn from what is believed."""
    names = used(beliefs)
    centres = np.log([beliefs[name].centre for name in names])
    spreads = np.array([beliefs[name].spread for name in names])
    return centres + spreads * np.random.default_rng(seed).standard_normal((count, len(names)))
