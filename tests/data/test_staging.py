"""Copies of a packed data set on a node: whole or not there, shared, given up where they fail. With real files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrdc_hpc.config.node_local import Staging as Options
from hrdc_hpc.config.schema import Data
from hrdc_hpc.config.types import Component
from hrdc_hpc.data.datasets import image_folder
from hrdc_hpc.data.node_folder import expand, node_folder
from hrdc_hpc.data.packed import PackedIndex, file_checksum, open_packed
from hrdc_hpc.data.preflight import preflight
from hrdc_hpc.data.staging import Staging
from hrdc_hpc.pack.__main__ import main

import stager
from packs import config, flip


@pytest.fixture(scope="module")
def pack_there(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image folder, packed into some shards. Not to be written to."""
    place = tmp_path_factory.mktemp("staged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        arguments = ["--cfg", config(place, folder), "--out", str(place / "pack"), "--workers", "1"]
        assert main([*arguments, "--shard-gb", "0.00003"]) == 0
    return place / "pack"


@pytest.fixture
def own(pack_there: Path, tmp_path: Path) -> Path:
    """Return a pack that may be changed."""
    return Path(shutil.copytree(pack_there, tmp_path / "own"))


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the node's disk."""
    path = tmp_path / "node"
    path.mkdir()
    return path


def staged(pack: Path, node: Path, **settings: Any) -> tuple[list[PackedIndex], Staging]:
    """Stage both splits to the end."""
    indices = [open_packed(pack, split) for split in ("train", "val")]
    staging = Staging(
        [index.files for index in indices],
        Options(to=str(node), **({"keep_free_gb": 0.0} | settings)),
    )
    assert staging.join(30)
    return indices, staging


def copies(node: Path) -> dict[str, Path]:
    """Paths of the copies by split and shard, and of what is left of others."""
    found = (path for path in node.rglob("*") if path.is_file() and path.suffix == ".tar")
    return {f"{path.parent.name.partition('-')[0]}/{path.name}": path for path in found}


def originals(pack: Path) -> dict[str, Path]:
    return {f"{path.parent.name}/{path.name}": path for path in sorted(pack.rglob("*.tar"))}


def assert_whole(node: Path, pack: Path) -> None:
    theirs = originals(pack)
    assert {name: path.read_bytes() for name, path in copies(node).items()} == {
        name: path.read_bytes() for name, path in theirs.items()
    }


def content(index: PackedIndex) -> list[bytes]:
    return [array.tobytes() for array in index.read(range(len(index)))]


# --- copying


def test_shards_are_copied_and_read_from_there(own, node):
    expected = content(open_packed(own, "train"))
    (train, val), staging = staged(own, node)
    assert staging.state == "whole"
    assert_whole(node, own)
    assert all(str(node) in index.path(number) for index in (train, val) for number in range(len(index)))
    for path in own.rglob("*.tar"):
        path.unlink()
    assert content(train) == expected
    assert content(val)
    staging.close()


def test_a_shard_that_is_open_is_exchanged_under_its_readers(own, node):
    index = open_packed(own, "train").verifying()
    expected = content(index)
    before = [index.files.descriptor(number) for number in range(len(index.files.shards))]
    staging = Staging([index.files], Options(to=str(node), keep_free_gb=0, mb_per_s=1))
    while not staging.join(0):
        assert content(index) == expected
    assert [index.files.descriptor(number) for number in range(len(index.files.shards))] == before
    for number, descriptor in enumerate(before):
        assert os.fstat(descriptor).st_ino == index.files.path(number).stat().st_ino
        assert str(node) in str(index.files.path(number))
        assert not os.get_inheritable(descriptor)
    assert content(index) == expected
    staging.close()


def test_ranks_of_a_node_share_the_work(own, node):
    indices = [open_packed(own, "train") for _ in range(4)]
    said: list[Mapping[str, Any]] = []
    ranks = [
        Staging(
            [index.files], Options(to=str(node), keep_free_gb=0, mb_per_s=1), rank=rank, world_size=4,
            local_world_size=4, tell=said.append,
        )
        for rank, index in enumerate(indices)
    ]  # fmt: skip
    assert all(rank.join(30) for rank in ranks)
    total = sum(path.stat().st_size for path in (own / "train").glob("*.tar"))
    ends = [progress for progress in said if progress["state"] == "whole"]
    assert [end["bytes"] for end in ends] == [total] * 4
    assert sum(end["copied_bytes"] for end in ends) == total, "no byte was copied twice"
    assert sum(end["copied_bytes"] > 0 for end in ends) > 1
    assert all(str(node) in index.path(0) for index in indices)
    for rank in ranks:
        rank.close()


def test_the_rate_is_kept(own, node):
    total = sum(path.stat().st_size for path in own.rglob("*.tar"))
    began = time.monotonic()
    _, staging = staged(own, node, mb_per_s=total / 1e6 / 0.5)
    assert 0.4 < time.monotonic() - began < 3
    staging.close()


def test_a_second_run_copies_nothing(own, node):
    staged(own, node)[1].close()
    before = {name: path.stat().st_mtime_ns for name, path in copies(node).items()}
    for path in own.rglob("*.tar"):
        path.unlink()  # not even read
    indices, staging = staged(own, node)
    assert staging.state == "whole"
    assert {name: path.stat().st_mtime_ns for name, path in copies(node).items()} == before
    assert content(indices[0])
    staging.close()


def age_notes(node: Path) -> None:
    for path in node.rglob("*.tar.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "compared": time.time() - 90_000}))


@pytest.mark.parametrize("verify", [True, False])
def test_an_old_copy_is_compared_before_it_is_used(verify, own, node, caplog):
    staged(own, node)[1].close()
    victim = copies(node)["train/shard-00001.tar"]
    times = victim.stat()
    flip(victim, 700)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk does it
    age_notes(node)
    staged(own, node, verify=verify)[1].close()
    assert ("damaged since it was copied" in caplog.text) == verify
    if verify:
        assert_whole(node, own)


def test_a_copy_that_was_changed_is_not_trusted(own, node):
    staged(own, node)[1].close()
    flip(copies(node)["val/shard-00000.tar"], 700)
    staged(own, node, verify=False)[1].close()
    assert_whole(node, own)


def test_a_damaged_shard_is_named_and_stays_where_it_is(own, node, caplog):
    flip(own / "train" / "shard-00001.tar", 700)
    (train, _), staging = staged(own, node)
    assert staging.state == "damaged"
    assert f"{own}/train/shard-00001.tar: damaged: " in caplog.text
    assert f"python -m hrdc_hpc.pack --verify --out {own} names the images" in caplog.text
    assert "train/shard-00001.tar" not in copies(node)
    assert len(copies(node)) == len(originals(own)) - 1
    assert str(train.files.path(1)).startswith(str(own))
    assert str(train.files.path(0)).startswith(str(node))
    staging.close()


# --- room


def test_too_little_room_is_a_warning(own, node, caplog):
    (train, _), staging = staged(own, node, keep_free_gb=1e6)
    assert staging.state == "no room"
    assert "GB are free" in caplog.text
    assert "1e+06 GB must stay free (data.staging.keep_free_gb)" in caplog.text
    assert copies(node) == {}
    assert content(train)
    staging.close()


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """Return a real file system of 512 kB."""
    path = tmp_path / "tiny"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_fills_up_on_the_way_is_a_warning(own, tiny, caplog, monkeypatch):
    monkeypatch.setattr(Staging, "_make_room", lambda *_: None)  # another program takes the room after the look
    (tiny / "other").write_bytes(bytes(400_000))
    (train, _), staging = staged(own, tiny)
    assert staging.state == "failed"
    assert "No space left on device" in caplog.text
    assert "/.tmp-shard-0" in caplog.text
    assert content(train)
    assert shutil.disk_usage(tiny).free > 0, "what it could not finish is given back"
    staging.close()


def test_copies_that_nobody_uses_make_way_the_oldest_first(own, tiny, tmp_path):
    def other(name: str, size: int, used: float) -> Path:
        folder = node_folder(str(tiny), "x") / name
        folder.mkdir()
        (folder / "shard-00000.tar").write_bytes(bytes(size))
        (folder / "use").touch()
        os.utime(folder / "use", (used, used))
        return folder

    size = sum(path.stat().st_size for path in originals(own).values())
    assert 250_000 < size < 350_000
    recent = other("train-recent", 20_000, time.time() - 10)
    old = other("train-old", 300_000, time.time() - 1000)
    _, staging = staged(own, tiny)
    assert staging.state == "whole"
    assert (recent.exists(), old.exists()) == (True, False)
    foreign = tmp_path / "foreign"
    shutil.copytree(own, foreign)
    flip(foreign / "train" / "shard-00000.tar", 0)
    text = (foreign / "pack.json").read_text()
    sums = [file_checksum(root / "train" / "shard-00000.tar") for root in (own, foreign)]
    (foreign / "pack.json").write_text(text.replace(*sums))
    _, second = staged(foreign, tiny)
    assert second.state == "no room", "what is in use is not removed"
    assert not recent.exists(), "what is not makes way"
    assert_whole(tiny, own)
    staging.close()
    second.close()


# --- stops and kills


def wait_for(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("how", ["closed", "told"])
def test_a_stop_does_not_wait_for_the_copy(how, own, node):
    flag, said = node / "stop", list[Mapping[str, Any]]()
    index = open_packed(own, "train")
    staging = Staging(
        [index.files], Options(to=str(node), keep_free_gb=0, mb_per_s=1e-3), told=flag.exists, tell=said.append
    )
    wait_for(lambda: any(path.stat().st_size for path in node.rglob(".tmp-*.tar")))
    began = time.monotonic()
    if how == "told":
        flag.touch()
        assert staging.join(1)
    staging.close()
    assert time.monotonic() - began < 1
    assert (staging.state, said[-1]["state"]) == ("stopped", "stopped")
    assert len(copies(node)) == 1, "only the unfinished one"
    staged(own, node)[1].close()
    assert_whole(node, own)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_it_goes_on_and_ends_byte_identical(kills, own, node):
    total = sum(path.stat().st_size for path in originals(own).values())
    random = np.random.default_rng(kills)
    kept = 0
    for _ in range(kills):
        process = stager.start(own, node, total / 1e6 / 1.0)
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(random.uniform(0, 0.25))
        process.kill()
        process.communicate()
        whole = {name: path for name, path in copies(node).items() if not path.name.startswith(".tmp-")}
        assert len(whole) >= kept, "what was whole stays"
        for name, path in whole.items():
            assert path.read_bytes() == originals(own)[name].read_bytes()
        kept = len(whole)
    (train, _), staging = staged(own, node)
    assert staging.state == "whole"
    assert_whole(node, own)
    assert content(train) == content(open_packed(own, "train"))
    staging.close()


def test_two_jobs_at_once_and_one_dies(own, node):
    total = sum(path.stat().st_size for path in originals(own).values())
    one, two = (stager.start(own, node, total / 1e6 / 0.4) for _ in range(2))
    wait_for(lambda: len(copies(node)) >= 4)
    one.kill()
    one.communicate()
    assert two.communicate()[0] == "begins\nwhole\n"
    assert_whole(node, own)


# --- copies that fail


@pytest.mark.parametrize("loss", ["truncated", "damaged"])
def test_a_copy_that_fails_is_given_up(loss, own, node, caplog):
    expected = content(open_packed(own, "train"))
    (train, _), staging = staged(own, node)
    train = train.verifying() if loss == "damaged" else train
    for name, path in copies(node).items():
        if name == "train/shard-00001.tar":
            if loss == "truncated":
                os.truncate(path, 1000)
            else:
                flip(path, int(train.offsets_N[train.files.firsts[1]]) + 20)
    assert content(train) == expected
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"{own}/train/shard-00001.tar is read instead" in warnings[0]
    assert train.files.path(1) == own / "train" / "shard-00001.tar"
    assert str(train.files.path(0)).startswith(str(node))
    assert not train.files.use_copy(1, node / "again"), "a copy that failed is not taken again"
    staging.close()


def test_a_copy_that_is_removed_is_read_to_the_end(own, node):
    expected = content(open_packed(own, "train"))
    (train, _), staging = staged(own, node)
    shutil.rmtree(node)
    assert content(train) == expected
    staging.close()


def test_a_failure_of_both_is_named(own, node):
    (train, _), staging = staged(own, node)
    for path in (copies(node)["train/shard-00000.tar"], own / "train" / "shard-00000.tar"):
        os.truncate(path, 1000)
    failures = train.read_into([0], [np.empty(train.bytes_N[0], np.uint8)])
    assert "the shard has 1000 bytes" in failures[0].reason
    staging.close()


# --- where


def test_where_copies_go(node, monkeypatch):
    monkeypatch.setenv("DISK", str(node))
    monkeypatch.delenv("UNSET", raising=False)
    for text in ("$DISK/x", "${DISK}/x", "${UNSET:-" + str(node) + "}/x"):
        assert expand(text) == f"{node}/x"
    with pytest.raises(ValueError, match=r"\$UNSET is not set on this node"):
        expand("$UNSET/x")
    monkeypatch.setenv("TMPDIR", f"{node}/scratch")
    folder = node_folder(None, "data.staging.to")
    assert folder == node / "scratch" / f"hrdc_hpc-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("TMPDIR")
    with pytest.raises(ValueError, match=r"set data.staging.to, or cluster.scratch"):
        node_folder(None, "data.staging.to")
    with pytest.raises(ValueError, match="must be an absolute path"):
        node_folder("scratch", "data.staging.to")


def test_only_packed_data_sets_are_staged(folder):
    data = Data(dataset=Component("image_folder", image_folder.Options(root=folder)), staging=Options())
    with pytest.raises(ValueError, match=r"data.staging: only packed data sets .* got image_folder\. Pack it"):
        preflight(data)
