"""The goodput of a real run that was killed and resumed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hrdc_hpc.cluster.goodput import PARTS
from hrdc_hpc.cluster.timeline import account_of
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

from ranks import Ranks
from runs import make_run

pytestmark = [pytest.mark.slow, pytest.mark.dali]

PAUSE_S = 2.0


def test_the_goodput_of_a_killed_and_resumed_run(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "killed", "optim.epochs=20", "checkpoint.every_steps=30", "eval.every_epochs=5")
    first = Ranks(run, 1)
    deadline = time.monotonic() + 90
    while max((r["step"] for r in read_raw(run) if r["kind"] == "train"), default=0) < 50:
        assert time.monotonic() < deadline, first.logs()
        time.sleep(0.01)
    first.kill()
    first.wait()
    lost = account_of(run).run
    time.sleep(PAUSE_S)
    Ranks(run, 1).finish()
    records = read_raw(run)
    trained = [r["step"] for r in records if r["kind"] == "train"]
    repeated = len(trained) - len(set(trained))
    assert repeated > 0, "it was killed at a checkpoint"

    told = account_of(run)
    spent = told.run.seconds
    wall = records[-1]["time"] - min(r["time"] for r in records)
    assert sum(spent.values()) == pytest.approx(wall, abs=0.2)
    assert (told.run.repeated_steps, lost.repeated_steps) == (repeated, repeated)
    assert spent["queue"] == pytest.approx(PAUSE_S, abs=1.5)
    stalls = sum(r["stall_s"] for r in records if r["kind"] == "save")
    assert stalls <= spent["saving"] < stalls + 0.5 * wall
    evaluating = sum(r["seconds"] for r in records if r["kind"].startswith("eval"))
    assert spent["evaluation"] == pytest.approx(evaluating, rel=0.2, abs=0.1)
    pace = (spent["training"] + spent["repeated"]) / len(trained)
    assert spent["repeated"] == pytest.approx(repeated * pace, rel=0.8)
    assert set(spent) == set(PARTS)
    assert RunFolder(run).state() == "finished"
