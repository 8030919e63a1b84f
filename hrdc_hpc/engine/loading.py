"""How fast this machine loads images: the run's loader beside its own stages and the bare decoder.

Rates are of the clock, and other work on the machine lowers them; processor time an image is nearly free of that.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.index import ImageIndex
from hrdc_hpc.data.stages import Stage, Stages, Turn
from hrdc_hpc.engine.rounds import reason

LOADER, FEED, CROP, BARE = "loader", "feed", "decode, crop", "bare libjpeg-turbo"


@dataclass
class Measured:
    """The turns of one stage."""

    threads: int
    turns: list[Turn] = field(default_factory=list)
    failed: str | None = None

    @property
    def rates(self) -> list[float]:
        """Images per second of each turn."""
        return [turn.images / turn.seconds for turn in self.turns]

    @property
    def cpu_s(self) -> float:
        """Processor seconds an image, over all turns."""
        return sum(turn.cpu_s for turn in self.turns) / sum(turn.images for turn in self.turns)

    def summary(self) -> dict[str, Any]:
        """Return plain values."""
        if self.failed or not self.turns:
            return {"threads": self.threads, "failed": self.failed or "no turn"}
        rates = self.rates
        return {
            "threads": self.threads, "images_per_s": statistics.median(rates), "range": [min(rates), max(rates)],
            "rounds": rates, "cpu_s_per_image": self.cpu_s,
        }  # fmt: skip


def take_turns(
    stages: dict[str, tuple[int, Stage]], rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Measured]:
    """Let stages ({name: (threads, stage)}) take turns; what fails is left out of the following rounds."""
    measured = {name: Measured(threads) for name, (threads, _) in stages.items()}
    for number in range(rounds):
        for name, (_, stage) in stages.items():
            if measured[name].failed:
                continue
            say(f"round {number + 1} of {rounds}: {name}")
            try:
                measured[name].turns.append(stage(seconds))
            except Exception as error:  # noqa: BLE001 - whatever a decoder raises becomes the row's reason
                measured[name].failed = reason(error)
    return measured


def measure_loader(
    config: RunConfig,
    index: ImageIndex,
    *,
    batch: int,
    threads: Sequence[int],
    device: torch.device,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure the loader at each number of threads and its stages at the largest; return plain values.

    ValueError for fewer images than `batch`.
    """
    sampler = registry.build(
        "hrdc_hpc.data.samplers", config.data.sampler, index.labels_N, index.counts_C, epochs=config.optim.epochs
    )
    most = max(threads)
    stages = Stages(index, config.data, sampler, batch=batch, threads=most, device=device)
    contenders = {name: (most, stage) for name, stage in stages.parts().items()}
    contenders |= {f"{LOADER}, {n} threads": (n, stages.whole(n)) for n in threads}
    measured = take_turns(contenders, rounds, seconds, say)
    rows = [{"name": name, **one.summary()} for name, one in measured.items()]
    loader = measured[f"{LOADER}, {most} threads"]
    return {"rows": rows, "images": len(index), "mean_bytes": float(index.bytes_N.mean()), **_shares(loader, measured)}


def _shares(loader: Measured, measured: dict[str, Measured]) -> dict[str, Any]:
    """The feed's share of the loader's processor time, and the loader's rate as a share of what decoding alone does."""

    def of(other: str) -> float | None:
        there = measured[other]
        if loader.failed or there.failed:
            return None
        return statistics.median(a / b for a, b in zip(loader.rates, there.rates, strict=True))

    feed = measured[FEED]
    known = not (loader.failed or feed.failed)
    return {
        "feed_share_of_cpu": feed.cpu_s / loader.cpu_s if known else None,
        "of_the_bare_decoder": of(BARE),
        "of_decoding_the_crops": of(CROP),
    }
