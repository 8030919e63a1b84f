"""Ranks that are measured, as targets of `ranks.Ranks`: slowed down by known amounts, and looked at meanwhile."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hrdc_hpc.engine.place import Place, Stop

DATA_S, NETWORK_S = 0.06, 0.04
"""What a batch of the loader, and the sum of a bucket over the ranks, take longer than they would."""


def measure_slowed_down(run: Path, place: Place, stop: Stop) -> None:
    """Measure with a slow loader and a slow network; leave in rank-<r>.json what this rank saw.

    all_reduces: of gradients, by variant. walls: seconds of the timed part of each window. weights: sum of the
    parameters' magnitudes at the end of the last window of each variant. kept: names of what the measurement changed.
    """
    import torch
    import torch.distributed as dist

    from hrdc_hpc.data.loader import TrainLoader
    from hrdc_hpc.engine import trainer
    from hrdc_hpc.engine.measure import Measuring
    from hrdc_hpc.engine.windows import Windows

    now = ["other"]
    seen: dict[str, Any] = {"all_reduces": Counter(), "walls": [], "weights": {}, "kept": []}
    all_reduce, batches, take, window = dist.all_reduce, TrainLoader.batches, Windows._take, Windows.window
    measure = Measuring._measure

    def slow_all_reduce(tensor: torch.Tensor, *arguments: Any, group: Any = None, **more: Any) -> Any:
        if group is None and now[0] != "other":
            seen["all_reduces"][now[0]] += 1
            time.sleep(NETWORK_S)
        return all_reduce(tensor, *arguments, group=group, **more)

    def slow_batches(self: TrainLoader, first: int, last: int) -> Iterator[Any]:
        for batch in batches(self, first, last):
            time.sleep(DATA_S)
            yield batch

    def timed_take(self: Windows, number: int, *, resident: bool) -> None:
        began = time.perf_counter()
        take(self, number, resident=resident)
        if number == self.told.steps:
            seen["walls"].append(time.perf_counter() - began)
            weights = self.parts.step.network.parameters()
            seen["weights"][now[0]] = sum(float(weight.detach().abs().double().sum()) for weight in weights)

    def named_window(self: Windows, variant: Any, steps: int) -> Any:
        now[0] = variant if steps == self.told.steps else "other"
        try:
            return window(self, variant, steps)
        finally:
            now[0] = "other"

    def looked_at(self: Measuring) -> None:
        step = self.parts.step

        def state() -> dict[str, torch.Tensor]:
            return {**step.network.state_dict(), **{f"momentum {name}": m for name, m in step.momenta().items()}}

        before = {name: tensor.clone() for name, tensor in state().items()}
        measure(self)
        seen["kept"] = [name for name, tensor in state().items() if not torch.equal(tensor, before[name])]

    dist.all_reduce, TrainLoader.batches = slow_all_reduce, slow_batches  # type: ignore[assignment, method-assign]
    Windows._take, Windows.window = timed_take, named_window  # type: ignore[method-assign]
    Measuring._measure = looked_at  # type: ignore[method-assign]
    trainer.train(run, place, stop)
    (run / f"rank-{place.rank}.json").write_text(json.dumps(seen))


def measure_without_reading(run: Path, place: Place, stop: Stop) -> None:
    """Measure; whoever asks a loader for a batch fails."""
    from hrdc_hpc.data.loader import TrainLoader
    from hrdc_hpc.engine import trainer

    def refuse(self: TrainLoader, first: int, last: int) -> Iterator[Any]:
        raise AssertionError("an image is read")

    TrainLoader.batches = refuse  # type: ignore[method-assign]
    trainer.train(run, place, stop)


def measure_compiled(run: Path, place: Place, stop: Stop) -> None:
    """Measure; leave in rank-<r>.json how many programs were compiled, and broken up, before the windows and after."""
    from torch._dynamo.utils import counters

    from hrdc_hpc.engine import trainer
    from hrdc_hpc.engine.measure import Measuring

    take_turns, told = Measuring._take_turns, []

    def look() -> None:
        told.append([counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())])

    def looked_at(self: Measuring) -> list[int]:
        look()
        found = take_turns(self)
        look()
        return found

    Measuring._take_turns = looked_at  # type: ignore[method-assign]
    trainer.train(run, place, stop)
    (run / f"rank-{place.rank}.json").write_text(json.dumps(told))
