"""Sequence, world sizes, bad images and threads of the loaders, with the real DALI."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hrdc_hpc.config.schema import Data, Loader
from hrdc_hpc.data import feed
from hrdc_hpc.data.batch import Batch
from hrdc_hpc.data.index import DataError, ImageIndex, open_split
from hrdc_hpc.data.loader import EvalLoader, TrainLoader
from hrdc_hpc.data.prefetch import Ahead
from hrdc_hpc.data.samplers import uniform
from tests.data.images import encoded, folder_data, jpeg, picture

pytestmark = pytest.mark.dali

GLOBAL = 10  # 4 steps of the 43 images an epoch, 3 are dropped
STEPS = 9


def train_loader(
    data: Data, rank: int = 0, world_size: int = 1, index: ImageIndex | None = None, **settings: Any
) -> TrainLoader:
    index = index or open_split(data, "train")
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    arguments: dict[str, Any] = {"classes": 3, "seed": 5, "stream": "main", "global_batch": GLOBAL, "cores": 1}
    return TrainLoader(
        index, data, sampler, rank=rank, world_size=world_size, device=torch.device("cpu"), **(arguments | settings)
    )


def taken(data: Data, first: int = 0, last: int = STEPS, **settings: Any) -> list[Batch]:
    with train_loader(data, **settings) as loader:
        return list(loader.batches(first, last))


def assert_same(ours: Iterable[Batch], theirs: Iterable[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.step, a.epoch) == (b.step, b.epoch)
        for name in ("images_BHWC", "labels_B", "valid_B", "class_counts_C"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert np.array_equal(a.indices_B, b.indices_B)
        assert np.array_equal(a.positions_B, b.positions_B)


@pytest.fixture(scope="module")
def straight(folder: Path) -> list[Batch]:
    return taken(folder_data(folder))


def test_batches_are_what_the_order_says(straight, folder):
    index = open_split(folder_data(folder), "train")
    assert [batch.step for batch in straight] == list(range(STEPS))
    assert [batch.epoch for batch in straight] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    for epoch in (0, 1):
        batches = straight[4 * epoch : 4 * epoch + 4]
        assert np.concatenate([batch.positions_B for batch in batches]).tolist() == list(range(40))
        assert len(np.unique(np.concatenate([batch.indices_B for batch in batches]))) == 40
    for batch in straight:
        assert batch.images_BHWC.shape == (10, 32, 32, 3)
        assert (batch.images_BHWC.dtype, batch.labels_B.dtype) == (torch.uint8, torch.int64)
        assert (batch.valid_B.dtype, batch.class_counts_C.dtype) == (torch.float32, torch.float32)
        assert batch.labels_B.tolist() == index.labels_N[batch.indices_B].tolist()
        assert batch.class_counts_C.tolist() == [(batch.labels_B == c).sum() for c in range(3)]
        assert batch.valid_B.tolist() == [1.0] * 10
        assert len({image.numpy().tobytes() for image in batch.images_BHWC}) == 10


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_world_size_sees_the_same_global_batches(world_size, straight, folder):
    ranks = [taken(folder_data(folder), rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, whole in enumerate(straight):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part.images_BHWC for part in parts]), whole.images_BHWC)
        assert torch.equal(torch.cat([part.labels_B for part in parts]), whole.labels_B)
        assert np.array_equal(np.concatenate([part.indices_B for part in parts]), whole.indices_B)
        assert np.array_equal(np.concatenate([part.positions_B for part in parts]), whole.positions_B)
        assert all(torch.equal(part.class_counts_C, whole.class_counts_C) for part in parts)
    sizes = [{len(batch.labels_B) for batch in rank} for rank in ranks]
    assert sizes == {2: [{5}, {5}], 3: [{3}, {3}, {4}], 4: [{2}, {3}, {2}, {3}]}[world_size]


@pytest.mark.parametrize("loader", [Loader(threads=2), Loader(threads=1, prefetch=1), Loader(threads=2, prefetch=4)])
def test_threads_and_prefetch_change_nothing(loader, straight, folder):
    assert_same(taken(folder_data(folder, loader=loader)), straight)


@pytest.mark.parametrize("first", [1, 3, 4, 8])
def test_a_start_at_any_step_goes_on_unbroken(first, straight, folder):
    assert_same(taken(folder_data(folder), first), straight[first:])


def test_stopped_on_two_ranks_and_resumed_on_three(straight, folder):
    before = [taken(folder_data(folder), 0, 3, rank=rank, world_size=2) for rank in range(2)]
    after = [taken(folder_data(folder), 3, STEPS, rank=rank, world_size=3) for rank in range(3)]
    for parts, whole in zip([*zip(*before, strict=True), *zip(*after, strict=True)], straight, strict=True):
        assert torch.equal(torch.cat([part.images_BHWC for part in parts]), whole.images_BHWC)


def test_one_loader_serves_many_ranges(straight, folder):
    for prefetch in (1, 2, 3):
        data = folder_data(folder, loader=Loader(threads=2, prefetch=prefetch))
        with train_loader(data) as loader:
            parts = [list(loader.batches(first, last)) for first, last in ((0, 1), (1, 1), (1, 3), (3, 4), (4, STEPS))]
        assert_same([batch for part in parts for batch in part], straight)


def test_another_seed_or_stream_is_another_sequence(straight, folder):
    for change in ({"seed": 6}, {"stream": "second"}):
        other = taken(folder_data(folder), 0, 1, **change)[0]
        assert not np.array_equal(other.indices_B, straight[0].indices_B)


def test_batches_may_be_kept(straight, folder):
    copies = []
    with train_loader(folder_data(folder)) as loader:
        kept = []
        for batch in loader.batches(0, STEPS):
            kept.append(batch)
            copies.append(batch.images_BHWC.clone())
    assert all(torch.equal(batch.images_BHWC, copy) for batch, copy in zip(kept, copies, strict=True))


def test_the_samples_hash_knows_indices_crops_and_flips_and_no_rank(folder):
    data = folder_data(folder)
    with train_loader(data) as one, train_loader(data, rank=2, world_size=3) as third:
        hashes = [one.samples_hash(step) for step in range(STEPS)]
        assert [third.samples_hash(step) for step in range(STEPS)] == hashes
        assert len(set(hashes)) == STEPS
    for changed in (folder_data(folder, crop_scale=(0.2, 1.0)), folder_data(folder, flip=False)):
        with train_loader(changed) as loader:
            assert loader.samples_hash(0) != hashes[0]
    with train_loader(data, seed=6) as loader:
        assert loader.samples_hash(0) != hashes[0]


def test_the_hash_is_of_what_is_trained_on(straight, folder):
    """Equal hashes, equal pixels: the same step again; another step differs in both."""
    with train_loader(folder_data(folder)) as loader:
        (again,) = loader.batches(4, 5)
        assert loader.samples_hash(4) != loader.samples_hash(5)
    assert torch.equal(again.images_BHWC, straight[4].images_BHWC)
    assert not torch.equal(again.images_BHWC, straight[5].images_BHWC)


# --- looking ahead


class Prompt(ThreadPoolExecutor):
    """Does at once what it is given; otherwise advice whose turn has passed is dropped, if the machine is that slow."""

    def submit(self, *call: Any, **named: Any) -> Any:
        future = super().submit(*call, **named)
        wait([future])
        return future


def test_the_index_hears_of_images_long_before_they_are_read(folder, monkeypatch):
    """40 images ahead, four batches; each batch once, in order, also where the range ends."""
    said: list[tuple[int, ...]] = []
    read: list[tuple[set[int], int]] = []
    real = ImageIndex.read_into

    def read_into(index, numbers, arrays):
        read.append((set(np.asarray(numbers).tolist()), len(said)))
        return real(index, numbers, arrays)

    monkeypatch.setattr("hrdc_hpc.data.loader.ThreadPoolExecutor", Prompt)
    monkeypatch.setattr(ImageIndex, "will_need", lambda _, numbers: said.append(tuple(numbers.tolist())))
    monkeypatch.setattr(ImageIndex, "read_into", read_into)
    data = folder_data(folder, loader=Loader(threads=1, look_ahead=40))
    batches = taken(data)
    assert said == [tuple(batch.indices_B.tolist()) for batch in batches]
    for step, batch in enumerate(batches):
        known = max(when for numbers, when in read if numbers <= set(batch.indices_B.tolist()))
        assert known >= min(step + 4, STEPS)
    said.clear()
    taken(folder_data(folder, loader=Loader(threads=1, look_ahead=0)), 2, 4)
    assert not said


def test_what_goes_wrong_in_looking_ahead_reaches_the_consumer(folder, monkeypatch):
    monkeypatch.setattr("hrdc_hpc.data.loader.ThreadPoolExecutor", Prompt)
    monkeypatch.setattr(ImageIndex, "will_need", lambda *_: 1 / 0)
    with train_loader(folder_data(folder)) as loader, pytest.raises(ZeroDivisionError):
        list(loader.batches(0, STEPS))
    assert hrdc_threads() == []


# --- evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_sees_every_image_once_in_the_same_company(world_size, folder):
    data = folder_data(folder)
    index = open_split(data, "val")
    batches: dict[int, Batch] = {}
    for rank in range(world_size):
        with EvalLoader(
            index, data, batch_size=4, rank=rank, world_size=world_size, device=torch.device("cpu"), cores=1
        ) as loader:
            own = list(loader.batches())
            assert len(own) == len(loader)
            assert all(batch.step % world_size == rank for batch in own)
            batches |= {batch.step: batch for batch in own}
    assert [batches[b].indices_B.tolist() for b in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    assert [batches[b].valid_B.tolist() for b in range(3)] == [[1.0] * 4, [1.0] * 4, [1.0, 1.0, 0.0, 0.0]]
    assert torch.cat([batches[b].labels_B for b in range(3)]).tolist() == [*index.labels_N.tolist(), 0, 0]
    assert sum(batches[b].class_counts_C for b in range(3)).tolist() == index.counts_C.tolist()
    assert (batches[2].images_BHWC[2:] == 128).all()


def test_evaluation_may_be_repeated(folder):
    data = folder_data(folder)
    with EvalLoader(
        open_split(data, "val"), data, batch_size=3, rank=0, world_size=1, device=torch.device("cpu"), cores=1
    ) as loader:
        first = list(loader.batches())
        assert len(first) == 4
        assert_same(list(loader.batches()), first)


# --- bad images


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "set"))


def replaced_later(own: Path, data: Data, content: bytes | None) -> tuple[TrainLoader, str, int]:
    """Make a loader, then spoil one image that it has indexed; returns its path and number, too."""
    loader = train_loader(data)
    number = 17
    path = Path(loader._index.path(number))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content[: path.stat().st_size].ljust(path.stat().st_size, b"\0"))
    return loader, str(path), number


SPOILT = {
    "missing": (None, "read", "No such file"),
    "zeros": (b"", "decoded", "damaged, or not an image"),
    "garbage": (bytes(range(256)) * 20, "decoded", "damaged, or not an image"),
    "smaller": (jpeg(picture(1, 3, 3)), "decoded", "its size is not the one that was indexed"),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("prefetch", [1, 3, 4, None])
def test_a_bad_image_stops_the_run_by_name(kind, prefetch, own, straight):
    content, verb, reason = SPOILT[kind]
    data = folder_data(own, loader=Loader(threads=1, prefetch=prefetch))
    loader, path, number = replaced_later(own, data, content)
    step = next(batch.step for batch in straight if number in batch.indices_B)
    good: list[Batch] = []
    with loader, pytest.raises(DataError) as caught:  # noqa: PT012 - the batches before it must come
        for batch in loader.batches(0, STEPS):
            good.append(batch)  # noqa: PERF402 - kept although the loop raises
    text = str(caught.value)
    assert text.startswith(f"epoch {step // 4}, step {step}: 1 of 10 images cannot be {verb}: {path} ({reason}")
    assert "Replace or remove them, or set data.on_bad_image: skip" in text
    assert_same(good, straight[:step])


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("prefetch", [1, 3, 4, None])
def test_a_bad_image_is_skipped_and_counted(kind, prefetch, own, straight):
    data = folder_data(own, on_bad_image="skip", loader=Loader(threads=1, prefetch=prefetch))
    loader, path, number = replaced_later(own, data, SPOILT[kind][0])
    with loader:
        batches = list(loader.batches(0, STEPS))
        times = sum(number in batch.indices_B for batch in straight)
        assert times > 0
        assert loader.skipped == {path: times}
    for ours, theirs in zip(batches, straight, strict=True):
        bad = torch.from_numpy(ours.indices_B == number)
        assert (ours.valid_B == 0).tolist() == bad.tolist()
        assert (ours.images_BHWC[bad] == 128).all()
        assert torch.equal(ours.images_BHWC[~bad], theirs.images_BHWC[~bad])
        assert torch.equal(ours.labels_B, theirs.labels_B)
        assert torch.equal(ours.class_counts_C, theirs.class_counts_C)
        assert np.array_equal(ours.indices_B, theirs.indices_B)


@pytest.mark.parametrize("prefetch", [3, 4, 8])
def test_images_stay_with_their_labels_where_reads_are_slow_after_a_bad_image(
    prefetch, own, folder, straight, monkeypatch
):
    """The new decoder begins with fewer batches than it holds, and more come later."""
    data = folder_data(own, on_bad_image="skip", loader=Loader(threads=1, prefetch=prefetch))
    number = int(straight[1].indices_B[0])
    slow, real = True, Ahead.get
    monkeypatch.setattr(Ahead, "get", lambda ahead, *, wait: None if slow and not wait else real(ahead, wait=wait))
    with train_loader(data) as loader:
        path = Path(loader._index.path(number))
        path.write_bytes(b"\0" * path.stat().st_size)
        batches = []
        for batch in loader.batches(0, STEPS + 8):
            batches.append(batch)
            slow = batch.step < 1
        assert loader.skipped[str(path)] == sum(number in batch.indices_B for batch in batches)
    for ours, theirs in zip(batches, taken(folder_data(folder), 0, STEPS + 8), strict=True):
        good = torch.from_numpy(ours.indices_B != number)
        assert torch.equal(ours.images_BHWC[good], theirs.images_BHWC[good])


CRASHES = """
import sys
from pathlib import Path
import torch
from hrdc_hpc.config.schema import Loader
from hrdc_hpc.data.index import open_split
from hrdc_hpc.data.loader import EvalLoader, TrainLoader
from hrdc_hpc.data.samplers import uniform
from tests.data.images import folder_data, jpeg, picture

