"""The ranks of a job as one process group, and the device of each.

Ranks meet through a file: rank 0 lets the operating system pick a free port, writes address and port into it, the
others read it. No port is guessed, so none collides; the file's name is unique to a start of a job (Place.rendezvous).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch._C._distributed_c10d import TCPStore  # torch.distributed does not export it by name to type checkers

from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine import interfaces
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record.files import write_json_durably

log = logging.getLogger(__name__)

START_TIMEOUT_S = 1800
"""Ranks may come up minutes apart on a busy cluster."""
_CONNECT_S = 15
_LOOPBACK = "127.0.0.1"
_REACHED, _FAILURE = "reached", "failure"


@dataclass(frozen=True)
class Processes:
    """This rank among its peers."""

    rank: int
    world_size: int
    device: torch.device
    cores: int
    """CPU cores for this rank."""
    control: dist.ProcessGroup
    """gloo group for small host-side decisions, so that none of them waits for the device."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a host tensor over the ranks, in place."""
        dist.all_reduce(values, op=dist.ReduceOp.SUM, group=self.control)
        return values

    def from_first(self, value: Any) -> Any:
        """Return rank 0's picklable value on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather_rows(self, row: torch.Tensor) -> torch.Tensor | None:
        """Return every rank's host tensor [n] as [world_size, n], on rank 0; None on the others."""
        rows = [torch.empty_like(row) for _ in range(self.world_size)] if self.first else None
        dist.gather(row, rows, dst=0, group=self.control)
        return torch.stack(rows) if rows else None

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the ranks of a float32 host tensor, on every rank; summed in float64."""
        return (self.sum(values.double()) / self.world_size).float()

    def concatenate(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return every rank's rows in the order of the ranks, on every rank; numbers of rows may differ."""
        everybody: list[Any] = [None] * self.world_size
        dist.all_gather_object(everybody, rows, group=self.control)
        return np.concatenate(everybody)


def pick_device(wanted: str, place: Place, gpus_per_node: int = 0) -> torch.device:
    """Return the rank's device.

    ValueError if a GPU is demanded where none is visible, RuntimeError if the scheduler was asked for some and the node
    shows none.
    """
    visible = torch.cuda.device_count() if wanted != "cpu" else 0
    if visible == 0:
        if wanted == "auto" and gpus_per_node > 0:
            raise RuntimeError(
                f"{socket.gethostname()}: no CUDA-capable device is visible, though cluster.gpus_per_node is"
                f" {gpus_per_node}; the node's driver may be down (nvidia-smi). To train on CPUs: compute.device=cpu"
            )
        if wanted == "cuda":
            raise ValueError("compute.device: got 'cuda', but this rank sees no GPU; use auto or cpu, or ask for GPUs")
        return torch.device("cpu")
    # under per-task binding a rank sees only its own GPU, and that is number 0
    number = 0 if visible == 1 else place.local_rank
    if number >= visible:
        raise ValueError(
            f"{place.local_world_size} ranks on this node, but only {visible} GPUs are visible: "
            "set cluster.ranks_per_node to at most cluster.gpus_per_node"
        )
    return torch.device("cuda", number)


