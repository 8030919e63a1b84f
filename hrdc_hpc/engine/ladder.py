"""The ladder of `bench step`: the same training step in one format, layout and form of execution after another.

A rung is the run's config with other compute fields, so it measures what a run with these fields would do. All rungs
start from the same weights and take the same resident batch of random images, in turns.

Axis legend: B images of the batch, C classes, S side of the square that the network sees.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hrdc_hpc.config.schema import Compute, RunConfig
from hrdc_hpc.data.batch import DECODED, Batch, decoded
from hrdc_hpc.data.classes import ClassInfo, group_classes
from hrdc_hpc.engine.ema import ema_weight
from hrdc_hpc.engine.flops import flops_per_image, peak_flops
from hrdc_hpc.engine.parts import build_model, step_draws
from hrdc_hpc.engine.precision import pick_precision
from hrdc_hpc.engine.processes import Processes, set_determinism
from hrdc_hpc.engine.roofline import bytes_per_image, measure_bandwidth, measure_matmul, synchronize
from hrdc_hpc.engine.rounds import Contender, Length, paired, race
from hrdc_hpc.engine.step import EMA_WEIGHT, LR, TrainStep
from hrdc_hpc.methods.base import Method
from hrdc_hpc.models.cost import Traffic

_RATE = 1e-3
"""Learning rate: any, as long as random labels do not make the weights infinite."""


@dataclass(frozen=True)
class Rung:
    """A name and the compute fields that differ from the run's."""

    name: str
    fields: Mapping[str, Any]
    needs_gpu: bool = False


_EAGER = {"compile": False, "cuda_graph": False, "deterministic": False}


def rungs(compute: Compute, device: torch.device) -> list[Rung]:
    """Return the ladder, plainest first; compiled and captured rungs take the precision that 'auto' picks here."""
    best = pick_precision(replace(compute, precision="auto"), device).name
    fast = {**_EAGER, "precision": best, "channels_last": True}
    return [
        Rung("fp32 NCHW", {**_EAGER, "precision": "fp32", "channels_last": False}),
        Rung("fp32 channels_last", {**_EAGER, "precision": "fp32", "channels_last": True}),
        Rung("bf16 channels_last", {**_EAGER, "precision": "bf16", "channels_last": True}),
        Rung("fp16 channels_last", {**_EAGER, "precision": "fp16", "channels_last": True}, needs_gpu=True),
        Rung(f"deterministic ({best})", {**fast, "deterministic": True}),
        Rung(f"compile ({best})", {**fast, "compile": True}),
        Rung(f"graph ({best})", {**fast, "cuda_graph": True}, needs_gpu=True),
        Rung(f"compile + graph ({best})", {**fast, "compile": True, "cuda_graph": True}, needs_gpu=True),
    ]


