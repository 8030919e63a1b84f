"""Real handwritten digits, long-tailed: the data set that needs no download. Torch-free.

scikit-learn's bundled digits (1,797 images of 8 x 8, from the UCI optical recognition set), enlarged fourfold to
32 x 32 and written once as JPEG files. Of each class the first 40 in the data set's own order are the val split, which
is balanced; the next n_k are the training split, n_k = largest / imbalance**(k / 9) truncated, the usual exponential
profile. The defaults give 134, 90, 61, 41, 28, 19, 12, 8, 5, 4 images.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hrdc_hpc.config.types import OPERATIONAL, options
from hrdc_hpc.record.files import fsync_folder, fsync_tree

if TYPE_CHECKING:
    from hrdc_hpc.data.index import ImageIndex, OnBad, Split

CLASSES = tuple(str(digit) for digit in range(10))
_VAL_PER_CLASS = 40
_MOST = 134
"""The rarest digit has 174 images."""
_ENLARGE = 4
_QUALITY = 95
_FORMAT = 1
"""Part of the folder's name: raised when other files would be written for the same options."""


@options
class Options:
    """The profile of the training split, and where the files go."""

    root: Annotated[Path, OPERATIONAL] = Path("data/digits_lt")
    """Folder of the files; each profile has its own folder in it."""
    imbalance: Annotated[float, Field(ge=1)] = 33.5
    """Images of the most frequent class over images of the rarest."""
    largest: Annotated[int, Field(gt=0, le=_MOST)] = _MOST
    """Training images of the most frequent class."""


def profile(options: Options) -> list[int]:
    """Training images of each class. ValueError if the rarest class would have none."""
    # divided, not multiplied by imbalance**-x: largest / imbalance is then exact where it is a whole number
    last = len(CLASSES) - 1
    counts = [int(options.largest / options.imbalance ** (k / last)) for k in range(len(CLASSES))]
    if counts[-1] == 0:
        raise ValueError(
            f"data.dataset.imbalance: {options.imbalance} leaves the rarest class without an image; at most"
            f" data.dataset.largest, which is {options.largest}"
        )
    return counts


def known(options: Options) -> tuple[int, int]:
    """Classes and training images, without its files."""
    counts = profile(options)
    return len(counts), sum(counts)


def folder(options: Options) -> Path:
    """Folder of this profile's files: another profile never meets them."""
    return options.root / f"v{_FORMAT}-largest-{options.largest}-imbalance-{options.imbalance!r}"


def preflight(options: Options) -> None:
    """ValueError if the files are not there and cannot be made here (they are made when a run starts)."""
    profile(options)
    if not (folder(options) / "meta.json").is_file() and importlib.util.find_spec("sklearn") is None:
        raise ValueError(
            f"data.dataset: digits_lt is not in {folder(options)}, and scikit-learn, which it is made from, is not"
            " installed. Install scikit-learn (extra 'demo'), or set data.dataset.root to where the files are."
        )


def prepare(options: Options) -> None:
    """Write the files if they are not there. Processes and nodes may do so at once: one of them wins, whole."""
    target = folder(options)
    if (target / "meta.json").is_file():
        return
    preflight(options)
    options.root.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".making-", dir=options.root))
    try:
        _write(aside, profile(options))
        meta = {"format": _FORMAT, "largest": options.largest, "imbalance": options.imbalance}
        (aside / "meta.json").write_text(json.dumps(meta) + "\n", "utf-8")
        aside.chmod(0o777 & ~_umask())
        fsync_tree(aside)  # a power cut after the rename must not leave empty files that are taken for the digits
        try:
            aside.rename(target)
        except OSError:
            if not (target / "meta.json").is_file():
                raise
        fsync_folder(options.root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(root: Path, counts: list[int]) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8).repeat(_ENLARGE, axis=1).repeat(_ENLARGE, axis=2)
    for label, name in enumerate(CLASSES):
        numbers = np.flatnonzero(digits.target == label)
        for split, chosen in (("val", numbers[:_VAL_PER_CLASS]), ("train", numbers[_VAL_PER_CLASS:][: counts[label]])):
            (root / split / name).mkdir(parents=True)
            for number in chosen:
                Image.fromarray(pixels[number]).save(root / split / name / f"{number:04d}.jpg", quality=_QUALITY)


def open(options: Options, split: Split, on_bad_image: OnBad, *, trust_cache: bool = False) -> ImageIndex:  # noqa: A001 - a data set's contract
    """Return the index of a split. ValueError if the files have not been made."""
    from hrdc_hpc.data.folders import open_folders

    root = folder(options)
    if not (root / "meta.json").is_file():
        raise ValueError(f"data.dataset.root: no digits in {root}; they are made when a run starts (prepare)")
    return open_folders(root, split, split, CLASSES, on_bad_image, trust_cache=trust_cache)
