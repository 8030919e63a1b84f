"""The best checkpoint of a run with a holdout is the same however often the run was killed or stopped."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.trained import open_checkpoint
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder

from faulty import StopAtEvaluation
from ranks import Ranks
from runs import differing, final_state, learnt, make_run, open_phases

pytestmark = [pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 4
OPTIONS = (
    "data.holdout={share: 0.3}", "checkpoint.keep_last=1", "checkpoint.every_steps=4", "log.every_steps=1000",
    # a constant rate, so that accuracy goes up and down
    "optim.schedule={name: cosine, final_factor: 1.0}", "optim.warmup_epochs=0", "optim.lr=0.2", "optim.epochs=4",
    "optim.global_batch=24",
)  # fmt: skip


def kept(run: Path) -> tuple[int, dict[str, Any]]:
    """Step and content of the best checkpoint."""
    step = checkpoint.best_step(run / "checkpoints")
    path = run / "checkpoints" / f"step-{step:08d}"
    assert checkpoint.problem(path) is None
    return step, checkpoint.load(path)


def evaluations(run: Path) -> dict[int, float]:
    """Mean class accuracy of the live weights' primary prediction on the holdout, by step."""
    return {r["step"]: r["accuracy"][r["primary"]]["balanced"] for r in learnt(run) if r["kind"] == "eval"}


def kill_a_few_times(run: Path, chance: random.Random) -> list[str]:
    """Kill at random moments, every second one in a save or an evaluation; return what was under way."""
    inside: list[str] = []
    for kill in range(KILLS):
        attempt = len(read_attempts(RunFolder(run)))
        ranks = Ranks(run, 2)
        phase = ("train", "save", "evaluate")[kill % 3]
        while ranks.alive() and phase not in open_phases(run, attempt):
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, {"train": 0.6, "save": 0.02, "evaluate": 0.06}[phase]))
        assert ranks.alive(), ranks.logs()
        ranks.kill()
        ranks.end(5)
        inside += sorted(open_phases(run, attempt) & {"save", "evaluate"})[:1]
    Ranks(run, 2).finish()
    return inside


def test_best_is_kept_and_is_the_same_after_kills_and_stops(tmp_path: Path, digits: Path) -> None:
    for seed in (3, 2, 0, 1, 4):
        options = (*OPTIONS, f"seed={seed}")
        straight = make_run(tmp_path, digits, f"straight-{seed}", *options)
        Ranks(straight, 2).finish()
        step, state = kept(straight)
        accuracies = evaluations(straight)
        last = max(accuracies)
        assert step == min(s for s, accuracy in accuracies.items() if accuracy == max(accuracies.values()))
        if step != last:
            break
    assert step != last, f"nothing is shown: the best one is the last one; {accuracies}"
    assert [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(straight / "checkpoints")] == [step, last]
    summary = RunFolder(straight).summary()
    assert summary is not None
    assert summary["best"] == {"step": step, "accuracy": accuracies[step]}
    assert [open_checkpoint(RunFolder(straight), s, ema=False).step for s in ("best", None)] == [step, last]

    killed = make_run(tmp_path, digits, "killed", *options)
    inside = kill_a_few_times(killed, random.Random(0))
    # told to stop in the very evaluation that finds the best one: its checkpoint does not know yet
    stopped = make_run(tmp_path, digits, "stopped", *options)
    Ranks(stopped, 2, stop=StopAtEvaluation(stopped, step)).finish()
    assert final_state(stopped)["step"] == step
    assert checkpoint.look(stopped / "checkpoints" / f"step-{step:08d}").about.get("best", {}).get("step") != step
    Ranks(stopped, 2).finish()
    print(f"{KILLS} kills, in save or evaluation: {inside}; best {step} of {accuracies}")
    for run in (killed, stopped):
        its_step, its_state = kept(run)
        assert its_step == step
        assert differing(state, its_state) == []
        assert differing(final_state(straight), final_state(run)) == []
        assert learnt(run) == learnt(straight)
        assert RunFolder(run).summary() == summary
