"""`hrdc_hpc.pack --verify`: a whole pack is whole, and damage of any kind is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.data.packed import open_packed
from hrdc_hpc.pack.__main__ import main

from packs import flip


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