root, kind = Path(sys.argv[1]), sys.argv[2]
data = folder_data(root, on_bad_image="skip", loader=Loader(threads=1))
index = open_split(data, "train")
path = Path(index.path(20))
content, smaller = path.read_bytes(), jpeg(picture(1, 3, 3))
path.write_bytes({
    "zeros": bytes(len(content)),
    "markers": content[:20] + bytes(len(content) - 20),
    "smaller": smaller + bytes(len(content) - len(smaller)),
}[kind])
shared = dict(rank=0, world_size=1, device=torch.device("cpu"), cores=1)
sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
loaders = [TrainLoader(index, data, sampler, classes=3, seed=5, stream="main", global_batch=43, **shared)] * 10
loaders += [EvalLoader(index, data, batch_size=43, **shared)] * 10
for loader in loaders:
    (batch,) = loader.batches(0, 1) if isinstance(loader, TrainLoader) else loader.batches()
    assert batch.valid_B.sum() == 42 and batch.indices_B[batch.valid_B == 0] == [20], batch.valid_B
    assert loader.reasons[str(path)] == ("its size is not the one that was indexed" if kind == "smaller"
                                         else "damaged, or not an image")
    loader.close()
"""
"""In a process of its own, as what it guards against ends the process."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zeros", "markers", "smaller"])
def test_a_header_that_cannot_be_read_in_a_large_batch_does_not_end_the_process(kind, own):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(own), kind],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:].decode(errors="replace")


