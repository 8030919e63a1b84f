"""Turns are interleaved, and what fails is a row."""

from __future__ import annotations

import time
from collections.abc import Callable

from hrdc_hpc.engine.rounds import Contender, Length, Timing, paired, race


def test_turns_alternate_and_failures_leave_the_others_running() -> None:
    taken: list[str] = []

    def runner(name: str, fails_at: int | None = None) -> Callable[[int], None]:
        calls: list[int] = []

        def run(number: int) -> None:
            calls.append(number)
            if len(calls) == fails_at:
                raise RuntimeError(f"{name} broke\nin call {fails_at}")
            taken.append(name)

        return run

    contenders = [
        Contender("a", runner("a"), images=8),
        Contender("never", runner("never", fails_at=1), images=8),
        Contender("later", runner("later", fails_at=4), images=8),
    ]
    timings = race(contenders, Length(rounds=2, steps=3))
    # first step of each; then warm-up and timed steps of each in turn
    assert taken == ["a", "later", "a", "a", "later", "later", "a", "a"]
    assert len(timings["a"].images_per_s) == 2
    assert timings["a"].steps == 3
    assert timings["never"].failed == "RuntimeError: never broke"
    assert timings["later"].summary() == {"failed": "RuntimeError: later broke"}
    assert paired(timings["a"], timings["later"]) is None


def test_paired_ratio_is_taken_within_rounds() -> None:
    # the machine is half as fast in the second round: medians of rates would hide what the ratios show
    ratio = paired(Timing([200.0, 90.0, 210.0]), Timing([100.0, 50.0, 100.0]))
    assert ratio == {"ratio": 2.0, "range": [1.8, 2.1]}


def test_length_of_a_turn_follows_the_speed() -> None:
    timings = race([Contender("sleeper", lambda n: time.sleep(0.01 * n), images=1)], Length(rounds=1, seconds=0.1))
    assert 1 <= timings["sleeper"].steps <= 11
