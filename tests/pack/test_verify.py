"""`hrdc_hpc.pack --verify`: a whole pack is whole, and damage of any kind is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.data.packed import open_packed
from hrdc_hpc.pack.__main__ import main
from tests.data.images import jpeg, picture

from packs import ROOT, config, flip


@pytest.fixture
def mine(packed: Path, tmp_path: Path) -> Path:
    """A copy of the pack that may be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "mine"))


def verified(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--out", str(out), "--verify", "--workers", "1"]) == Exit.FAILED
    said = capsys.readouterr().out
    assert f"To mend it: remove {out / 'pack.json'}, then give the command that packed it" in said
    return said


def test_a_whole_pack_is_whole(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(packed), "--verify", "--workers", "2"]) == 0
    assert "is whole: " in capsys.readouterr().out


def test_a_damaged_image_is_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = open_packed(mine, "train")
    number = int(index.files.firsts[1]) + 2
    flip(mine / "train" / "shard-00001.tar", int(index.offsets_N[number]) + 20)
    said = verified(mine, capsys)
    assert f"{mine}/train/shard-00001.tar: checksum " in said
    assert f"Images concerned (1): [2] ({index.names[number]})." in said


def test_damage_between_images_is_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(mine / "val" / "shard-00000.tar", 3)  # in the name of the first member
    said = verified(mine, capsys)
    assert f"{mine}/val/shard-00000.tar: checksum " in said
    assert "no readable tar" in said or "where the index has" in said
    assert "No image is concerned" in said


def test_missing_and_shortened_shards_are_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "train" / "shard-00000.tar").unlink()
    os.truncate(mine / "train" / "shard-00002.tar", 9000)
    said = verified(mine, capsys)
    assert f"{mine}/train/shard-00000.tar: missing. Images concerned (" in said
    assert f"{mine}/train/shard-00002.tar: 9000 bytes, " in said


def test_a_damaged_index_is_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(mine / "train" / "index.npz", 5000)
    assert f"{mine}/train/index.npz: damaged: checksum " in verified(mine, capsys)


def test_a_lost_list_of_unreadable_images_is_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((mine / "pack.json").read_text())
    manifest["splits"]["val"]["unreadable"] = 2
    (mine / "pack.json").write_text(json.dumps(manifest))
    assert "0 unreadable images are listed, pack.json says 2" in verified(mine, capsys)


def test_a_damaged_index_never_ends_in_a_traceback(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own numbers are not believed then; damaged shards are named all the same."""
    path = mine / "train" / "index.npz"
    whole = path.read_bytes()
    (mine / "train" / "shard-00001.tar").unlink()
    flip(mine / "train" / "shard-00000.tar", 700)
    for offset in range(0, len(whole), 97):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x55]) + whole[offset + 1 :])
        said = verified(mine, capsys)
        assert f"{path}: damaged: checksum " in said
        assert f"{mine}/train/shard-00001.tar: missing. Which images that concerns cannot be told" in said
        assert f"{mine}/train/shard-00000.tar: checksum " in said
        assert "val/shard" not in said


def test_a_damaged_list_of_unreadable_images_is_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mine / "train" / "unreadable.jsonl"
    path.write_text('{"nabe": "train/a/x.jpg", "label": 0, "reason": "empty file"}\n')
    assert f"{path}: damaged: a line without 'name'" in verified(mine, capsys)
    path.unlink()
    assert f"{path}: missing. Pack it anew" in verified(mine, capsys)


def test_what_cannot_be_read_is_not_called_harmless(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path.open

    def refuse(self: Path, *args, **kwargs):
        if self.name == "shard-00001.tar":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    said = verified(mine, capsys)
    assert "shard-00001.tar: cannot be read: Permission denied. Which images that concerns cannot be told." in said


def test_nobody_to_read_what_is_said_is_no_success(mine: Path) -> None:
    """As by '| head': a damaged pack must not end with 0 because of it."""
    (mine / "train" / "shard-00001.tar").unlink()
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "hrdc_hpc.pack", "--out", str(mine), "--verify", "--workers", "1"],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    os.close(write)
    assert process.returncode == Exit.FAILED
    assert process.stderr == "pack: standard output was closed before the end; the same command goes on\n"


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    """Standard output is strict in most locales, and a file's name may be any bytes."""
    for split in ("train", "val"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        (tmp_path / "set" / split / "a" / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(jpeg(picture(1, 40, 50)))
    out = tmp_path / "pack"
    assert main(["--cfg", config(tmp_path, tmp_path / "set"), "--out", str(out), "--workers", "1"]) == 0
    index = open_packed(out, "train")
    flip(out / "train" / "shard-00000.tar", int(index.offsets_N[0]) + 9)
    process = subprocess.run(
        [sys.executable, "-m", "hrdc_hpc.pack", "--out", str(out), "--verify", "--workers", "1"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert process.returncode == Exit.FAILED, process.stderr
    assert r"Images concerned (1): [0] (train/a/\udcff\udcfe.jpg)." in process.stdout
    assert "is damaged. To mend it" in process.stdout
