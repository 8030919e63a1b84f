"""What published data sets hold: images per class, and the error for files that hold anything else. Torch-free.

The numbers were counted in the published annotation and list files; nothing else of those is here.

Axis legend: N images, C classes.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def training_images(name: str) -> NDArray[np.int64]:
    """Return the training images per class [C] of a published data set."""
    import numpy as np

    text = resources.files(__package__).joinpath(f"{name}.txt").read_text("ascii")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return np.array(" ".join(lines).split(), np.int64)


def refuse_others(
    file: Path,
    title: str,
    split: str,
    labels_N: NDArray[np.int64],
    class_names: Sequence[str],
    known_C: NDArray[np.int64],
) -> None:
    """ValueError, naming the first class that differs, unless `file` lists so many images of each class."""
    import numpy as np

    way_out = "Take the published file anew, or set data.dataset.check: false to use a selection on purpose."
    if len(class_names) != len(known_C):
        raise ValueError(f"{file}: {len(class_names)} classes, but {title} has {len(known_C)}. {way_out}")
    found_C = np.bincount(labels_N, minlength=len(known_C))
    other = np.flatnonzero(found_C != known_C)
    if len(other):
        first = int(other[0])
        raise ValueError(
            f"{file}: class {first} ('{class_names[first]}') has {found_C[first]} {split} images, but {known_C[first]}"
            f" in {title}; {len(other)} of {len(known_C)} classes differ, and there are {len(labels_N)} images instead"
            f" of {known_C.sum()}. {way_out}"
        )
