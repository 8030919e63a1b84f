"""What comes out of DALI, against PIL and torchvision. Axis legend: B images, H height, W width, C channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize
from torchvision.transforms.functional import resized_crop, to_tensor

from hrdc_hpc.config.schema import Loader
from hrdc_hpc.data.index import open_split
from hrdc_hpc.data.loader import EvalLoader, TrainLoader
from hrdc_hpc.data.normalise import normalise
from hrdc_hpc.data.samplers import uniform
from tests.data.images import folder_data, jpeg, picture, png

CPU = torch.device("cpu")


def evaluated(data, split="val", batch_size=8):
    index = open_split(data, split)
    with EvalLoader(index, data, batch_size=batch_size, rank=0, world_size=1, device=CPU, cores=2) as loader:
        batches = list(loader.batches())
    images = torch.cat([b.images_BHWC[b.valid_B > 0] for b in batches]).numpy().astype(float)
    return index, images


def by_torchvision(path, data):
    steps = Compose([Resize(data.eval_resize, InterpolationMode.BILINEAR), CenterCrop(data.image_size)])
    with Image.open(path) as image:
        return np.asarray(steps(image.convert("RGB")), float)


def one_image(tmp_path: Path, name: str, content: bytes) -> Path:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / name).write_bytes(content)
    return tmp_path


def saved(image: Image.Image, kind: str) -> tuple[str, bytes]:
    modes = {"grey": "L", "cmyk": "CMYK", "rgb": "RGB", "palette": "P", "alpha": "RGBA"}
    mode, _, ending = kind.partition(" ")
    image = image.convert(modes[mode])
    if ending == "png":
        return "x.png", png(image)
    return "x.jpg", jpeg(image, subsampling=0 if ending == "4:4:4" else -1, progressive=ending == "progressive")


@pytest.mark.dali
def test_evaluation_of_real_photographs_is_torchvisions(shared_data):
    data = folder_data(shared_data / "flowers", image_size=224, eval_resize=256)
    index, images = evaluated(data, batch_size=32)
    assert images.shape == (100, 224, 224, 3)
    for number in range(100):
        gap = np.abs(images[number] - by_torchvision(index.path(number), data))
        assert gap.mean() < 1
        assert gap.max() < 24


@pytest.mark.dali
@pytest.mark.parametrize(
    "kind", ["rgb", "rgb 4:4:4", "rgb progressive", "grey", "cmyk", "rgb png", "grey png", "palette png", "alpha png"]
)
@pytest.mark.parametrize("size", [(57, 91), (91, 57), (20, 33), (256, 40)])
def test_evaluation_of_every_kind_of_image_is_torchvisions(kind, size, tmp_path):
    data = folder_data(one_image(tmp_path, *saved(picture(3, *size), kind)), image_size=33, eval_resize=40)
    index, images = evaluated(data)
    assert np.abs(images[0] - by_torchvision(index.path(0), data)).mean() < 1


@pytest.mark.dali
@pytest.mark.parametrize("kind", ["as it is", "grey", "cmyk", "rotated"])
def test_photographs_of_every_kind_are_within_a_level(kind, shared_data, tmp_path):
    """By mean at most 1 of 255, and 99 of 100 values within 8."""
    folder, exif = tmp_path / "val" / "a", Image.Exif()
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    exif[0x0112] = 6
    photographs = sorted((shared_data / "flowers" / "val").rglob("*.jpg"))[::10]
    assert len(photographs) == 10
    for number, path in enumerate(photographs):
        with Image.open(path) as image:
            content = {
                "as it is": path.read_bytes,
                "grey": lambda image=image: jpeg(image.convert("L")),
                "cmyk": lambda image=image: jpeg(image.convert("CMYK")),
                "rotated": lambda image=image: jpeg(image.convert("RGB"), exif=exif),
            }[kind]()
        for made in (folder, tmp_path / "train" / "a"):
            (made / f"{number}.jpg").write_bytes(content)
    data = folder_data(tmp_path, image_size=224, eval_resize=256)
    index, images = evaluated(data)
    for number in range(10):
        gap = np.abs(images[number] - by_torchvision(index.path(number), data))
        assert gap.mean() <= 1
        assert np.percentile(gap, 99) <= 8


@pytest.mark.dali
def test_training_crops_are_pils(shared_data):
    """Crop, antialiased resize, mirror: the crop is decoded alone, so chroma differs a little at its edges."""
    data = folder_data(shared_data / "flowers", image_size=96, eval_resize=96)
    index = open_split(data, "train")
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    with TrainLoader(
        index,
        data,
        sampler,
        classes=5,
        seed=0,
        stream="main",
        global_batch=32,
        rank=0,
        world_size=1,
        device=CPU,
        cores=2,
    ) as loader:
        (batch,) = loader.batches(2, 3)
        drawn = loader._plan.samples(batch.epoch, batch.positions_B)
        anchors, shapes, flips = drawn.anchors_B2, drawn.shapes_B2, drawn.flips_B
    assert 5 < flips.sum() < 27
    for place, number in enumerate(batch.indices_B):
        with Image.open(index.path(int(number))) as image:
            expected = resized_crop(image.convert("RGB"), *anchors[place], *shapes[place], [96, 96])
        expected = np.asarray(expected, float)[:, :: -1 if flips[place] else 1]
        assert np.abs(batch.images_BHWC[place].numpy() - expected).mean() < 1


@pytest.mark.dali
def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    plain, rotated = jpeg(picture(5, 40, 70)), jpeg(picture(5, 40, 70), exif=exif)
    _, expected = evaluated(folder_data(one_image(tmp_path / "p", "x.jpg", plain)))
    index, images = evaluated(folder_data(one_image(tmp_path / "r", "x.jpg", rotated)))
    assert index.sizes_N2.tolist() == [[40, 70]]
    assert np.array_equal(images, expected)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise_is_torchvisions(channels_last, dtype):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images_BHWC = torch.arange(2 * 16 * 24 * 3, dtype=torch.int32).remainder(256).to(torch.uint8).view(2, 16, 24, 3)
    ours = normalise(images_BHWC, mean, std, dtype, channels_last)
    theirs = torch.stack([Normalize(mean, std)(to_tensor(image.numpy())) for image in images_BHWC])
    assert ours.dtype == dtype
    assert ours.shape == (2, 3, 16, 24)
    assert ours.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(ours, theirs.to(dtype), rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.gpu
@pytest.mark.dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("decoder", ["gpu", "cpu"])
def test_a_gpu_gives_the_same_images(decoder, folder):
    index = open_split(folder_data(folder), "train")
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    made = {}
    for device in (CPU, torch.device("cuda")):
        loader = Loader(threads=2, decoder=decoder if device.type == "cuda" else "cpu")
        with TrainLoader(
            index, folder_data(folder, loader=loader), sampler,
            classes=3, seed=0, stream="main", global_batch=10, rank=0, world_size=1, device=device, cores=2,
        ) as train:  # fmt: skip
            batches = list(train.batches(0, 9))
            assert {batch.images_BHWC.device.type for batch in batches} == {device.type}
            made[device.type] = torch.cat([batch.images_BHWC.cpu().float() for batch in batches])
    assert (made["cpu"] - made["cuda"]).abs().mean() < 1.5
