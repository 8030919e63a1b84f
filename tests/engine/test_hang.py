"""A rank that gets nowhere is not waited for, one that is only slow is."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.config.schema import Guard
from hrdc_hpc.engine import watchdog
from hrdc_hpc.engine.peers import Sign, behind
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record import health
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics, read_raw

from faulty import (
    train_but_evaluation_is_slow,
    train_but_rank_1_fails_at_start,
    train_on_nodes,
    train_with_little_patience_to_meet,
    wait_in_vain,
)
from ranks import Ranks
from runs import differing, final_state, make_run

pytestmark = [pytest.mark.slow, pytest.mark.dali, pytest.mark.timeout(300)]


@dataclass
class Busy:
    """Peers whose rank 0 is at something."""

    where: str | None
    for_s: float

    def first(self) -> Sign | None:
        return Sign(1, 9, self.where, 3, self.for_s) if self.where else None


@pytest.mark.parametrize(
    ("where", "for_s", "waits"),
    [
        ("save", 30, True),
        ("going back", 30, True),
        ("step", 1.5, True),  # it comes straight from a save, its peers have waited for all of that
        ("step", 30, False),
        (None, 0, False),
    ],
)
def test_rank_0_is_waited_for_where_it_saves_or_just_did(
    where: str | None, for_s: float, waits: bool, tmp_path: Path
) -> None:
    """Also several steps later: on a GPU the host is ahead of its device, and so of rank 0."""
    dog = watchdog.Watchdog(
        Guard(watchdog_min_s=1, watchdog_factor=2), Place(1, 2, 1, 2, tmp_path), RunFolder(tmp_path)
    )
    dog.among(cast(watchdog.Company, Busy(where, for_s)), [])
    for step in range(3):
        dog.step_begins(step)
        dog.step_ended(step + 1)
    assert dog._bear_with_rank_0(3, 2) is waits
    assert not dog._bear_with_rank_0(1 + Guard().watchdog_start_s, 2)


SHORT = ("guard.watchdog_min_s=2", "guard.watchdog_factor=2", "guard.watchdog_start_s=60")


def wait_for_step(run: Path, ranks: Ranks, step: int) -> None:
    while not any(r["kind"] == "train" and r["step"] >= step for r in read_metrics(RunFolder(run))):
        assert ranks.alive(), ranks.logs()
        time.sleep(0.02)


def hung(run: Path) -> list[dict[str, str]]:
    return [line for line in health.read(RunFolder(run)) if line["kind"] == "hung"]


def test_exit_codes_are_the_table_s() -> None:
    assert (watchdog.FAILED, watchdog.HUNG) == (Exit.FAILED, Exit.HUNG)


def sign(beat: int, count: int) -> Sign:
    return Sign(beat, count, "data", 3)


def test_who_is_behind() -> None:
    before = {0: sign(1, 9), 1: sign(5, 9), 2: sign(3, 9)}
    assert behind(before, {0: sign(2, 9), 1: sign(5, 9), 2: sign(4, 9)}, 3).keys() == {1}, "no new sign of life"
    assert behind(before, {0: sign(2, 9), 1: sign(6, 9)}, 3).keys() == {2}, "gone"
    assert behind(before, {0: sign(2, 9), 1: sign(6, 8), 2: sign(4, 9)}, 3).keys() == {1}, "has begun less"
    assert behind(before, {0: sign(2, 9), 1: sign(6, 9), 2: sign(4, 9)}, 3) == {}, "nobody can be named"


def stop_and_wait(run: Path, ranks: Ranks, stopped: int, other: int) -> None:
    """SIGSTOP one of two ranks; the other one leaves as hung."""
    pid = ranks.processes[stopped].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        ranks.processes[other].join(25)
        assert ranks.processes[other].exitcode == Exit.HUNG, ranks.logs()
    finally:
        ranks.end(0)


def test_peers_of_a_stopped_rank_leave_and_name_it(tmp_path: Path, digits: Path) -> None:
    # it is stopped in a save as well as in a step: neither takes a peer that lives so long
    run = make_run(tmp_path, digits, "stopped", "optim.epochs=40", "checkpoint.every_steps=1", *SHORT)
    ranks = Ranks(run, 2, target=train_on_nodes)
    wait_for_step(run, ranks, 5)
    stop_and_wait(run, ranks, 1, 0)
    (stacks,) = (run / "logs").glob("stacks-7-0-r0.txt")
    assert any(f"in {place}" in stacks.read_text() for place in ("_after_step", "_train_step"))
    (line,) = hung(run)
    assert line["node"] == "n1"
    assert "rank 1 on n1 did not arrive: no sign of life" in line["what"]
    (end,) = [r for r in read_raw(RunFolder(run)) if r["kind"] == "end"]
    assert "nothing was done for" in end["reason"]


@pytest.mark.slow
def test_peers_of_a_stopped_rank_0_leave_though_its_store_is_silent(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "first", "optim.epochs=40", *SHORT)
    ranks = Ranks(run, 2, target=train_on_nodes)
    wait_for_step(run, ranks, 5)
    stop_and_wait(run, ranks, 0, 1)
    (line,) = hung(run)
    assert line["node"] == "n0"
    assert "rank 0 on n0 did not arrive: its store does not answer" in line["what"]


@pytest.mark.slow
def test_collectives_give_up_after_the_time_set(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "alone")
    ranks = Ranks(run, 2, target=wait_in_vain)
    assert ranks.wait(30)[0] == 0
    assert "gave up after 1 s: True" in ranks.logs()


@pytest.mark.slow
def test_a_slow_start_is_given_the_time_that_the_config_says(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "slow-start", "optim.epochs=1", "optim.warmup_epochs=0", *SHORT)
    Ranks(run, 2, target=train_with_little_patience_to_meet).finish()


@pytest.mark.slow
def test_hanging_rank_is_named_and_the_run_comes_back(tmp_path: Path, digits: Path) -> None:
    straight = make_run(tmp_path, digits, "straight")
    Ranks(straight, 2).finish()
    run = make_run(tmp_path, digits, "hangs", *SHORT)
    environ = {"HRDC_FAULTS": "hang@9:rank=1#once"}
    codes = Ranks(run, 2, target=train_on_nodes, environ=environ).wait(40)
    assert codes == [Exit.HUNG, Exit.HUNG], "also the one that finds the connection broken meanwhile"
    (line,) = hung(run)
    assert line["node"] == "n1"
    assert "in 'data' after 9 steps" in line["what"]
    assert {path.name for path in (run / "logs").glob("stacks-*")} == {"stacks-7-0-r0.txt", "stacks-7-0-r1.txt"}
    assert "faults.py" in (run / "logs" / "stacks-7-0-r1.txt").read_text(), "where it stood"
    Ranks(run, 2, target=train_on_nodes, environ=environ).finish()
    assert differing(final_state(straight), final_state(run)) == []


def test_what_has_just_begun_has_not_lasted_as_long_as_what_went_before(tmp_path: Path) -> None:
    """Peers ask between two looks of rank 0's watchdog, which has last seen a slow save."""
    dog = watchdog.Watchdog(Guard(), cast("Place", None), RunFolder(tmp_path))
    dog.at("save", 5)
    dog._idle_s, dog._seen = 4.0, dog.where()[0]
    assert dog.where()[1:] == ("save", 5, 4.0)
    dog.data_there(5)
    assert dog.where()[1:] == ("step", 5, 0.0)


