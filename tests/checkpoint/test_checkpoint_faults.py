"""Damaged checkpoints, full disks, kills."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.checkpoint import Saver
from hrdc_hpc.engine.checkpoint_files import MANIFEST, STATE, _sealed

from savers import (
    contents,
    contexts,
    free,
    identical,
    names,
    none_expected,
    numbered_state,
    save_and_wait,
    save_for_ever,
    save_with_file_limit,
)  # fmt: skip


def save(folder: Path, step: int, keep_last: int = 100, numbers: int = 200) -> checkpoint.Saved:
    about = {"world_size": 1}
    return checkpoint.save(folder, step, numbered_state(step, numbers), about, lease_check=free, keep_last=keep_last)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for step in (1, 2, 3):
        save(folder, step)
    return folder


@pytest.fixture
def copy(three: Path, tmp_path: Path) -> Path:
    """A folder with whole checkpoints of steps 1, 2 and 3."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    return folder


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere", on_damaged=none_expected) is None
    assert checkpoint.list_checkpoints(tmp_path / "nowhere") == []
    checkpoint.sweep(tmp_path / "nowhere")
    (tmp_path / ".tmp-step-00000001-1-ab").mkdir()
    (tmp_path / "damaged-step-00000001-1").mkdir()
    (tmp_path / "notes.txt").touch()
    assert checkpoint.latest(tmp_path, on_damaged=none_expected) is None


# damage


