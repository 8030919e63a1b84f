from __future__ import annotations

import os
from pathlib import Path

import pytest

from hrdc_hpc.record.files import fsync_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files, folders, and links out of it."""
    (tmp_path / "outside").write_text("not ours")
    root = tmp_path / "root"
    for name in ("a", "b/c", "b/d/e"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "b" / "link").symlink_to(tmp_path / "outside")
    (root / "b" / "dangling").symlink_to("nothing")
    (root / "up").symlink_to(tmp_path)
    return root


def test_every_file_and_folder_is_flushed_contents_first(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tree)))

    monkeypatch.setattr(os, "fsync", fsync)
    fsync_tree(tree)
    assert sorted(flushed) == [".", "a", "b", "b/c", "b/d", "b/d/e"]
    assert [flushed.index(name) for name in ("b/d/e", "b/d", "b", ".")] == sorted(
        flushed.index(name) for name in ("b/d/e", "b/d", "b", ".")
    )


def test_a_disk_that_fails_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fail(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "e":
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        fsync_tree(tree)


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fsync_tree(tmp_path / "none")
