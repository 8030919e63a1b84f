"""Classes, how many training images each has, and the three groups they fall into. Torch-free.

NumPy is imported where it is used: launch reads the methods' options, and so this file, and takes .13 s less without.

Axis legend: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hrdc_hpc.config.schema import Levels

FIRST, MEDIUM, LAST = 0, 1, 2
"""Group numbers: head / many-shot, medium / medium-shot, tail / few-shot."""


@dataclass(frozen=True)
class ClassInfo:
    """What losses and reports know of the classes."""

    names: tuple[str, ...]
    counts_C: NDArray[np.int64]
    """Training images per class."""
    levels_C: NDArray[np.int8]
    """Group of each class for the method: 0 head, 1 medium, 2 tail."""
    shots_C: NDArray[np.int8]
    """Group of each class for the report: 0 many, 1 medium, 2 few."""

    @property
    def number(self) -> int:
        """Number of classes."""
        return len(self.names)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes the same again."""
        return {
            "names": list(self.names), "counts": self.counts_C.tolist(), "levels": self.levels_C.tolist(),
            "shots": self.shots_C.tolist(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Make it from what `as_json` returned."""
        import numpy as np

        return cls(
            names=tuple(told["names"]),
            counts_C=np.array(told["counts"], np.int64),
            levels_C=np.array(told["levels"], np.int8),
            shots_C=np.array(told["shots"], np.int8),
        )


def group_classes(counts_C: NDArray[np.int64], levels: Levels, where: str) -> NDArray[np.int8]:
    """Split classes into three groups; int8 [C] of 0, 1, 2.

    Ties in 'rank' go to the lower class number. Raises ValueError, naming `where` (a config key), if the ranks do not
    add up to the number of classes or are missing.
    """
    import numpy as np

    if levels.by == "images":
        groups = np.full(len(counts_C), MEDIUM, np.int8)
        groups[counts_C > levels.first_over] = FIRST
        groups[counts_C < levels.last_under] = LAST
        return groups
    if levels.ranks is None or sum(levels.ranks) != len(counts_C):
        raise ValueError(
            f"{where}.ranks: got {levels.ranks}, which must be three numbers that add up to the {len(counts_C)} classes"
            " of the data set (or set by: images)"
        )
    order = np.argsort(-counts_C, kind="stable")
    groups = np.empty(len(counts_C), np.int8)
    groups[order] = np.repeat(np.array([FIRST, MEDIUM, LAST], np.int8), levels.ranks)
    return groups
