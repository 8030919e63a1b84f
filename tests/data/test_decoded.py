"""The cache of decoded images: what it keeps, who fills it, and that training from it is as exact as from files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hrdc_hpc.config.node_local import DecodedCache
from hrdc_hpc.config.schema import Data
from hrdc_hpc.data import filling
from hrdc_hpc.data.batch import Batch
from hrdc_hpc.data.decoded import DecodedIndex, check_room, decoded_index, free_bytes, kept_sizes
from hrdc_hpc.data.filling import Filler
from hrdc_hpc.data.index import DataError, open_split
from hrdc_hpc.data.loaders import train_loader
from hrdc_hpc.data.samplers import uniform
from tests.data.images import folder_data

import filler as processes
from packs import flip

pytestmark = pytest.mark.dali

SIDE = 33


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "BLOCK", 4)


def cache(folder: Path, place: Path, side: int = SIDE, **settings: Any) -> DecodedIndex:
    return decoded_index(open_split(folder_data(folder, **settings), "train"), side, place)


def fill(
    index: DecodedIndex,
    *,
    skip: bool = False,
    rank: int = 0,
    ranks: int = 1,
    told: Callable[[], bool] = lambda: False,
) -> Filler:
    filler = Filler(index, cores=1, skip=skip, rank=rank, ranks=ranks, told=told)
    assert filler.fill()
    return filler


@pytest.fixture(scope="module")
def filled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DecodedIndex:
    """A filled cache. Not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(filling, "BLOCK", 4)
        index = cache(folder, tmp_path_factory.mktemp("filled"))
        fill(index)
    return index


def pixels(index: DecodedIndex) -> bytes:
    return index.files.source(0).read_bytes()


def kept(index: DecodedIndex, number: int) -> np.ndarray[Any, Any]:
    height, width = index.sizes_N2[number]
    content = index.read([number])[0].tobytes()
    head = b"P6\n%5d %5d\n255\n" % (width, height)
    assert content.startswith(head)
    return np.frombuffer(content[len(head) :], np.uint8).reshape(height, width, 3)


# --- what is kept


def test_kept_sizes():
    sizes_N2 = np.array([[600, 800], [801, 600], [256, 900], [100, 5000], [40000, 257]], np.int32)
    assert kept_sizes(sizes_N2, 256).tolist() == [[256, 341], [341, 256], [256, 900], [100, 5000], [39844, 256]]


def test_imagenet_lt_takes_what_the_docs_say():
    """115,846 images of 4:3 at 256: 256 * 341 * 3 bytes each, and a header of 19."""
    assert pytest.approx(30.3, abs=0.1) == 115_846 * (256 * 341 * 3 + 19) / 1e9


def test_images_are_decoded_and_made_smaller(filled, folder):
    differences = []
    for number in range(len(filled)):
        with Image.open(filled.source.path(number)) as image:
            height, width = filled.sizes_N2[number]
            wanted = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), np.float32)
        if not filled.source.path(number).endswith("5.jpg"):  # CMYK has no one conversion
            differences.append(np.abs(kept(filled, number) - wanted).mean())
    assert min(filled.sizes_N2.min(axis=1)) == max(filled.sizes_N2.min(axis=1)) == SIDE
    assert np.median(differences) < 1
    assert max(differences) < 4


def test_small_images_are_kept_as_they_are(folder, tmp_path):
    index = cache(folder, tmp_path, side=1000)
    fill(index)
    assert np.array_equal(index.sizes_N2, index.source.sizes_N2)
    (number,) = (n for n in range(len(index)) if index.names[n].endswith("003.png"))
    with Image.open(index.source.path(number)) as image:
        assert np.array_equal(kept(index, number), np.asarray(image.convert("RGB")))


# --- who fills it


