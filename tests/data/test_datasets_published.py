"""iNaturalist 2018 at its real size, and the numbers that published data sets are checked against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.mini_inat import counts, make_mini_inat
from hrdc_hpc.config.schema import Data, Levels
from hrdc_hpc.config.types import Component
from hrdc_hpc.data import published
from hrdc_hpc.data.classes import group_classes
from hrdc_hpc.data.datasets import inat2018
from hrdc_hpc.data.index import open_split

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "file", "total", "levels"),
    [
        ("inat2018", "inat18_counts.txt", 437_513, [842, 4076, 3224]),
        ("imagenet_lt", "imagenet_lt_counts.txt", 115_846, [385, 479, 136]),
    ],
)
def test_the_published_numbers_are_the_true_ones(name, file, total, levels, shared_data):
    known_C = published.training_images(name)
    assert np.array_equal(known_C, np.loadtxt(shared_data / "counts" / file, dtype=np.int64))
    assert known_C.sum() == total
    assert np.bincount(group_classes(known_C, Levels(), "data.levels")).tolist() == levels


def inat(root: Path, **settings: Any) -> Data:
    return Data(dataset=Component("inat2018", inat2018.Options(root=root, **settings)))


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mini_inat(tmp_path_factory.mktemp("mini") / "inat", images=9000, pictures=20)


def test_the_miniature_is_a_data_set_of_all_classes(mini):
    train, val = open_split(inat(mini, check=False), "train"), open_split(inat(mini), "val")
    assert [len(train), len(val), len(train.class_names)] == [9000, 24_426, 8142]
    assert np.array_equal(train.counts_C, counts(9000))
    assert train.counts_C.min() == 1
    # names, sizes and bytes are those of the files
    for index, number in ((train, 4711), (val, 24_000)):
        from PIL import Image

        with Image.open(index.path(number)) as image:
            assert (image.height, image.width) == tuple(index.sizes_N2[number])
        assert index.read([number])[0].size == Path(index.path(number)).stat().st_size


def test_the_miniature_has_the_true_profile():
    assert np.array_equal(counts(437_513), published.training_images("inat2018"))
    assert counts(8142).tolist() == [1] * 8142
    for images in (8143, 20_000, 437_512):
        assert counts(images).sum() == images
    with pytest.raises(ValueError, match="images: 8141 must be between 8142, one of each class, and 437513"):
        counts(8141)


def test_inat_names_the_first_class_that_differs(mini, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"train2018.json: class 0 \('species 0'\) has \d+ train images, but 22 in iNaturalist 2018; \d+ of 8142"
        r" classes differ, and there are 9000 images instead of 437513. .* data.dataset.check: false to use a sel",
    ):
        open_split(inat(mini), "train")
    # one image of class 4000 is labelled as of class 4711
    content = json.loads((mini / "val2018.json").read_text())
    moved = next(entry for entry in content["annotations"] if entry["category_id"] == 4000)
    moved["category_id"] = 4711
    for name in ("train2018.json", "train_val2018"):
        (tmp_path / name).symlink_to(mini / name)
    (tmp_path / "val2018.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"val2018.json: class 4000 \('species 4000'\) has 2 val images, but 3.*; 2 of"
    ):
        open_split(inat(tmp_path), "val")


def test_inat_with_other_categories_is_refused(mini, tmp_path):
    content = json.loads((mini / "train2018.json").read_text())
    content["categories"].pop()
    content["annotations"] = [entry | {"category_id": entry["category_id"] % 8141} for entry in content["annotations"]]
    for name in ("val2018.json", "train_val2018"):
        (tmp_path / name).symlink_to(mini / name)
    (tmp_path / "train2018.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train2018.json: 8141 classes, but iNaturalist 2018 has 8142\. Take the"):
        open_split(inat(tmp_path), "train")
    assert len(open_split(inat(tmp_path, check=False), "train").class_names) == 8141
