"""A packed data set: a few large shards, each an uncompressed tar, and an index by which any image is read at once.

    PACK/pack.json                what it is, written last: without it the folder is not a data set yet
    PACK/train/shard-00000.tar    members <label>/<name>, in the order of the index; any tar reads them
    PACK/train/index.npz          of every image: shard, offset, length, size, label, checksum, name
    PACK/train/unreadable.jsonl   images of the source that are not in it, with the reason
    PACK/val/...                  the same

`python -m hrdc_hpc.pack` writes it; everybody else reads it through this file. Torch-free.

Axis legend: N images, B images of one request, M bytes of all names.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.data.arrays import map_arrays
from hrdc_hpc.data.index import BadFile, Bytes, Failure, ImageIndex, Names, failure_of, fingerprint_of, refuse_empty
from hrdc_hpc.data.manifest import MANIFEST, Manifest, Shard, SplitFacts
from hrdc_hpc.record.files import json_lines

INDEX, UNREADABLE = "index.npz", "unreadable.jsonl"
_CHUNK = 1 << 22
"""Bytes of a file that are hashed at a time."""

log = logging.getLogger(__name__)


def file_checksum(path: Path) -> str:
    """xxh3_64 of a file, 16 hexadecimal digits. Raises OSError."""
    import xxhash

    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class ShardFiles:
    """The shards of a split, each opened when it is first read, once a process. Thread-safe.

    While they are read, a shard may be exchanged for a copy with the same bytes (data/staging.py), and back.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        """Open nothing yet."""
        self.folder, self.shards = folder, tuple(shards)
        self.firsts = np.cumsum([0, *(shard.images for shard in shards)])
        """Number in the whole index of each shard's first image."""
        self._open: dict[int, int] = {}
        self._copies: dict[int, Path] = {}
        """Files that shards are read from instead."""
        self._left: set[int] = set()
        """Shards whose copy failed: it is not read again."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardFiles, (self.folder, self.shards)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def source(self, number: int) -> Path:
        """Path of a shard."""
        return self.folder / self.shards[number].file

    def path(self, number: int) -> Path:
        """Path of the file that a shard is read from: its own, or that of a copy."""
        return self._copies.get(number) or self.source(number)

    def descriptor(self, number: int) -> int:
        """Return an open descriptor of a shard. Raises OSError, and ValueError if it is not as long as when packed."""
        found = self._open.get(number)
        if found is not None:
            return found
        with self._lock:
            if number not in self._open:
                self._open[number] = self._opened(number, self.source(number))
            return self._open[number]

    def use_copy(self, number: int, path: Path) -> bool:
        """Read a shard from this file from now on; not if a copy of it failed before. Returns whether it is so.

        Raises OSError, and ValueError for a file of another length.
        """
        with self._lock:
            if number not in self._left and self._copies.get(number) != path:
                self._exchange(number, self._opened(number, path))
                self._copies[number] = path
            return number not in self._left

    def leave_copy(self, number: int, reason: str) -> bool:
        """Read a shard itself again, because its copy failed; returns whether it is, or was, read from a copy.

        Raises OSError and ValueError, as `descriptor`.
        """
        with self._lock:
            copy = self._copies.get(number)
            if copy is not None:
                descriptor = self._opened(number, self.source(number))
                log.warning("%s: %s; from now on %s is read instead", copy, reason, self.source(number))
                self._left.add(number)
                del self._copies[number]
                self._exchange(number, descriptor)
            return number in self._left

    def _exchange(self, number: int, descriptor: int) -> None:
        found = self._open.get(number)
        if found is None:
            self._open[number] = descriptor
            return
        # readers may be in the middle of a read with the old one: its number stays and stands for the other file
        os.dup2(descriptor, found, inheritable=False)
        os.close(descriptor)

    def _opened(self, number: int, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        length, expected = os.fstat(descriptor).st_size, self.shards[number].bytes
        if length != expected:
            os.close(descriptor)
            raise ValueError(f"the shard has {length} bytes, {expected} when it was packed")
        # read at random: what follows an image in its shard is not wanted
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return descriptor


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedIndex(ImageIndex):
    """The images of one split in their shards. `names` are those of the source, by which the images were known."""

    mend: ClassVar[str] = "Mend the pack (python -m hrdc_hpc.pack --verify --out PACK names all that is damaged)"

    files: ShardFiles
    shards_N: NDArray[np.int32]
    offsets_N: NDArray[np.int64]
    """Where in its shard the encoded image begins."""
    checksums_N: NDArray[np.uint64]
    """xxh3_64 of the encoded image."""
    numbers_N: NDArray[np.int64] | None = None
    """Numbers in the whole index, of a subset."""
    verify: bool = False
    """Whether reads compare checksums."""

    def path(self, number: int) -> str:
        """Name an image by shard, place in it (from 0) and name: 'PACK/train/shard-00003.tar[1234] (a/x.jpg)'."""
        shard = int(self.shards_N[number])
        whole = number if self.numbers_N is None else int(self.numbers_N[number])
        return f"{self.files.path(shard)}[{whole - self.files.firsts[shard]}] ({self.names[number]})"

    def subset(self, numbers: Sequence[int] | NDArray[np.int64], split: str) -> PackedIndex:
        """Return these images, in this order, as a split of their own."""
        chosen = np.asarray(numbers, np.int64)
        names, labels_N = Names.of([self.names[number] for number in chosen.tolist()]), self.labels_N[chosen]
        sizes_N2, bytes_N = self.sizes_N2[chosen], self.bytes_N[chosen]
        return replace(
            self,
            split=split,
            names=names,
            labels_N=labels_N,
            sizes_N2=sizes_N2,
            bytes_N=bytes_N,
            fingerprint=fingerprint_of(self.class_names, names, labels_N, sizes_N2, bytes_N),
            shards_N=self.shards_N[chosen],
            offsets_N=self.offsets_N[chosen],
            checksums_N=self.checksums_N[chosen],
            numbers_N=chosen if self.numbers_N is None else self.numbers_N[chosen],
        )

    def verifying(self) -> PackedIndex:
        """Return the index whose reads also compare checksums (data.loader.verify)."""
        return replace(self, verify=True)

    def at(self, folder: Path) -> PackedIndex:
        """Return the index that reads the same shards from another folder, such as a node's own copy of them."""
        return replace(self, files=ShardFiles(folder, self.files.shards))

    def will_need(self, indices_B: Sequence[int] | NDArray[np.int64]) -> None:
        """Have the system read these images ahead; the later the read, the more of them come at once. Thread-safe."""
        numbers = np.asarray(indices_B, np.int64)
        numbers = numbers[np.lexsort((self.offsets_N[numbers], self.shards_N[numbers]))]
        columns = (column[numbers].tolist() for column in (self.shards_N, self.offsets_N, self.bytes_N))
        with suppress(OSError, ValueError):  # the read itself will say so
            for shard, offset, length in zip(*columns, strict=True):
                os.posix_fadvise(self.files.descriptor(shard), offset, length, os.POSIX_FADV_WILLNEED)

    def read_into(self, indices_B: Sequence[int] | NDArray[np.int64], arrays: Sequence[Bytes]) -> dict[int, Failure]:
        """Read images into arrays of their lengths; returns {place in the request: why it failed}. Thread-safe."""
        numbers = np.asarray(indices_B, np.int64)
        failed: dict[int, Failure] = {}
        shards, offsets = self.shards_N[numbers].tolist(), self.offsets_N[numbers].tolist()
        for place, (shard, offset, array) in enumerate(zip(shards, offsets, arrays, strict=True)):
            failure = self._read_checked(numbers[place], shard, offset, array)
            if failure is not None:
                failure = self._without_copy(numbers[place], shard, offset, array, failure)
            if failure is not None:
                failed[place] = failure
        return failed

    def _without_copy(
        self, number: np.int64, shard: int, offset: int, array: Bytes, failure: Failure
    ) -> Failure | None:
        """Read an image again, from the shard itself, if what failed is, or may have been, a copy of it."""
        try:
            if not self.files.leave_copy(shard, failure.reason):
                return failure
        except OSError as error:
            return failure_of(error)
        except ValueError as error:
            return Failure(str(error))
        return self._read_checked(number, shard, offset, array)

    def _read_checked(self, number: np.int64, shard: int, offset: int, array: Bytes) -> Failure | None:
        failure = self._read(shard, offset, array)
        return self._differs(int(number), array) if failure is None and self.verify else failure

    def _read(self, shard: int, offset: int, array: Bytes) -> Failure | None:
        view, done = memoryview(array), 0  # type: ignore[arg-type]  # numpy arrays are buffers
        try:
            descriptor = self.files.descriptor(shard)
            while done < len(view):
                got = os.preadv(descriptor, [view[done:]], offset + done)
                if got == 0:
                    return Failure(f"the shard ends after {done} of its {len(view)} bytes")
                done += got
        except OSError as error:
            return failure_of(error)
        except ValueError as error:
            return Failure(str(error))
        return None

    def _differs(self, number: int, array: Bytes) -> Failure | None:
        import xxhash

        got, wanted = xxhash.xxh3_64_intdigest(memoryview(array)), int(self.checksums_N[number])  # type: ignore[arg-type]  # numpy arrays are buffers
        if got == wanted:
            return None
        return Failure(f"damaged: checksum {got:016x}, {wanted:016x} when it was packed")