def test_any_number_of_ranks_keep_the_same(filled, folder, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    index = cache(folder, tmp_path)
    half = fill_until(index, blocks=3)
    assert 0 < half < 11
    with ThreadPoolExecutor(1) as pool:  # locks are of processes: the others are simulated one after another
        done = sum(pool.submit(fill, index, rank=rank, ranks=3).result().filled for rank in range(3))
    assert half + done == 11, "no block was filled twice"
    assert pixels(index) == pixels(filled)


def fill_until(index: DecodedIndex, blocks: int) -> int:
    """Fill some blocks, then be told to stop; returns how many are whole."""
    filler = Filler(index, cores=1, skip=False, rank=0, ranks=1, told=lambda: filler.filled >= blocks)
    assert not filler.fill()
    return filler.filled


def test_a_whole_cache_is_compared_and_not_filled(filled, folder, tmp_path, caplog):
    index = cache(folder, Path(shutil.copytree(filled.files.folder, tmp_path / "copy")))
    assert fill(index).filled == 0
    flip(index.files.source(0), int(index.offsets_N[9]) + 100)
    assert fill(index).filled == 1
    assert "block 2 is damaged" in caplog.text
    assert pixels(index) == pixels(filled)


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_byte_identical(filled, folder, tmp_path):
    random = np.random.default_rng(0)
    for _ in range(3):
        process = processes.start(folder, tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.communicate()
    pair = [processes.start(folder, tmp_path) for _ in range(2)]
    said = [process.communicate()[0] for process in pair]
    assert all("filled" in text for text in said)
    assert pixels(cache(folder, tmp_path)) == pixels(filled)


# --- what cannot be kept


def test_what_it_takes_is_said_before(filled, tmp_path):
    total = filled.bytes_N.sum() / 1e9
    cached = DecodedCache(side=SIDE, where="scratch", to=str(tmp_path), max_gb=total / 2)
    place = tmp_path / "folder"
    with pytest.raises(ValueError, match=r"43 images with a shorter side of 33 take 0\.0 GB, and max_gb allows"):
        check_room(cached, filled, place)
    for where in ("scratch", "memory"):
        roomy = DecodedCache(side=SIDE, where=where, to=str(tmp_path), keep_free_gb=1e6)
        with pytest.raises(
            ValueError, match=r"take 0\.0 GB; [\d.]+ GB are free on this node .* of which 1e\+06 GB must"
        ):
            check_room(roomy, filled, place)
        check_room(DecodedCache(side=SIDE, where=where, to=str(tmp_path), keep_free_gb=0), filled, place)
        assert 0 < free_bytes(roomy, tmp_path) < 1e15


def test_a_cache_smaller_than_what_is_cut_out_is_refused(folder):
    with pytest.raises(ValueError, match=r"must be at least image_size \(32\).*got 31"):
        folder_data(folder, decoded_cache=DecodedCache(side=31))


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """A data set that may be written to."""
    return Path(shutil.copytree(folder, tmp_path / "spoilt"))


def spoil(index: DecodedIndex, number: int) -> str:
    """Make an image that was indexed undecodable; returns its path."""
    path = Path(index.source.path(number))
    path.write_bytes(bytes(path.stat().st_size))
    return str(path)


def test_an_image_that_cannot_be_decoded_is_named(spoilt, tmp_path):
    index = cache(spoilt, tmp_path)
    path = spoil(index, 9)
    with pytest.raises(DataError, match="decoded cache: 1 images cannot be used") as caught:
        fill(index)
    assert f"{path} (" in str(caught.value)


def test_an_image_of_another_size_than_was_indexed_is_named_and_not_stretched(folder, tmp_path):
    source = open_split(folder_data(folder), "train")
    sizes_N2 = source.sizes_N2.copy()
    sizes_N2[9] += (0, 5)  # as an annotation file may have it
    index = decoded_index(replace(source, sizes_N2=sizes_N2), SIDE, tmp_path)
    with pytest.raises(DataError, match="its size is not the one that was indexed") as caught:
        fill(index)
    assert f"{source.path(9)} (" in str(caught.value)
    fill(index, skip=True)
    assert not any(index.read([9])[0])


def test_or_left_out_and_counted(spoilt, tmp_path):
    index = cache(spoilt, tmp_path)
    spoil(index, 9)
    fill(index, skip=True)
    with loader(folder_data(spoilt, on_bad_image="skip"), index) as training:
        batches = list(training.batches(0, 8))
        seen = sum(int(9 in batch.indices_B) for batch in batches)
        assert training.skipped == {index.path(9): seen}
        assert index.names[9] in index.path(9)
    assert seen
    assert sum(float((1 - batch.valid_B).sum()) for batch in batches) == seen


def test_an_image_that_was_left_out_is_tried_again_by_the_next_start(spoilt, tmp_path):
    index, whole = cache(spoilt, tmp_path / "once"), cache(spoilt, tmp_path / "whole")
    for each in (index, whole):
        each.files.folder.mkdir()
    fill(whole)
    path = Path(index.source.path(9))
    original = path.read_bytes()
    spoil(index, 9)
    fill(index, skip=True)
    with pytest.raises(DataError, match="decoded cache: 1 images cannot be used"):  # left out no more
        fill(index)
    path.write_bytes(original)
    assert fill(index, skip=True, rank=1, ranks=2).filled == 0, "the other rank's"
    assert fill(index, skip=True).filled == 1
    assert pixels(index) == pixels(whole)
    assert fill(index).filled == 0


# --- training from it


def loader(data: Data, index: Any, rank: int = 0, world_size: int = 1) -> Any:
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    return train_loader(
        index, data, sampler, cores=1, classes=3, seed=5, stream="main", global_batch=10, rank=rank,
        world_size=world_size, device=torch.device("cpu"),
    )  # fmt: skip


def taken(data: Data, index: Any, first: int = 0, last: int = 9, **place: int) -> list[Batch]:
    with loader(data, index, **place) as training:
        return list(training.batches(first, last))


def test_every_world_size_and_start_sees_the_same(filled, folder):
    data = folder_data(folder)
    straight = taken(data, filled)
    ranks = [taken(data, filled, rank=rank, world_size=2) for rank in range(2)]
    for step, whole in enumerate(straight):
        assert torch.equal(torch.cat([rank[step].images_BHWC for rank in ranks]), whole.images_BHWC)
    for batch, whole in zip(taken(data, filled, 5), straight[5:], strict=True):
        assert torch.equal(batch.images_BHWC, whole.images_BHWC)
        assert np.array_equal(batch.samples_B6, whole.samples_B6)


def test_images_that_are_not_made_smaller_train_as_from_their_files(folder, tmp_path):
    data, index = folder_data(folder), cache(folder, tmp_path, side=1000)
    fill(index)
    for ours, theirs in zip(taken(data, index), taken(data, index.source), strict=True):
        assert np.array_equal(ours.samples_B6, theirs.samples_B6)
        difference = (ours.images_BHWC.float() - theirs.images_BHWC.float()).abs()
        assert difference.mean() < 0.3, "decoding a window differs a little at its edges"
