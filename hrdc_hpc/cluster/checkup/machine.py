"""This machine: cores, GPUs, shared memory, limits of the shell, network. Torch-free."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

from hrdc_hpc.cluster.checkup.finding import Finding, Role, ok, warning
from hrdc_hpc.engine import interfaces
from hrdc_hpc.record import manifest

_SHM_GB = 1.0
"""Less is the default of a container (64 MB), too little for the buffers of NCCL and of loader processes."""
_FILES = 4096
"""Sockets to every peer, shards, checkpoints: 1024, an old default, does not go far on many ranks."""


def check(role: Role) -> Iterator[Finding]:
    """Yield findings on this machine."""
    cores = len(os.sched_getaffinity(0))
    yield ok("processor", f"{cores} of {os.cpu_count()} cores may be used")
    yield _gpus(role)
    yield _shared_memory(Path("/dev/shm"))
    yield from _limits(role)
    yield _name(socket.gethostname())
    yield _network()


def _gpus(role: Role) -> Finding:
    found = manifest.gpus()
    if isinstance(found, list) and found:
        one = found[0]
        return ok("GPUs", f"{len(found)} x {one['name']}, {one['memory.total']}, driver {one['driver_version']}")
    why = found if isinstance(found, str) else "nvidia-smi names none"
    if role == "login":
        return ok("GPUs", f"{why}; a login node does not need one")
    asked = os.environ.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0")
    mend = "drain the node (nvidia-smi shows why)" if asked else "for GPUs ask SLURM for some: srun --gpus-per-node 1"
    return warning("GPUs", why, "training would use the CPU", mend)


def _shared_memory(path: Path) -> Finding:
    try:
        size = os.statvfs(path)
    except OSError as error:
        return warning("/dev/shm", str(error), "NCCL has no shared memory between ranks", "mount a tmpfs there")
    gigabytes = size.f_frsize * size.f_blocks / 1e9
    free = size.f_frsize * size.f_bavail / 1e9
    if gigabytes < _SHM_GB:
        return warning(
            "/dev/shm", f"{gigabytes:.2f} GB, {free:.2f} GB free", "too small for NCCL and loader processes",
            "docker: --shm-size=8g or --ipc=host; else mount -o remount,size=8G /dev/shm",
        )  # fmt: skip
    return ok("/dev/shm", f"{gigabytes:.1f} GB, {free:.1f} GB free")


def _limits(role: Role) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = f"{_limit(soft)} (at most {_limit(hard)})"
    if soft != resource.RLIM_INFINITY and soft < _FILES and role != "login":
        mend = f"ulimit -n {_FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)} in cluster.setup"
        yield warning("open files", files, "few for many ranks with their sockets and shards", mend)
    else:
        yield ok("open files", files)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infiniband = Path("/sys/class/infiniband").is_dir() and any(Path("/sys/class/infiniband").iterdir())
    if infiniband and locked != resource.RLIM_INFINITY:
        yield warning(
            "locked memory", f"{locked / 1e6:.1f} MB, and there is InfiniBand", "NCCL cannot register its buffers",
            "ulimit -l unlimited for slurmd (LimitMEMLOCK=infinity in its unit), then restart it",
        )  # fmt: skip
    else:
        size = "unlimited" if locked == resource.RLIM_INFINITY else f"{locked / 1e6:.1f} MB"
        yield ok("locked memory", size + ("" if infiniband else "; no InfiniBand, so it does not matter"))


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def _name(host: str) -> Finding:
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        return warning(
            "host name", f"{host} cannot be resolved: {error}", "peers are told this node's addresses instead",
            "enter it in /etc/hosts or the name service",
        )  # fmt: skip
    if address.startswith("127."):
        others = [one for one in interfaces.addresses().values() if not one.startswith("127.")]
        instead = ", ".join(others) or "none"
        return ok("host name", f"{host} stands for {address}; peers are told its other addresses: {instead}")
    return ok("host name", f"{host} is {address}")


def _network() -> Finding:
    found = interfaces.addresses()
    out = {name: address for name, address in found.items() if not address.startswith("127.")}
    if not out:
        return warning(
            "network", "no interface but loopback", "ranks on other nodes cannot be reached", "set the network up",
        )  # fmt: skip
    chosen = {name: os.environ[name] for name in interfaces.VARIABLES if name in os.environ}
    told = "".join(f"; {name}={value}" for name, value in chosen.items())
    begun = [value.split(",")[0] for value in chosen.values() if not value.startswith(("^", "="))]
    wrong = [value for value in begun if not any(name.startswith(value) for name in found)]  # NCCL takes beginnings
    shown = ", ".join(f"{name} {address}" for name, address in out.items()) + told
    if wrong:
        return warning("network", shown, f"there is no interface {wrong[0]} here", "unset the variable")
    return ok("network", shown)
