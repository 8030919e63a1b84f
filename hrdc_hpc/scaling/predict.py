"""Predicts a run's steps on paper, from its config and a cluster profile, before anything is run. Torch-free.

Compute of an image: its FLOPs at the share of the peak that large products reach, and its bytes at the share of the
memory's bandwidth that a copy reaches. At best the two overlap whole (the larger counts), at worst not at all (their
sum); the geometric mean of both is taken, and both lie in the range. FLOPs and bytes are the backbone's own figures
(`cost` in its file) with the method's heads; bytes are those of fused batch norm, ReLU and addition where the run is
compiled. A step's fixed part: launches (the profile's), and weights, momentum and gradients read and written once.

Communication: the profile's network, NCCL's faster one of ring and tree, DDP's buckets of 25 MiB. Everything that is
assumed is told in words beside the figures, and its uncertainty is in the range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hrdc_hpc.config import profiles, registry
from hrdc_hpc.config.cluster import Device, Network
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.models.cost import Cost
from hrdc_hpc.scaling import belief as believed
from hrdc_hpc.scaling import loading
from hrdc_hpc.scaling.belief import Belief, Beliefs
from hrdc_hpc.scaling.fit import Fitted, fit
from hrdc_hpc.scaling.model import Algorithm, Array, Load, Parameters, bytes_per_second, step_parts
from hrdc_hpc.scaling.observation import observations
from hrdc_hpc.scaling.prediction import HIGH, LOW, Prediction, predict
from hrdc_hpc.scaling.rows import Row, Size

_BACKBONES, _METHODS, _DATASETS = "hrdc_hpc.models.backbones", "hrdc_hpc.methods", "hrdc_hpc.data.datasets"
BUCKET, FIRST_BUCKET = 25 * 2**20, 2**20
"""Bytes of DDP's buckets; the first one is small, so that sending begins early."""
_DRAWS = 400
_NOISE = 0.03
"""Standard deviation of the logarithm of a measured step around one that all is known of."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What a prediction on paper rests on."""

    cost: Cost
    """Of the network with its heads."""
    beliefs: Beliefs
    gradient_bytes: float
    last_bytes: float
    messages: int
    bytes_per_s: float
    """Of a node's network."""
    assumptions: Sequence[str]
    """In words, a sentence each."""
    algorithm: Algorithm = "faster"

    def load(self, nodes: int, ranks_per_node: int, batch_per_rank: float) -> Load:
        """Return what a size asks of the cluster."""
        return Load(
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            batch_per_rank=batch_per_rank,
            gradient_bytes=self.gradient_bytes,
            last_bytes=self.last_bytes,
            messages=self.messages,
            bytes_per_s=self.bytes_per_s,
        )

    def predict(self, nodes: int, ranks_per_node: int, batch_per_rank: float) -> Prediction:
        """Return the step of a size."""
        load = self.load(nodes, ranks_per_node, batch_per_rank)
        drawn = believed.parameters_of(self.beliefs, believed.draws(self.beliefs, _DRAWS))
        noise = _NOISE * np.random.default_rng(1).standard_normal(_DRAWS)
        return predict(self._typical(), drawn, load, self.algorithm, noise, extrapolated=True)

    def efficiency(self, size: tuple[int, int, float], base: tuple[int, int, float]) -> tuple[float, float, float]:
        """Return images per second and rank over those of the base, and the range; sizes as of `load`.

        What is not known of the device is not known in both alike: the range is that of the ratio.
        """
        middle = self._rate(self._typical(), size) / self._rate(self._typical(), base)
        drawn = believed.parameters_of(self.beliefs, believed.draws(self.beliefs, _DRAWS))
        low, high = np.percentile(self._rate(drawn, size) / self._rate(drawn, base), (LOW, HIGH))
        return float(middle), min(float(low), float(middle)), max(float(high), float(middle))

    def _typical(self) -> Parameters:
        centres = np.log([self.beliefs[name].centre for name in believed.used(self.beliefs)])
        return believed.parameters_of(self.beliefs, centres)

    def _rate(self, parameters: Parameters, size: tuple[int, int, float]) -> Array:
        return np.asarray(size[2] / step_parts(parameters, self.load(*size), self.algorithm).step)


@dataclass(frozen=True, kw_only=True)
class OnPaper:
    """Predictions of some sizes."""

    predictions: Sequence[Prediction]
    """In the order of the sizes."""
    assumptions: Sequence[str]
    warnings: Sequence[str] = ()
    """What a reader must know first."""


