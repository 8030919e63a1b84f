"""How long a checkpoint holds up training: the asynchronous save beside a plain memory copy of the same tensors.

    python -m benchmarks.save [--rounds 5] [--device cpu] [--record records]

The state is that of ResNet-50 with two heads of 8,142 classes: weights, momentum and averaged weights, 683 MB. Each
round takes, one after the other and in another order every time: a plain copy of every tensor into memory that is
there already, an asynchronous save (the training thread's stall, and the time until the checkpoint is durable), and a
synchronous save. The first of each pays for new memory (page faults, pinning) and is listed apart. Needs 2.1 GB of
memory and 1.4 GB of disk, which it frees again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.report import write
from hrdc_hpc.config.schema import Model
from hrdc_hpc.config.types import Component
from hrdc_hpc.engine.checkpoint import Saver
from hrdc_hpc.models.network import build_network
from hrdc_hpc.record.figures import show
from hrdc_hpc.record.machine import describe

COPY, STALL, DURABLE, SYNCHRONOUS = "copy", "stall", "durable", "synchronous"
LABELS = {
    COPY: "plain copy of the tensors",
    STALL: "asynchronous save, stall",
    DURABLE: "asynchronous save, until durable",
    SYNCHRONOUS: "synchronous save, stall",
}
COLUMNS = ("", "first, s", "later, s", "GB/s", "over the copy of its round")
Seconds = dict[str, list[float]]
"""By kind, one a round."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="save.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--classes", type=int, default=8142, help="of each of two heads")
    parser.add_argument("--rounds", type=int, default=5, help="after the first (default: 5)")
    parser.add_argument("--device", default="cpu", help="where the state lies: cpu or cuda")
    parser.add_argument("--disk", type=Path, default=Path(), help="folder to write checkpoints below (default: here)")
    parser.add_argument("--record", type=Path, help="folder for save_<hardware>_<date>.json and .md")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    state = make_state(options.backbone, options.classes, torch.device(options.device))
    with tempfile.TemporaryDirectory(dir=options.disk, prefix=".tmp-save-") as folder:
        seconds = measure(state, Path(folder), options.rounds)
    chosen = settings(options)
    told = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]  # no path
    report: dict[str, Any] = {
        "machine": describe(), "settings": chosen, "arguments": told, "bytes": size(state), "seconds": seconds,
    }  # fmt: skip
    show("What a checkpoint costs", COLUMNS, rows(report), f"{report['bytes'] / 1e6:.0f} MB; seconds: median (range)")
    if options.record:
        write_record(options.record, report)
    return 0


def make_state(backbone: str, classes: int, device: torch.device) -> dict[str, Any]:
    """Return a training state as the engine saves it: tensors of a network with two heads, its momentum and average."""
    torch.manual_seed(0)
    network = build_network(Model(backbone=Component(backbone)), ("plain", "reweighted"), classes).to(device)
    weights = dict(network.named_parameters())
    return {
        "step": 0,
        "network": dict(network.state_dict()),
        "optimizer": {i: {"momentum_buffer": torch.randn_like(w)} for i, w in enumerate(weights.values())},
        "ema": {name: weight.detach().clone() for name, weight in weights.items()},
    }


def tensors(state: Any) -> list[torch.Tensor]:
    """Every tensor of a state."""
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in tensors(value)]
    return [state.detach()] if isinstance(state, torch.Tensor) else []


def size(state: dict[str, Any]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors(state))


def measure(state: dict[str, Any], folder: Path, rounds: int) -> Seconds:
    """Return seconds of the first round and of `rounds` more; `folder` holds two checkpoints at most."""
    sources = tensors(state)
    copies: list[torch.Tensor] = []
    savers = {way: Saver(folder, asynchronous=way, keep_last=1, lease_check=lambda: None) for way in (True, False)}
    seconds: Seconds = {kind: [] for kind in LABELS}
    steps = iter(range(1, 2 * rounds + 3))

    def copy() -> None:
        _settle(sources)
        start = time.perf_counter()
        if not copies:
            copies.extend(torch.empty_like(t, device="cpu", pin_memory=t.is_cuda) for t in sources)
        for target, source in zip(copies, sources, strict=True):
            target.copy_(source, non_blocking=True)
        _settle(sources)
        seconds[COPY].append(time.perf_counter() - start)

    def asynchronous() -> None:
        _settle(sources)
        start = time.perf_counter()
        seconds[STALL].append(savers[True].save(next(steps), state, {}))
        savers[True].wait()
        seconds[DURABLE].append(time.perf_counter() - start)

    def synchronous() -> None:
        _settle(sources)
        seconds[SYNCHRONOUS].append(savers[False].save(next(steps), state, {}))

    turns: list[Callable[[], None]] = [copy, asynchronous, synchronous]
    for number in range(rounds + 1):
        for turn in turns[number % 3 :] + turns[: number % 3]:
            turn()
        latest = ", ".join(f"{kind} {values[-1]:.3f}" for kind, values in seconds.items())
        sys.stderr.write(f"round {number} of {rounds}, s: {latest}\n")
    for saver in savers.values():
        saver.close()
    return seconds


def _settle(sources: list[torch.Tensor]) -> None:
    if sources[0].is_cuda:
        torch.cuda.synchronize(sources[0].device)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured; no path."""
    return {name: getattr(options, name) for name in ("backbone", "classes", "rounds", "device")}


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table: the first round, the later ones, and their ratios to the copy of the same round."""
    seconds, size_bytes = report["seconds"], report["bytes"]
    lines: list[tuple[str, ...]] = []
    for kind, label in LABELS.items():
        first, *later = seconds[kind]
        ratios = [one / other for one, other in zip(later, seconds[COPY][1:], strict=True)]
        told = "" if kind == COPY else _spread(ratios, 2)
        lines.append((label, f"{first:.3f}", _spread(later, 3), f"{size_bytes / median(later) / 1e9:.2f}", told))
    return lines


def _spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def write_record(folder: Path, report: dict[str, Any]) -> None:
    """Write save_<hardware>_<date>.json and .md."""
    chosen = report["settings"]
    write(
        folder, "save", report, module="benchmarks.save",
        title=f"What a checkpoint costs: {report['bytes'] / 1e6:.0f} MB", columns=COLUMNS, rows=rows(report),
        notes=[
            f"Weights, momentum and averaged weights of {chosen['backbone']} with two heads of {chosen['classes']}"
            f" classes, on {chosen['device']}; saved by the engine's Saver and, in the same rounds and in turn, copied"
            " tensor by tensor into memory that is there already. One first round and"
            f" {chosen['rounds']} later ones: median (range).",
            "The stall is what training waits for; the rest is written by a thread. The first of each also pays for its"
            " memory: page faults, and pinning where the state lies on a GPU. Durable means that files and folder are"
            " flushed.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
