"""Whether a pack is as it was written: every checksum, every offset against the tar itself, every count. Torch-free.

Axis legend: n images of a shard.
"""

from __future__ import annotations

import multiprocessing
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.signals import shielded
from hrdc_hpc.data.index import fingerprint_of, name_some
from hrdc_hpc.data.manifest import MANIFEST, Manifest, Shard
from hrdc_hpc.data.packed import PackedIndex, file_checksum, open_packed
from hrdc_hpc.pack.progress import display
from hrdc_hpc.pack.shard import member_name
from hrdc_hpc.pack.work import SIGNALS, leave_signals_to

_CHUNK = 1 << 22
"""Bytes read at a time."""
_JPEG = b"\xff\xd8"


@dataclass
class Found:
    """What is wrong with one shard, and which images that concerns."""

    wrong: list[str] = field(default_factory=list)
    concerned: list[str] = field(default_factory=list)
    compared: bool = True
    """Whether every image was compared with the index."""

    def __str__(self) -> str:
        if self.concerned:
            images = f"Images concerned ({len(self.concerned)}): {name_some(self.concerned)}"
        elif self.compared:
            images = "No image is concerned: it lies between them"
        else:
            images = "Which images that concerns cannot be told"
        return f"{'; '.join(self.wrong)}. {images}."


def verify(out: Path, workers: int) -> int:
    """Check a pack and say what is wrong; 0, or 1 if anything is. ValueError for a folder that is no finished pack."""
    manifest = Manifest.read(out)
    sound = True
    images = source_bytes = 0
    indexed: dict[str, bool] = {}
    for split in manifest.splits:
        lines = list(_of_index(out, split, manifest))
        for line in lines:
            say(line)
        indexed[split] = not lines
        sound = sound and not lines
    jobs = [
        (out, split, number, indexed[split])
        for split, facts in manifest.splits.items()
        for number in range(len(facts.shards))
    ]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, leave_signals_to, (os.getpid(),))
    shown = display(sum(facts.images for facts in manifest.splits.values()))
    try:
        with shielded(SIGNALS):
            found = pool.map(_verify, jobs) if workers > 1 and len(jobs) > 1 else map(_verify, jobs)
        for (_, split, number, _), answer in zip(jobs, found, strict=True):
            shard = manifest.splits[split].shards[number]
            images, source_bytes = images + shard.images, source_bytes + shard.bytes
            shown.show(images, source_bytes)
            if answer is not None:
                sound = False
                say(f"{out / split / shard.file}: {answer}")
    finally:
        pool.shutdown(cancel_futures=True)
        shown.close()
    if sound:
        say(f"{out} is whole: {len(jobs)} shards, {images:,} images, every checksum and offset")
        return Exit.DONE
    say(
        f"{out} is damaged. To mend it: remove {out / MANIFEST}, then give the command that packed it; only damaged"
        " shards are written anew."
    )
    return Exit.FAILED


