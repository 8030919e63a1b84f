"""CIFAR-LT and the loader whose images lie on the device: profiles, pixels, sequence, sizes that do not fit."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from benchmarks import cifar_part
from hrdc_hpc.config.schema import Data, Holdout
from hrdc_hpc.config.types import Component
from hrdc_hpc.data import cifar
from hrdc_hpc.data.datasets import cifar10_lt, cifar100_lt
from hrdc_hpc.data.holdout import held_out, split_off
from hrdc_hpc.data.loaders import eval_loader, train_loader
from hrdc_hpc.data.pixels import PixelArray
from hrdc_hpc.data.plan import samples_digest
from hrdc_hpc.data.samplers.uniform import Uniform

SIDE, IMAGES, CLASSES = 8, 50, 3
HERE = torch.device("cpu")


def small(images: int = IMAGES) -> PixelArray:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, SIDE, SIDE, 3), np.uint8)
    labels = np.sort(random.integers(0, CLASSES, images)).astype(np.int64)
    return PixelArray(Path("small"), "train", ("a", "b", "c"), pixels, labels)


def settings(**fields: object) -> Data:
    return Data(**{
        "dataset": Component("cifar10_lt"), "image_size": SIDE, "eval_resize": SIDE, "crop": "padded",
        "crop_padding": 2, **fields,
    })  # fmt: skip


def loader(data: Data | None = None, images: PixelArray | None = None, rank: int = 0, world_size: int = 1):
    images = images or small()
    return train_loader(
        images, data or settings(), Uniform(len(images)), cores=1, classes=CLASSES, seed=3, stream="main",
        global_batch=16, rank=rank, world_size=world_size, device=HERE,
    )  # fmt: skip


# CIFAR


def test_profiles_are_those_of_the_papers() -> None:
    totals = {c.name: [sum(cifar.profile(c, f)) for f in (100, 50, 10)] for c in (cifar.CIFAR10, cifar.CIFAR100)}
    assert totals == {"cifar10": [12406, 13996, 20431], "cifar100": [10847, 12608, 19573]}
    assert cifar.profile(cifar.CIFAR10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert cifar.profile(cifar.CIFAR10, 1) == [5000] * 10
    with pytest.raises(ValueError, match=r"imbalance: 5001 leaves the rarest class without an image; at most 5000"):
        cifar.profile(cifar.CIFAR10, 5001)


def test_the_real_files(cifar10: Path) -> None:
    from torchvision.datasets import CIFAR10

    whole = CIFAR10(cifar10, train=True)
    splits = {f: cifar10_lt.open(cifar10_lt.Options(root=cifar10, imbalance=f), "train", "stop") for f in (100, 10)}
    rare, frequent = splits[100], splits[10]
    assert rare.counts_C.tolist() == cifar.profile(cifar.CIFAR10, 100)
    assert rare.class_names[0] == "airplane"
    first_airplane = whole.targets.index(0)
    assert np.array_equal(rare.images_NHWC[rare.labels_N == 0][0], whole.data[first_airplane])
    assert rare.fingerprint != frequent.fingerprint
    inside = {image.tobytes() for image in frequent.images_NHWC}
    assert all(image.tobytes() in inside for image in rare.images_NHWC)  # nested
    test = cifar10_lt.open(cifar10_lt.Options(root=cifar10), "val", "stop")
    assert test.counts_C.tolist() == [1000] * 10


def test_a_damaged_file_is_named(cifar10: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (cifar10 / "cifar-10-batches-py").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": b""}))
    with pytest.raises(
        ValueError, match=r"cifar-10-batches-py are not those of CIFAR10, or damaged .*unpack them anew"
    ):
        cifar10_lt.open(cifar10_lt.Options(root=tmp_path), "train", "stop")


@pytest.mark.parametrize("dataset", [cifar10_lt, cifar100_lt])
def test_missing_files_say_what_to_unpack(dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.dataset\.root: no folder .*cifar-100?-.*Unpack CIFAR100? for Python"):
        dataset.preflight(dataset.Options(root=tmp_path))


@pytest.mark.slow
def test_a_part_in_one_file_gives_the_very_splits_of_the_python_files(cifar10: Path, tmp_path: Path) -> None:
    part = cifar_part.pack(cifar.CIFAR10, cifar10, tmp_path, imbalance=100)
    assert part.stat().st_size < 38 << 20  # a call to another machine may carry 64 MiB
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10_part.npz"]
    for imbalance, split in ((100, "train"), (150, "train"), (100, "val")):
        one, other = (cifar10_lt.open(cifar10_lt.Options(root=r, imbalance=imbalance), split, "stop") for r in (
            tmp_path, cifar10,
        ))  # fmt: skip
        assert one.fingerprint == other.fingerprint
        assert np.array_equal(one.images_NHWC, other.images_NHWC)
    with pytest.raises(ValueError, match=r"images of class 1, 3871 are wanted; raise data\.dataset\.imbalance"):
        cifar10_lt.open(cifar10_lt.Options(root=tmp_path, imbalance=10), "train", "stop")


@pytest.fixture(scope="module")
def packed_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("part")
    random = np.random.default_rng(0)
    train, test = (
        PixelArray(
            tmp_path, split, tuple(f"kind {c}" for c in range(100)),
            random.integers(0, 256, (len(labels), 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2), labels,
        )
        for split, labels in (
            ("train", random.permutation(np.repeat(np.arange(100), cifar.profile(cifar.CIFAR100, 100)))),
            ("val", np.arange(100)),
        )
    )  # fmt: skip
    return cifar_part.pack_splits(cifar.CIFAR100, train, test, tmp_path)


@pytest.fixture
def part(packed_part: Path, tmp_path: Path) -> Path:
    """A part of something like CIFAR-100."""
    return Path(shutil.copy(packed_part, tmp_path))


def test_a_part_of_cifar100(part: Path) -> None:
    split = cifar100_lt.open(cifar100_lt.Options(root=part.parent, imbalance=100), "train", "stop")
    assert split.counts_C.tolist() == cifar.profile(cifar.CIFAR100, 100)
    assert split.class_names[3] == "kind 3"
    assert len(cifar100_lt.open(cifar100_lt.Options(root=part.parent), "val", "stop")) == 100


@pytest.mark.parametrize("damage", ["cut", "no zip", "other pixels", "format of before"])
def test_a_damaged_part_is_named(damage: str, part: Path) -> None:
    with np.load(part) as arrays:
        content = dict(arrays)
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-50_000])
    elif damage == "no zip":
        part.write_bytes(b"")
    elif damage == "other pixels":  # what a decoder that is not exact would give
        content["train_hash"] = content["val_hash"]
        np.savez(part, **content)
    else:
        del content["train_strips"]
        np.savez(part, **content)
    with pytest.raises(ValueError, match=r"cifar100_part\.npz: .*make it anew with benchmarks/cifar_part\.py"):
        cifar100_lt.open(cifar100_lt.Options(root=part.parent, imbalance=100), "train", "stop")


# the loader


def test_pixels_are_torchvisions_pad_crop_flip() -> None:
    images = small()
    for batch in loader(images=images).batches(0, 6):
        for row, pixels in zip(batch.samples_B6, batch.images_BHWC, strict=True):
            number, top, left, height, width, flip = row.tolist()
            wanted = reference.pad(torch.from_numpy(images.images_NHWC[number]).permute(2, 0, 1), 2)
            wanted = reference.crop(wanted, top, left, height, width)
            wanted = reference.hflip(wanted) if flip else wanted
            assert torch.equal(pixels, wanted.permute(1, 2, 0))
        assert torch.equal(batch.labels_B, torch.from_numpy(images.labels_N[batch.indices_B]))


def test_every_offset_and_both_sides_are_drawn() -> None:
    drawn = np.concatenate([batch.samples_B6 for batch in loader().batches(0, 600)])
    for column in (1, 2):
        assert sorted(set(drawn[:, column])) == [0, 1, 2, 3, 4]
    assert 0.475 < drawn[:, 5].mean() < 0.525  # 9,600 draws: 5 standard deviations


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_any_number_of_ranks_sees_the_same_global_batches(world_size: int) -> None:
    ranks = [list(loader(rank=rank, world_size=world_size).batches(0, 7)) for rank in range(world_size)]
    alone = list(loader().batches(0, 7))
    for step, parts in enumerate(zip(*ranks, strict=True)):
        pixels = torch.cat([part.images_BHWC for part in parts])
        assert torch.equal(pixels, alone[step].images_BHWC)
        together = samples_digest(np.concatenate([part.samples_B6 for part in parts]))
        assert together == loader().samples_hash(step)
        counts = np.bincount(alone[step].labels_B, minlength=CLASSES)
        assert all(part.class_counts_C.tolist() == counts.tolist() for part in parts)


def test_a_batch_is_a_function_of_its_step() -> None:
    straight = list(loader().batches(0, 7))
    for first in (1, 3, 5):  # three steps an epoch: in the middle, and at an epoch's start
        later = next(iter(loader().batches(first, 7)))
        assert torch.equal(later.images_BHWC, straight[first].images_BHWC)
        assert (later.step, later.epoch) == (first, first // 3)
    assert straight[0].positions_B.tolist() == straight[3].positions_B.tolist()
    assert straight[0].indices_B.tolist() != straight[3].indices_B.tolist()


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_each_image_once(world_size: int) -> None:
    images = small()
    seen: list[int] = []
    for rank in range(world_size):
        batches = eval_loader(images, settings(), cores=1, batch_size=12, rank=rank, world_size=world_size, device=HERE)
        for batch in batches.batches():
            assert batch.images_BHWC.shape == (12, SIDE, SIDE, 3)
            there = batch.valid_B.numpy() > 0
            seen += batch.indices_B[there].tolist()
            assert np.array_equal(batch.images_BHWC.numpy()[there], images.images_NHWC[batch.indices_B[there]])
            assert np.array_equal(batch.labels_B.numpy()[there], images.labels_N[batch.indices_B[there]])
    assert sorted(seen) == list(range(IMAGES))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "resized"}, r"data\.crop: 'resized' needs encoded images; small holds small ones"),
        ({"image_size": 6}, r"data\.image_size: 6, but the images of small are 8 x 8 pixels.*Set data\.image_size: 8"),
        ({"eval_resize": 9}, r"data\.eval_resize: 9, but the images of small are 8 x 8 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(settings(**fields))


def test_fewer_images_than_a_batch() -> None:
    with pytest.raises(ValueError, match=r"optim\.global_batch: 16 is more than the 15 images"):
        loader(images=small(15))


# holdout


def test_holdout_takes_its_share_of_every_class() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [100, 30, 10, 2, 1])).astype(np.int64)
    held = held_out(labels, 5, Holdout(share=0.1))
    assert np.bincount(labels[held], minlength=5).tolist() == [10, 3, 1, 1, 0]
    assert np.array_equal(held, held_out(labels, 5, Holdout(share=0.1)))
    assert not np.array_equal(held, held_out(labels, 5, Holdout(share=0.1, seed=1)))
    nearly_all = held_out(labels, 5, Holdout(share=0.999))
    assert np.bincount(labels[nearly_all], minlength=5).tolist() == [99, 29, 9, 1, 0]  # one is left to train on


def test_holdout_splits_the_training_set_and_nothing_else() -> None:
    images = small()
    kept, held = split_off(images, Holdout(share=0.25))
    assert len(kept) + len(held) == IMAGES
    assert held.split == "holdout"
    everything = sorted(image.tobytes() for part in (kept, held) for image in part.images_NHWC)
    assert everything == sorted(image.tobytes() for image in images.images_NHWC)
    assert len({images.fingerprint, kept.fingerprint, held.fingerprint}) == 3
    assert replace(images).fingerprint == images.fingerprint
