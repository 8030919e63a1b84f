"""Where the time of a run went, from records with known answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrdc_hpc.cluster.goodput import PARTS, Goodput, Stay, account, line


def mark(time: float, name: str, event: str, step: int) -> dict[str, Any]:
    return {"kind": "phase", "time": time, "name": name, "event": event, "step": step}


def record(time: float, kind: str, step: int) -> dict[str, Any]:
    return {"kind": kind, "time": time, "step": step}


def started(time: float, step: int = 0) -> list[dict[str, Any]]:
    """Ten seconds of start-up, resumed at `step`."""
    return [
        mark(time, "startup", "begin", 0), record(time + 5, "start", 0), mark(time + 10, "startup", "end", step),
        mark(time + 10, "train", "begin", step),
    ]  # fmt: skip


KILLED = Stay(0, [
    *started(1010), record(1030, "train", 10), mark(1030, "evaluate", "begin", 10), record(1033, "eval", 10),
    mark(1034, "evaluate", "end", 10), record(1044, "train", 20), mark(1044, "save", "begin", 20),
    record(1046, "save", 20), record(1050, "checkpoint", 20), mark(1050, "save", "end", 20), record(1056, "train", 30),
], 1010, 1058)  # fmt: skip
"""Trains ten steps in ten seconds, saves step 20, is killed two seconds after step 30."""
FINISHED = Stay(1, [
    *started(1078, 20), record(1098, "train", 30), record(1108, "train", 40), mark(1108, "train", "end", 40),
    mark(1108, "save", "begin", 40), record(1109, "save", 40), record(1112, "checkpoint", 40),
    mark(1112, "save", "end", 40), record(1112.5, "end", 40),
], 1078, 1112.5)  # fmt: skip


def parts(goodput: Goodput) -> dict[str, float]:
    """The parts that took any time."""
    return {part: pytest.approx(seconds) for part, seconds in goodput.seconds.items() if seconds}


def test_a_killed_and_resumed_run() -> None:
    told = account([KILLED, FINISHED], [1000])
    assert told.attempts[0].seconds == dict.fromkeys(PARTS, 0.0) | {
        "queue": 10, "startup": 10, "training": 20, "evaluation": 4, "saving": 2, "repeated": 12,
    }  # fmt: skip
    # closing waits 3 s for the disk; a save in the background costs nothing
    assert told.attempts[1].seconds == dict.fromkeys(PARTS, 0.0) | {
        "queue": 20, "startup": 10, "training": 20, "saving": 4, "other": 0.5,
    }  # fmt: skip
    assert told.run.total_s == pytest.approx(112.5)
    assert told.run.share("training") == pytest.approx(40 / 112.5)
    assert [told.attempts[n].repeated_steps for n in (0, 1)] == [10, 0]
    assert line(told.run) == (
        "35.6 %, queue 26.7 %, startup 17.8 %, repeated 10.7 %, saving 5.3 %, evaluation 3.6 %, other 0.4 %;"
        " 10 steps trained twice"
    )


def test_a_measured_run_trains_nothing_and_repeats_nothing() -> None:
    """Killed in its windows, it measures anew."""
    began = [mark(1010, "startup", "begin", 0), mark(1020, "startup", "end", 0), mark(1020, "measure", "begin", 0)]
    windows = [record(1030, "measure", 40), record(1040, "measure", 80)]
    save = [mark(1040, "save", "begin", 0), mark(1043, "save", "end", 0)]
    killed = account([Stay(0, [*began, *windows], 1010, 1040)], [1000], saved_step=0)
    assert parts(killed.run) == {"queue": 10, "startup": 10, "measuring": 20}
    assert killed.run.repeated_steps == 0
    over = [*began, *windows, *save, mark(1044, "measure", "end", 0), record(1044.5, "end", 80)]
    finished = account([Stay(0, over, 1010, 1044.5)], [1000])
    assert parts(finished.run) == {"queue": 10, "startup": 10, "measuring": 21, "saving": 3, "other": 0.5}
    assert line(finished.run).startswith("measuring 47.2 %, ")


def test_steps_are_shared_out_between_records() -> None:
    """Resumed at 24, of the steps 20 to 30 six were in vain, whatever is logged."""
    resumed = Stay(1, started(1078, 24), 1078, None)
    told = account([KILLED, resumed], [1000], until=1090)
    assert told.attempts[0].seconds["repeated"] == pytest.approx(6 + 2)
    assert told.attempts[0].repeated_steps == 6


def test_what_has_to_be_trained_again_counts_before_it_is() -> None:
    waiting = account([KILLED], [1000], until=1100, saved_step=20)
    assert waiting.run.seconds["repeated"] == 12
    assert waiting.run.seconds["queue"] == 10 + 42
    assert waiting.run.total_s == 100
    assert account([KILLED], [1000], saved_step=0).run.seconds["training"] == 0


def test_an_attempt_at_work_goes_on_until_now() -> None:
    at_work = Stay(0, KILLED.records, 1010, None)
    told = account([at_work], [1000], until=1060)
    assert told.run.seconds["training"] == 20 + 10 + 4
    assert told.run.seconds["repeated"] == 0
    assert told.run.total_s == 60


def test_a_run_that_waits_for_its_first_start() -> None:
    assert parts(account([], [1000], until=1030).run) == {"queue": 30}
    assert account([], []).run.total_s == 0


def test_nobody_had_asked_for_it_to_go_on() -> None:
    told = account([KILLED, FINISHED], [1000, 1070])  # launched again after twelve seconds
    assert told.attempts[1].seconds["unsubmitted"] == pytest.approx(12)
    assert told.attempts[1].seconds["queue"] == pytest.approx(8)


def test_links_of_a_chain_wait_from_the_end_of_the_one_before() -> None:
    told = account([KILLED, FINISHED], [1000, 1000.5])
    assert told.attempts[1].seconds["unsubmitted"] == 0
    assert told.run.total_s == pytest.approx(112.5)


def test_a_ghost_that_writes_on_is_not_counted_twice() -> None:
    ghost = Stay(0, [*KILLED.records, record(1090, "train", 60)], 1010, 1090)
    told = account([ghost, FINISHED], [1000])
    assert told.run.total_s == pytest.approx(112.5)
    assert told.attempts[0].total_s == pytest.approx(78)


def test_an_attempt_that_went_back_by_itself() -> None:
    """Non-finite at step 30: replayed from the checkpoint of step 20."""
    replay = [record(1066, "train", 30), record(1076, "train", 40), mark(1076, "train", "end", 40)]
    back = [*KILLED.records[:-1], record(1056, "train", 30), record(1057, "train", 21), *replay]
    told = account([Stay(0, back, 1010, 1076)], [1000])
    assert told.run.repeated_steps == 9
    assert told.run.seconds["repeated"] == pytest.approx(9)


KINDS = st.sampled_from(
    [("train", ""), ("eval", ""), ("save", ""), ("checkpoint", ""), ("nonfinite", "")]
    + [(name, event) for name in ("startup", "train", "evaluate", "save") for event in ("begin", "end")]
)


@given(
    st.lists(st.lists(st.tuples(KINDS, st.integers(0, 50), st.floats(0, 10)), max_size=12), max_size=4),
    st.lists(st.floats(0, 100), max_size=3), st.booleans(), st.integers(0, 50),
)  # fmt: skip
def test_whatever_is_written_the_parts_add_up_to_the_time(
    attempts: list[list[tuple[tuple[str, str], int, float]]], submitted: list[float], goes_on: bool, saved: int
) -> None:
    now, stays = 50.0, []
    for number, records in enumerate(attempts):
        begun, written = now, []
        for (kind, event), step, after in records:
            now += after
            whole = record(now, kind, step) if not event else mark(now, kind, event, step)
            written.append(whole)
        stays.append(Stay(number, written, begun, now))
        now += 1
    until = now + 100  # the time of asking: nothing is written after it
    told = account(stays, submitted, until=until if goes_on else None, saved_step=saved)
    begin = min([*submitted, *(stay.started for stay in stays)], default=0.0)
    end = max([begin, *(stay.ended for stay in stays if stay.ended is not None)])
    if goes_on and (stays or submitted):
        end = until
    assert told.run.total_s == pytest.approx(end - begin, abs=1e-6)
    assert min(told.run.seconds.values()) >= -1e-9