def cores_of(place: Place) -> int:
    """CPU cores for this rank: what the scheduler gave, else its share of the cores that the process may use."""
    given = place.job.get("cpus_per_rank")
    if given is not None:
        return max(1, int(given))
    return max(1, len(os.sched_getaffinity(0)) // place.local_world_size)


def set_determinism(compute: Compute, device: torch.device) -> None:
    """Let torch take deterministic kernels only, or time them and take the fastest, for the whole process."""
    torch.use_deterministic_algorithms(compute.deterministic)
    # memory that nobody wrote is not read here: to fill it would only cost time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module that acts as an object
    torch.backends.cudnn.benchmark = device.type == "cuda" and not compute.deterministic


@contextmanager
def open_processes(place: Place, compute: Compute, *, gpus_per_node: int = 0) -> Iterator[Processes]:
    """Join the job's process group for the length of the block; sets device, threads and determinism of torch.

    `gpus_per_node` is what was asked of the scheduler: a rank that sees none of them is an error, not a run on the CPU.
    """
    device = pick_device(compute.device, place, gpus_per_node)
    cores = cores_of(place)
    torch.set_num_threads(compute.threads or cores)
    set_determinism(compute, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    store = _meet(place)
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=START_TIMEOUT_S),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        with _telling_why(store, place.rank):
            control = dist.new_group(backend="gloo", timeout=timedelta(seconds=START_TIMEOUT_S))
            assert isinstance(control, dist.ProcessGroup)
            processes = Processes(place.rank, place.world_size, device, cores, control)
            _refuse_shared_gpus(processes)
            yield processes
    finally:
        dist.destroy_process_group()
        if place.rank == 0:
            place.rendezvous.unlink(missing_ok=True)


def call_off(place: Place, why: str) -> None:
    """Let the ranks that wait for rank 0 know that it will not come."""
    place.rendezvous.parent.mkdir(parents=True, exist_ok=True)
    write_json_durably(place.rendezvous, {"called_off": why})


@contextmanager
def _telling_why(store: TCPStore, rank: int) -> Iterator[None]:
    """Leave word of an error in the store: what the peers see of it is only a broken connection.

    Rank 0, which writes down why an attempt ended, then names the rank that failed first.
    """
    try:
        yield
    except Exception as error:
        first, cause = str(rank), ""
        with suppress(RuntimeError):  # the store lives in rank 0, which may be gone
            if not store.check([_FAILURE]):
                store.set(_FAILURE, f"{rank} {type(error).__name__}: {error}")
            first, _, cause = store.get(_FAILURE).decode().partition(" ")
        if rank == 0 and first != "0":
            raise RuntimeError(f"rank {first} failed: {cause}") from error
        raise


def _refuse_shared_gpus(processes: Processes) -> None:
    if processes.device.type != "cuda":
        return
    mine = f"{socket.gethostname()} {torch.cuda.get_device_properties(processes.device).uuid}"
    everybody = [""] * processes.world_size
    dist.all_gather_object(everybody, mine, group=processes.control)
    if everybody.count(mine) > 1:
        ranks = [rank for rank, gpu in enumerate(everybody) if gpu == mine]
        raise ValueError(
            f"ranks {ranks} have the same GPU ({mine}); set cluster.ranks_per_node to at most cluster.gpus_per_node"
        )


def _meet(place: Place) -> TCPStore:
    timeout = timedelta(seconds=START_TIMEOUT_S)
    alone = place.world_size == place.local_world_size
    if alone:  # a machine whose name does not resolve must still be able to talk to itself
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if place.rank == 0:
        hosts = [_LOOPBACK] if alone else interfaces.reachable_as(socket.gethostname())
        # it listens on all interfaces, whatever name it is given
        store = TCPStore(_LOOPBACK, 0, place.world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        place.rendezvous.parent.mkdir(parents=True, exist_ok=True)
        write_json_durably(place.rendezvous, {"hosts": hosts, "port": store.port})
        if not alone:
            interfaces.use(store.get(_REACHED).decode())
        return store
    store, host = _find(place)
    store.set_timeout(timeout)
    if not alone:
        store.set(_REACHED, host)
        interfaces.use(interfaces.source_address(host))
    return store


def _find(place: Place) -> tuple[TCPStore, str]:
    """Connect to rank 0; also the address under which it was found."""
    deadline = time.monotonic() + START_TIMEOUT_S
    trouble = "the file did not appear"
    while time.monotonic() < deadline:
        try:
            # read anew each time: a file left by an earlier start is replaced once rank 0 is up
            told = json.loads(place.rendezvous.read_text())
        except FileNotFoundError:
            time.sleep(0.05)
            continue
        except (OSError, json.JSONDecodeError) as error:  # a stale handle of a network file system, say
            trouble = str(error)
            time.sleep(1)
            continue
        if "called_off" in told:
            raise RuntimeError(f"rank 0 did not start: {told['called_off']}")
        for host in told["hosts"]:
            try:
                address = socket.gethostbyname(host)
                connect = timedelta(seconds=_CONNECT_S)
                return TCPStore(address, told["port"], place.world_size, is_master=False, timeout=connect), address
            except (dist.DistError, OSError) as error:
                trouble = f"{host}: {error}"
        time.sleep(1)
    raise RuntimeError(
        f"rank {place.rank} did not reach rank 0 within {START_TIMEOUT_S} s through {place.rendezvous}: {trouble}. "
        "Check that rank 0 is running (its log) and that the nodes see the same run folder and each other's network."
    )
