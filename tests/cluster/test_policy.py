"""Which ends come back, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hrdc_hpc.cluster.history import Cause, Story
from hrdc_hpc.cluster.policy import verdict
from hrdc_hpc.config.cluster import Requeue


def story(cause: Cause, *, progressed: bool = True, hours: float = 1.0) -> Story:
    return Story(0, "7", 0, "n1", 4, 0.0, 3600 * hours, 10, 30, 20 if progressed else 10, cause, "")


def comes_back(causes: Sequence[Cause], **caps: float) -> bool:
    return verdict([story(cause) for cause in causes], Requeue(**caps)).comes_back  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", ["preempted", "node lost", "time limit", "killed", "failed", "hung", "bad node"])
def test_comes_back(cause: Cause) -> None:
    assert comes_back([cause])


@pytest.mark.parametrize("cause", ["cancelled", "stop file", "refused", "finished"])
def test_does_not_come_back(cause: Cause) -> None:
    assert not comes_back([cause])


@pytest.mark.parametrize(
    ("causes", "cap"),
    [
        (["preempted", "node lost"], "preemptions"),
        (["time limit", "stopped"], "time_limits"),
        (["failed", "killed"], "failures"),
        (["hung", "hung"], "hangs"),
        (["bad node", "bad node"], "bad_nodes"),
    ],
)
def test_each_cause_has_its_cap(causes: list[Cause], cap: str) -> None:
    others: list[Cause] = ["preempted", "time limit", "failed", "hung", "bad node"]
    unlike = [cause for cause in others if cause not in causes]
    assert comes_back([*unlike, *causes], **{cap: 2}), "others do not count"
    judged = verdict([story(cause) for cause in causes], Requeue(**{cap: 1}))  # type: ignore[arg-type]
    assert not judged.comes_back
    assert f"2 times, and cluster.requeue.{cap} allows 1" in judged.why
    assert not comes_back(causes[:1], **{cap: 0})


def test_stops_where_nothing_is_gained() -> None:
    vain, good = story("failed", progressed=False), story("failed")
    assert verdict([good, vain], Requeue()).comes_back
    judged = verdict([good, vain, vain], Requeue())
    assert not judged.comes_back
    assert "2 attempts in a row made no progress (no checkpoint after step 10)" in judged.why
    assert verdict([vain, good, vain], Requeue()).comes_back, "in a row"


def test_the_cluster_may_end_more_of_them() -> None:
    night = [story("preempted", progressed=False)] * 9
    assert verdict(night, Requeue()).comes_back
    assert not verdict([*night, night[0]], Requeue()).comes_back
    failing = [story("failed", progressed=False), night[0], story("failed", progressed=False)]
    assert not verdict(failing, Requeue()).comes_back, "preemptions between them do not excuse failures"


def test_hours_are_capped() -> None:
    attempts = [story("preempted", hours=2.0)] * 3  # on 4 ranks
    assert verdict(attempts, Requeue(gpu_hours=25)).comes_back
    judged = verdict(attempts, Requeue(gpu_hours=24), on_gpus=True)
    assert not judged.comes_back
    assert "24.0 GPU-hours are used" in judged.why
