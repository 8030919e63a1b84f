"""Steps that are not finite are done again once; what comes again is skipped, recorded, and allowed a few times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.record import health
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics, read_raw

from faulty import StopAtEvaluation, StopInReplay, train_but_rank_1_cannot_count, train_on_nodes
from ranks import Ranks
from runs import differing, final_state, learnt, make_run

pytestmark = [pytest.mark.slow, pytest.mark.dali, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("straight"), digits, "straight")
    Ranks(run, 2).finish()
    return run


def seen(run: Path) -> list[tuple[int, str, list[int]]]:
    return [(r["step"], r["outcome"], r["steps"]) for r in read_raw(RunFolder(run)) if r["kind"] == "nonfinite"]


def poisoned(parent: Path, digits: Path, name: str, faults: str, *overrides: str) -> tuple[Path, Ranks]:
    run = make_run(parent, digits, name, *overrides)
    return run, Ranks(run, 2, target=train_on_nodes, environ={"HRDC_FAULTS": faults})


@pytest.mark.parametrize(
    ("faults", "overrides"),
    [
        ("nan@7:rank=1#once", ()),
        pytest.param("nan@2:rank=1#once", ("log.every_steps=4",), marks=pytest.mark.slow),
        pytest.param("nan@20:rank=1#once", ("log.every_steps=1000", "checkpoint.asynchronous=false"),
                     marks=pytest.mark.slow),
    ],
    ids=["after a checkpoint", "before the first", "found by a save"],
)  # fmt: skip
def test_passing_fault_leaves_no_trace_in_the_weights(
    faults: str, overrides: tuple[str, ...], straight: Path, tmp_path: Path, digits: Path
) -> None:
    run, ranks = poisoned(tmp_path, digits, "transient", faults, *overrides)
    ranks.finish()
    assert differing(final_state(straight), final_state(run)) == []
    assert [outcome for _, outcome, _ in seen(run)] == ["replaying", "transient"]
    (line,) = health.read(RunFolder(run))
    assert (line["kind"], line["node"]) == ("nonfinite", "n1")
    assert "faults injected on purpose" in ranks.logs()
    assert any(r["kind"] == "faults" for r in read_raw(RunFolder(run)))
    if not overrides:
        assert learnt(run) == learnt(straight)


@pytest.mark.slow
def test_fault_that_comes_again_is_skipped_and_the_run_goes_on(straight: Path, tmp_path: Path, digits: Path) -> None:
    run, ranks = poisoned(tmp_path, digits, "repeats", "nan@7 nan@8")
    ranks.finish()
    assert seen(run) == [(8, "replaying", []), (8, "skipped", [8]), (9, "skipped", [9])]
    state = final_state(run)
    assert state["nonfinite_windows"] == [[8, 9]]
    assert float(state["nonfinite"]) == 2
    assert not health.read(RunFolder(run)), "no node is to blame"
    assert differing(final_state(straight), state)
    lost = {r["step"]: r["loss"] for r in read_metrics(RunFolder(run)) if r["kind"] == "train"}
    assert lost[8] is None
    assert lost[36] is not None


@pytest.mark.slow
def test_ranks_go_back_together_though_only_one_skipped_a_step(straight: Path, tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "alone")
    Ranks(run, 2, target=train_but_rank_1_cannot_count).finish(60)
    assert [outcome for _, outcome, _ in seen(run)] == ["replaying", "transient"]
    assert differing(final_state(straight), final_state(run)) == []


@pytest.mark.slow
def test_skipped_steps_are_remembered_by_a_resume(tmp_path: Path, digits: Path) -> None:
    faults = "nan@7 nan@20"
    straight, ranks = poisoned(tmp_path, digits, "straight", faults)
    ranks.finish()
    run = make_run(tmp_path, digits, "stopped")
    for stop in (StopAtEvaluation(run, 12), None):
        Ranks(run, 2, target=train_on_nodes, environ={"HRDC_FAULTS": faults}, stop=stop).finish()
    assert final_state(run)["nonfinite_windows"] == [[8, 8], [21, 21]]
    assert differing(final_state(straight), final_state(run)) == []


@pytest.mark.slow
def test_a_stop_before_the_verdict_forgets_no_window(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "undecided", "log.every_steps=12", "checkpoint.every_steps=1000")
    for stop in (StopInReplay(run), None):
        Ranks(run, 2, target=train_on_nodes, environ={"HRDC_FAULTS": "nan@1"}, stop=stop).finish()
    assert [outcome for _, outcome, _ in seen(run)] == ["replaying", "replaying", "skipped"]
    assert final_state(run)["nonfinite_windows"] == [[2, 2]]


@pytest.mark.slow
def test_too_many_windows_end_the_run(tmp_path: Path, digits: Path) -> None:
    run, ranks = poisoned(tmp_path, digits, "many", "nan@3 nan@7 nan@11", "guard.nonfinite_windows=2")
    assert 0 not in ranks.wait()
    assert "ValueError: step 12" in ranks.logs()
    assert "guard.nonfinite_windows allows 2" in ranks.logs()
    assert "steps 4, 8" in ranks.logs()
    assert final_of(run) == 10


def final_of(run: Path) -> Any:
    return final_state(run)["step"]


@pytest.mark.slow
def test_loss_scaler_explains_overflows_but_not_a_loss(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "scaled", "compute.precision=fp16", "optim.lr=0.02")
    ranks = Ranks(run, 2)
    ranks.finish()
    straight = final_state(run)
    assert seen(run) == [] or float(straight["nonfinite"]) == 0
    run, ranks = poisoned(tmp_path, digits, "poisoned", "nan@9#once", "compute.precision=fp16", "optim.lr=0.02")
    ranks.finish()
    assert [outcome for _, outcome, _ in seen(run)][:2] == ["replaying", "transient"]
    assert differing(straight, final_state(run)) == []