def _of_index(out: Path, split: str, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with a split's index as a whole."""
    facts = manifest.splits[split]
    try:
        index = open_packed(out, split)
    except (ValueError, OSError) as error:
        yield str(error)
        return
    if len(index) != facts.images or int(index.bytes_N.sum()) != facts.bytes:
        yield f"{out / split}: the index has {len(index)} images, {MANIFEST} says {facts.images}"
    if sum(shard.images for shard in facts.shards) != facts.images:
        yield f"{out / split}: the shards do not add up to the {facts.images} images in {MANIFEST}"
    fingerprint = fingerprint_of(index.class_names, index.names, index.labels_N, index.sizes_N2, index.bytes_N)
    if fingerprint != facts.fingerprint:
        yield f"{out / split}: fingerprint {fingerprint}, {MANIFEST} says {facts.fingerprint}"
    if len(index.skipped) != facts.unreadable:
        yield f"{out / split}: {len(index.skipped)} unreadable images are listed, {MANIFEST} says {facts.unreadable}"


def _verify(job: tuple[Path, str, int, bool]) -> Found | None:
    out, split, number, indexed = job
    try:
        if not indexed:  # what a damaged index says of images means nothing
            return _verify_whole(out / split, Manifest.read(out).split(out, split).shards[number])
        index = open_packed(out, split, check=False)
    except (ValueError, OSError) as error:
        return Found([f"cannot be checked: {error}"], compared=False)
    return verify_shard(index, number)


def _verify_whole(folder: Path, shard: Shard) -> Found | None:
    """Return what is wrong with a shard, without a look at its images."""
    found, path = Found(compared=False), folder / shard.file
    try:
        length = path.stat().st_size
        if length != shard.bytes:
            found.wrong.append(f"{length} bytes, {shard.bytes} when it was packed")
        elif (checksum := file_checksum(path)) != shard.checksum:
            found.wrong.append(f"checksum {checksum}, {shard.checksum} when it was packed")
    except FileNotFoundError:
        found.wrong.append("missing")
    except OSError as error:
        found.wrong.append(f"cannot be read: {error.strerror}")
    return found if found.wrong else None


def verify_shard(index: PackedIndex, number: int) -> Found | None:
    """Return what is wrong with a shard; None if nothing is."""
    shard, path, found = index.files.shards[number], index.files.path(number), Found()
    numbers = np.arange(index.files.firsts[number], index.files.firsts[number + 1])
    try:
        length = path.stat().st_size
        if length != shard.bytes:
            found.wrong.append(f"{length} bytes, {shard.bytes} when it was packed")
        starts = _check_bytes(index, numbers, path, shard, found)
        _check_members(index, numbers, path, starts, found)
    except FileNotFoundError:
        found.wrong.append("missing")
        found.concerned = [_shown(index, number) for number in numbers.tolist()]
    except OSError as error:
        found.wrong.append(f"cannot be read: {error.strerror}")
        found.compared = False
    return found if found.wrong else None


def _shown(index: PackedIndex, number: int) -> str:
    """'[1234] (a/x.jpg)'."""
    return index.path(number).removeprefix(str(index.files.path(int(index.shards_N[number]))))


def _check_bytes(index: PackedIndex, numbers: NDArray[np.int64], path: Path, shard: Shard, found: Found) -> list[bytes]:
    """Compare the checksums of the shard and of every image, reading once; returns how each image begins."""
    whole = xxhash.xxh3_64()
    starts: list[bytes] = []
    with path.open("rb", buffering=_CHUNK) as file:
        for number in numbers.tolist():
            gap = int(index.offsets_N[number]) - file.tell()
            if gap < 0:
                found.wrong.append(f"image {number} of the index begins inside the one before it")
                found.compared = False
                return starts
            whole.update(file.read(gap))
            content = file.read(int(index.bytes_N[number]))
            whole.update(content)
            starts.append(content[:2])
            if xxhash.xxh3_64_intdigest(content) != int(index.checksums_N[number]):
                found.concerned.append(_shown(index, number))
        while rest := file.read(_CHUNK):
            whole.update(rest)
    if whole.hexdigest() != shard.checksum:
        found.wrong.append(f"checksum {whole.hexdigest()}, {shard.checksum} when it was packed")
    elif found.concerned:
        found.wrong.append("images differ from their checksums in the index")
    return starts


def _check_members(
    index: PackedIndex,
    numbers: NDArray[np.int64],
    path: Path,
    starts: list[bytes],
    found: Found,
) -> None:
    """Compare names, offsets and lengths with what the tar itself says."""
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            members = [(member.name, member.offset_data, member.size) for member in tar]
    except tarfile.TarError as error:
        found.wrong.append(f"no readable tar: {error}")
        return
    if len(members) != len(numbers):
        found.wrong.append(f"the tar has {len(members)} members, the index {len(numbers)}")
    for number, start, member in zip(numbers.tolist(), starts, members, strict=False):
        name = member_name(int(index.labels_N[number]), index.names[number], jpeg=start == _JPEG)
        expected = (name, int(index.offsets_N[number]), int(index.bytes_N[number]))
        if member != expected:
            if not found.wrong:  # the shard is as it was written: what the index says of the image is not
                found.concerned.append(_shown(index, number))
            found.wrong.append(f"member {member} where the index has {expected}")
            return