def test_several_bad_images_in_one_batch_are_all_named(own, straight):
    loader = train_loader(folder_data(own))
    paths = [Path(loader._index.path(int(number))) for number in straight[2].indices_B[[1, 4, 9]]]
    for path in paths:
        path.write_bytes(b"\0" * path.stat().st_size)
    with loader, pytest.raises(DataError, match=r"epoch 0, step 2: 3 of 10 images cannot be decoded") as caught:
        list(loader.batches(2, 3))
    assert all(str(path) in str(caught.value) for path in paths)


def damaged(content: bytes, kind: str) -> bytes:
    """Damage between head and tail, the length kept."""
    half = len(content) // 2
    return {
        "lost end": content[:half] + b"\0" * (len(content) - half),
        "hole": content[:half] + b"\0" * 40 + content[half + 40 :],
        "png": content[:half] + b"\xff" * 40 + content[half + 40 :],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "ending", "outcome"),
    [
        ("lost end", ".jpg", "some"),  # a crop above the damage is whole
        ("hole", ".jpg", "none"),  # libjpeg goes on behind it; pixels are wrong, here as everywhere
        ("png", ".png", "all"),
    ],
)
def test_what_becomes_of_a_damaged_image_depends_on_its_bytes_and_crop_alone(kind, ending, outcome, own):
    index = open_split(folder_data(own), "train")
    spoilt = [number for number in range(len(index)) if index.names[number].endswith(ending)]
    for number in spoilt:
        path = Path(index.path(number))
        path.write_bytes(damaged(path.read_bytes(), kind))

    def run(world_size: int, threads: int, first: int) -> list[tuple[Batch, ...]]:
        data = folder_data(own, on_bad_image="skip", loader=Loader(threads=threads))
        ranks = [taken(data, first, 6, index=index, rank=rank, world_size=world_size) for rank in range(world_size)]
        return list(zip(*ranks, strict=True))

    whole = [batch for (batch,) in run(1, 1, 0)]
    numbers = np.concatenate([batch.indices_B for batch in whole])
    failed = np.concatenate([batch.valid_B.numpy() == 0 for batch in whole])
    assert set(numbers[failed]) <= set(spoilt)
    met = int(np.isin(numbers, spoilt).sum())
    assert {"some": 0 < failed.sum() < met, "none": failed.sum() == 0 < met, "all": failed.sum() == met > 0}[outcome]
    for parts, batch in zip(run(3, 2, 0) + run(2, 1, 4), whole + whole[4:], strict=True):
        assert torch.equal(torch.cat([part.images_BHWC for part in parts]), batch.images_BHWC)
        assert torch.equal(torch.cat([part.valid_B for part in parts]), batch.valid_B)


