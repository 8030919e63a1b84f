from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from PIL import Image

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Data, Holdout
from hrdc_hpc.config.types import Component
from hrdc_hpc.data.datasets import digits_lt, image_folder, inat2018
from hrdc_hpc.data.holdout import split_off
from hrdc_hpc.data.index import DataError, open_split
from hrdc_hpc.data.preflight import preflight
from tests.data.images import jpeg, picture

# --- digits_lt


def digits(root: Path, **settings: Any) -> Data:
    return Data(dataset=Component("digits_lt", digits_lt.Options(root=root, **settings)))


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    digits_lt.prepare(digits_lt.Options(root=root))
    return root


def test_digits_have_the_stated_profile(digits_root):
    train, val = open_split(digits(digits_root), "train"), open_split(digits(digits_root), "val")
    assert train.class_names == val.class_names == tuple("0123456789")
    assert train.counts_C.tolist() == [134, 90, 61, 41, 28, 19, 12, 8, 5, 4]
    assert val.counts_C.tolist() == [40] * 10
    assert np.unique(train.sizes_N2).tolist() == [32]


def test_digits_are_the_real_ones_in_their_own_order(digits_root):
    from sklearn.datasets import load_digits

    real, seen = load_digits(), {}
    for split in ("train", "val"):
        index = open_split(digits(digits_root), split)
        for number in range(0, len(index), 7):
            path = Path(index.path(number))
            with Image.open(path) as image:
                assert image.format == "JPEG"
                pixels = np.asarray(image.convert("L"), float).reshape(8, 4, 8, 4).mean(axis=(1, 3))
            assert real.target[int(path.stem)] == index.labels_N[number]
            assert np.abs(pixels - real.images[int(path.stem)] * 255 / 16).max() < 12
        seen[split] = {Path(index.path(i)).stem for i in range(len(index))}
    assert not seen["train"] & seen["val"]
    ones = [f"{i:04d}" for i in np.flatnonzero(real.target == 1)]
    assert sorted(seen["val"] & set(ones)) == ones[:40]
    assert sorted(seen["train"] & set(ones)) == ones[40:130]


def test_digits_are_written_once(digits_root, monkeypatch):
    monkeypatch.setattr(digits_lt, "_write", None)
    digits_lt.prepare(digits_lt.Options(root=digits_root))


def test_another_profile_has_files_of_its_own(digits_root, tmp_path):
    shutil.copytree(digits_root, tmp_path / "d")
    before = open_split(digits(tmp_path / "d"), "train").fingerprint
    assert open_split(digits(tmp_path / "d", imbalance=10.0, largest=50), "train").counts_C.tolist()[::9] == [50, 5]
    assert open_split(digits(tmp_path / "d", imbalance=1.0), "train").counts_C.tolist() == [134] * 10
    assert open_split(digits(tmp_path / "d"), "train").fingerprint == before


def test_whole_numbers_are_not_truncated_away():
    for largest in range(1, 135):
        for least in range(1, largest + 1):
            if (largest / least).is_integer():
                assert digits_lt.profile(digits_lt.Options(largest=largest, imbalance=largest / least))[-1] == least
    assert digits_lt.profile(digits_lt.Options()) == [134, 90, 61, 41, 28, 19, 12, 8, 5, 4]


def test_several_processes_may_prepare_at_once(tmp_path):
    options, errors = digits_lt.Options(root=tmp_path / "d", largest=10, imbalance=5.0), []

    def prepare() -> None:
        try:
            digits_lt.prepare(options)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must see it
            errors.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in (tmp_path / "d").iterdir()] == [digits_lt.folder(options).name]
    assert open_split(digits(tmp_path / "d", largest=10, imbalance=5.0), "train").counts_C.tolist()[::9] == [10, 2]


def test_a_preparation_that_dies_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    def half(root, counts):
        (root / "train" / "0").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(digits_lt, "_write", half)
        with pytest.raises(KeyboardInterrupt):
            digits_lt.prepare(digits_lt.Options(root=tmp_path))
    with pytest.raises(ValueError, match=r"no digits in .*made when a run starts"):
        digits_lt.open(digits_lt.Options(root=tmp_path), "train", "stop")
    assert open_split(digits(tmp_path), "train").counts_C[0] == 134


def test_digits_are_on_disk_before_they_have_their_name(tmp_path, monkeypatch):
    events: list[tuple[str, Path]] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        events.append(("rename", path))
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    options = digits_lt.Options(root=tmp_path, largest=10, imbalance=5.0)
    digits_lt.prepare(options)
    (renamed,) = [number for number, (what, _) in enumerate(events) if what == "rename"]
    aside, target = events[renamed][1], digits_lt.folder(options)
    inside = {target, *target.rglob("*")}
    assert len(inside) > 400
    assert {target / path.relative_to(aside) for _, path in events[:renamed]} == inside
    assert events[renamed + 1 :] == [("fsync", tmp_path)]