def open_packed(root: Path, split: str, *, check: bool = True) -> PackedIndex:
    """Open a split of a packed data set; `check` compares the index with its checksum.

    ValueError for a folder that is none, or whose index or shards are not those that were written.
    """
    manifest = Manifest.read(root)
    facts = manifest.split(root, split)
    path = root / split / INDEX
    _check_index(path, facts, check=check)
    stored = map_arrays(path)
    skipped = read_unreadable(root / split)
    labels_N = np.array(stored["labels_N"])
    refuse_empty(root, split, manifest.classes, labels_N, left_out=len(skipped))
    return PackedIndex(
        root=root,
        split=split,
        class_names=manifest.classes,
        # names and checksums stay mapped: few are ever looked at. The rest is read at random, and copied: a file server
        # that fails must not be met by a look at an array
        names=Names(stored["names_M"], stored["names_ends_N"]),
        checksums_N=stored["checksums_N"],
        labels_N=labels_N,
        sizes_N2=np.array(stored["sizes_N2"]),
        bytes_N=np.array(stored["bytes_N"]),
        fingerprint=facts.fingerprint,
        skipped=skipped,
        files=ShardFiles(root / split, facts.shards),
        shards_N=np.array(stored["shards_N"]),
        offsets_N=np.array(stored["offsets_N"]),
    )


