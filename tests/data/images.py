"""Generated images, and data sets of them on disk."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hrdc_hpc.config.schema import Data, Loader
from hrdc_hpc.config.types import Component
from hrdc_hpc.data import philox
from hrdc_hpc.data.datasets import image_folder


def picture(number: int, height: int, width: int) -> Image.Image:
    """Return a colourful image whose content depends on its number: smooth waves and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    noise = philox.uniforms(number, "picture", 0, np.arange(height), width)
    waves = [np.sin((x * (c + 1) + y * (number % 5 + 1)) / 17 + number) for c in range(3)]
    pixels = 128 + 90 * np.stack(waves, axis=2) + 20 * noise[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **settings: Any) -> bytes:
    """Encode as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", **({"quality": 90} | settings))
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    """Encode as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def encoded(number: int) -> tuple[str, bytes]:
    """File name and bytes of image `number`: mostly JPEG, with grey, CMYK, progressive, 4:4:4 and PNG in turn."""
    image = picture(number, 40 + number * 7 % 50, 44 + number * 11 % 60)
    variants: list[Callable[[], tuple[str, bytes]]] = [
        lambda: ("jpg", jpeg(image)),
        lambda: ("JPG", jpeg(image.convert("L"))),
        lambda: ("jpeg", jpeg(image, progressive=True)),
        lambda: ("png", png(image)),
        lambda: ("jpg", jpeg(image, subsampling=0)),
        lambda: ("jpg", jpeg(image.convert("CMYK"))),
    ]
    ending, content = variants[number % len(variants)]()
    return f"{number:03d}.{ending}", content


def write_set(root: Path, train: dict[str, int], val: dict[str, int]) -> Path:
    """Write an image folder with so many images per class."""
    number = 0
    for split, classes in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        for name, images in classes.items():
            (root / split / name).mkdir()
            for _ in range(images):
                file, content = encoded(number)
                (root / split / name / file).write_bytes(content)
                number += 1
    return root


def folder_data(root: Path, *, on_bad_image: Any = "stop", loader: Loader | None = None, **settings: Any) -> Data:
    """Return the data section of a run on an image folder; 32-pixel images."""
    return Data(
        dataset=Component("image_folder", image_folder.Options(root=root)),
        on_bad_image=on_bad_image,
        loader=loader or Loader(threads=1),
        **({"image_size": 32, "eval_resize": 36} | settings),
    )
