"""Training images that were decoded once and are kept on the node as pixels. Torch-free; filling.py fills it.

    FOLDER/pixels         all images one after another, each a PPM file (netpbm, P6): a header and its bytes, RGB
    FOLDER/blocks.jsonl   blocks of images that are whole, with their checksums, and how many images were left out
    FOLDER/locks          byte b is locked by the process that is at block b

An image whose shorter side is longer than `side` is resized to it; the longer side is truncated. A PPM file needs no
decoding to speak of, and yet the decoder takes it: what reads, crops, mirrors and names images is the same as ever.

Axis legend: N images.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.config.node_local import DecodedCache
from hrdc_hpc.data.index import ImageIndex
from hrdc_hpc.data.manifest import Shard
from hrdc_hpc.data.node_folder import make_room, node_folder
from hrdc_hpc.data.packed import PackedIndex, ShardFiles

BLOCK = 256
"""Images that one process fills at a time."""
PIXELS = "pixels"
_MEMORY = "/dev/shm"
"""Files in memory, which all processes of a node see."""
_HEADER = b"P6\n%5d %5d\n255\n"
_HEADER_BYTES = len(_HEADER % (0, 0))


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedIndex(PackedIndex):
    """The images of a split in a cache. Sizes are those that are kept: crops are drawn in them."""

    source: ImageIndex


def kept_sizes(sizes_N2: NDArray[np.int32], side: int) -> NDArray[np.int32]:
    """Sizes with a shorter side of at most `side`; the longer one is truncated, as by torchvision's Resize."""
    shorter_N1 = sizes_N2.min(axis=1, keepdims=True).astype(np.int64)
    return np.where(shorter_N1 <= side, sizes_N2, side * sizes_N2.astype(np.int64) // shorter_N1).astype(np.int32)


def header(height: int, width: int) -> bytes:
    """What stands in front of an image's pixels."""
    return _HEADER % (width, height)


def decoded_index(source: ImageIndex, side: int, folder: Path) -> DecodedIndex:
    """Return the index of a cache in a folder, whether it is filled or not."""
    sizes_N2 = kept_sizes(source.sizes_N2, side)
    bytes_N = 3 * sizes_N2.astype(np.int64).prod(axis=1) + _HEADER_BYTES
    number, total = len(bytes_N), int(bytes_N.sum())
    return DecodedIndex(
        root=source.root,
        split=source.split,
        class_names=source.class_names,
        names=source.names,
        labels_N=source.labels_N,
        sizes_N2=sizes_N2,
        bytes_N=bytes_N,
        fingerprint=source.fingerprint,  # data.decoded_cache.side is a setting that no run is resumed without
        skipped=source.skipped,
        files=ShardFiles(folder, (Shard(file=PIXELS, images=number, bytes=total, checksum=""),)),
        shards_N=np.zeros(number, np.int32),
        offsets_N=np.cumsum(bytes_N) - bytes_N,
        checksums_N=np.zeros(number, np.uint64),
        source=source,
    )


def cache_folder(cache: DecodedCache, source: ImageIndex, decoder: str) -> Path:
    """Return the place of a cache on this node; `decoder` says what decodes, another version of which has another."""
    to = _MEMORY if cache.where == "memory" else cache.to
    key = hashlib.blake2b(f"{source.fingerprint}\0{cache.side}\0{decoder}".encode(), digest_size=10).hexdigest()
    return node_folder(to, "data.decoded_cache.to") / f"decoded-{key}"


def check_room(cache: DecodedCache, index: DecodedIndex, folder: Path) -> None:
    """ValueError, with the numbers, where the cache would take more than is allowed or free."""
    total = int(index.bytes_N.sum())
    what = f"data.decoded_cache: {len(index):,} images with a shorter side of {cache.side} take {total / 1e9:.1f} GB"
    mend = "Lower side, choose where: scratch, or leave decoded_cache out"
    if cache.max_gb is not None and total > cache.max_gb * 1e9:
        raise ValueError(f"{what}, and max_gb allows {cache.max_gb:g}. Raise it, or: {mend}.")

    def lacking() -> int:
        try:
            there = 512 * (folder / PIXELS).stat().st_blocks
        except FileNotFoundError:
            there = 0
        missing = max(0, total - there)
        return missing and missing + int(cache.keep_free_gb * 1e9) - free_bytes(cache, folder.parent)

    if not make_room(folder.parent, lacking):
        free = free_bytes(cache, folder.parent)
        raise ValueError(
            f"{what}; {free / 1e9:.1f} GB are free on this node for {folder.parent}, of which {cache.keep_free_gb:g} GB"
            f" must stay so (keep_free_gb). {mend}."
        )


def free_bytes(cache: DecodedCache, above: Path) -> int:
    """Bytes that can still be taken: of the file system, and of memory what system and control group leave."""
    disk = os.statvfs(above)
    free = disk.f_bavail * disk.f_frsize
    return min(free, _free_memory()) if cache.where == "memory" else free


def _free_memory() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    root = Path("/sys/fs/cgroup")
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    for group in (root / own.strip("/"), *(root / own.strip("/")).parents):
        if not group.is_relative_to(root):
            break
        try:
            limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the root group has no limit; an older system has none of these
            continue
        if limit != "max":
            free = min(free, int(limit) - used + int(stat.get("inactive_file", 0)))
    return max(0, free)