def test_digits_need_scikit_learn_or_their_files(digits_root, tmp_path, monkeypatch):
    preflight(digits(tmp_path / "none"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    preflight(digits(digits_root))
    with pytest.raises(ValueError, match=r"digits_lt is not in .*scikit-learn.*Install scikit-learn"):
        preflight(digits(tmp_path / "none"))


def test_impossible_profiles_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.dataset.imbalance: 33.5 leaves the rarest class.*at most .* 30"):
        preflight(digits(tmp_path, largest=30))
    with pytest.raises(pydantic.ValidationError, match="less than or equal to 134"):
        digits_lt.Options(largest=135)
    with pytest.raises(pydantic.ValidationError, match="greater than or equal to 1"):
        digits_lt.Options(imbalance=0.5)


def test_with_a_holdout_there_need_be_no_val_folder(folder, tmp_path):
    (tmp_path / "train").symlink_to(folder / "train")
    data = Data(dataset=Component("image_folder", image_folder.Options(root=tmp_path)))
    with pytest.raises(
        ValueError, match=r"no folder .*/val; .* or data.holdout=\{\} where there are no images to eval"
    ):
        preflight(data)
    data = replace(data, holdout=Holdout())
    preflight(data)
    train = open_split(data, "train")
    trained, held = split_off(train, Holdout())
    assert len(trained) + len(held) == len(train) > len(held) > 0


# --- inat2018


def write_inat(root: Path) -> Path:
    """Write the official layout with 3 categories, 8 training and 3 val images; ids are not in any order."""
    categories = [{"id": i, "name": f"species {i}", "supercategory": "Aves"} for i in (2, 0, 1)]
    for split, labels in (("train", [2, 0, 0, 1, 0, 2, 0, 1]), ("val", [1, 0, 2])):
        images, annotations = [], []
        for number, label in enumerate(labels):
            name = f"train_val2018/Aves/{label}/{split}{number}.jpg"
            height, width = 30 + number, 50 - number
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(jpeg(picture(number, height, width)))
            image = {"id": 900 - number, "file_name": name, "width": width, "height": height, "license": 3}
            images.append(image)
            annotations.append({"id": number, "image_id": 900 - number, "category_id": label})
        content = {"info": {}, "images": images, "annotations": annotations[::-1], "categories": categories}
        (root / f"{split}2018.json").write_text(json.dumps(content))
    return root


def inat(root: Path, on_bad_image: Any = "stop") -> Data:
    options = inat2018.Options(root=root, check=False)
    return Data(dataset=Component("inat2018", options), on_bad_image=on_bad_image)


def test_inat_is_read_in_its_official_layout(tmp_path):
    root = write_inat(tmp_path)
    preflight(inat(root))
    train, val = open_split(inat(root), "train"), open_split(inat(root), "val")
    assert train.class_names == val.class_names == ("species 0", "species 1", "species 2")
    assert train.labels_N.tolist() == [2, 0, 0, 1, 0, 2, 0, 1]
    assert val.labels_N.tolist() == [1, 0, 2]
    assert train.sizes_N2.tolist() == [[30 + i, 50 - i] for i in range(8)]
    assert train.names[3] == "train_val2018/Aves/1/train3.jpg"
    assert train.read([3])[0].tobytes() == (root / train.names[3]).read_bytes()


def test_inat_reads_no_image_and_parses_once(tmp_path, monkeypatch):
    root = write_inat(tmp_path)
    first = open_split(inat(root), "train").fingerprint
    monkeypatch.setattr(inat2018, "_parse", None)
    monkeypatch.setattr(Image, "open", None)
    assert open_split(inat(root), "train").fingerprint == first
    for path in (root / "train_val2018").rglob("*.jpg"):
        path.unlink()
    assert open_split(inat(root), "train", trust_cache=True).fingerprint == first


def test_inat_notices_a_changed_annotation_file(tmp_path):
    root = write_inat(tmp_path)
    first = open_split(inat(root), "train")
    content = json.loads((root / "train2018.json").read_text())
    content["images"] = content["images"][1:]
    (root / "train2018.json").write_text(json.dumps(content))
    for trust in (True, False):
        again = open_split(inat(root), "train", trust_cache=trust)
        assert len(again) == 7
        assert again.fingerprint != first.fingerprint


def test_inat_names_missing_and_empty_images(tmp_path):
    root = write_inat(tmp_path)
    (root / "train_val2018/Aves/0/train1.jpg").unlink()
    (root / "train_val2018/Aves/0/train2.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 8 train .*train1.jpg \(no such file\), .*train2.jpg \(empty file\)"):
        open_split(inat(root), "train")
    skipping = open_split(inat(root, "skip"), "train")
    assert skipping.labels_N.tolist() == [2, 1, 0, 2, 0, 1]
    assert [skipping.names[i][-5] for i in range(6)] == list("034567")
    assert len(skipping.skipped) == 2


@pytest.mark.parametrize(
    ("missing", "named"),
    [("train2018.json", "train2018.json"), ("val2018.json", "val2018.json"), ("train_val2018", "train_val2018/")],
)
def test_inat_says_what_is_missing(missing, named, tmp_path):
    root = write_inat(tmp_path / "inat")
    path = root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        ValueError, match=f"data.dataset.root: missing .*inat/{named}; inat2018 expects .*Set data.dataset"
    ):
        preflight(inat(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "not an annotation file of iNaturalist 2018: no key 'images'"),
        (lambda c: c["annotations"].pop(), "1 images have no annotation, the first is train_val2018/Aves/"),
        (lambda c: c["categories"].pop(1), "the ids of its categories are not 0, 1, 2"),
        (lambda c: c["annotations"][0].update(category_id=3), "category_id 3 are not among the 3 categories .* 0 to 2"),
        (lambda c: c["images"][0].update(width=0), "an image has no width or height"),
        (
            lambda c: c["annotations"].append({"image_id": 900, "category_id": 1}),
            r"an annotation of the image 900 more",
        ),
        (lambda c: c["images"][1].update(id=900), r"lists the id 900 more than once \(1 of 8 so\)"),
        (
            lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]),
            "lists the file train_val2018/Aves/2/train0.jpg more than once",
        ),
        (lambda c: c["annotations"][0].update(category_id=1.5), "category_id 1.5 is no whole number"),
    ],
)
def test_inat_explains_a_wrong_annotation_file(change, message, tmp_path):
    root = write_inat(tmp_path)
    content = json.loads((root / "train2018.json").read_text())
    change(content)
    (root / "train2018.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        open_split(inat(root), "train")


def test_inat_refuses_what_is_no_json(tmp_path):
    root = write_inat(tmp_path)
    (root / "val2018.json").write_text("{")
    with pytest.raises(ValueError, match=r"val2018.json: not an annotation file .*Expecting"):
        open_split(inat(root), "val")


def test_inat_val_labels_are_checked_against_the_training_categories(tmp_path):
    root = write_inat(tmp_path)
    content = json.loads((root / "val2018.json").read_text())
    content["categories"].append({"id": 3, "name": "new"})
    content["annotations"][0]["category_id"] = 3
    (root / "val2018.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"val2018.json: category_id 3 are not among the 3 categories of train2018"):
        open_split(inat(root), "val")


def test_inat_refuses_to_evaluate_on_training_images(tmp_path):
    root = write_inat(tmp_path)
    train, val = (json.loads((root / f"{split}2018.json").read_text()) for split in ("train", "val"))
    val["images"][0]["file_name"] = train["images"][2]["file_name"]
    (root / "val2018.json").write_text(json.dumps(val))
    with pytest.raises(ValueError, match=r"val2018.json: 1 images are in train2018.json, too: .*/train2.jpg\. Evalu"):
        open_split(inat(root), "val")


def test_a_selection_of_inat_has_no_known_numbers():
    assert inat2018.known(inat2018.Options()) == (8142, 437_513)
    assert inat2018.known(inat2018.Options(check=False)) is None


# --- all


def test_missing_folders_are_found_before_anything_is_queued(tmp_path):
    data = Data(dataset=Component("image_folder", image_folder.Options(root=tmp_path / "none")))
    with pytest.raises(ValueError, match=r"data.dataset.root: no folder .*none; image_folder expects"):
        preflight(data)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "cifar10_lt",
            {},
            r"data\.image_size: 224, but the images of cifar10_lt are 32 x 32.*Set data\.image_size: 32",
        ),
        ("cifar100_lt", {"image_size": 32}, r"data\.eval_resize: 256, but the images of cifar100_lt"),
        (
            "cifar10_lt",
            {"image_size": 32, "eval_resize": 32, "crop": "resized"},
            r"data\.crop: 'resized' needs encoded",
        ),
        ("image_folder", {"crop": "padded"}, r"data\.crop: 'padded' is for .* image_folder holds encoded images"),
    ],
)
def test_crops_that_do_not_fit_are_found_before_anything_is_queued(tmp_path, name, fields, message):
    for folder in ("train/rose", "val/rose", "cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir(parents=True)
    options = registry.module("hrdc_hpc.data.datasets", name).Options(root=tmp_path)
    data = Data(**({"crop": "padded"} | fields), dataset=Component(name, options))
    with pytest.raises(ValueError, match=message):
        preflight(data)


def test_every_data_set_can_be_checked_without_torch_or_numpy(tmp_path):
    names = registry.names("hrdc_hpc.data.datasets")
    assert {"digits_lt", "image_folder", "image_list", "imagenet_lt", "inat2018"} <= set(names)
    program = f"""
import sys
for name in ("torch", "numpy", "nvidia", "PIL", "sklearn"):
    sys.modules[name] = None
from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Data, Holdout
from hrdc_hpc.config.types import Component
from hrdc_hpc.data.preflight import preflight
root = {str(tmp_path / "none")!r}
for name in {names!r}:
    file = registry.module("hrdc_hpc.data.datasets", name)
    for needed in ("open", "preflight", "Options"):
        getattr(file, needed)
from pathlib import Path
for name in {names!r}:
    options = registry.module("hrdc_hpc.data.datasets", name).Options(root=Path(root))
    try:
        preflight(Data(dataset=Component(name, options)))
    except ValueError as error:
        assert root in str(error), error
for name in registry.names("hrdc_hpc.data.samplers"):
    registry.module("hrdc_hpc.data.samplers", name).Options()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
