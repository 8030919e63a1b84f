"""A miniature of iNaturalist 2018: its layout, its 8,142 classes with their true numbers of images, small pictures.

    python -m benchmarks.mini_inat DEST              # all 437,513 + 24,426 entries
    python -m benchmarks.mini_inat DEST --images 20000

Every entry of the annotation files has a file of its own name, which is a hard link to one of a few hundred small
JPEGs: indexes, orders and shards are as large as the real ones, the disk holds a few MB. With fewer images every class
keeps one at least, and the numbers keep their profile.

Axis legend: N entries, C classes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrdc_hpc.data import order, philox, published

IMAGES, VAL_PER_CLASS = 437_513, 3
GROUPS = ("Plantae", "Insecta", "Aves", "Actinopterygii", "Fungi", "Reptilia", "Mollusca", "Mammalia")
_STORE = "pictures"
_SIDES = (48, 97)
"""Pixels: from, below."""


@dataclass(frozen=True)
class Picture:
    """One of the files that the entries are links to."""

    path: Path
    height: int
    width: int


def counts(images: int) -> NDArray[np.int64]:
    """Return training images per class [C], `images` in all, in the profile of iNaturalist 2018.

    ValueError for fewer images than classes or more than there are.
    """
    true_C = published.training_images("inat2018")
    if not len(true_C) <= images <= IMAGES:
        raise ValueError(f"images: {images} must be between {len(true_C)}, one of each class, and {IMAGES}")
    # one of each class; the others by its share of what is left of the true numbers, remainders to the largest
    wanted_C = (true_C - 1) * (images - len(true_C)) / (IMAGES - len(true_C))
    made_C = wanted_C.astype(np.int64)
    largest = np.argsort(made_C - wanted_C, kind="stable")[: images - len(true_C) - made_C.sum()]
    made_C[largest] += 1
    return made_C + 1


def make_mini_inat(root: Path, images: int = IMAGES, pictures: int = 256) -> Path:
    """Write the data set below `root` and return it; the same arguments give the same files.

    `inat2018` opens it with check: true if it is whole. ValueError for an impossible number of images.
    """
    counts_C = counts(images)
    root.mkdir(parents=True, exist_ok=True)
    store = _pictures(root / _STORE, pictures)
    for split, split_C in (("train", counts_C), ("val", np.full(len(counts_C), VAL_PER_CLASS))):
        _write_split(root, split, split_C, store)
    return root


def _pictures(folder: Path, number: int) -> list[Picture]:
    """Write smooth colours of different sizes: a kilobyte each, no two alike."""
    folder.mkdir(exist_ok=True)
    sides = philox.uniforms(0, "mini inat", 0, np.arange(number), 2 + 3 * 16)
    made = []
    for i, drawn in enumerate(sides):
        height, width = (int(_SIDES[0] + u * (_SIDES[1] - _SIDES[0])) for u in drawn[:2])
        blocks = Image.fromarray((drawn[2:].reshape(4, 4, 3) * 255).astype(np.uint8))
        file = io.BytesIO()
        blocks.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=75)
        path = folder / f"{i:04d}.jpg"
        path.write_bytes(file.getvalue())
        made.append(Picture(path, height, width))
    return made


def _write_split(root: Path, split: str, counts_C: NDArray[np.int64], store: list[Picture]) -> None:
    labels_N = np.repeat(np.arange(len(counts_C)), counts_C)
    labels_N = labels_N[order.permutation(0, 0, f"mini inat {split}", len(labels_N))]
    folders = [f"train_val2018/{GROUPS[label % len(GROUPS)]}/{label}" for label in range(len(counts_C))]
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i, label in enumerate(labels_N.tolist()):
        picture = store[i % len(store)]
        name = f"{folders[label]}/{hashlib.blake2b(f'{split}{i}'.encode(), digest_size=16).hexdigest()}.jpg"
        os.link(picture.path, f"{root}/{name}")
        number = i + (0 if split == "train" else IMAGES)
        images.append({
            "license": 3, "file_name": name, "rights_holder": "", "height": picture.height, "width": picture.width,
            "id": number,
        })  # fmt: skip
        annotations.append({"image_id": number, "category_id": label, "id": number})
    categories = [
        {"id": c, "name": f"species {c}", "supercategory": GROUPS[c % len(GROUPS)]} for c in range(len(counts_C))
    ]
    content = {"info": {}, "images": images, "licenses": [], "annotations": annotations, "categories": categories}
    (root / f"{split}2018.json").write_text(json.dumps(content))


def main() -> None:
    """Make it and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("root", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    start = time.perf_counter()
    make_mini_inat(options.root, options.images)
    took = time.perf_counter() - start
    sys.stdout.write(f"{options.root}: {options.images} training images in {took:.1f} s\n")


if __name__ == "__main__":
    main()
