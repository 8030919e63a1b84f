"""What a run says of itself at its start: what 'auto' came to, how large the network is, which files it leaves out."""

from __future__ import annotations

import logging

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.index import name_some
from hrdc_hpc.engine.flops import flops_per_image, peak_flops
from hrdc_hpc.engine.journal import Journal
from hrdc_hpc.engine.parts import Images, Parts
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.models.network import parameters

log = logging.getLogger(__name__)


def note_left_out(images: Images, journal: Journal) -> None:
    """Say which files are not used because they cannot be read (data.on_bad_image: skip)."""
    left_out = {index.split: [str(bad) for bad in index.skipped] for index in (images.train, images.evaluation)}
    for split, files in left_out.items():
        if files:
            log.warning("%d files of the %s split are left out: %s", len(files), split, name_some(files))
    if any(left_out.values()):
        numbers = {split: len(files) for split, files in left_out.items()}
        journal.write("left_out", 0, numbers=numbers, files={split: some[:100] for split, some in left_out.items()})


def say_what_runs(
    parts: Parts, processes: Processes, journal: Journal, steps_per_epoch: int | None, steps: int
) -> None:  # fmt: skip
    """Write down what 'auto' and unset settings came to, and how large the network is.

    `steps_per_epoch` None: it is a measured run, which has no epochs.
    """
    step = parts.step
    number = parameters(step.network)
    settings = {
        "parameters": number, "device": str(processes.device), "precision": parts.precision.name,
        **step.execution, "world_size": processes.world_size,
        "steps_per_epoch": steps_per_epoch, "steps": steps,
    }  # fmt: skip
    journal.write("start", 0, **settings)
    if processes.first:
        log.info(
            "%d parameters, %s, %s%s%s", number, settings["device"], settings["precision"],
            ", compiled" if step.compiled else "", ", one CUDA graph a step" if step.captured else "",
        )  # fmt: skip


def use_per_image_s(config: RunConfig, parts: Parts, processes: Processes) -> float | None:
    """Seconds that all devices together take for an image at their peak; None where the peak is not known."""
    peak = peak_flops(processes.device, parts.precision.name, config.compute.peak_tflops)
    if peak is None:
        return None
    try:
        flops = flops_per_image(parts.step.network, config.data.image_size)
    except RuntimeError as error:  # an operator that torch cannot trace without memory
        log.warning("the model FLOPs utilisation is not known: the network cannot be traced: %s", error)
        return None
    return flops / (peak * processes.world_size)
