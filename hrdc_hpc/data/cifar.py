"""CIFAR-10 and CIFAR-100 made long-tailed, from the standard python files. Torch-free until files are read.

n_k = n_max * IF**(-k / (C - 1)), truncated to an integer: images of class k, classes in the order of their labels. Of
each class the first n_k images in the order of the files are taken, so that the training set of a larger imbalance is
part of that of a smaller one. The test split is whole: 10,000 images, balanced.

Instead of the python files a folder may hold a part of them in one file, `cifar10_part.npz`, as
benchmarks/cifar_part.py makes it for machines without a network. It holds `class_names` and of each split

    <split>_labels   uint8 [N]
    <split>_strips   uint8, lossless WebP files end to end, each a column of some images: half the size of zlib's
    <split>_ends     int64, the byte after each strip
    <split>_hash     blake2b, 16 bytes, of the pixels

Axis legend: N images, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hrdc_hpc.data.index import Split
    from hrdc_hpc.data.pixels import PixelArray


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets."""

    name: str
    """As its files are called: 'cifar10', 'cifar100'."""
    folder: str
    """Of the python files, below root."""
    classes: int
    most: int
    """Training images of each class."""
    torchvision: str
    """Its class in torchvision.datasets."""

    @property
    def part(self) -> str:
        """File that holds a part of it, below root."""
        return f"{self.name}_part.npz"


SIDE = 32
"""Pixels."""
CIFAR10 = Cifar("cifar10", "cifar-10-batches-py", 10, 5000, "CIFAR10")
CIFAR100 = Cifar("cifar100", "cifar-100-python", 100, 500, "CIFAR100")


def profile(cifar: Cifar, imbalance: float) -> list[int]:
    """Training images of each class for an imbalance factor n_max / n_min. ValueError if a class would have none."""
    last = cifar.classes - 1
    # the rounding beside a whole number (5000 / 10) must not take an image away
    counts = [int(cifar.most / imbalance ** (k / last) * (1 + 1e-12)) for k in range(cifar.classes)]
    if counts[-1] == 0:
        raise ValueError(
            f"data.dataset.imbalance: {imbalance:g} leaves the rarest class without an image; at most {cifar.most}"
        )
    return counts


def preflight(cifar: Cifar, root: Path, imbalance: float) -> None:
    """ValueError if the files are plainly not there."""
    profile(cifar, imbalance)
    if not (root / cifar.folder).is_dir() and not (root / cifar.part).is_file():
        raise ValueError(
            f"data.dataset.root: no folder {root / cifar.folder}. Unpack {cifar.name.upper()} for Python"
            f" ({cifar.name.replace('cifar', 'cifar-')}-python.tar.gz) in {root}, or set data.dataset.root"
            " to where it is."
        )


def open_cifar(cifar: Cifar, root: Path, imbalance: float, split: Split) -> PixelArray:
    """Return the long-tailed training split or the whole test split ('val'). ValueError for files that do not do."""
    from hrdc_hpc.data.pixels import PixelArray

    preflight(cifar, root, imbalance)
    reader = _python_files if (root / cifar.folder).is_dir() else read_part
    images_NHWC, labels_N, names = reader(cifar, root, split)
    whole = PixelArray(root, split, tuple(names), images_NHWC, labels_N)
    if split != "train":
        return whole
    return whole.subset(first_of_each(labels_N, profile(cifar, imbalance), root), split)


def first_of_each(labels_N: NDArray[np.int64], counts: list[int], root: Path) -> NDArray[np.int64]:
    """Numbers of the first counts[c] images of each class c, in file order; ValueError if there are fewer."""
    import numpy as np

    chosen = []
    for label, count in enumerate(counts):
        numbers = np.flatnonzero(labels_N == label)[:count]
        if len(numbers) < count:
            raise ValueError(
                f"{root}: {len(numbers)} training images of class {label}, {count} are wanted; raise"
                " data.dataset.imbalance or give the whole data set"
            )
        chosen.append(numbers)
    return np.sort(np.concatenate(chosen))


def _python_files(cifar: Cifar, root: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Read through torchvision, which checks the published MD5 sums first: nothing else is unpickled."""
    import numpy as np
    import torchvision.datasets

    try:
        data: Any = getattr(torchvision.datasets, cifar.torchvision)(root, train=split == "train", download=False)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        # torchvision's RuntimeError advises to download, which is not done here
        why = "a file is missing or has another MD5 sum" if isinstance(error, RuntimeError) else error
        raise ValueError(
            f"data.dataset.root: the files in {root / cifar.folder} are not those of {cifar.name.upper()}, or damaged"
            f" ({why}); unpack them anew"
        ) from error
    return data.data, np.asarray(data.targets, np.int64), [str(name) for name in data.classes]


def read_part(cifar: Cifar, root: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Decode a part; the hash over its pixels tells damage, and a decoder that is not exact."""
    import numpy as np

    path = root / cifar.part
    try:
        # opened here: numpy leaves the file open where it is no archive
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = [str(name) for name in arrays["class_names"]]
            labels_N = arrays[f"{split}_labels"].astype(np.int64)
            strips, ends = arrays[f"{split}_strips"], arrays[f"{split}_ends"]
            written = arrays[f"{split}_hash"].tobytes()
        pieces = zip([0, *ends[:-1]], ends, strict=True)
        images_NHWC = np.concatenate([_strip(strips[start:end].tobytes()) for start, end in pieces])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error}); make it anew with benchmarks/cifar_part.py") from error
    if pixel_hash(images_NHWC) != written or len(labels_N) != len(images_NHWC):
        raise ValueError(f"{path}: other pixels than were written; make it anew with benchmarks/cifar_part.py")
    return images_NHWC, labels_N, names


def _strip(webp: bytes) -> NDArray[np.uint8]:
    """Decode a column of images, uint8 [N, 32, 32, 3]."""
    import numpy as np
    from PIL import Image

    column = np.asarray(Image.open(io.BytesIO(webp), formats=["WEBP"]).convert("RGB"))
    return column.reshape(-1, SIDE, SIDE, 3)


def pixel_hash(images_NHWC: NDArray[np.uint8]) -> bytes:
    """Hash of a split's pixels, 16 bytes."""
    return hashlib.blake2b(images_NHWC.tobytes(), digest_size=16).digest()
