"""What a measured run ran on: nodes, their memory at its highest, network, versions."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.record.health import Home
from hrdc_hpc.record.machine import concerned
from hrdc_hpc.record.manifest import cpu_model, packages
from hrdc_hpc.record.measurement import Node

_INFINIBAND = Path("/sys/class/infiniband")


def nodes(processes: Processes, homes: Sequence[Home]) -> list[Node]:
    """Return the nodes in the order of their first ranks; called by all ranks."""
    on_gpu = processes.device.type == "cuda"
    mine = Node(
        name=str(homes[processes.rank]),
        machine=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        cores=processes.cores,
        device=torch.cuda.get_device_name(processes.device) if on_gpu else cpu_model(),
        peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_device_bytes=torch.cuda.max_memory_allocated(processes.device) if on_gpu else None,
    )
    by_name: dict[str, list[Node]] = {}
    for node in processes.everybody(mine):
        by_name.setdefault(node.name, []).append(node)
    return [_together(ranks) for ranks in by_name.values()]


def _together(ranks: Sequence[Node]) -> Node:
    """What the ranks of one node say as one."""
    first = ranks[0]
    return Node(
        name=first.name,
        machine=first.machine,
        cores=sum(rank.cores for rank in ranks),
        device=first.device,
        peak_host_bytes=sum(rank.peak_host_bytes or 0 for rank in ranks),
        peak_device_bytes=max((rank.peak_device_bytes for rank in ranks if rank.peak_device_bytes), default=None),
    )


def waited_for_core_s() -> float:
    """Seconds for which this thread could have run and had no core, so far; 0 where the kernel does not count them."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def interface(backend: str, number_of_nodes: int) -> str | None:
    """Return the interface that gradients go over between nodes; None where there is one node, or it is not known."""
    if number_of_nodes == 1:
        return None
    if backend == "nccl" and os.environ.get("NCCL_IB_DISABLE", "0") == "0" and _INFINIBAND.is_dir():
        adapters = sorted(path.name for path in _INFINIBAND.iterdir())
        if adapters:
            return os.environ.get("NCCL_IB_HCA") or ",".join(adapters)
    return os.environ.get("NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME")


def versions(driver: str | None) -> dict[str, str]:
    """Return versions of Python, of what computes and sends, and of the system."""
    found = {"python": platform.python_version(), **concerned(packages()), "linux": platform.release()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    if dist.get_backend() == "nccl":
        number: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]  # torch has no annotations there
        found["nccl"] = ".".join(str(part) for part in number)
    return found | ({"driver": driver} if driver else {})
