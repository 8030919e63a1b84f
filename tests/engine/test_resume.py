"""Stopping, resuming, other world sizes, damaged checkpoints, leases."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hrdc_hpc.config.load import loads
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.resume import evaluation_there
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics

from faulty import StopAtEvaluation, train_at_once
from ranks import Ranks, StopWhen
from runs import differing, final_state, learnt, make_run

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]


def samples(run: Path) -> dict[int, str]:
    return {r["step"]: r["samples"] for r in read_metrics(RunFolder(run)) if r["kind"] == "train"}


def losses(run: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(RunFolder(run)) if r["kind"] == "train"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("straight"), digits, "straight")
    Ranks(run, 2).finish()
    return run


def test_told_to_stop_saves_at_once_and_resumes_exactly(straight: Path, tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "stopped", "checkpoint.every_steps=1000")
    flag = tmp_path / "stop"
    ranks = Ranks(run, 2, stop=StopWhen(flag))
    while not any(r["kind"] == "train" and r["step"] >= 7 for r in read_metrics(RunFolder(run))):
        assert ranks.alive(), ranks.logs()
    flag.touch()
    ranks.finish()
    stopped_at = final_state(run)["step"]
    assert 7 <= stopped_at < 36
    assert RunFolder(run).state() == "started"
    flag.unlink()
    Ranks(run, 2).finish()
    attempts = read_attempts(RunFolder(run))
    assert [a["attempt"] for a in attempts] == [0, 1]
    assert "SIGUSR2" in attempts[1]["previous_end"]
    assert differing(final_state(straight), final_state(run)) == []
    assert learnt(run) == learnt(straight)


def test_finished_run_started_again_changes_nothing(straight: Path) -> None:
    before = (straight / "report" / "summary.json").read_text(), learnt(straight)
    Ranks(straight, 2).finish()
    assert ((straight / "report" / "summary.json").read_text(), learnt(straight)) == before


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_other_world_sizes_see_the_same_global_batches(
    world_size: int, straight: Path, tmp_path: Path, digits: Path
) -> None:
    run = make_run(tmp_path, digits, f"on-{world_size}")
    Ranks(run, world_size).finish()
    assert samples(run) == samples(straight)
    first = losses(run)[1], losses(straight)[1]
    assert first[0] == pytest.approx(first[1], rel=0.05)  # batch statistics per rank differ, images do not


@pytest.mark.parametrize("then", [1, 3])
def test_stopped_on_two_and_resumed_on_another_world_size(
    then: int, straight: Path, tmp_path: Path, digits: Path
) -> None:
    run = make_run(tmp_path, digits, f"then-{then}")
    flag = tmp_path / "stop"
    ranks = Ranks(run, 2, stop=StopWhen(flag))
    while not any(r["kind"] == "train" and r["step"] >= 14 for r in read_metrics(RunFolder(run))):
        assert ranks.alive(), ranks.logs()
    flag.touch()
    ranks.finish()
    flag.unlink()
    Ranks(run, then).finish()
    assert samples(run) == samples(straight)
    assert RunFolder(run).state() == "finished"


def whole(run: Path) -> list[Path]:
    return [path for path in checkpoint.list_checkpoints(run / "checkpoints") if checkpoint.problem(path) is None]


@pytest.mark.parametrize("step", [12, 36])
def test_stopped_in_an_evaluation_and_resumed(step: int, straight: Path, tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "in-evaluation")
    Ranks(run, 2, stop=StopAtEvaluation(run, step)).finish()
    assert final_state(run)["step"] == step
    assert not any(r["kind"] == "eval" and r["step"] == step for r in read_metrics(RunFolder(run)))
    assert RunFolder(run).state() == "started"
    Ranks(run, 2).finish()
    assert differing(final_state(straight), final_state(run)) == []
    assert learnt(run) == learnt(straight)
    assert RunFolder(run).summary() == RunFolder(straight).summary()


def test_loss_scale_is_resumed(tmp_path: Path, digits: Path) -> None:
    straight = make_run(tmp_path, digits, "straight", "compute.precision=fp16")
    Ranks(straight, 2).finish()
    run = make_run(tmp_path, digits, "stopped", "compute.precision=fp16")
    Ranks(run, 2, stop=StopAtEvaluation(run, 12)).finish()
    Ranks(run, 2).finish()
    assert final_state(run)["scaler"]["scale"] > 0
    assert differing(final_state(straight), final_state(run)) == []


def _truncate(path: Path) -> None:
    file = path / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])


def _flip(path: Path) -> None:
    file = path / "state.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))


def _half_renamed(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip, _half_renamed])
def test_damaged_newest_checkpoint_is_set_aside(damage, straight: Path, tmp_path: Path, digits: Path) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(straight, run)
    (run / "report" / "summary.json").unlink()
    newest = checkpoint.list_checkpoints(run / "checkpoints")[-1]
    damage(newest)
    ranks = Ranks(run, 2)
    ranks.finish()
    assert f"{newest.name} is damaged and was set aside" in ranks.logs()
    assert list((run / "checkpoints").glob("damaged-*"))
    assert differing(final_state(straight), final_state(run)) == []
    assert learnt(run) == learnt(straight)


def test_second_launch_of_a_running_run_is_refused(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "running", "optim.epochs=40")
    flag = tmp_path / "stop"
    ranks = Ranks(run, 1, stop=StopWhen(flag))
    while not checkpoint.list_checkpoints(run / "checkpoints"):
        assert ranks.alive(), ranks.logs()
    second = Ranks(run, 1, target=train_at_once)
    assert second.wait() != [0]
    assert "LeaseHeld" in second.logs()
    assert len(read_attempts(RunFolder(run))) == 1
    flag.touch()
    ranks.finish()


def test_writer_whose_lease_was_taken_overwrites_nothing(tmp_path: Path, digits: Path) -> None:
    # no log step looks at the lease in between: it is a save that finds it lost
    run = make_run(tmp_path, digits, "ghost", "optim.epochs=40", "log.every_steps=1000", "eval.every_epochs=40")
    ranks = Ranks(run, 2)
    while not checkpoint.list_checkpoints(run / "checkpoints"):
        assert ranks.alive(), ranks.logs()
    lease = RunFolder(run).lease
    taken = lease.read_text()
    aside = tmp_path / "taken"
    aside.write_text(taken.replace('"token": "', '"token": "another-'))
    aside.replace(lease)
    stolen = lease.read_text()
    before = {path.name: (path / "manifest.json").read_bytes() for path in whole(run)}
    assert 0 not in ranks.wait()
    assert "LeaseLost" in ranks.logs()
    assert lease.read_text() == stolen
    after = {path.name: (path / "manifest.json").read_bytes() for path in whole(run)}
    late = after.keys() - before.keys()
    assert len(late) <= 1, "one save may have passed its last check when the lease was taken"
    assert {name: after[name] for name in before if name in after} == {n: before[n] for n in before if n in after}


def test_evaluation_of_other_weights_is_not_taken_over(straight: Path, tmp_path: Path) -> None:
    """After a resume on another number of ranks, weights differ where batch norm is per rank."""
    folder = RunFolder(straight)
    config = loads(folder.config.read_text(), "config.yaml")
    ghost = loads(folder.config.read_text(), "config.yaml", ["model.batch_norm=ghost"])
    assert evaluation_there(folder, config, 12, world_size=2, ema=True)
    assert evaluation_there(folder, config, 12, world_size=3, ema=True) is None
    assert evaluation_there(folder, ghost, 12, world_size=3, ema=True)
    assert evaluation_there(folder, config, 13, world_size=2, ema=True) is None
