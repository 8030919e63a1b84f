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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch._C._distributed_c10d import TCPStore  # torch.distributed does not export it by name to type checkers

from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine import interfaces
from hrdc_hpc.engine.peers import FAILURE
from hrdc_hpc.engine.place import NeverStop, Place, Stop, Stopped
from hrdc_hpc.record.files import write_json_durably
from hrdc_hpc.record.health import BadNode

log = logging.getLogger(__name__)

START_TIMEOUT_S = 1800
"""Ranks may come up minutes apart on a busy cluster."""
_CONNECT_S = 15
_LOOPBACK = "127.0.0.1"
_REACHED, _HERE, _ASKED, _VERDICT = "reached", "here", "asked to stop", "verdict"
_GO = "go"
_POLL_S = 0.5
_set_timeout: Callable[..., None] = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
"""It got its public name after torch 2.11."""


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
    store: TCPStore
    """By which the ranks met."""

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

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Take the largest over the ranks of every element of a host tensor, in place."""
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
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

    def everybody(self, value: Any) -> list[Any]:
        """Return every rank's picklable value, in the order of the ranks, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def set_timeout(self, seconds: float) -> None:
        """Let collectives that begin from now on give up after so many seconds."""
        for group in (None, self.control):
            _set_timeout(timedelta(seconds=seconds), group)

    def concatenate(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return every rank's rows in the order of the ranks, on every rank; numbers of rows may differ."""
        return np.concatenate(self.everybody(rows))


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
    """CPU cores for this rank: what the scheduler gave, else its share of the cores that the process may use.

    Never more than it may use: some sites bind a task to fewer cores than it was promised.
    """
    usable = len(os.sched_getaffinity(0))
    given = place.job.get("cpus_per_rank")
    return max(1, min(int(given), usable) if given is not None else usable // place.local_world_size)


def set_determinism(compute: Compute, device: torch.device) -> None:
    """Let torch take deterministic kernels only, or time them and take the fastest, for the whole process."""
    torch.use_deterministic_algorithms(compute.deterministic)
    # memory that nobody wrote is not read here: to fill it would only cost time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module that acts as an object
    torch.backends.cudnn.benchmark = device.type == "cuda" and not compute.deterministic


@contextmanager
def open_processes(
    place: Place, compute: Compute, *, gpus_per_node: int = 0, stop: Stop | None = None
) -> Iterator[Processes]:
    """Join the job's process group for the length of the block; sets device, threads and determinism of torch.

    `gpus_per_node` is what was asked of the scheduler: a rank that sees none of them is an error, not a run on the CPU.
    Raises Stopped, on all ranks, if one is told to stop before all have met.
    """
    stop = stop or NeverStop()
    chosen = {variable: os.environ.get(variable) for variable in interfaces.VARIABLES}
    try:
        store = _meet(place, stop)
        with _telling_why(store, place.rank):
            device = _prepare(place, compute, gpus_per_node)
            _gather(store, place, stop)
            # word of an error first, then the connections are cut
            with _group(store, place, device) as control, _telling_why(store, place.rank):
                processes = Processes(place.rank, place.world_size, device, cores_of(place), control, store)
                _refuse_shared_gpus(processes)
                yield processes
    finally:
        for variable, value in chosen.items():  # what is started from here later may need another interface
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
        if place.rank == 0 and not _is_called_off(place):
            place.rendezvous.unlink(missing_ok=True)


def _prepare(place: Place, compute: Compute, gpus_per_node: int) -> torch.device:
    device = pick_device(compute.device, place, gpus_per_node)
    torch.set_num_threads(compute.threads or cores_of(place))
    set_determinism(compute, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device


@contextmanager
def _group(store: TCPStore, place: Place, device: torch.device) -> Iterator[dist.ProcessGroup]:
    """Open the default group and the control group for the length of the block."""
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
        assert isinstance(control, dist.ProcessGroup)
        yield control
    finally:
        dist.destroy_process_group()


def call_off(place: Place, why: str, *, stopped: str | None = None) -> None:
    """Let the ranks that wait for rank 0 know that it will not come; `stopped`: because it was told to stop."""
    place.rendezvous.parent.mkdir(parents=True, exist_ok=True)
    write_json_durably(place.rendezvous, {"called_off": why, "stopped": stopped})


def _is_called_off(place: Place) -> bool:
    """Whether the file says so to ranks that come late; it is not removed then."""
    try:
        return "called_off" in json.loads(place.rendezvous.read_text())
    except (OSError, json.JSONDecodeError):
        return False


@contextmanager
def _telling_why(store: TCPStore, rank: int) -> Iterator[None]:
    """Leave word of an error in the store: what the peers see of it is only a broken connection.

    Rank 0, which writes down why an attempt ended, then names the rank that failed first.
    """
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        first, cause = str(rank), ""
        with suppress(RuntimeError):  # the store lives in rank 0, which may be gone
            if not store.check([FAILURE]):
                store.set(FAILURE, f"{rank} {type(error).__name__}: {error}")
            first, _, cause = store.get(FAILURE).decode().partition(" ")
        if rank == 0 and first != "0" and not isinstance(error, BadNode):
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


def _meet(place: Place, stop: Stop) -> TCPStore:
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
            _wait_until(lambda: store.check([_REACHED]), place, lambda: _asked_to_stop(store, place, stop))
            interfaces.use(store.get(_REACHED).decode())
        return store
    store, host = _find(place, stop)
    store.set_timeout(timeout)
    if not alone:
        store.set(_REACHED, host)
        interfaces.use(interfaces.source_address(host))
    return store


def _gather(store: TCPStore, place: Place, stop: Stop) -> None:
    """Return once all ranks are here. Raises Stopped on all of them if one of them was told to stop before.

    Done in Python, step by step: while torch's own rendezvous waits, no signal is heeded. Rank 0 decides for all.
    """
    store.add(_HERE, 1)
    if place.rank == 0:
        _wait_until(lambda: store.add(_HERE, 0) >= place.world_size, place, lambda: _asked_to_stop(store, place, stop))
        store.set(_VERDICT, _GO)
        return

    def ask_rank_0() -> None:
        if reason := stop.reason():
            store.set(_ASKED, reason)
        if store.check([FAILURE]):
            first, _, why = store.get(FAILURE).decode().partition(" ")
            raise RuntimeError(f"rank {first} failed: {why}")

    try:
        _wait_until(lambda: store.check([_VERDICT]), place, ask_rank_0)
        if (verdict := store.get(_VERDICT).decode()) != _GO:
            raise Stopped(verdict)
    except dist.DistError as error:  # rank 0 left
        with suppress(OSError, json.JSONDecodeError):
            _heed(json.loads(place.rendezvous.read_text()))
        raise RuntimeError(f"rank 0 left before all ranks had met: {error}") from error


def _asked_to_stop(store: TCPStore, place: Place, stop: Stop) -> None:
    """On rank 0: raise Stopped if any rank was told to stop, once the others can know it."""
    reason = stop.reason()
    if reason is None and store.check([_ASKED]):
        reason = store.get(_ASKED).decode()
    if reason is None and _left_word(place).exists():
        reason = _left_word(place).read_text() or "other"
    if reason is None and store.check([FAILURE]):
        first, _, why = store.get(FAILURE).decode().partition(" ")
        raise RuntimeError(f"rank {first} failed: {why}")
    if reason:
        call_off(place, f"it was told to stop ({reason})", stopped=reason)
        store.set(_VERDICT, reason)
        raise Stopped(reason)


def _wait_until(true: Callable[[], bool], place: Place, meanwhile: Callable[[], None]) -> None:
    """Call `meanwhile` until something is true. RuntimeError if that takes longer than a start may."""
    deadline, pause_s = time.monotonic() + START_TIMEOUT_S, 0.01
    while not true():
        meanwhile()
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"rank {place.rank}: not all of the {place.world_size} ranks were there within {START_TIMEOUT_S} s."
                " Look at the logs of those that are missing"
            )
        time.sleep(pause_s)
        pause_s = min(_POLL_S, 1.5 * pause_s)


def _left_word(place: Place) -> Path:
    """File in which a rank that does not wait for rank 0 any more says why."""
    return place.rendezvous.with_suffix(".stopped")


def _heed(told: dict[str, Any]) -> None:
    """Raise what rank 0 left word of, if it will not come."""
    if told.get("stopped"):
        raise Stopped(told["stopped"])
    if "called_off" in told:
        raise RuntimeError(f"rank 0 did not start: {told['called_off']}")


def _find(place: Place, stop: Stop) -> tuple[TCPStore, str]:
    """Connect to rank 0; also the address under which it was found."""
    deadline = time.monotonic() + START_TIMEOUT_S
    trouble = "the file did not appear"
    while time.monotonic() < deadline:
        if reason := stop.reason():
            place.rendezvous.parent.mkdir(parents=True, exist_ok=True)
            _left_word(place).write_text(reason)
            raise Stopped(reason)
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
        _heed(told)
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