def predict_on_paper(config: RunConfig, sizes: Sequence[Size], *, classes: int | None = None) -> OnPaper:
    """Predict a run's steps in these sizes from `config.cluster.network` and `config.cluster.device`.

    `classes`: of the data set, where it does not say so without its files. Raises ValueError where the profile, the
    backbone, the method or the data set does not tell what is needed.
    """
    paper = on_paper(config, classes=classes)
    found = [paper.predict(size.nodes, size.ranks_per_node, size.global_batch / size.ranks) for size in sizes]
    loaded, short = loading.asked(config, found)
    return OnPaper(
        predictions=found,
        assumptions=[*paper.assumptions, *loaded],
        warnings=[*_other_gpus(config, sizes), *short],
    )


def _other_gpus(config: RunConfig, sizes: Sequence[Size]) -> list[str]:
    """Tell where nodes are taken to have other GPUs than the profile says, as where the config has a number too."""
    name, taken = config.cluster.profile, sorted({size.ranks_per_node for size in sizes})
    has = profiles.says(name, "gpus_per_node") if name else None
    if has is None or not has.isdecimal() or not taken or int(has) in taken:
        return []
    told = " and ".join(f"{number}" for number in taken)
    return [
        f"Nodes are taken to have {told} GPU{'s'[: taken != [1]]}, as the config or the command line says; those of the"
        f" profile {name} have {has}. --gpus {has} predicts these."
    ]


def fit_rows(config: RunConfig, rows: Sequence[Row]) -> Fitted:
    """Fit the model to a study's rows; what its profile says of network and device is believed beforehand.

    Raises ValueError where no row has figures.
    """
    seen = observations(rows, config.cluster.network)
    if not seen:
        return fit(seen)
    beliefs = believed.weak(seen)
    if seen[0].backend == "nccl" and config.cluster.network is not None:
        beliefs |= {name: believed.loosened(one) for name, one in of_network(config.cluster.network).items()}
    return fit(seen, beliefs)


def on_paper(config: RunConfig, *, classes: int | None = None) -> Paper:
    """Return what a config and its cluster profile let one say; ValueError as of `predict_on_paper`."""
    device, network = config.cluster.device, config.cluster.network
    if device is None or network is None:
        lacking = " and ".join(f"cluster.{name}" for name in ("device", "network") if not getattr(config.cluster, name))
        raise ValueError(
            f"{lacking}: a prediction on paper needs it; name a profile that has it (--profile h200_ndr, a100_hdr,"
            " a100_25gbe) or write it into your own (configs/clusters/README.md)"
        )
    if device.half == (config.compute.precision == "fp32"):
        raise ValueError(
            f"cluster.device.half: {str(device.half).lower()} does not go with compute.precision:"
            f" {config.compute.precision}; give the device's tflops in the run's precision, and half to match"
        )
    cost, said = _cost(config, classes)
    gradients = cost.parameters * (2 if config.compute.gradients == "bf16" else 4)
    whole = 4 * cost.parameters  # DDP cuts buckets before they are rounded
    messages = 1 + max(0, math.ceil((whole - FIRST_BUCKET) / BUCKET))
    last = whole if messages == 1 else min(BUCKET / 2, whole - FIRST_BUCKET)
    beliefs = of_network(network) | of_device(config, device, cost)
    return Paper(
        cost=cost,
        beliefs=beliefs,
        gradient_bytes=gradients,
        last_bytes=last * gradients / whole,
        messages=messages,
        bytes_per_s=bytes_per_second(network.gbit_per_node),
        assumptions=[said, *_assumptions(config, device, network, beliefs, gradients, messages)],
    )


def of_network(network: Network) -> dict[str, Belief]:
    """Return what a profile says of the network, with its uncertainty."""
    profile = "the cluster profile"
    return {
        "inside_latency_s": Belief(1e-6 * network.inside_latency_us, 0.5, profile),
        "inside_s_per_byte": Belief(1e-9 / network.inside_gbyte_per_s, 0.15, profile),
        "between_latency_s": Belief(1e-6 * network.latency_us, 0.5, profile),
        "between_s_per_byte": Belief(0.0, 0.0, "nothing beside the network"),
        "rate_share": Belief(network.efficiency, 0.1, profile),
        "overlap": believed.OVERLAP,
        "stretch": believed.STRETCH,
    }