def test_bad_images_in_evaluation(own):
    data = folder_data(own, on_bad_image="skip")
    index = open_split(data, "val")
    Path(index.path(5)).write_bytes(b"\0" * int(index.bytes_N[5]))
    arguments: dict[str, Any] = {"batch_size": 4, "rank": 0, "world_size": 1, "device": torch.device("cpu"), "cores": 1}
    with EvalLoader(index, data, **arguments) as loader:
        valid = torch.cat([batch.valid_B for batch in loader.batches()])
        assert valid.tolist() == [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
        assert loader.skipped == {index.path(5): 1}
    with (
        EvalLoader(index, folder_data(own), **arguments) as loader,
        pytest.raises(DataError, match=r"evaluation of val, batch 1: 1 of 4 images cannot be decoded"),
    ):
        list(loader.batches())


def test_a_file_system_that_fails_in_training_is_not_blamed_on_the_data(own, monkeypatch):
    def fail(*_: Any) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with train_loader(folder_data(own)) as loader:
        monkeypatch.setattr(os, "readv", fail)
        with pytest.raises(RuntimeError, match=r"epoch 0, step 0: 10 of 10 images cannot be read: .*Disk or network"):
            next(loader.batches(0, 1))


def test_a_failure_that_no_image_causes_is_not_blamed_on_one(folder, monkeypatch):
    with train_loader(folder_data(folder, on_bad_image="skip")) as loader:
        real = loader._new_decoder

        def failing(batch, depth):
            decoder = real(batch, depth)
            if batch > 1:
                monkeypatch.setattr(decoder, "pop", lambda: (_ for _ in ()).throw(RuntimeError("out of luck")))
            return decoder

        monkeypatch.setattr(loader, "_new_decoder", failing)
        with pytest.raises(RuntimeError, match=r"step 0: DALI failed, although each image .* alone: out of luck"):
            next(iter(loader.batches(0, 2)))
        assert not loader.skipped


# --- threads, memory, errors


def hrdc_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hrdc")]


def test_a_dropped_iterator_leaves_no_thread(folder, straight):
    loader = train_loader(folder_data(folder))
    batches = loader.batches(0, 10**9)
    next(batches)
    assert hrdc_threads()
    start = time.monotonic()
    del batches
    assert hrdc_threads() == []
    for _ in loader.batches(0, 10**9):
        break
    assert hrdc_threads() == []
    assert_same(loader.batches(2, 4), straight[2:4])
    assert time.monotonic() - start < 5
    loader.close()


def test_close_and_a_new_iteration_end_the_old_one(folder, straight):
    with train_loader(folder_data(folder)) as loader:
        old = loader.batches(0, 10**9)
        next(old)
        assert_same(loader.batches(0, 2), straight[:2])
        with pytest.raises(StopIteration):
            next(old)
        third = loader.batches(0, 10**9)
        next(third)
    assert hrdc_threads() == []
    with pytest.raises(StopIteration):
        next(third)


def test_an_error_of_the_prefetch_thread_reaches_the_consumer(folder, monkeypatch):
    with train_loader(folder_data(folder)) as loader:
        monkeypatch.setattr(loader._plan, "samples", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(iter(loader.batches(0, 3)))
    assert hrdc_threads() == []


def test_buffers_are_used_again_only_after_their_batch(folder, straight, monkeypatch):
    """A buffer is overwritten as soon as it is given back: DALI must be done with it. A few of them suffice."""
    made = []

    class Hostile(feed.Buffers):
        def take(self, size):
            buffer = super().take(max(size, 1_000_000))
            made.append(buffer.ctypes.data)
            return buffer

        def give(self, buffer):
            buffer[:] = 255
            super().give(buffer)

    monkeypatch.setattr("hrdc_hpc.data.loader.Buffers", Hostile)
    for prefetch, most in ((1, 5), (3, 7), (4, 10)):
        made.clear()
        data = folder_data(folder, loader=Loader(threads=2, prefetch=prefetch))
        assert_same(taken(data), straight)
        assert len(set(made)) <= most


def test_wrong_settings_are_refused(folder):
    data = folder_data(folder)
    with pytest.raises(ValueError, match=r"optim.global_batch: 44 is more than the 43 images"):
        train_loader(data, global_batch=44)
    with pytest.raises(ValueError, match="10 images cannot be shared by 11 processes"):
        train_loader(data, world_size=11)
    with pytest.raises(ValueError, match="train split has 3 classes, and labels up to 2; the network has 2 outputs"):
        train_loader(data, classes=2)
    with pytest.raises(ValueError, match=r"data.loader.decoder: gpu, but .* on the CPU; allowed here: auto, cpu"):
        train_loader(folder_data(folder, loader=Loader(decoder="gpu")))


def test_generated_images_are_of_many_kinds():
    assert {name.rpartition(".")[2] for name, _ in map(encoded, range(6))} == {"jpg", "JPG", "jpeg", "png"}
