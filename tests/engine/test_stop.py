"""A run stops by itself before the time limit, saves when it is asked to, and heeds a stop before it has begun."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.deadline import LEAVE_S, TIME_LIMIT, Deadline, StepTimes, margin_s, stop_at
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.files import write_text_durably
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease
from hrdc_hpc.record.metrics import read_metrics, read_raw

from faulty import EndsAt, SaveFile, train_but_opening_takes_long, train_told_on_rank_1
from ranks import Ranks, StopWhen
from runs import differing, final_state, make_run

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]


def test_margin() -> None:
    assert margin_s(longest_step_s=0.1, steps_to_heed=3, round_s=0, save_s=2) == pytest.approx(0.3 + 4 + LEAVE_S)
    assert margin_s(longest_step_s=0.1, steps_to_heed=3, round_s=60, save_s=2) == pytest.approx(60 + 4 + LEAVE_S)
    assert margin_s(longest_step_s=20, steps_to_heed=2, round_s=1, save_s=0) == pytest.approx(40 + LEAVE_S)


def test_margin_leaves_half_of_the_time_to_the_steps() -> None:
    assert stop_at(end=1000, begun=100, margin=30) == 970
    assert stop_at(end=1000, begun=980, margin=30) == 990
    assert stop_at(end=1000, begun=1200, margin=30) == 1000, "over already: the scheduler's to say"


def test_deadline_is_rank_0_s_and_follows_what_was_measured(caplog: pytest.LogCaptureFixture) -> None:
    assert Deadline(lambda: None, StepTimes()).reason(1) is None
    times = StepTimes()
    deadline = Deadline(lambda: time.time() + 60, times)
    assert deadline.reason(1) is None, "nothing has begun"
    deadline.begin(state_bytes=10_000_000)
    assert deadline.reason(1) is None
    deadline.saved(1.0)
    times.add(0.5)
    assert deadline.reason(8) is None
    deadline.saved(24.0)  # the disk became slow: with both saves 53 s of 60 are the margin
    assert deadline.reason(8) is None, "but half of the time is for steps"
    assert "raise cluster.time_min" in caplog.text
    late = Deadline(lambda: time.time() + 3, times)
    late.begin(state_bytes=0)
    time.sleep(0.01)
    assert late.reason(8) is None


@pytest.mark.slow
def test_run_stops_by_itself_before_the_time_limit(tmp_path: Path, digits: Path) -> None:
    settings = ("optim.epochs=400", "checkpoint.every_steps=100000", "eval.every_epochs=400", "log.every_steps=20")
    run = make_run(tmp_path, digits, "limited", *settings)
    file = tmp_path / "end"
    ranks = Ranks(run, 2, stop=EndsAt(file))
    while not any(r["kind"] == "train" for r in read_raw(RunFolder(run))):
        assert ranks.alive(), ranks.logs()
    ends = time.time() + 12
    write_text_durably(file, str(ends))
    ranks.finish()
    assert time.time() < ends
    (end,) = [r for r in read_raw(RunFolder(run)) if r["kind"] == "end"]
    assert end["reason"] == TIME_LIMIT
    (saved,) = [r for r in read_raw(RunFolder(run)) if r["kind"] == "checkpoint"]
    assert ends - 12 < saved["time"] < ends
    step = final_state(run)["step"]
    assert step > 50
    flag = tmp_path / "stop"
    ranks = Ranks(run, 2, stop=StopWhen(flag))
    while not any(r["kind"] == "train" and r["step"] > step for r in read_raw(RunFolder(run))):
        assert ranks.alive(), ranks.logs()
    flag.touch()
    ranks.finish()
    steps = [r["step"] for r in read_raw(RunFolder(run)) if r["kind"] == "train"]
    assert steps == list(range(20, 20 * len(steps) + 1, 20)), "no step was done twice or left out"


SHORT = ("optim.epochs=1", "optim.warmup_epochs=0")
"""12 steps."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("straight"), digits, "straight", *SHORT)
    Ranks(run, 2).finish()
    return run


