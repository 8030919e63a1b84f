"""How soon ranks heed a stop, and what they ask when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine import agreement
from hrdc_hpc.engine.agreement import Agreement, code_of, period_of
from hrdc_hpc.engine.place import NeverStop, Place
from hrdc_hpc.engine.processes import Processes, open_processes


class Told(NeverStop):
    def __init__(self) -> None:
        self.why: str | None = None

    def reason(self) -> str | None:
        return self.why


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Processes]:
    place = Place(0, 1, 0, 1, tmp_path / "meet.json", {"cpus_per_rank": 1})
    with open_processes(place, Compute(device="cpu", threads=1)) as processes:
        yield processes


def test_period() -> None:
    assert [period_of(step_s) for step_s in (0.0, 0.001, 0.05, 0.1, 0.25, 20.0)] == [8, 8, 5, 2, 1, 1]


def test_severest_reason_wins() -> None:
    codes = [code_of(reason) for reason in (None, "something", "SIGUSR1", "SIGUSR2", "SIGTERM")]
    assert codes == sorted(codes)
    assert codes[0] == 0


@pytest.mark.parametrize("before_s", [0.001, 0.05, 1.0])
@pytest.mark.parametrize("after_s", [0.001, 1.0, 20.0])
def test_a_stop_is_heeded_within_nine_steps(
    before_s: float, after_s: float, alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(agreement.time, "monotonic", lambda: clock[0])
    told = Told()
    asked = Agreement(alone, told)
    for _ in range(100):
        clock[0] += before_s
        assert asked.reason() is None
    told.why = "SIGUSR2"
    answers = []
    while answers[-1:] != ["SIGUSR2"] and len(answers) < 20:
        clock[0] += after_s
        answers.append(asked.reason())
    asked.close()
    assert len(answers) <= 9


def test_in_an_evaluation_it_is_heeded_at_once(alone: Processes) -> None:
    told = Told()
    asked = Agreement(alone, told)
    assert asked.reason_now() is None
    told.why = "SIGTERM"
    assert asked.reason_now() == "SIGTERM"
    asked.close()