@pytest.mark.slow
def test_slow_evaluation_and_slow_saves_are_spared(tmp_path: Path, digits: Path) -> None:
    more = ("eval.batch_size=40", "checkpoint.asynchronous=false", "optim.epochs=1", "optim.warmup_epochs=0")
    # a save takes 4 s, an evaluation 5 s in batches of 1 s, each of which may take the limit: busy cores have 2 s more
    run = make_run(tmp_path, digits, "slow", *SHORT, *more, "guard.watchdog_min_s=3")
    ranks = Ranks(run, 2, target=train_but_evaluation_is_slow, environ={"HRDC_FAULTS": "slow_save@4"})
    ranks.finish()
    evaluations = [r["seconds"] for r in read_metrics(RunFolder(run)) if r["kind"] == "eval"]
    assert min(evaluations) > 3, "longer than a step may take"
    assert not hung(run)


@pytest.mark.slow
def test_failure_at_the_start_is_known_at_once(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "fails")
    began = time.monotonic()
    ranks = Ranks(run, 2, target=train_but_rank_1_fails_at_start)
    assert 0 not in ranks.wait(40)
    assert time.monotonic() - began < 30, "rank 0 would be busy for 60 s"
    assert "rank 1 failed: OSError: rank 1 has no compiler" in ranks.logs()
    Ranks(run, 2).finish()
    assert "rank 1 failed: OSError" in read_attempts(RunFolder(run))[1]["previous_end"]
