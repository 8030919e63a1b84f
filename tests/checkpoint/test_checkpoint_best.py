"""The checkpoint of the best evaluation: named in every manifest, kept beside the last ones."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.checkpoint import Best, Saver
from hrdc_hpc.engine.checkpoint_files import MANIFEST
from hrdc_hpc.record.lease import LeaseLost

from savers import contents, free, identical, names, none_expected, numbered_state


def saver_of(folder: Path, keep_last: int = 2, keep_best: bool = True) -> Saver:
    return Saver(folder, asynchronous=False, keep_last=keep_last, keep_best=keep_best, lease_check=free)


def save(folder: Path, step: int, best: Best | None = None, **options: Any) -> None:
    saver_of(folder, **options).save(step, numbered_state(step, 200), {"world_size": 1}, best=best)


def steps(folder: Path) -> list[int | None]:
    return [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(folder)]


def test_of_equal_ones_the_first_is_the_best() -> None:
    best = checkpoint.better(None, 5, 0.5)
    assert best == Best(5, 0.5)
    assert checkpoint.better(best, 10, 0.5) == best
    assert checkpoint.better(best, 10, 0.51) == Best(10, 0.51)
    assert checkpoint.better(best, 10, None) == best


def test_the_best_stays_beside_the_last_until_a_better_one_is_committed(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, Best(1, 0.3))
    assert steps(tmp_path) == [1, 4, 5]
    assert checkpoint.best_step(tmp_path) == 1
    save(tmp_path, 6, Best(6, 0.4))
    assert steps(tmp_path) == [5, 6]
    for step in (7, 8, 9):
        save(tmp_path, step, Best(6, 0.4))
    assert steps(tmp_path) == [6, 8, 9]
    assert identical(checkpoint.load(tmp_path / "step-00000006"), numbered_state(6, 200))
    save(tmp_path, 10, Best(6, 0.4), keep_best=False)
    assert steps(tmp_path) == [9, 10]


@pytest.mark.parametrize("call", ["rename", "mkdir"])
def test_a_save_that_fails_leaves_the_best_before(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for step in (1, 2, 3):
        save(tmp_path, step, Best(1, 0.3))
    with monkeypatch.context() as patch:
        patch.setattr(Path, call, fail)
        with pytest.raises(RuntimeError, match="could not save"):
            save(tmp_path, 4, Best(4, 0.4))
    assert steps(tmp_path) == [1, 2, 3]
    assert checkpoint.best_step(tmp_path) == 1


def test_the_best_is_what_the_newest_says_after_a_kill(tmp_path: Path) -> None:
    # killed between the commit of step 3 and the deletion of the best before it
    for step, best in ((1, Best(1, 0.3)), (2, Best(1, 0.3)), (3, Best(3, 0.4))):
        save(tmp_path, step, best, keep_last=9)
    found = checkpoint.latest(tmp_path, on_damaged=none_expected)
    assert found is not None
    best = Best.of(found.about)
    assert best == Best(3, 0.4)
    for step in (4, 5):
        save(tmp_path, step, best, keep_last=1)
    assert steps(tmp_path) == [3, 5]


def test_an_evaluation_made_up_for_amends_the_manifest_alone(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, Best(1, 0.3), keep_last=2)
    before = contents(tmp_path / "step-00000003")
    ghost = Saver(tmp_path, asynchronous=False, keep_last=2, keep_best=True, lease_check=_lost)
    with pytest.raises(LeaseLost):
        ghost.save(3, numbered_state(3, 200), {}, best=Best(3, 0.4))
    assert contents(tmp_path / "step-00000003") == before
    save(tmp_path, 3, Best(3, 0.4), keep_last=2)
    after = contents(tmp_path / "step-00000003")
    assert [path.name for path in before if before[path] != after[path]] == [MANIFEST]
    assert before.keys() == after.keys()
    found = checkpoint.latest(tmp_path, on_damaged=none_expected)
    assert found is not None
    assert found.about == {"world_size": 1, "best": {"step": 3, "accuracy": 0.4}}
    assert steps(tmp_path) == [2, 3]


def _lost() -> None:
    raise LeaseLost("taken")


def test_checkpoints_without_a_best_load_as_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found = checkpoint.latest(tmp_path, on_damaged=none_expected)
    assert found is not None
    assert found.about == {"world_size": 1}
    assert Best.of(found.about) is None
    with pytest.raises(ValueError, match=r"step-00000001 names no best evaluation; .*only in a run with data\.holdout"):
        checkpoint.best_step(tmp_path)


def test_which_is_best_is_asked_of_the_newest_sound_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint there"):
        checkpoint.best_step(tmp_path / "nowhere")
    save(tmp_path, 1, Best(1, 0.3))
    save(tmp_path, 2, Best(2, 0.4))
    assert checkpoint.best_step(tmp_path) == 2
    (tmp_path / "step-00000002" / MANIFEST).unlink()
    assert checkpoint.best_step(tmp_path) == 1
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(ValueError, match="no checkpoint there"):
        checkpoint.best_step(tmp_path)
    assert names(tmp_path) == ["step-00000002"]
