"""A data set that `python -m hrdc_hpc.pack` has written: a few large shards with an index (data/packed.py).

Classes, labels and order of the images are those of the data set that was packed. Torch-free.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hrdc_hpc.config.types import OPERATIONAL, options

if TYPE_CHECKING:
    from hrdc_hpc.data.index import ImageIndex, OnBad, Split


@options
class Options:
    """Where it lies."""

    root: Annotated[Path, OPERATIONAL]
    """Folder that holds pack.json."""


def known(options: Options) -> None:
    """Classes and training images are not known without its files."""


def preflight(options: Options) -> None:
    """ValueError if the folder is no finished pack, or a shard is missing or not as long as when it was packed."""
    from hrdc_hpc.data.manifest import MANIFEST, Manifest

    manifest = Manifest.read(options.root)
    for split, facts in manifest.splits.items():
        for shard in facts.shards:
            path = options.root / split / shard.file
            length = path.stat().st_size if path.is_file() else None
            if length != shard.bytes:
                found = "missing" if length is None else f"{length} bytes"
                raise ValueError(
                    f"data.dataset.root: {path}: {found}, but {shard.bytes} bytes when it was packed. Copy it anew, or"
                    f" remove {options.root / MANIFEST} and give the command that packed it."
                )


def open(  # noqa: A001 - a data set's contract
    options: Options,
    split: Split,
    on_bad_image: OnBad,  # noqa: ARG001 - what could not be read was left out, and listed, when it was packed
    *,
    trust_cache: bool = False,
) -> ImageIndex:
    """Return the index of a split. ValueError for a folder that is no finished pack or whose index is damaged."""
    from hrdc_hpc.data.packed import open_packed

    return open_packed(options.root, split, check=not trust_cache)
