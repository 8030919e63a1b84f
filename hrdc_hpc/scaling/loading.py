"""What loading must do for steps that were predicted as if it kept up. Pure, torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.scaling.prediction import Prediction

CORE = 210
"""JPEGs of 800x600 (270 kB) that a core decodes and crops at random in a second, measured on one CPU core."""
_CORE_SMALL = 444
"""The same of 500x375 (108 kB)."""
_SMALLEST = 128
"""Pixels of what the network sees, below which images are no such JPEGs."""


def is_open(config: RunConfig) -> bool:
    """Whether images are such JPEGs, and the cluster profile does not say how fast they are loaded."""
    device = config.cluster.device
    told = device is not None and (device.images_per_s or device.images_per_s_shared)
    dataset = registry.module("hrdc_hpc.data.datasets", config.data.dataset.name)
    return not told and not hasattr(dataset, "SIDE") and config.data.image_size >= _SMALLEST


def asked(config: RunConfig, predictions: Sequence[Prediction]) -> tuple[list[str], list[str]]:
    """Return what loading must do, in words, and what to be warned of; nothing of small or resident images.

    Nothing as well where the cluster profile says how fast loading is: it is in the predictions then.
    """
    if not predictions or not is_open(config):
        return [], []
    rank, cores = "GPU" if config.cluster.gpus_per_node else "rank", config.cluster.cpus_per_rank
    most = max(predictions, key=lambda one: one.images_per_s / one.ranks)
    rate, nodes = most.images_per_s / most.ranks, f"{most.nodes:,} node{'s'[: most.nodes != 1]}"
    wanted = math.ceil(rate / CORE)
    said = [
        f"Loading is taken to keep up: with up to {rate:,.0f} images/s a {rank} (on {nodes}, {most.batch_per_rank:g}"
        f" images a step). Decoding them takes some {wanted:,} cores a {rank}: a core decodes and crops {CORE} JPEGs of"
        f" 800x600 (270 kB) a second, or {_CORE_SMALL} of 500x375 (108 kB), measured on one CPU core."
        f" cluster.cpus_per_rank is {cores}."
    ]
    if cores >= wanted:
        return said, []
    return said, [
        f"Loading is not in these figures: {cores} core{'s'[: cores != 1]} a {rank} (cluster.cpus_per_rank) decode some"
        f" {cores * CORE:,} JPEGs of 800x600 a second. Loading would limit a {rank} to that, not the {rate:,.0f}"
        f" images/s predicted on {nodes}, unless images are packed smaller or decoded on the GPU."
    ]
