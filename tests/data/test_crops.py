from __future__ import annotations

import numpy as np
import pytest
import torchvision.transforms.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize

from hrdc_hpc.data import crops, philox

SIZES = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=20)
POSITIVE = st.floats(0.01, 5)


def drawn(sizes, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), epoch=0):
    return crops.training_crops(
        seed=0, stream="main", epoch=epoch, positions_B=np.arange(len(sizes)), sizes_B2=np.array(sizes, np.int32),
        scale=scale, ratio=ratio, flip=True,
    )  # fmt: skip


@given(SIZES, st.tuples(POSITIVE, POSITIVE), st.tuples(POSITIVE, POSITIVE))
def test_crops_lie_inside_the_image(sizes, scale, ratio):
    anchors, shapes, flips = drawn(sizes, scale, ratio)
    assert anchors.dtype == shapes.dtype == flips.dtype == np.int32
    assert (anchors >= 0).all()
    assert (shapes >= 1).all()
    assert (anchors + shapes <= np.array(sizes)).all()
    assert np.isin(flips, (0, 1)).all()


def test_extreme_draws_stay_inside():
    sizes = np.array([[37, 61]], np.int32)
    for draw in (0.0, 1 - 2.0**-53):
        anchors, shapes = crops.random_resized_crop(sizes, np.full((1, 22), draw), (0.08, 1.0), (3 / 4, 4 / 3))
        assert (anchors >= 0).all()
        assert (anchors + shapes <= sizes).all()


def one_by_one(height, width, draws, scale, ratio):
    """torchvision's get_params with its random numbers replaced."""
    numbers = iter(draws)
    for _ in range(10):
        area = height * width * (scale[0] + next(numbers) * (scale[1] - scale[0]))
        low, high = np.log(ratio)
        aspect = np.exp(low + next(numbers) * (high - low))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w
    image = Image.new("L", (width, height))
    return RandomResizedCrop.get_params(image, [1e9, 2e9], list(ratio))  # no attempt fits: the fallback


@settings(max_examples=50)
@given(SIZES, st.sampled_from([(0.08, 1.0), (0.9, 3.0), (2.0, 4.0)]), st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0)]))
def test_vectorised_equals_one_by_one(sizes, scale, ratio):
    draws = philox.uniforms(1, "crop", 0, np.arange(len(sizes)), 22)
    anchors, shapes = crops.random_resized_crop(np.array(sizes, np.int32), draws, scale, ratio)
    for (height, width), draw, anchor, shape in zip(sizes, draws, anchors, shapes, strict=True):
        expected = np.array(one_by_one(height, width, draw, scale, ratio))
        # torchvision's fallback may be empty for an image one pixel wide: never here
        assert [*anchor, *shape] == [*expected[:2], *expected[2:].clip(1)]


def test_distribution_is_torchvisions():
    import torch

    torch.manual_seed(0)
    height, width, number = 120, 300, 6000
    image = Image.new("L", (width, height))
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(number)], np.float64
    )
    anchors, shapes, flips = drawn([(height, width)] * number)
    ours = np.concatenate([anchors, shapes], axis=1)
    for column in range(4):
        both = np.concatenate([theirs[:, column], ours[:, column]])
        edges = np.unique(both)
        gap = np.abs(
            np.searchsorted(np.sort(theirs[:, column]), edges, "right")
            - np.searchsorted(np.sort(ours[:, column]), edges, "right")
        ).max()
        assert gap / number < 0.036  # Kolmogorov-Smirnov: p about 0.001
    assert abs(flips.mean() - 0.5) < 0.03


def test_no_flip_when_it_is_off():
    settings_ = {
        "seed": 0,
        "stream": "s",
        "epoch": 0,
        "positions_B": np.arange(50),
        "scale": (0.1, 1.0),
        "ratio": (1.0, 1.0),
    }
    sizes = np.full((50, 2), 64, np.int32)
    with_flip = crops.training_crops(**settings_, sizes_B2=sizes, flip=True)
    without = crops.training_crops(**settings_, sizes_B2=sizes, flip=False)
    assert with_flip[2].any()
    assert not without[2].any()
    assert np.array_equal(with_flip[0], without[0])


def test_draws_do_not_depend_on_how_the_batch_is_cut():
    sizes = [(50 + i % 7, 70 + i % 11) for i in range(64)]
    whole = drawn(sizes)
    for start, stop in ((0, 21), (21, 42), (42, 64), (63, 64)):
        part = crops.training_crops(
            seed=0, stream="main", epoch=0, positions_B=np.arange(start, stop),
            sizes_B2=np.array(sizes[start:stop], np.int32), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True,
        )  # fmt: skip
        for ours, all_ in zip(part, whole, strict=True):
            assert np.array_equal(ours, all_[start:stop])
    assert not np.array_equal(drawn(sizes, epoch=1)[0], whole[0])


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(1, 60), st.integers(0, 30))
def test_evaluation_geometry_is_torchvisions(size, crop, more):
    height, width = size
    ratio = max(size) / min(size)
    if ratio > 20:  # torchvision would make images of millions of pixels
        return
    resize = crop + more
    resized, anchors = crops.evaluation_geometry(np.array([size], np.int32), resize, crop)
    # an image whose pixels say where they are, cropped by torchvision
    image = Resize(resize)(Image.new("L", (width, height)))
    assert (image.height, image.width) == tuple(resized[0])
    rows = Image.fromarray(np.arange(image.height, dtype=np.int32)[:, None].repeat(image.width, 1))
    columns = Image.fromarray(np.arange(image.width, dtype=np.int32)[None].repeat(image.height, 0))
    corner = (np.asarray(CenterCrop(crop)(rows))[0, 0], np.asarray(CenterCrop(crop)(columns))[0, 0])
    assert corner == tuple(anchors[0])
    assert reference.get_image_size(CenterCrop(crop)(rows)) == [crop, crop]


def test_a_crop_larger_than_the_resized_image_is_refused():
    with pytest.raises(
        ValueError, match=r"data.eval_resize: 200 is less than data.image_size 224.*Set .* to 224 or more"
    ):
        crops.check_evaluation(200, 224)
