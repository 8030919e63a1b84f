"""Pack a long-tailed part of CIFAR-10 or CIFAR-100 into one small file, to carry it to a machine without a network.

    python benchmarks/cifar_part.py ROOT OUT --imbalance 10 [--name cifar10]

ROOT holds the standard python files; OUT/cifar10_part.npz will hold what every imbalance factor from the given one up
needs (the training sets are nested), and the whole test split. Reading it gives the very same splits: the file is
decoded and compared before it is put in its place. hrdc_hpc/data/cifar.py says what is in it.

Axis legend: N images, H height, W width, C channels.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.data import cifar
from hrdc_hpc.data.index import Split
from hrdc_hpc.data.pixels import PixelArray

KINDS = {kind.name: kind for kind in (cifar.CIFAR10, cifar.CIFAR100)}
STRIP = 500
"""Images in a strip: WebP's images have at most 16,383 pixels a side."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack as the command line says."""
    parser = argparse.ArgumentParser(prog="cifar_part.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("root", type=Path, help="folder with the unpacked python files")
    parser.add_argument("out", type=Path, help="folder for the part")
    parser.add_argument("--imbalance", type=float, default=10, help="smallest imbalance factor wanted (default: 10)")
    parser.add_argument("--name", choices=KINDS, default="cifar10")
    options = parser.parse_args(arguments)
    path = pack(KINDS[options.name], options.root, options.out, options.imbalance)
    sys.stdout.write(f"{path}: {path.stat().st_size / 2**20:.1f} MiB\n")
    return 0


def pack(kind: cifar.Cifar, root: Path, out: Path, imbalance: float) -> Path:
    """Write the part for this imbalance factor and larger ones, as `pack_splits`."""
    train = cifar.open_cifar(kind, root, imbalance, "train")
    return pack_splits(kind, train, cifar.open_cifar(kind, root, imbalance, "val"), out)


def pack_splits(kind: cifar.Cifar, train: PixelArray, test: PixelArray, out: Path) -> Path:
    """Write these splits; return the path. RuntimeError if the file does not give them back."""
    out.mkdir(parents=True, exist_ok=True)
    arrays = {"class_names": np.array(train.class_names)}
    splits: dict[Split, PixelArray] = {"train": train, "val": test}
    for name, split in splits.items():
        arrays |= {f"{name}_{what}": array for what, array in packed(split).items()}
    with tempfile.TemporaryDirectory(dir=out, prefix=".tmp-") as aside:
        np.savez(Path(aside) / kind.part, allow_pickle=False, **arrays)
        for name, split in splits.items():
            _check(kind, Path(aside), name, split)
        return (Path(aside) / kind.part).replace(out / kind.part)


def _check(kind: cifar.Cifar, root: Path, name: Split, split: PixelArray) -> None:
    images_NHWC, labels_N, names = cifar.read_part(kind, root, name)
    if PixelArray(root, split.split, tuple(names), images_NHWC, labels_N).fingerprint != split.fingerprint:
        raise RuntimeError(f"{name}: does not come back as it was; Pillow's WebP is not exact here")


def packed(split: PixelArray) -> dict[str, NDArray[np.generic]]:
    """Arrays of one split, by what follows its name in the file."""
    strips = [_strip(split.images_NHWC[start : start + STRIP]) for start in range(0, len(split), STRIP)]
    return {
        "labels": split.labels_N.astype(np.uint8),
        "strips": np.frombuffer(b"".join(strips), np.uint8),
        "ends": np.cumsum([len(strip) for strip in strips]),
        "hash": np.frombuffer(cifar.pixel_hash(split.images_NHWC), np.uint8),
    }


def _strip(images_NHWC: NDArray[np.uint8]) -> bytes:
    """One lossless WebP of the images below each other."""
    from PIL import Image

    file = io.BytesIO()
    column = Image.fromarray(np.ascontiguousarray(images_NHWC).reshape(-1, cifar.SIDE, 3))
    # quality is effort here: 100 takes 6 times as long for 0.5 % less
    column.save(file, "WEBP", lossless=True, quality=0, method=4, exact=True)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
