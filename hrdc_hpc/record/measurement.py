"""What a measured run found: rank 0 writes it into the run folder, scaling studies read it. Torch-free.

Times are seconds of one optimizer step unless a name says otherwise; a step's time is from the end of the one before
to its own end, so steps of a window add up to its length. Figures that could not be measured are None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hrdc_hpc.record.files import write_json_durably

FILE = "measurement.json"
"""In the run folder's report/."""
_VERSION = 1

Variant = Literal["as_is", "no_sync", "resident", "resident_no_sync"]
"""How a window of steps was carried out: as in training; without adding gradients up over the ranks; on batches that
lie on the device already; both."""
VARIANTS: tuple[Variant, ...] = ("as_is", "no_sync", "resident", "resident_no_sync")


@dataclass(frozen=True, kw_only=True)
class Share:
    """Where the time of steps as in training goes, rank 0, by marks inside the step (engine/clock.py); medians."""

    data_wait_s: float
    compute_s: float
    """Forward and backward."""
    communication_s: float
    """Exposed: what does not overlap with backward."""
    optimizer_s: float


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """All-reduces of one size over all ranks, by themselves."""

    bytes: int
    seconds: Sequence[float]
    """Each repetition; the slowest rank's."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that took part."""

    name: str
    """For the scheduler, or its host name."""
    machine: str
    """Kernel's boot id: nodes with the same one are one machine, and their figures say nothing about scaling."""
    cores: int
    """That all ranks of the node together may use."""
    device: str
    """Model of the GPUs, or of the processor."""
    peak_host_bytes: int | None = None
    """Largest resident memory of all its ranks together."""
    peak_device_bytes: int | None = None
    """Largest memory that the ranks of one GPU allocated."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured run."""

    world_size: int
    ranks_per_node: int
    global_batch: int
    images: Literal["real", "resident"]
    """Whether `as_is` reads real images; resident: batches of made-up images lie on the device."""
    warm_up: int
    """Steps left out at the beginning of each window."""
    windows: Mapping[str, Sequence[Sequence[float]]]
    """Variant: step times of each of its rounds, in turns with those of the other variants: [rounds][steps]."""
    shares: Share
    gradient_bytes: int
    """That one all-reduce of all gradients sends, in the format they are added up in."""
    buckets: Sequence[int]
    """Bytes of DDP's buckets in the order they are sent; empty on one rank."""
    all_reduces: Sequence[AllReduce]
    """From a few bytes to gradient_bytes; empty on one rank."""
    backend: str
    """nccl or gloo."""
    interface: str | None
    """Network interface that gradients go over, where it is known."""
    nodes: Sequence[Node]
    precision: str
    startup_s: Mapping[str, float]
    """Parts of the start up to the first step, e.g. meeting, data, rehearsal; 'total' from the process's start."""
    checkpoint_bytes: int
    checkpoint_stall_s: float
    """For how long training stands still."""
    checkpoint_s: float
    """Until it is durable."""
    energy_j: float | None = None
    """Of all GPUs, for one step as in training (NVML)."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages, CUDA, driver."""
    notes: Sequence[str] = ()
    """What a reader must know, e.g. a variant that could not be measured and why."""

    @property
    def batch_per_rank(self) -> float:
        """Images of a step and rank."""
        return self.global_batch / self.world_size


def write(run: Path, found: Measurement) -> None:
    """Write report/measurement.json in the run folder, whole."""
    (run / "report").mkdir(exist_ok=True)
    write_json_durably(run / "report" / FILE, {"version": _VERSION, **asdict(found)})


def is_there(run: Path) -> bool:
    """Whether the run measured, to its end."""
    return (run / "report" / FILE).is_file()


def read(run: Path) -> Measurement | None:
    """Read it; None if there is none. Raises ValueError for one of another version."""
    file = run / "report" / FILE
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if (version := value.pop("version", None)) != _VERSION:
        raise ValueError(f"{file}: version {version!r}; this code knows {_VERSION}: use that of the study")
    value["shares"] = Share(**value["shares"])
    value["all_reduces"] = [AllReduce(**one) for one in value["all_reduces"]]
    value["nodes"] = [Node(**one) for one in value["nodes"]]
    return Measurement(**value)
