"""What the file system refuses: path, cause and next step, no traceback, nothing half made."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hrdc_hpc
from hrdc_hpc.cluster import snapshot

from launching import launch


def said(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_disk_that_is_full_leaves_nothing_of_a_new_run(place: Path, slurm: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6_000,) * 2); from hrdc_hpc.launch import main;"
    command = [sys.executable, "-c", f"{code} import sys; sys.exit(main())", "--cfg", "small.yaml"]
    environ = os.environ | {"PYTHONPATH": str(Path(hrdc_hpc.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert str(place / "runs") in done.stderr
    assert "File too large" in done.stderr
    assert "make room there, or choose another --out-dir" in done.stderr
    assert list((place / "runs").iterdir()) == []
    assert not (slurm / "calls").exists()


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "in which you may write"), (errno.EIO, "put that right")],
)
def test_the_cause_and_what_to_do_are_said(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int,
    advice: str,
) -> None:  # fmt: skip
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))  # as fsync(2): it knows no name

    monkeypatch.setattr("os.fsync", fail)
    assert launch() == 1
    error = said(capsys)
    assert os.strerror(number) in error
    assert advice in error
    assert str(place / "runs") in error


def test_an_out_dir_that_is_a_file(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "taken").touch()
    for out_dir in ("taken", "taken/below"):
        assert launch("--out-dir", out_dir) == 1
        error = said(capsys)
        assert f"{place}/taken" in error
        assert "a file is where a folder should be; choose another --out-dir" in error
    assert (place / "taken").is_file()


def test_an_out_dir_that_cannot_be_made(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--out-dir", "/proc/nowhere") == 1
    assert "/proc/nowhere: " in said(capsys)


def test_the_snapshot_is_on_disk_when_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync, rename = set(), os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def checked(self: Path, target: Path) -> Path:
        assert {str(path) for path in (self, *self.rglob("*"))} <= synced
        return rename(self, target)

    monkeypatch.setattr("os.fsync", noted)
    monkeypatch.setattr(Path, "rename", checked)
    snapshot.take(tmp_path / "code")
    assert str(tmp_path) in synced
    assert snapshot.changed_files(tmp_path / "code") == []
