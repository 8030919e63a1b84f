"""What will be written: which images go into which shard, a pure function of the source and the options. Torch-free.

Axis legend: N images of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data.index import ImageIndex, open_split
from hrdc_hpc.data.manifest import SPLITS

Check = Literal["decode", "header"]
BLOCK = 512
"""A tar is made of blocks of so many bytes; a member's header is one."""
GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the bytes that are written."""

    shorter_side: int | None = None
    """Pixels; images whose shorter side is longer are resized to it and encoded anew. None: all stay as they are."""
    quality: int = 90
    """Of JPEGs that are encoded anew, 1 to 100."""
    shard_bytes: int = 2 * GB
    """Of a shard, about; where images are encoded anew, of the source's images, so that shards are smaller."""
    check: Check = "decode"
    """How images are tried: each decoded whole, or header and end only."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values; where nothing is encoded anew, without what then has no meaning."""
        told = asdict(self)
        if self.shorter_side is None:
            del told["quality"]
        return told


@dataclass(frozen=True, eq=False)
class Task:
    """One shard to be written."""

    split: str
    number: int
    first: int
    """Number in its split of the first image of the source."""
    source: ImageIndex
    """The images of the shard alone."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The shards of both splits."""

    name: str
    """Of the source's data set."""
    options: Options
    sources: Mapping[str, ImageIndex]
    counts: Mapping[str, tuple[int, ...]]
    """Images of the source in each shard, by split."""

    def tasks(self, part: int = 0, parts: int = 1) -> Iterator[Task]:
        """Yield every shard, or those of part `part` (from 0) of `parts`: every parts-th."""
        number = 0
        for split, source in self.sources.items():
            first = 0
            for shard, count in enumerate(self.counts[split]):
                if number % parts == part:
                    yield Task(split, shard, first, source.subset(np.arange(first, first + count), source.split))
                first, number = first + count, number + 1

    def images(self, part: int = 0, parts: int = 1) -> int:
        """Images of the source in these shards."""
        return sum([count for counts in self.counts.values() for count in counts][part::parts])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return sum(len(counts) for counts in self.counts.values())

    def as_json(self) -> dict[str, Any]:
        """Return what must be the same for a start to go on with what lies there."""
        return {
            "name": self.name,
            "options": self.options.as_json(),
            "encoder": encoder() if self.options.shorter_side else {},
            "sources": {
                split: {"images": len(index), "fingerprint": index.fingerprint} for split, index in self.sources.items()
            },
        }

    def bytes_at_most(self) -> int:
        """Bytes that all shards take; where images are encoded anew, a generous estimate."""
        return sum(int(_estimate(index, self.options).sum()) for index in self.sources.values())


def make_plan(data: Data, options: Options, *, trust_cache: bool = False) -> Plan:
    """Open both splits and cut them into shards. ValueError for a data set that has no encoded images."""
    # what cannot be used is listed, or stops the packer, by its own rule: not by the run's
    data = replace(data, on_bad_image="skip")
    sources: dict[str, ImageIndex] = {}
    for split in SPLITS:
        index = open_split(data, split, trust_cache=trust_cache)  # type: ignore[arg-type]  # one of its two values
        if not isinstance(index, ImageIndex):
            raise ValueError(
                f"data.dataset: '{data.dataset.name}' holds small images in memory, not encoded files: there is nothing"
                " to pack. It trains as it is."
            )
        sources[split] = index.verifying()  # what is read of another pack gets checksums anew: not if it is damaged
    counts = {split: cut(member_bytes(index.bytes_N), options.shard_bytes) for split, index in sources.items()}
    return Plan(data.dataset.name, options, sources, counts)


def member_bytes(bytes_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes [N] that images take in a tar: a header and whole blocks."""
    return BLOCK + -(-bytes_N // BLOCK) * BLOCK


def cut(sizes_N: NDArray[np.int64], limit: int) -> tuple[int, ...]:
    """Return how many images each shard takes: in order, as many as stay within `limit` bytes, at least one."""
    ends_N, counts, first = np.cumsum(sizes_N), [], 0
    while first < len(sizes_N):
        before = int(ends_N[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends_N, before + limit, side="right")))
        counts.append(end - first)
        first = end
    return tuple(counts)


def _estimate(index: ImageIndex, options: Options) -> NDArray[np.int64]:
    sizes_N = member_bytes(index.bytes_N)
    if options.shorter_side is None:
        return sizes_N
    # as bytes by area, and half as many again for a quality above the source's
    share_N = np.minimum(1.0, 1.5 * (options.shorter_side / index.sizes_N2.min(axis=1)) ** 2)
    estimate_N: NDArray[np.int64] = (BLOCK + sizes_N * share_N).astype(np.int64)
    return estimate_N


def encoder() -> dict[str, str]:
    """Versions of what decodes and encodes: with others, the same options give other bytes."""
    import PIL
    from PIL import features

    return {"pillow": PIL.__version__, "libjpeg": str(features.version("libjpeg_turbo") or features.version("jpg"))}


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return 'options.quality: 95, there 90' for each value that differs."""
    found = []
    for key in dict.fromkeys([*wanted, *there]):
        ours, theirs = wanted.get(key), there.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            found += differences(theirs, ours, f"{prefix}{key}.")
        elif ours != theirs:
            found.append(f"{prefix}{key}: {_shown(ours)}, there {_shown(theirs)}")
    return found


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def parts_folder(out: Path) -> Path:
    """Folder of what a later start needs to go on: the plan, and what is in each shard."""
    return out / "parts"