@pytest.mark.parametrize("every_steps", [pytest.param(1000, marks=pytest.mark.slow), 1], ids=["none due", "one due"])
def test_save_file_saves_on_all_ranks_and_goes_on(
    every_steps: int, straight: Path, tmp_path: Path, digits: Path
) -> None:
    run = make_run(tmp_path, digits, "asked", *SHORT, f"checkpoint.every_steps={every_steps}")
    (run / "save").touch()
    Ranks(run, 2, stop=SaveFile(run / "save")).finish()
    assert not (run / "save").exists()
    steps = [r["step"] for r in read_raw(RunFolder(run)) if r["kind"] == "checkpoint"]
    if every_steps == 1:
        assert steps == list(range(1, 13)), "none is saved twice"
    else:
        assert len(steps) == 2
        assert 1 <= steps[0] <= 9
        assert steps[1] == 12
    assert differing(final_state(straight), final_state(run)) == []


def test_told_on_one_rank_all_stop_at_the_same_step(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "one-told", "optim.epochs=100", "checkpoint.every_steps=100000")
    flag = tmp_path / "stop"
    ranks = Ranks(run, 2, stop=StopWhen(flag), target=train_told_on_rank_1)
    while not any(r["kind"] == "train" and r["step"] >= 7 for r in read_metrics(RunFolder(run))):
        assert ranks.alive(), ranks.logs()
    flag.touch()
    ranks.finish(40)  # a rank that went on would wait for its peer in vain
    (end,) = [r for r in read_raw(RunFolder(run)) if r["kind"] == "end"]
    assert end["reason"] == "SIGUSR2"
    trained = [r["step"] for r in read_metrics(RunFolder(run)) if r["kind"] == "train"]
    assert final_state(run)["step"] == trained[-1] < 1200


def nothing_is_lost(run: Path, ranks: Ranks) -> None:
    ranks.finish(40)
    assert "stopped before the start by SIGUSR2" in ranks.logs()
    assert not checkpoint.list_checkpoints(run / "checkpoints"), "there was nothing to save"
    assert RunFolder(run).state() in ("new", "started")


@pytest.fixture
def told(tmp_path: Path) -> StopWhen:
    flag = tmp_path / "stop"
    flag.touch()
    return StopWhen(flag)


def test_told_before_it_has_begun(tmp_path: Path, digits: Path, told: StopWhen) -> None:
    run = make_run(tmp_path, digits, "early")
    nothing_is_lost(run, Ranks(run, 2, stop=told))
    (end,) = [r for r in read_raw(RunFolder(run)) if r["kind"] == "end"]
    assert end["reason"] == "SIGUSR2"


@pytest.mark.slow
def test_told_while_it_waits_for_the_lease(tmp_path: Path, digits: Path, told: StopWhen) -> None:
    run = make_run(tmp_path, digits, "held")
    lease = Lease.acquire(RunFolder(run))
    nothing_is_lost(run, Ranks(run, 2, stop=told))
    assert not read_attempts(RunFolder(run))
    lease.release()


@pytest.mark.slow
def test_told_while_it_looks_through_the_data_set(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "opening")
    flag = tmp_path / "stop"
    ranks = Ranks(run, 2, stop=StopWhen(flag), target=train_but_opening_takes_long)
    while not any(r["kind"] == "health" for r in read_raw(RunFolder(run))):
        assert ranks.alive(), ranks.logs()
    began = time.monotonic()
    flag.touch()
    nothing_is_lost(run, ranks)
    assert time.monotonic() - began < 10, "the data set would have taken a minute"


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_told_while_a_peer_is_missing(missing: int, tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "waiting")
    flag = tmp_path / "stop"
    ranks = Ranks(run, 2, stop=StopWhen(flag), missing=[missing])
    time.sleep(2)
    assert ranks.alive(), ranks.logs()
    flag.touch()
    nothing_is_lost(run, ranks)
