"""TensorBoard shows one curve, whatever happened to the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from faulty import StopAtEvaluation
from ranks import Ranks
from runs import make_run

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]


def test_scalars_of_every_attempt(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "board", "log.tensorboard=true")
    Ranks(run, 2, stop=StopAtEvaluation(run, 12)).finish()
    Ranks(run, 2).finish()
    steps = []
    for attempt in sorted((run / "tensorboard").iterdir()):
        events = EventAccumulator(str(attempt)).Reload()
        steps += [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, 37))
    assert [event.step for event in events.Scalars("eval/accuracy/fused_tail/overall")] == [12, 24, 36]
    assert {"train/scalars/alpha", "train/lr", "eval_ema/accuracy/plain/few"} <= set(events.Tags()["scalars"])
