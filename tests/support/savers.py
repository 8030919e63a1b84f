"""Processes that save checkpoints, forked from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path
from typing import Any

contexts = multiprocessing.get_context("forkserver")
contexts.set_forkserver_preload(["torch", "hrdc_hpc.engine.checkpoint", "savers"])


def free() -> None:
    """Lease check of a lease that is held."""


def none_expected(path: Path, why: str) -> None:
    """Fail at a damaged checkpoint."""
    raise AssertionError(f"{path}: {why}")


def names(folder: Path) -> list[str]:
    """Everything in a folder, by name."""
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def save_and_wait(saver: Any, step: int, state: dict[str, Any]) -> None:
    """Save, and return once it is committed."""
    saver.save(step, state, {})
    saver.wait()


def numbered_state(step: int, numbers: int = 100_000) -> dict[str, Any]:
    """A state whose every number tells its step."""
    import torch

    flat = torch.full((numbers,), float(step))
    optimizer = {"state": {0: {"momentum": flat * 2}, 1: {"momentum": flat[:10]}}}
    return {"step": step, "network": {"a": flat, "b": flat[5:25].view(4, 5)}, "optimizer": optimizer}


def identical(one: Any, other: Any) -> bool:
    """Whether two nested states are equal bit for bit; dicts of any kind are alike, lists and tuples are not."""
    import torch

    if isinstance(one, torch.Tensor):
        alike = isinstance(other, torch.Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and bool((one == other).all())
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(identical, one, other))
    return type(one) is type(other) and bool(one == other)


def save_for_ever(folder: Path, asynchronous: bool, told: Path) -> None:
    """Go on from the newest checkpoint; append the step of every committed one to the file `told`."""
    import torch

    from hrdc_hpc.engine import checkpoint

    torch.set_num_threads(1)
    descriptor = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def saved(this: checkpoint.Saved) -> None:
        os.write(descriptor, f"{this.step}\n".encode())

    checkpoint.sweep(folder)
    found = checkpoint.latest(folder, on_damaged=none_expected)
    step = found.step if found else 0
    saver = checkpoint.Saver(folder, asynchronous=asynchronous, keep_last=2, lease_check=free, on_saved=saved)
    while True:
        step += 1
        saver.save(step, numbered_state(step), {"step": step})


def save_with_file_limit(folder: Path, limit_bytes: int, report: Path) -> None:
    """Save twice, the second time more than the system lets one file hold; write what that said to `report`."""
    from hrdc_hpc.engine import checkpoint

    checkpoint.save(folder, 1, numbered_state(1, 1000), {}, lease_check=free, keep_last=5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        checkpoint.save(folder, 2, numbered_state(2), {}, lease_check=free, keep_last=5)
    except RuntimeError as error:
        report.write_text(str(error))
