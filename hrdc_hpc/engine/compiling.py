"""Whether the step is compiled and captured: what the config asks for, and what this machine can do."""

from __future__ import annotations

import logging

import torch

from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine.processes import Processes

log = logging.getLogger(__name__)


def pick_compile(compute: Compute, processes: Processes) -> bool:
    """Resolve compute.compile, the same on all ranks.

    Unset: on GPUs where torch.compile works on every rank (it needs a C compiler and Triton), not on CPUs, where it
    costs about a minute at every start. Set to true where it does not work: RuntimeError that says why.
    """
    wanted = compute.compile if compute.compile is not None else processes.device.type == "cuda"
    if not wanted:
        return False
    trouble = _trouble(processes.device)
    failing = int(processes.sum(torch.tensor([trouble is not None])).item())
    if failing == 0:
        if compute.deterministic:
            _compile_deterministically()
        return True
    text = f"torch.compile does not work on {failing} of {processes.world_size} ranks"
    text += f"; on this one: {trouble}" if trouble else ""
    if compute.compile:
        raise RuntimeError(f"compute.compile: {text}. It needs a C++ compiler; or set compute.compile=false")
    log.warning("%s. Training goes on without it, and slower.", text)
    return False


def _compile_deterministically() -> None:
    """Keep the compiler from choosing kernels by their speed at the moment, where this version of torch can be told."""
    from torch._inductor import config

    if hasattr(config, "deterministic"):
        config.deterministic = True


def _trouble(device: torch.device) -> str | None:
    """Compile and run the smallest kernel; None if that works, else why not."""

    def program(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1

    x = torch.zeros(8, device=device)
    try:
        torch.compile(program, dynamic=False)(x)
    except Exception as error:  # noqa: BLE001 - whatever a compiler, linker or driver may raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    return None


def pick_graph(compute: Compute, processes: Processes, *, resident: bool) -> bool:
    """Resolve compute.cuda_graph. Unset: on a single GPU whose data set lies in its memory.

    ValueError where it is demanded on several ranks: the reduction over the ranks is not part of the graph.
    """
    if processes.device.type != "cuda":
        return False
    if compute.cuda_graph is None:
        return resident and processes.world_size == 1
    if compute.cuda_graph and processes.world_size > 1:
        raise ValueError(
            f"compute.cuda_graph: true needs a single rank; this run has {processes.world_size}. Leave it unset"
        )
    return compute.cuda_graph
