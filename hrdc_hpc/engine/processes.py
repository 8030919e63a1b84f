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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record.files import write_json_durably

log = logging.getLogger(__name__)

START_TIMEOUT_S = 1800
"""Ranks may come up minutes apart on a busy cluster."""
_CONNECT_S = 15
_LOOPBACK = "127.0.0.1"


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

    def gather_rows(self, row: torch.Tensor) -> torch.Tensor:
        """Return every rank's host tensor [n] as [world_size, n], on every rank."""
        rows = [torch.empty_like(row) for _ in range(self.world_size)]
        dist.all_gather(rows, row, group=self.control)
        return torch.stack(rows)


def pick_device(wanted: str, place: Place) -> torch.device:
    """Return the rank's device; ValueError if a GPU is demanded where none is visible."""
    visible = torch.cuda.device_count() if wanted != "cpu" else 0
    if visible == 0:
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


@contextmanager
def open_processes(place: Place, compute: Compute) -> Iterator[Processes]:
    """Join the job's process group for the length of the block; sets device, threads and determinism of torch."""
    device = pick_device(compute.device, place)
    cores = cores_of(place)
    torch.set_num_threads(compute.threads or cores)
    torch.use_deterministic_algorithms(compute.deterministic)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not compute.deterministic
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    alone = place.world_size == place.local_world_size
    if alone:  # a machine whose name does not resolve must still be able to talk to itself
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = _meet(place, _LOOPBACK if alone else socket.gethostname())
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=START_TIMEOUT_S),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        control = dist.new_group(backend="gloo", timeout=timedelta(seconds=START_TIMEOUT_S))
        yield Processes(place.rank, place.world_size, device, cores, control)
    finally:
        dist.destroy_process_group()
        if place.rank == 0:
            place.rendezvous.unlink(missing_ok=True)


def _meet(place: Place, host: str) -> dist.TCPStore:
    timeout = timedelta(seconds=START_TIMEOUT_S)
    if place.rank == 0:
        store = dist.TCPStore(host, 0, place.world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        place.rendezvous.parent.mkdir(parents=True, exist_ok=True)
        write_json_durably(place.rendezvous, {"host": host, "port": store.port})
        return store
    deadline = time.monotonic() + START_TIMEOUT_S
    trouble = "the file did not appear"
    while time.monotonic() < deadline:
        try:
            # read anew each time: a file left by an earlier start is replaced once rank 0 is up
            address = json.loads(place.rendezvous.read_text())
            connect = timedelta(seconds=_CONNECT_S)
            store = dist.TCPStore(address["host"], address["port"], place.world_size, is_master=False, timeout=connect)
        except FileNotFoundError:
            time.sleep(0.05)
        except (dist.DistError, json.JSONDecodeError) as error:
            trouble = str(error)
            time.sleep(1)
        else:
            store.set_timeout(timeout)
            return store
    raise RuntimeError(
        f"rank {place.rank} did not reach rank 0 within {START_TIMEOUT_S} s through {place.rendezvous}: {trouble}. "
        "Check that rank 0 is running (its log) and that the nodes see the same run folder and each other's network."
    )


def rendezvous_file(run: Path, start: str) -> Path:
    """Name of the file through which the ranks of one start of a job meet; `start` must be unique to it."""
    return run / "rendezvous" / f"{start}.json"
