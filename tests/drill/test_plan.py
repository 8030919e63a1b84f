"""The plan is a function of the seed; it has the numbers asked for, in an order that can be carried out."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from hrdc_hpc.drill.kinds import KINDS
from hrdc_hpc.drill.plan import counts, make_plan

NUMBERS = {"kill-rank": 20, "second-launch": 5, "damaged-checkpoint": 20, "sigterm": 7}


def test_the_same_seed_gives_the_same_faults() -> None:
    assert make_plan(NUMBERS, 3, 10) == make_plan(NUMBERS, 3, 10)
    assert make_plan(NUMBERS, 3, 10) != make_plan(NUMBERS, 4, 10)


def test_a_plan_does_not_change_between_versions() -> None:
    """A record names its seed: this is what seed 0 meant when the first ones were made."""
    plan = make_plan({"kill-rank": 2, "kill-in-save": 1, "torn-metrics": 1}, 0, 10)
    assert [(fault.kind, fault.phase, fault.steps, fault.rank(2)) for fault in plan] == [
        ("kill-rank", "train", 17, 1),
        ("torn-metrics", "train", 12, 0),
        ("kill-in-save", "save", 0, 1),
        ("kill-rank", "train", 16, 0),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_faults_for_a_run_that_is_down_come_behind_one_that_ends_an_attempt(seed: int) -> None:
    plan = make_plan(NUMBERS, seed, 10)
    assert Counter(fault.kind for fault in plan) == NUMBERS
    assert [fault.number for fault in plan] == list(range(1, 53))
    assert not KINDS[plan[0].kind].down
    before = [KINDS[first.kind] for first, then in pairwise(plan) if KINDS[then.kind].down]
    assert all(kind.ends for kind in before), "27 ends are enough to damage one checkpoint at a time"
    assert {fault.rank(3) for fault in plan} == {0, 1, 2}
    assert {fault.phase for fault in plan if fault.kind == "sigterm"} <= set(KINDS["sigterm"].phases)


def test_numbers_are_spread_evenly_over_what_is_left() -> None:
    assert counts(10, "kill-rank=4,sigusr2,kill-all", "local") == {"kill-rank": 4, "sigusr2": 3, "kill-all": 3}
    usual = counts(100, None, "local")
    assert sum(usual.values()) == 100
    assert max(usual.values()) - min(usual.values()) <= 1
    assert "preempt" not in counts(100, None, "slurm")
    assert "preempt" in counts(100, None, "slurm", {"--urgent-partition"})
    assert not {name for name in usual if KINDS[name].extra}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("kil-rank", r"got 'kil-rank'; known here: kill-rank, "),
        ("cancel", r"got 'cancel'; known here"),  # not on this machine
        ("kill-rank=many", r"give a number, as in kill-rank=20"),
        ("kill-rank=11", r"11 faults, but --kills 10"),
        ("kill-rank=9", r"9 faults, but --kills 10"),
    ],
)
def test_what_cannot_be_planned(wanted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counts(10, wanted, "local")


def test_what_needs_an_option_or_an_end() -> None:
    with pytest.raises(ValueError, match="preempt needs --urgent-partition"):
        counts(10, "preempt", "slurm")
    with pytest.raises(ValueError, match="damaged-checkpoint needs a run that is down"):
        make_plan({"damaged-checkpoint": 1, "second-launch": 2}, 0, 10)
