"""Colour jitter: draws, formula and pixels, through both loaders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from hrdc_hpc.config.load import load
from hrdc_hpc.config.schema import ColourJitter, Loader
from hrdc_hpc.data.colour import draw_factors
from hrdc_hpc.data.index import open_split
from hrdc_hpc.data.jitter import FACTORS, jitter
from hrdc_hpc.data.loader import TrainLoader
from hrdc_hpc.data.pixels import PixelArray
from hrdc_hpc.data.resident import ResidentTrainLoader
from hrdc_hpc.data.samplers import uniform
from tests.data.images import folder_data, picture

CPU = torch.device("cpu")
STRONG = ColourJitter(brightness=0.5, contrast=0.6, saturation=1.5)


def drawn(jitter: ColourJitter, positions: Any, **settings: Any) -> np.ndarray:
    factors = draw_factors(
        jitter, **({"seed": 3, "stream": "main", "epoch": 1, "positions_B": np.asarray(positions)} | settings)
    )
    assert factors is not None
    return factors


def test_factors_are_uniform_between_their_limits_and_depend_on_the_place_alone():
    factors = drawn(STRONG, np.arange(20_000))
    assert factors.dtype == np.float32
    for column, (low, high) in enumerate([(0.5, 1.5), (0.4, 1.6), (0.0, 2.5)]):
        assert low <= factors[:, column].min() < low + 0.01
        assert high - 0.01 < factors[:, column].max() <= high
        quarters = np.histogram(factors[:, column], bins=4, range=(low, high))[0]
        assert np.all(np.abs(quarters - 5000) < 250)
    assert np.all(np.abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]) < 0.03)
    assert np.array_equal(drawn(STRONG, [17, 4]), factors[[17, 4]])
    for other in ({"seed": 4}, {"stream": "second"}, {"epoch": 2}):
        assert not np.array_equal(drawn(STRONG, np.arange(9), **other), factors[:9])
    assert np.all(drawn(ColourJitter(brightness=0, contrast=0, saturation=0), np.arange(9)) == 1)


def images_of(number: int, side: int = 48) -> np.ndarray:
    return np.stack([np.asarray(picture(n, side, side)) for n in range(number)])


def by_formula(image_HWC: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """The three adjustments one after another, unclipped, in float64."""
    weights = np.array([0.299, 0.587, 0.114])
    out = brightness * image_HWC.astype(float)
    out = contrast * out + (1 - contrast) * (out @ weights).mean()
    out = saturation * out + (1 - saturation) * (out @ weights)[:, :, None]
    return out.clip(0, 255)


def test_pixels_are_the_formulas():
    images, factors = images_of(64), drawn(STRONG, np.arange(64))
    ours = jitter(torch.from_numpy(images), torch.from_numpy(factors)).numpy()
    wanted = np.stack([by_formula(image, *values) for image, values in zip(images, factors.tolist(), strict=True)])
    assert ours.dtype == np.uint8
    assert np.abs(ours - wanted).max() < 0.501
    assert (wanted == 0).any()
    assert (wanted == 255).any()
    same = jitter(torch.from_numpy(images), torch.ones(64, 3)).numpy()
    assert np.array_equal(same, images)


@pytest.mark.parametrize("factors", [(0.8, 1.0, 1.0), (1.0, 0.7, 1.0), (1.0, 1.0, 0.3), (0.8, 0.7, 0.5)])
def test_pixels_are_torchvisions_where_nothing_is_clipped(factors):
    """It rounds down after each of the three, so it may come out up to three lower, and one more for the greys."""
    image_CHW = torch.from_numpy(images_of(8)[7]).permute(2, 0, 1)
    theirs = functional.adjust_brightness(image_CHW, factors[0])
    theirs = functional.adjust_contrast(theirs, factors[1])
    theirs = functional.adjust_saturation(theirs, factors[2]).permute(1, 2, 0).int()
    ours = jitter(image_CHW.permute(1, 2, 0)[None], torch.tensor([factors]))[0].int()
    assert (ours - theirs).abs().max() <= 4
    assert (ours - theirs).abs().float().mean() < 2


def loaded(data, rank: int = 0, world_size: int = 1, first: int = 0, last: int = 6) -> list[Any]:
    index = open_split(data, "train")
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    with TrainLoader(
        index, data, sampler, classes=3, seed=5, stream="main", global_batch=10, rank=rank, world_size=world_size,
        device=CPU, cores=1,
    ) as loader:  # fmt: skip
        return list(loader.batches(first, last))


def resident(data, rank: int = 0, world_size: int = 1, first: int = 0, last: int = 6) -> list[Any]:
    pixels = PixelArray(data.dataset.options.root, "train", ("a", "b", "c"), images_of(43, 32), np.arange(43) % 3)
    sampler = uniform.build(uniform.Options(), pixels.labels_N, pixels.counts_C)
    data = replace(data, crop="padded", eval_resize=32)
    loader = ResidentTrainLoader(
        pixels, data, sampler, classes=3, seed=5, stream="main", global_batch=10, rank=rank, world_size=world_size,
        device=CPU,
    )  # fmt: skip
    assert loader.blank().images_BHWC.shape == (len(range(rank, 10, world_size)) if world_size == 1 else 5, 32, 32, 3)
    return list(loader.batches(first, last))


LOADERS = [pytest.param(loaded, marks=pytest.mark.dali), resident]


@pytest.mark.parametrize("take", LOADERS)
def test_any_number_of_ranks_and_a_resume_give_the_same_colours(take, folder):
    data = folder_data(folder, colour_jitter=STRONG)
    straight = take(data)
    plain = take(folder_data(folder))
    for batch, before in zip(straight, plain, strict=True):
        factors = drawn(STRONG, batch.positions_B, seed=5, epoch=batch.epoch)
        assert np.array_equal(batch.pixels[FACTORS].numpy(), factors)
        # crops and flips are what they would be without it
        assert torch.equal(batch.images_BHWC, jitter(before.images_BHWC, torch.from_numpy(factors)))
    two = [take(data, rank=rank, world_size=2, first=0, last=3) for rank in range(2)]
    later = [take(data, rank=rank, world_size=2, first=3, last=6) for rank in range(2)]
    for parts, whole in zip([*zip(*two, strict=True), *zip(*later, strict=True)], straight, strict=True):
        assert torch.equal(torch.cat([part.images_BHWC for part in parts]), whole.images_BHWC)


@pytest.mark.dali
@pytest.mark.parametrize("world_size", [3, 4])
def test_more_ranks_and_threads_too(world_size, folder):
    data = folder_data(folder, colour_jitter=STRONG, loader=Loader(threads=2, prefetch=4, look_ahead=7))
    whole = loaded(folder_data(folder, colour_jitter=STRONG), last=3)
    ranks = [loaded(data, rank, world_size, last=3) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[step].images_BHWC for rank in ranks]), batch.images_BHWC)


@pytest.mark.dali
def test_evaluation_is_not_jittered_and_the_config_says_what_is(folder):
    from hrdc_hpc.data.loader import EvalLoader

    data = folder_data(folder, colour_jitter=STRONG)
    index = open_split(data, "val")
    for settings in (data, folder_data(folder)):
        with EvalLoader(index, settings, batch_size=10, rank=0, world_size=1, device=CPU, cores=1) as loader:
            (batch,) = loader.batches()
            assert FACTORS not in batch.pixels
    assert load("imagenet_lt.yaml", []).data.colour_jitter == ColourJitter()
    assert load("inat.yaml", []).data.colour_jitter is None


@pytest.mark.dali
def test_a_scaling_study_s_made_up_batch_is_jittered_too(folder):
    """Its steps must do the work of real ones."""
    from hrdc_hpc.engine.ladder import made_up_classes
    from hrdc_hpc.engine.windows import made_up

    config = load("imagenet_lt.yaml", ["optim.global_batch=10", "data.image_size=32", "data.eval_resize=36"])
    data = folder_data(folder, colour_jitter=config.data.colour_jitter)
    index = open_split(data, "train")
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    with TrainLoader(
        index, data, sampler, classes=3, seed=5, stream="main", global_batch=10, rank=0, world_size=1, device=CPU,
        cores=1,
    ) as loader:  # fmt: skip
        batch = made_up(loader.blank(), made_up_classes(config, 3), config)
    assert FACTORS in batch.pixels
    assert batch.images_BHWC.float().std() > 50
