"""Who may write: leases, ghosts, the background writer, a step that is there already."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from pathlib import Path

import pytest

from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.checkpoint import Saved, Saver
from hrdc_hpc.engine.checkpoint_files import MANIFEST, STATE
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease, LeaseLost

from savers import contents, free, identical, names, numbered_state, save_and_wait


def save(folder: Path, step: int, number: int | None = None, keep_last: int = 100) -> Saved:
    state = numbered_state(step if number is None else number, 200)
    return checkpoint.save(folder, step, state, {}, lease_check=free, keep_last=keep_last)


JOB = {"cluster": "slurm", "job_id": "77", "restart_count": 0}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config_text="", manifest={})


def saver_of(run: RunFolder, lease: Lease, asynchronous: bool, keep_last: int = 2) -> Saver:
    return Saver(run.checkpoints, asynchronous=asynchronous, keep_last=keep_last, lease_check=lease.check)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_ghost_commits_and_deletes_nothing(step: int, asynchronous: bool, run: RunFolder) -> None:
    ghost_lease = Lease.acquire(run, JOB)
    ghost = saver_of(run, ghost_lease, asynchronous, keep_last=1)
    for early in (1, 2):
        ghost.save(early, numbered_state(early, 200), {})
    ghost.wait()
    lease = Lease.acquire(run, {**JOB, "restart_count": 1})
    new = saver_of(run, lease, asynchronous)
    new.save(3, numbered_state(3, 200), {})
    new.close()
    before = contents(run.path)
    with pytest.raises(LeaseLost, match=r"job 77 \(restart 1\)"):
        save_and_wait(ghost, step, numbered_state(1000 + step, 200))
    ghost.close()
    ghost_lease.release()
    assert contents(run.path) == before
    assert names(run.checkpoints) == ["step-00000002", "step-00000003"]
    lease.check()


def test_ghost_that_loses_the_lease_between_commit_and_retention_deletes_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    calls: list[int] = []

    def second_time() -> None:
        calls.append(len(checkpoint.list_checkpoints(tmp_path)))
        if len(calls) == 2:
            raise LeaseLost("lost")

    with pytest.raises(LeaseLost):
        checkpoint.save(tmp_path, 3, {}, {}, lease_check=second_time, keep_last=1)
    assert calls == [2, 3]  # before the rename, and after it before the first deletion
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]


def test_ghost_whose_folder_was_swept_is_told_of_the_lease(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = saver_of(run, Lease.acquire(run, JOB), True)
    render = checkpoint.render

    def taken_meanwhile(manifest: checkpoint.Manifest) -> bytes:
        Lease.acquire(run, {**JOB, "restart_count": 1})
        checkpoint.sweep(run.checkpoints)
        return render(manifest)

    monkeypatch.setattr(checkpoint, "render", taken_meanwhile)
    ghost.save(1, numbered_state(1, 200), {})
    with pytest.raises(LeaseLost):
        ghost.close()
    assert names(run.checkpoints) == []


# the same step again


def test_whole_one_of_the_same_step_is_kept(tmp_path: Path) -> None:
    first = save(tmp_path, 5)
    before = contents(tmp_path)
    again = save(tmp_path, 5, number=6)
    assert (again.path, again.step, again.bytes) == (first.path, 5, first.bytes)
    assert contents(tmp_path) == before
    assert names(tmp_path) == ["step-00000005"]


@pytest.mark.parametrize("what", ["empty", "no manifest", "flipped bit", "file", "dangling link"])
def test_anything_else_in_that_place_makes_way(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path, 5).path
    if what == "flipped bit":
        data = bytearray((path / STATE).read_bytes())
        data[len(data) // 2] ^= 1
        (path / STATE).write_bytes(data)
    elif what == "no manifest":
        (path / MANIFEST).unlink()
    else:
        shutil.rmtree(path)
        if what == "empty":
            path.mkdir()
        elif what == "file":
            path.write_text("mine")
        else:
            path.symlink_to(tmp_path / "nowhere")
    save(tmp_path, 5, number=6)
    assert identical(checkpoint.load(path), numbered_state(6, 200))
    if what == "empty":
        assert names(tmp_path) == ["step-00000005"]
    else:
        assert names(tmp_path) == ["damaged-step-00000005-1", "step-00000005"]
        assert "in the way of a checkpoint, and is kept as damaged-step-00000005-1" in caplog.text
    assert path.is_dir()
    assert not path.is_symlink()


def test_whole_one_that_appears_while_saving_is_kept(tmp_path: Path) -> None:
    def meanwhile() -> None:
        if not checkpoint.list_checkpoints(tmp_path):
            save(tmp_path, 5)

    checkpoint.save(tmp_path, 5, numbered_state(6, 200), {}, lease_check=meanwhile, keep_last=1)
    assert identical(checkpoint.load(tmp_path / "step-00000005"), numbered_state(5, 200))
    assert names(tmp_path) == ["step-00000005"]


# the writer in the background


@pytest.mark.parametrize("surface", ["save", "wait", "close"])
def test_error_of_the_writer_comes_out_once_at_the_next_call(surface: str, tmp_path: Path) -> None:
    def lost() -> None:
        raise LeaseLost("taken")

    saver = Saver(tmp_path, asynchronous=True, keep_last=1, lease_check=lost)
    saver.save(1, numbered_state(1, 200), {})
    with pytest.raises(LeaseLost, match="taken"):
        saver.save(2, numbered_state(2, 200), {}) if surface == "save" else getattr(saver, surface)()
    saver.wait()
    saver.close()
    assert saver.last is None
    assert names(tmp_path) == []


def test_error_of_the_hook_is_not_lost_either(tmp_path: Path) -> None:
    def hook(saved: Saved) -> None:
        raise OSError("metrics cannot be written")

    saver = Saver(tmp_path, asynchronous=True, keep_last=1, lease_check=free, on_saved=hook)
    saver.save(1, {}, {})
    with pytest.raises(OSError, match="metrics cannot be written"):
        saver.close()
    assert names(tmp_path) == ["step-00000001"]


def test_one_save_is_under_way_at_most(tmp_path: Path) -> None:
    go_on, at_work, saved = threading.Event(), [0], []

    def slow() -> None:
        at_work[0] += 1
        assert at_work[0] == 1
        assert go_on.wait(30)
        at_work[0] -= 1

    def hook(this: Saved) -> None:
        saved.append((this.step, threading.current_thread().name))

    saver = Saver(tmp_path, asynchronous=True, keep_last=9, lease_check=slow, on_saved=hook)
    assert saver.save(1, numbered_state(1, 200), {}) < 20
    assert saver.last is None  # not committed before the writer has come so far
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == []
    second = threading.Thread(target=saver.save, args=(2, numbered_state(2, 200), {}))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # held up by the first
    go_on.set()
    second.join(30)
    saver.wait()
    assert [step for step, _ in saved] == [1, 2]
    assert all(name.startswith("checkpoint") for _, name in saved)
    assert saver.last is not None
    assert saver.last.step == 2
    saver.close()


def test_in_the_foreground_it_is_committed_on_return(tmp_path: Path) -> None:
    saved: list[Saved] = []
    saver = Saver(tmp_path, asynchronous=False, keep_last=1, lease_check=free, on_saved=saved.append)
    stall = saver.save(1, numbered_state(1, 200), {"a": 1})
    assert saver.last == saved[0]
    assert saved[0].path.is_dir()
    assert 0 < saved[0].seconds <= stall
    saver.close()


def test_folder_is_made_and_messages_are_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    save(tmp_path / "not" / "there", 1)
    assert caplog.text == ""
    assert json.loads((tmp_path / "not" / "there" / "step-00000001" / MANIFEST).read_text())["step"] == 1