def _mend(root: Path) -> str:
    return f"Pack it anew: remove {root / MANIFEST}, then give the command that made it"


def _check_index(path: Path, facts: SplitFacts, *, check: bool) -> None:
    mend = _mend(path.parents[1])
    try:
        length = path.stat().st_size
        checksum = file_checksum(path) if check and length == facts.index_bytes else facts.index_checksum
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing. {mend}.") from error
    if length != facts.index_bytes:
        raise ValueError(f"{path}: {length} bytes, {facts.index_bytes} when it was packed. {mend}.")
    if checksum != facts.index_checksum:
        raise ValueError(f"{path}: damaged: checksum {checksum}, {facts.index_checksum} when it was packed. {mend}.")


def read_unreadable(folder: Path) -> tuple[BadFile, ...]:
    """Return the images of the source that were left out of a split. ValueError if the list is missing or damaged."""
    path = folder / UNREADABLE
    try:
        return tuple(BadFile(line["name"], line["reason"]) for line in json_lines(path.read_bytes()))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing. {_mend(folder.parent)}.") from error
    except KeyError as error:
        raise ValueError(f"{path}: damaged: a line without {error}. {_mend(folder.parent)}.") from error


def index_arrays(
    *,
    names: Names,
    labels_N: NDArray[np.int64],
    sizes_N2: NDArray[np.int32],
    bytes_N: NDArray[np.int64],
    shards_N: NDArray[np.int32],
    offsets_N: NDArray[np.int64],
    checksums_N: NDArray[np.uint64],
) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of an index file, by the names that they have in it."""
    return {
        "shards_N": shards_N.astype("<i4"),
        "offsets_N": offsets_N.astype("<i8"),
        "bytes_N": bytes_N.astype("<i8"),
        "sizes_N2": sizes_N2.astype("<i4"),
        "labels_N": labels_N.astype("<i8"),
        "checksums_N": checksums_N.astype("<u8"),
        "names_ends_N": names.ends_N.astype("<i8"),
        "names_M": names.blob_M,
    }


def unreadable_line(name: str, label: int | None, reason: str) -> bytes:
    """Return a line of unreadable.jsonl; `label` is None where the data set itself refused the image."""
    return (json.dumps({"name": name, "label": label, "reason": reason}) + "\n").encode()