def of_device(config: RunConfig, device: Device, cost: Cost) -> dict[str, Belief]:
    """Return what a profile says of the device, with its uncertainty."""
    moved = cost.traffic(math.inf, half=device.half)
    arithmetic = cost.flops / (device.tflops * 1e12 * device.tflops_share)
    memory = device.memory_gbyte_per_s * 1e9 * device.memory_share
    traffic = (moved.fused if _is_fused(config) else moved.eager) / memory
    best, worst = max(arithmetic, traffic), arithmetic + traffic
    update = (cost.traffic(1, half=device.half).bound - moved.bound) / memory
    profile = "the cluster profile"
    loads = {
        "node_image_s": device.images_per_s,
        "shared_image_s": device.images_per_s_shared,
    }
    return {
        "fixed_s": Belief(1e-3 * device.step_ms * config.optim.accumulation + update, 0.3, profile),
        # best and worst are the ends of about 90 %, on top of what two devices of one name may differ by
        "image_s": Belief(
            math.sqrt(best * worst), math.hypot(math.log(worst / best) / 3.3, 0.1), "arithmetic and memory traffic"
        ),
        "noise": Belief(device.noise, 0.7, profile),
        **{name: Belief(1 / rate, 0.15, profile) if rate else believed.UNLIMITED for name, rate in loads.items()},
    }


def _is_fused(config: RunConfig) -> bool:
    return config.compute.compile is not False


def _cost(config: RunConfig, classes: int | None) -> tuple[Cost, str]:
    """Return what the network with its heads costs, and that in words."""
    backbone = registry.module(_BACKBONES, config.model.backbone.name)
    method = registry.module(_METHODS, config.method.name)
    dataset = registry.module(_DATASETS, config.data.dataset.name)
    for file, has, key, name in (
        (backbone, "cost", "model.backbone", config.model.backbone.name),
        (method, "HEADS", "method", config.method.name),
    ):
        if not hasattr(file, has):
            raise ValueError(f"{key}: {name} does not say what it costs (no `{has}` in its file); measure one node")
    if classes is None:
        options = config.data.dataset.options or dataset.Options()
        known = dataset.known(options) if hasattr(dataset, "known") else None
        if known is None:
            raise ValueError(
                f"data.dataset: {config.data.dataset.name} does not tell its number of classes without its files;"
                " give it (--classes N)"
            )
        classes = known[0]
    heads, bias = len(method.HEADS), config.model.bias and config.model.head == "linear"
    cost: Cost = backbone.cost(config.model.backbone.options or backbone.Options(), config.data.image_size)
    cost = cost.with_heads(heads, classes, bias=bias)
    said = (
        f"{config.model.backbone.name} with {heads} head{'s'[: heads > 1]} of {classes:,} classes at"
        f" {config.data.image_size} px: {cost.parameters / 1e6:.1f} M parameters, {cost.flops / 1e9:.3g} GFLOP an image"
        " forward and backward."
    )
    return cost, said


def _assumptions(
    config: RunConfig, device: Device, network: Network, beliefs: Beliefs, gradients: float, messages: int
) -> list[str]:
    images = 1 / beliefs["image_s"].centre
    loads = []
    if device.images_per_s or device.images_per_s_shared:
        rates = (("a node", device.images_per_s), ("all nodes together", device.images_per_s_shared))
        told = " and ".join(f"{rate:,.0f} images/s for {whose}" for whose, rate in rates if rate)
        loads = [f"Loading gives {told}, beside the rest."]
    return [
        f"{device.name}: {device.tflops:g} TFLOP/s of which large products reach {device.tflops_share:.0%},"
        f" {device.memory_gbyte_per_s:g} GB/s of which {device.memory_share:.0%} are had; at most {images:,.0f}"
        f" images/s with {'fused' if _is_fused(config) else 'separate'} batch norm, ReLU and addition.",
        f"{1e3 * beliefs['fixed_s'].centre:.2g} ms of a step do not grow with its images.",
        f"{network.gbit_per_node:g} Gbit/s between nodes, of which all-reduces get {network.efficiency:.0%},"
        f" {network.latency_us:g} us from node to node; {network.inside_gbyte_per_s:g} GB/s and"
        f" {network.inside_latency_us:g} us inside a node; the faster one of ring and tree.",
        f"{gradients / 1e6:.0f} MB of gradients ({config.compute.gradients}) in {messages} buckets; communication hides"
        f" behind {believed.OVERLAP.centre:.0%} of compute, that of the last bucket behind nothing.",
        f"A rank's steps differ by {device.noise:.1%}, and all wait for the slowest.",
        *loads,
        "Ranges hold what these assumptions leave open, not software or loading that fall short of them: of 14"
        " published runs 8 lie in theirs (benchmarks/scaling_published). Measure one node before a large job.",
        f"Not in it: {'loading, ' if loading.is_open(config) else ''}evaluation, checkpoints, the start of a run, other"
        " jobs on the same network.",
    ]