@pytest.mark.parametrize("file", [STATE, MANIFEST])
def test_every_truncation_is_noticed(file: str, copy: Path) -> None:
    path = copy / "step-00000003" / file
    whole = path.read_bytes()
    for length in {*range(0, len(whole), max(1, len(whole) // 150)), *range(8), *range(len(whole) - 8, len(whole))}:
        path.write_bytes(whole[:length])
        assert checkpoint.problem(path.parent), length
    path.write_bytes(whole + b"\n")
    assert checkpoint.problem(path.parent)
    path.write_bytes(whole)
    assert checkpoint.problem(path.parent) is None


@pytest.mark.parametrize("file", [STATE, MANIFEST])
def test_every_flipped_bit_is_noticed(file: str, copy: Path) -> None:
    path = copy / "step-00000003" / file
    whole = path.read_bytes()
    places = range(len(whole)) if file == MANIFEST else range(0, len(whole), len(whole) // 200)
    for place in places:
        for bit in range(8) if file == MANIFEST else (place % 8,):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            assert checkpoint.problem(path.parent), (place, bit)


def _no_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def _no_state(path: Path) -> None:
    (path / STATE).unlink()


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def _manifest_of_another(path: Path) -> None:
    shutil.copy(path.with_name("step-00000002") / MANIFEST, path / MANIFEST)


def _state_of_another(path: Path) -> None:
    shutil.copy(path.with_name("step-00000002") / STATE, path / STATE)


def _renamed_from_another(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-00000002"), path)


def _state_is_a_folder(path: Path) -> None:
    size = (path / STATE).stat().st_size
    (path / STATE).unlink()
    (path / STATE).mkdir()
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["xxh3_128"]
    manifest["files"][STATE]["bytes"] = (path / STATE).stat().st_size
    assert manifest["files"][STATE]["bytes"] != size
    (path / MANIFEST).write_bytes(_sealed(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_manifest, "manifest.json is missing"),
        (_no_state, "state.pt is missing"),
        (_empty, "manifest.json is missing"),
        (_a_file, "manifest.json is missing"),
        (_manifest_of_another, "manifest.json is that of step 2"),
        (_state_of_another, "state.pt has checksum "),
        (_renamed_from_another, "manifest.json is that of step 2"),
        (_state_is_a_folder, "state.pt cannot be read: Is a directory"),
    ],
)
def test_damaged_newest_is_set_aside_and_the_one_before_is_used(damage: Any, said: str, copy: Path) -> None:
    newest = copy / "step-00000003"
    damage(newest)
    before = contents(copy)
    told: list[tuple[Path, str]] = []
    found = checkpoint.latest(copy, on_damaged=lambda path, why: told.append((path, why)))
    assert found is not None
    assert (found.path, found.step, found.about) == (copy / "step-00000002", 2, {"world_size": 1})
    assert [path for path, _ in told] == [newest]
    assert said in told[0][1]
    assert "it is kept as damaged-step-00000003-1, and step-00000002 is used instead" in told[0][1]
    moved = {Path(str(path).replace("step-00000003", "damaged-step-00000003-1")): data for path, data in before.items()}
    assert contents(copy) == moved  # nothing was deleted
    assert identical(checkpoint.load(found.path), numbered_state(2, 200))
    with pytest.raises(RuntimeError, match=r"step-00000003 is damaged: manifest.json is missing"):
        checkpoint.load(newest)
    save(copy, 3)  # the run comes to the step again, and it is damaged again
    damage(newest)
    checkpoint.latest(copy, on_damaged=lambda path, why: told.append((path, why)))
    assert "kept as damaged-step-00000003-2" in told[1][1]
    assert names(copy) == ["damaged-step-00000003-1", "damaged-step-00000003-2", "step-00000001", "step-00000002"]


def test_two_damaged_ones(copy: Path) -> None:
    _no_state(copy / "step-00000003")
    _empty(copy / "step-00000002")
    told: list[str] = []
    found = checkpoint.latest(copy, on_damaged=lambda path, why: told.append(f"{path.name} {why}"))
    assert found is not None
    assert found.step == 1
    assert [text[:13] for text in told] == ["step-00000003", "step-00000002"]
    assert all("step-00000001 is used instead" in text for text in told)


def test_none_whole_is_an_error_and_everything_stays(copy: Path) -> None:
    for step in (1, 2, 3):
        _no_manifest(copy / checkpoint.folder_name(step))
    before = contents(copy)
    for _ in range(2):  # the next start of the job must not begin at step 0 either
        with pytest.raises(RuntimeError) as error:
            checkpoint.latest(copy, on_damaged=none_expected)
        assert "no checkpoint is whole" in str(error.value)
        assert "step-00000002: manifest.json is missing" in str(error.value)
        assert "remove these to start the run from step 0" in str(error.value)
        assert contents(copy) == before


def test_a_newer_format_is_not_damage(copy: Path) -> None:
    path = copy / "step-00000003" / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["xxh3_128"]
    path.write_bytes(_sealed({**manifest, "format": 2}))
    before = contents(copy)
    with pytest.raises(RuntimeError, match="has format 2; this version of hrdc_hpc reads format 1"):
        checkpoint.latest(copy, on_damaged=none_expected)
    assert contents(copy) == before
    save(copy, 4, keep_last=1)
    assert "step-00000003" in names(copy)  # nor is it ours to delete


def test_a_bad_sector_is_damage_and_a_server_that_does_not_answer_is_not(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, code = Path.read_bytes, [errno.ESTALE]

    def read_bytes(path: Path) -> bytes:
        if path.parent.name == "step-00000003":
            raise OSError(code[0], os.strerror(code[0]))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(OSError, match="Stale file handle"):
        checkpoint.latest(copy, on_damaged=none_expected)
    assert names(copy) == ["step-00000001", "step-00000002", "step-00000003"]
    code[0] = errno.EIO
    told: list[str] = []
    found = checkpoint.latest(copy, on_damaged=lambda path, why: told.append(f"{path.name}: {why}"))
    assert found is not None
    assert found.step == 2
    assert "manifest.json cannot be read: Input/output error" in told[0]


# retention


def test_the_last_k_are_kept(copy: Path) -> None:
    save(copy, 4, keep_last=3)
    assert names(copy) == ["step-00000002", "step-00000003", "step-00000004"]
    save(copy, 5, keep_last=1)
    assert names(copy) == ["step-00000005"]


def test_what_is_not_whole_neither_counts_nor_is_deleted(copy: Path) -> None:
    _no_manifest(copy / "step-00000003")
    (copy / "step-00000001" / STATE).write_bytes(b"short")
    save(copy, 4, keep_last=2)
    assert names(copy) == ["step-00000001", "step-00000002", "step-00000003", "step-00000004"]
    save(copy, 5, keep_last=2)
    assert names(copy) == ["step-00000001", "step-00000003", "step-00000004", "step-00000005"]


def test_the_one_just_saved_and_the_newest_stay(copy: Path) -> None:
    save(copy, 9)
    shutil.rmtree(copy / "step-00000003")
    save(copy, 3, keep_last=1)
    assert names(copy) == ["step-00000003", "step-00000009"]


def test_old_one_that_cannot_be_deleted_does_not_fail_the_save(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(path: Path, **options: Any) -> None:
        if "delete" in path.name:
            raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", busy)
        assert save(copy, 4, keep_last=3).step == 4
    assert "could not delete the old checkpoint" in caplog.text
    assert len(list(copy.glob(".tmp-delete-step-00000001-*"))) == 1
    assert [p.name for p in checkpoint.list_checkpoints(copy)] == ["step-00000002", "step-00000003", "step-00000004"]
    checkpoint.sweep(copy)
    assert names(copy) == ["step-00000002", "step-00000003", "step-00000004"]


def test_sweep_removes_leftovers_and_follows_no_link(copy: Path, tmp_path: Path) -> None:
    (copy / ".tmp-step-00000004-7-ab").mkdir()
    (copy / ".tmp-step-00000004-7-ab" / STATE).touch()
    (copy / ".tmp-file").touch()
    (copy / ".tmp-link").symlink_to(tmp_path)
    before = contents(copy / "step-00000001")
    checkpoint.sweep(copy)
    assert names(copy) == ["step-00000001", "step-00000002", "step-00000003"]
    assert contents(copy / "step-00000001") == before


# full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs root and the permission to mount a small tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_full_disk_keeps_what_was_there_and_says_what_to_do(asynchronous: bool, small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    saver = Saver(folder, asynchronous=asynchronous, keep_last=9, lease_check=free)
    save_and_wait(saver, 1, numbered_state(1, 300_000))
    (small_disk / "ballast").write_bytes(bytes(1_000_000))
    before = contents(folder)
    with pytest.raises(RuntimeError) as error:
        save_and_wait(saver, 2, numbered_state(2, 300_000))
    text = str(error.value)
    free_bytes = shutil.disk_usage(small_disk).free
    for word in (
        f"{folder / 'step-00000002'}: could not save: No space left on device",
        "It takes about 2400120 bytes",
        f"{free_bytes} bytes are free",
        "Make room, or keep fewer with checkpoint.keep_last, then start the run again",
        f"Last good checkpoint: {folder / 'step-00000001'}",
    ):
        assert word in text
    assert contents(folder) == before
    assert names(folder) == ["step-00000001"]
    (small_disk / "ballast").unlink()
    shutil.rmtree(folder / "step-00000001")
    saver.save(2, numbered_state(2, 300_000), {})
    saver.close()
    assert saver.last is not None
    assert identical(checkpoint.load(saver.last.path), numbered_state(2, 300_000))


def test_limit_on_file_size_keeps_what_was_there(tmp_path: Path) -> None:
    report = tmp_path / "report"
    child = contexts.Process(target=save_with_file_limit, args=(tmp_path / "c", 300_000, report))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert "could not save: File too large. It takes about 800120 bytes" in report.read_text()
    assert "Last good checkpoint: " + str(tmp_path / "c" / "step-00000001") in report.read_text()
    assert names(tmp_path / "c") == ["step-00000001"]
    assert checkpoint.problem(tmp_path / "c" / "step-00000001") is None


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_failing_disk_at_any_call(call: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = contents(copy)
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if call == "fsync" else (Path, call)), fail)
        with pytest.raises(RuntimeError, match=r"step-00000004: could not save: Input/output error\. Last good"):
            save(copy, 4)
    assert contents(copy) == before
    assert names(copy) == ["step-00000001", "step-00000002", "step-00000003"]


def test_files_are_on_disk_before_they_have_their_name_and_the_name_afterwards(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def move(path: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flush)
        patch.setattr(Path, "rename", move)
        save(copy, 4)
    state, manifest, aside, *rest = done
    assert (state, manifest) == (STATE, MANIFEST)
    assert aside.startswith(".tmp-step-00000004")
    assert rest == ["rename to step-00000004", "checkpoints"]


# kills

KILLS = 30


def test_killed_at_random_moments(tmp_path: Path) -> None:
    folder, told, chance = tmp_path / "checkpoints", tmp_path / "told", random.Random(0)
    told.touch()
    inside, last = 0, 0
    for kill in range(KILLS):
        start = told.stat().st_size
        child = contexts.Process(target=save_for_ever, args=(folder, kill % 2 == 0, told))
        child.start()
        assert child.pid
        while told.stat().st_size == start:
            assert child.is_alive()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reported = [int(line) for line in told.read_text().splitlines()]
        assert reported == sorted(set(reported))
        found = checkpoint.latest(folder, on_damaged=none_expected)
        assert found is not None
        assert reported[-1] <= found.step <= reported[-1] + 1
        assert found.step > last
        last = found.step
        assert identical(checkpoint.load(found.path), numbered_state(found.step))
        assert found.about == {"step": found.step}
        inside += any(folder.glob(".tmp-*"))
        assert len(checkpoint.list_checkpoints(folder)) in ((1, 2) if last == 1 else (2, 3))
    print(f"{KILLS} kills, {inside} of them with a save or a deletion half done")
    assert inside >= KILLS / 3