def made_up_classes(config: RunConfig, number: int) -> ClassInfo:
    """Return `number` classes of which the k-th most frequent has 1000 / k images, at least one."""
    counts_C = np.maximum(1, 1000 // np.arange(1, number + 1)).astype(np.int64)
    levels, shots = (
        # ranks are for the number of classes of the data set
        group_classes(counts_C, replace(groups, by="images", ranks=None), "")
        if groups.ranks and sum(groups.ranks) != number
        else group_classes(counts_C, groups, "")
        for groups in (config.data.levels, config.data.shots)
    )
    return ClassInfo(tuple(f"class_{k}" for k in range(number)), counts_C, levels, shots)


def random_batch(config: RunConfig, classes: ClassInfo, device: torch.device) -> Batch:
    """Return a batch of random uint8 images on the device, with labels as frequent as the classes are."""
    images, side = config.optim.global_batch, config.data.image_size
    rng = np.random.default_rng(config.seed)
    labels_B = rng.choice(classes.number, images, p=classes.counts_C / classes.counts_C.sum())
    counts_C = np.bincount(labels_B, minlength=classes.number).astype(np.float32)
    pixels_BSSC = rng.integers(0, 256, (images, side, side, 3), np.uint8)
    return Batch(
        pixels={DECODED: torch.from_numpy(pixels_BSSC).to(device)},
        render=decoded,
        labels_B=torch.from_numpy(labels_B).to(device),
        valid_B=torch.ones(images, device=device),
        positions_B=np.arange(images),
        indices_B=np.arange(images),
        class_counts_C=torch.from_numpy(counts_C).to(device),
        samples_B6=np.empty((0, 6), np.int64),
        step=0,
        epoch=0,
    )


class Steps:
    """The run's own TrainStep on one resident batch, built when it is first called."""

    def __init__(self, config: RunConfig, classes: ClassInfo, batch: Batch, processes: Processes) -> None:
        self._config, self._classes, self._batch, self._processes = config, classes, batch, processes
        self._step: Callable[[], None] | None = None

    def __call__(self, number: int) -> None:
        """Take that many steps and wait for the device."""
        # set for the whole process; rungs take turns
        set_determinism(self._config.compute, self._processes.device)
        if self._step is None:
            self._step = self._build()
        for _ in range(number):
            self._step()
        synchronize(self._processes.device)

    def _build(self) -> Callable[[], None]:
        config, device = self._config, self._processes.device
        network, method = build_model(config, self._classes, device)
        step = TrainStep(network, method, config, pick_precision(config.compute, device), self._processes)
        batches = {stream.name: self._batch for stream in method.streams}
        draws = {name: step_draws(method, config.seed, name, batch, device) for name, batch in batches.items()}
        scalars = step_scalars(config, method)
        step.rehearse(batches, draws)
        return lambda: step(batches, draws, scalars)


def step_scalars(config: RunConfig, method: Method) -> dict[str, float]:
    """Return the schedule values of a first step, at a small learning rate."""
    decay = config.optim.ema_decay
    average = {EMA_WEIGHT: ema_weight(0, decay) if decay is not None else 0.0}
    return {LR: _RATE, **average, **method.scalars(0, config.optim.epochs)}


def hand_back_memory() -> None:
    """Let the next contender have the device memory that the last one has finished with."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Limits:
    """What the network costs, and what the device could do."""

    flops: float
    """Per image of training; see engine/flops.py."""
    passes: int
    """Images that go through the network for each one that is counted: the method's streams."""
    traffic: Mapping[bool, Traffic]
    """Bytes per image, by whether activations have 16 bits; see engine/roofline.py."""
    bandwidth: float
    """Bytes per second, measured."""

    def mfu(self, images_per_s: float, peak: float | None) -> float | None:
        """Model FLOPs utilisation; None where the peak is not known."""
        return None if peak is None else images_per_s * self.passes * self.flops / peak

    def memory(self, images_per_s: float, *, half: bool, fused: bool) -> float:
        """Share of the measured bandwidth that the estimated bytes of this form of the step need."""
        traffic = self.traffic[half]
        return images_per_s * self.passes * (traffic.fused if fused else traffic.eager) / self.bandwidth


def find_limits(config: RunConfig, classes: ClassInfo, device: torch.device) -> Limits:
    """Count the network's work on paper and measure the memory's speed."""
    network, method = build_model(config, classes, torch.device("cpu"))
    side, batch = config.data.image_size, config.optim.global_batch
    traffic = {half: bytes_per_image(network, side, batch=batch, half=half) for half in (False, True)}
    return Limits(flops_per_image(network, side), len(method.streams), traffic, measure_bandwidth(device))


def climb(
    config: RunConfig,
    classes: ClassInfo,
    processes: Processes,
    ladder: Sequence[Rung],
    length: Length,
    say: Callable[[str], None],
    others: Sequence[Contender] = (),
) -> dict[str, Any]:
    """Measure the rungs, and other contenders with them, in turns.

    Returns plain values: the network's work, the device's limits and a row for each. What fails, or what this device
    cannot have, is a row with the reason.
    """
    device = processes.device
    say("counting FLOPs and bytes, measuring memory and arithmetic")
    limits = find_limits(config, classes, device)
    batch = random_batch(config, classes, device)
    configs = {rung.name: replace(config, compute=replace(config.compute, **rung.fields)) for rung in ladder}
    able = [rung for rung in ladder if device.type == "cuda" or not rung.needs_gpu]
    contenders = [
        Contender(rung.name, Steps(configs[rung.name], classes, batch, processes), config.optim.global_batch)
        for rung in able
    ]
    timings = race([*contenders, *others], length, say=lambda what: say(_what_it_costs(what)), between=hand_back_memory)
    rows: list[dict[str, Any]] = []
    for rung in ladder:
        if rung.name not in timings:
            rows.append({"name": rung.name, "failed": "not measured: needs an NVIDIA GPU"})
            continue
        timing = timings[rung.name]
        row = {"name": rung.name, **timing.summary(), "speed_up": paired(timing, timings[able[0].name])}
        if "images_per_s" in row:
            row |= _shares(row["images_per_s"], config, configs[rung.name].compute, limits, device)
        rows.append(row)
    for one in others:
        timing = timings[one.name]
        rows.append({"name": one.name, **timing.summary(), "speed_up": paired(timing, timings[able[0].name])})
    precisions = sorted({pick_precision(one.compute, device).name for one in configs.values()})
    return {
        "flops_per_image": limits.flops,
        "bytes_per_image": {
            name: vars(limits.traffic[half]) for name, half in (("fp32", False), ("half precision", True))
        },
        "bandwidth_bytes_per_s": limits.bandwidth,
        "matmul_flops_per_s": {
            p: measure_matmul(device, p) for p in precisions if device.type == "cuda" or p != "fp16"
        },
        "rows": rows,
    }


def _shares(
    images_per_s: float, run: RunConfig, compute: Compute, limits: Limits, device: torch.device
) -> dict[str, float | None]:
    precision = pick_precision(compute, device).name
    # what the user says of the peak is meant for the run's own precision
    own = run.compute.peak_tflops if precision == pick_precision(run.compute, device).name else None
    half = precision != "fp32"
    fused = device.type == "cuda" if compute.compile is None else compute.compile  # unset: compiled on a GPU
    return {
        "mfu": limits.mfu(images_per_s, peak_flops(device, precision, own)),
        "memory_share": limits.memory(images_per_s, half=half, fused=fused),
    }


def _what_it_costs(what: str) -> str:
    first_compile = what.startswith("compile") and "first" in what
    return f"{what} (compiling: a large network takes a minute or two, once)" if first_compile else what
