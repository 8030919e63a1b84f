"""The health check before the first step: device, network, run folder and local disk of every rank.

Each rank looks at its own first; what is wrong is told to all, so that they leave together and none waits for a peer in
a collective that will not come. Then one all-reduce of a known pattern is checked on every rank.

What only some nodes suffer is theirs: BadNode, and the next attempt is placed elsewhere. What all of them find wrong
with the run folder is the file system's.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from hrdc_hpc.engine.checkpoint_files import Damaged, list_checkpoints, look
from hrdc_hpc.engine.faults import Faults
from hrdc_hpc.engine.place import Place
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.record.files import TEMPORARY
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.health import BadNode, Home, note

log = logging.getLogger(__name__)

_PROBE_BYTES = 1 << 16
_ROOM_BYTES = 64 << 20
"""Room in the run folder, where no checkpoint tells how large they are."""
_FEW_INODES = 1000
_MEMORY_BYTES = {"cuda": 256 << 20, "cpu": 1 << 20}
_SIDE = {"cuda": 2048, "cpu": 256}
_REDUCED_BYTES = {"cuda": 16 << 20, "cpu": 1 << 20}
_NODE, _FOLDER = "node", "folder"


@dataclass(frozen=True)
class Trouble:
    """What one rank found."""

    what: str
    whose: str = _NODE
    """'node', or 'folder': the run folder, which may be everybody's."""


def home_of(place: Place) -> Home:
    """Where a rank runs."""
    return Home(str(place.job.get("host") or socket.gethostname()), str(place.job.get("node", "")))


def check(
    processes: Processes, place: Place, folder: RunFolder, homes: list[Home], faults: Faults, keep_last: int
) -> float:
    """Check all ranks; return the seconds that it took. Called on every rank, with the same answer on all.

    Raises BadNode, with the nodes noted in health.jsonl, or RuntimeError for a run folder that fails everywhere.
    """
    start = time.perf_counter()
    own = _device_trouble(processes.device)
    if place.local_rank == 0:  # one a node
        own = own or _temporary_trouble() or _folder_trouble(folder, keep_last)
    if faults.unhealthy(homes[processes.rank]):
        own = Trouble("declared unhealthy by a fault injected on purpose")
    _agree(own, processes, place, folder, homes)
    _agree(_network_trouble(processes), processes, place, folder, homes)
    return time.perf_counter() - start


def _agree(own: Trouble | None, processes: Processes, place: Place, folder: RunFolder, homes: list[Home]) -> None:
    """Raise on all ranks what is wrong on some."""
    everybody: list[Trouble | None] = processes.everybody(own)
    found = {rank: trouble for rank, trouble in enumerate(everybody) if trouble}
    if not found:
        return
    ill = {homes[rank] for rank in found}
    said = "; ".join(f"rank {rank} on {homes[rank]}: {trouble.what}" for rank, trouble in list(found.items())[:8])
    if all(trouble.whose == _FOLDER for trouble in found.values()) and ill == set(homes):
        raise RuntimeError(f"health check: {said}. All nodes find it so: make it good, then start the run again")
    if processes.first:
        for home in sorted(ill, key=str):
            what = next(trouble.what for rank, trouble in found.items() if homes[rank] == home)
            note(folder, place.job, "check", what, home)
    raise BadNode(
        f"health check: {said}. Start the run again on other nodes (--sbatch exclude=...), or, if they are well,"
        " with guard.health_check=false"
    )


def _device_trouble(device: torch.device) -> Trouble | None:
    """Write and read memory, and multiply matrices whose product is known exactly in any number format."""
    kind = device.type
    try:
        pattern = torch.arange(_MEMORY_BYTES[kind] // 8, device=device)
        if int(pattern.sum()) != len(pattern) * (len(pattern) - 1) // 2:
            return Trouble(f"{device}: memory gives back other values than were written")
        side = _SIDE[kind]
        rows = torch.arange(side, device=device, dtype=torch.float32) % 8
        product = rows[:, None].expand(side, side).contiguous() @ torch.ones(side, side, device=device)
        if not torch.equal(product, (rows * side)[:, None].expand(side, side)):
            return Trouble(f"{device}: a product of two matrices is wrong")
    except RuntimeError as error:  # CUDA's own words
        return Trouble(f"{device}: {str(error).strip().splitlines()[0]}")
    return None


def _temporary_trouble() -> Trouble | None:
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # none of the usual places can be written
        return Trouble(str(error))
    return _disk_trouble(place, _NODE)


def _disk_trouble(place: Path, whose: str) -> Trouble | None:
    """Write, fsync and read back a small file."""
    probe = place / f"{TEMPORARY}health-{os.getpid()}-{secrets.token_hex(4)}"
    content = secrets.token_bytes(_PROBE_BYTES)
    try:
        try:
            with probe.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if probe.read_bytes() != content:
                return Trouble(f"{place}: a file reads other than it was written", whose)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return Trouble(f"{place}: cannot write there: {error.strerror or error}", whose)
    return None


def _folder_trouble(folder: RunFolder, keep_last: int) -> Trouble | None:
    """Look for room in the run folder as well; little room is a warning, for older checkpoints make way."""
    trouble = _disk_trouble(folder.path, _FOLDER)
    if trouble:
        return trouble
    try:
        free, inodes = shutil.disk_usage(folder.path).free, os.statvfs(folder.path)
        one = _checkpoint_bytes(folder)
    except OSError as error:
        return Trouble(f"{folder.path}: cannot look there: {error.strerror or error}", _FOLDER)
    if one is not None and free < one:
        return Trouble(f"{folder.path}: {free} bytes are free, and a checkpoint takes {one}; make room", _FOLDER)
    wanted = (keep_last + 2) * one if one is not None else _ROOM_BYTES
    if free < wanted:
        log.warning("%s: %d bytes are free; %d checkpoints may take %d", folder.path, free, keep_last + 2, wanted)
    if inodes.f_files and inodes.f_favail < _FEW_INODES:
        log.warning("%s: only %d more files fit there (inodes)", folder.path, inodes.f_favail)
    return None


def _checkpoint_bytes(folder: RunFolder) -> int | None:
    for path in reversed(list_checkpoints(folder.checkpoints)):
        try:
            return look(path).bytes
        except (Damaged, RuntimeError, OSError):
            continue
    return None


def _network_trouble(processes: Processes) -> Trouble | None:
    """Add up a known pattern over the ranks by the way that gradients take; whole numbers, so the sum is exact."""
    kind = processes.device.type
    pattern = torch.arange(_REDUCED_BYTES[kind] // 4, device=processes.device, dtype=torch.int32) % 251
    values = pattern * (processes.rank + 1)
    dist.all_reduce(values)
    ranks = processes.world_size
    wrong = int((values != pattern * (ranks * (ranks + 1) // 2)).sum())
    if wrong:
        return Trouble(f"the sum over the ranks is wrong in {wrong} of {len(values)} numbers")
    return None
