"""A run that is SIGKILLed at random moments ends as the undisturbed one, bit for bit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder

from ranks import Ranks, train
from runs import differing, final_state, learnt, make_run, open_phases
from small_cifar import SMALL_CIFAR, train_small_cifar

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 22
COLOURFUL = ("data.colour_jitter={brightness: 0.3, contrast: 0.3, saturation: 0.3}",)
"""Draws of every kind that the data makes."""


def _begun(metrics: Path, phase: str, since: int) -> bool:
    """Whether the attempt's trace shows the phase begun, in what was written after byte `since`."""
    if not metrics.exists():
        return False
    lines = metrics.read_bytes()[since:].splitlines()
    records = [json.loads(line) for line in lines if line.endswith(b"}")]
    return any(r["kind"] == "phase" and r["name"] == phase and r["event"] == "begin" for r in records)


def _wait_to_kill(run: Path, ranks: Ranks, attempt: int, kind: str, chance: random.Random) -> None:
    """Wait for the moment: any time, or some way into the next save or evaluation."""
    if kind == "any":
        deadline = time.monotonic() + chance.uniform(0.0, 2.0)
        while ranks.alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        return
    metrics = RunFolder(run).metrics / f"attempt-{attempt}.jsonl"
    skip = chance.randrange(2)  # sometimes the second one of the attempt
    since = 0
    for _ in range(skip + 1):
        while ranks.alive() and not _begun(metrics, kind, since):
            time.sleep(0.001)
        since = metrics.stat().st_size if metrics.exists() else 0
    time.sleep(chance.uniform(0.0, 0.03 if kind == "save" else 0.25))


def _kill_and_compare(
    world_size: int, wanted_kills: int, make: Callable[[str], Path], target: Callable[..., Any] = train
) -> None:
    """Kill runs until there were so many kills, at least a third inside a save or an evaluation; all end the same."""
    straight = make("straight")
    Ranks(straight, world_size, target=target).finish()
    state, metrics = final_state(straight), learnt(straight)

    chance = random.Random(world_size)
    inside: list[str] = []
    kills, number = 0, 0

    def more() -> bool:
        """Whether more kills are wanted: where a machine is slow, many miss the save that they waited for."""
        return kills < wanted_kills or (len(inside) < kills / 3 and kills < 2 * wanted_kills)

    while more():
        number += 1
        run = make(f"killed-{number}")
        while RunFolder(run).state() != "finished":
            attempt = len(read_attempts(RunFolder(run)))
            ranks = Ranks(run, world_size, target=target)
            if more():
                kind = ("any" if kills < wanted_kills else "save", "save", "evaluate")[kills % 3]
                _wait_to_kill(run, ranks, attempt, kind, chance)
                one = [chance.randrange(world_size)] if chance.random() < 0.25 else None
                was_alive = ranks.alive()
                ranks.kill(one)
                ranks.end(5)
                if was_alive and RunFolder(run).state() != "finished":
                    kills += 1
                    inside += sorted(open_phases(run, attempt) & {"save", "evaluate"})[:1]
            else:
                ranks.finish()
        assert differing(state, final_state(run)) == [], f"after {len(read_attempts(RunFolder(run)))} attempts"
        assert learnt(run) == metrics
    print(f"{kills} kills on {world_size} ranks over {number} runs, in save or evaluation: {len(inside)} {inside}")
    assert len(inside) >= kills / 3


@pytest.mark.dali
@pytest.mark.parametrize("world_size", [2, 4])
def test_killed_and_resumed_is_identical_to_straight(world_size: int, tmp_path: Path, digits: Path) -> None:
    _kill_and_compare(
        world_size, KILLS, lambda name: make_run(tmp_path, digits, name, *COLOURFUL, "optim.accumulation=2")
    )


def test_the_full_engine_too(tmp_path: Path, cifar10: Path) -> None:
    """resnet32, fp16 and its loss scale, ghost norm, clipping, decay groups, images on the device, deterministic."""

    def make(name: str) -> Path:
        config = loads(SMALL_CIFAR.format(name=name, root=cifar10), "test", [*COLOURFUL])
        return RunFolder.create(tmp_path / name, config_text=to_yaml(config), manifest={}).path

    _kill_and_compare(2, 9, make, train_small_cifar)
