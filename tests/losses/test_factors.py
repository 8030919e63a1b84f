"""Eq. 8 on the true class counts, and where classes or levels are empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hrdc_hpc.config.schema import Levels
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.losses.factors import cdt_factors, hierarchical_factors, level_means, require_images

from long_tail import make_classes, read_counts, slow_factors


@pytest.fixture(scope="module")
def inat(shared_data: Path) -> ClassInfo:
    return make_classes(read_counts(shared_data, "inat18_counts.txt"))


@pytest.fixture(scope="module")
def imagenet_lt(shared_data: Path) -> ClassInfo:
    return make_classes(read_counts(shared_data, "imagenet_lt_counts.txt"))


@pytest.mark.parametrize(
    ("gamma", "means", "largest"),
    [
        (0.1, [1.1552, 1.4227, 1.5342], 1.862),
        (0.2, [1.3399, 2.0270, 2.3553], 3.466),
        (0.3, [1.5603, 2.8922, 3.6184], 6.452),
    ],
)
def test_uncapped_factors_of_inat(inat: ClassInfo, gamma: float, means: list[float], largest: float) -> None:
    factors = cdt_factors(inat.counts_C, gamma)
    assert np.bincount(inat.levels_C).tolist() == [842, 4076, 3224]
    assert level_means(factors, inat.levels_C) == pytest.approx(means, abs=5e-5)
    assert factors.max() == pytest.approx(largest, abs=5e-4)
    assert factors.min() == 1


def test_cap_on_inat(inat: ClassInfo) -> None:
    free = cdt_factors(inat.counts_C, 0.1)
    capped = hierarchical_factors(inat.counts_C, inat.levels_C, 0.1)
    changed = [int((capped < free)[inat.levels_C == level].sum()) for level in range(3)]
    assert changed == [472, 2815, 1268]
    assert level_means(capped, inat.levels_C) == pytest.approx([1.1242, 1.4013, 1.5185], abs=5e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.37])
def test_cap_on_imagenet_lt_class_by_class(imagenet_lt: ClassInfo, gamma: float) -> None:
    assert imagenet_lt.counts_C.sum() == 115_846
    assert np.bincount(imagenet_lt.levels_C).tolist() == [385, 479, 136]
    counts, levels = imagenet_lt.counts_C, imagenet_lt.levels_C
    assert cdt_factors(counts, gamma) == pytest.approx(slow_factors(imagenet_lt, gamma, capped=False), rel=1e-12)
    capped = hierarchical_factors(counts, levels, gamma)
    assert capped == pytest.approx(slow_factors(imagenet_lt, gamma, capped=True), rel=1e-12)


def test_cap_by_hand() -> None:
    # gamma 1: factors 1, 4 | 16, 32 | 64, 256; means 2.5, 24, 160
    counts = np.array([256, 64, 16, 8, 4, 1])
    levels = np.array([0, 0, 1, 1, 2, 2], np.int8)
    assert hierarchical_factors(counts, levels, 1.0).tolist() == [1, 2.5, 16, 24, 64, 160]


def test_gamma_zero_divides_by_one() -> None:
    classes = make_classes()
    assert hierarchical_factors(classes.counts_C, classes.levels_C, 0.0).tolist() == [1.0] * classes.number


def test_empty_levels_are_skipped() -> None:
    counts = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)  # CIFAR10-LT 100: no class has fewer than 20
    by_images = make_classes(counts)
    assert np.bincount(by_images.levels_C, minlength=3).tolist() == [8, 2, 0]
    capped = hierarchical_factors(by_images.counts_C, by_images.levels_C, 0.2)
    assert capped == pytest.approx(slow_factors(by_images, 0.2, capped=True), rel=1e-12)
    assert np.isnan(level_means(capped, by_images.levels_C)).tolist() == [False, False, True]
    by_rank = make_classes(counts, Levels(by="rank", ranks=(3, 4, 3)))
    other = hierarchical_factors(by_rank.counts_C, by_rank.levels_C, 0.2)
    assert other == pytest.approx(slow_factors(by_rank, 0.2, capped=True), rel=1e-12)
    assert other.tolist() != capped.tolist()


def test_class_without_images_is_named() -> None:
    require_images(make_classes(), "cdt")
    with pytest.raises(ValueError, match=r"loss cdt: 1 of 4 classes without training images: 'class2' \(number 2\)\. "):
        require_images(make_classes((9, 5, 0, 1)), "cdt")
    with pytest.raises(ValueError, match=r"7 of 8 classes .* 'class5' \(number 5\) and 2 more\. .*cross_entropy"):
        require_images(make_classes((9, 0, 0, 0, 0, 0, 0, 0)), "cdt")
