"""Images without labels that a user names, file by file or by the folder. Torch-free.

Axis legend: N images, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hrdc_hpc.data.folders import in_threads
from hrdc_hpc.data.headers import EXTENSIONS, REFUSED, BadImageError, read_header
from hrdc_hpc.data.index import BadFile, ImageIndex, Names, make_index, name_some
from hrdc_hpc.data.pixels import PixelArray

_SPLIT = "loose"
_UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises for a file that it cannot decode."""


@dataclass(frozen=True)
class LooseImage:
    """One file whose header has been read."""

    path: str
    """As the user named it; below a folder that was named, the folder and the file's name."""
    height: int
    """Pixels, EXIF orientation ignored."""
    width: int
    bytes: int


def find(named: Sequence[str]) -> tuple[list[LooseImage], list[BadFile]]:
    """Return the images among files and folders, in this order, and what cannot be used, with the reason.

    A folder stands for the JPEG and PNG files directly in it, in code-point order, but for those that begin with a dot;
    its other files are ignored, but images of other kinds are among what cannot be used.
    """
    paths: list[str] = []
    bad: list[BadFile] = []
    for name in named:
        if os.path.isdir(name):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
            inside, refused = _list(name)
            paths += inside
            bad += refused
        else:
            paths.append(name)
    images: list[LooseImage] = []
    for path, result in zip(paths, in_threads(_look, paths), strict=True):
        if isinstance(result, LooseImage):
            images.append(result)
        else:
            bad.append(BadFile(path, result))
    return images, bad


def _list(folder: str) -> tuple[list[str], list[BadFile]]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    except OSError as error:
        return [], [BadFile(folder, f"cannot be read: {error.strerror}")]
    kinds = ", ".join(EXTENSIONS)
    paths = [str(Path(folder, name)) for name in names if name.lower().endswith(EXTENSIONS)]
    bad = [
        BadFile(str(Path(folder, name)), f"this kind of image is not read; allowed: {kinds}")
        for name in names
        if name.lower().endswith(REFUSED)
    ]
    if not paths and not bad:
        bad.append(BadFile(folder, f"a folder without images ({kinds}); the folders in it are not searched"))
    return paths, bad


def _look(path: str) -> LooseImage | str:
    try:
        return LooseImage(path, *read_header(path))
    except BadImageError as error:
        return str(error)


def as_index(images: Sequence[LooseImage], class_names: Sequence[str]) -> ImageIndex:
    """Return the images as a split of a data set of encoded images, all labelled 0; there is at least one."""
    root = Path("/")  # the files may lie anywhere
    return make_index(
        root=root,
        split=_SPLIT,
        class_names=class_names,
        names=Names.of([os.path.relpath(Path(image.path).absolute(), root) for image in images]),
        labels_N=np.zeros(len(images), np.int64),
        sizes_N2=np.array([(image.height, image.width) for image in images], np.int32),
        bytes_N=np.array([image.bytes for image in images], np.int64),
        bad=(),
        on_bad_image="skip",
    )


def as_pixels(
    images: Sequence[LooseImage], class_names: Sequence[str]
) -> tuple[PixelArray, list[LooseImage], list[BadFile]]:
    """Decode images of one size; return those that can be, as a split, and as they were named, and the others."""
    arrays, good, bad = [], [], []
    for image in images:
        try:
            with Image.open(image.path, formats=("JPEG", "PNG")) as opened:
                arrays.append(np.asarray(opened.convert("RGB")))
        except _UNDECODABLE as error:
            bad.append(BadFile(image.path, f"damaged: {error}"))
        else:
            good.append(image)
    pixels_NHWC = np.stack(arrays) if arrays else np.empty((0, 1, 1, 3), np.uint8)
    return PixelArray(Path(), _SPLIT, tuple(class_names), pixels_NHWC, np.zeros(len(good), np.int64)), good, bad


def refuse_other_sizes(images: Sequence[LooseImage], side: int) -> None:
    """ValueError, naming them, for images that are not `side` x `side` pixels, where nothing is resized."""
    others = [f"{i.path} ({i.height} x {i.width})" for i in images if (i.height, i.width) != (side, side)]
    if others:
        raise ValueError(
            f"--predict: {len(others)} of {len(images)} images are not {side} x {side} pixels (height x width), which"
            f" this run's data set has and does not resize: {name_some(others)}. Crop or scale them first."
        )
