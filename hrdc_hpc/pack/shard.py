"""Writing one shard, and telling whether one that is there is whole. Torch-free.

A shard is written beside its name, flushed and renamed; then its part, in the same way: a small file with what is in
the shard. So a part says that its shard is whole, and a start after a kill writes only shards without one.

Axis legend: n images of a shard.
"""

from __future__ import annotations

import json
import os
import tarfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hrdc_hpc.data.arrays import map_arrays, write_arrays
from hrdc_hpc.data.headers import BadImageError
from hrdc_hpc.data.index import Bytes, Failure, ImageIndex, unusable
from hrdc_hpc.data.packed import file_checksum
from hrdc_hpc.data.prefetch import Ahead
from hrdc_hpc.pack.encode import pack_image
from hrdc_hpc.pack.plan import BLOCK, Options, Task, parts_folder
from hrdc_hpc.record.files import TEMPORARY, fsync_folder, naming, temporary_beside

_CHUNK = 64
"""Images read at a time."""
_READERS = 8
"""Files read at once, by each process that packs."""
_JPEG = b"\xff\xd8"
"""How one begins."""
_RECORD = 20 * BLOCK
"""A tar's length is a multiple of this, by custom."""

MEND = (
    "Replace it and start again, or remove it and pack into another --out, or leave out --on-bad stop to have such"
    " images listed."
)
"""What whoever wants to stop at an unreadable image can do."""

Tell = Callable[[int, int], None]
"""Called with so many images and bytes of the source that are done."""


class Stopped(Exception):
    """The packer was asked to stop."""


class Unreadable(ValueError):
    """An image cannot be packed, and the user wants to stop then."""


@dataclass(frozen=True, eq=False)
class Part:
    """What is in a shard, beside the names and labels, which the source has."""

    bytes: int
    """Length of the tar."""
    checksum: str
    source: str
    """Fingerprint of the images of the source that it was made from."""
    options: dict[str, Any]
    bad: dict[int, str]
    """Reasons by place in the source's images."""
    places_n: NDArray[np.int32]
    """Which of the source's images are in it, in order."""
    offsets_n: NDArray[np.int64]
    bytes_n: NDArray[np.int64]
    sizes_n2: NDArray[np.int32]
    checksums_n: NDArray[np.uint64]


@dataclass
class _Rows:
    """Part's arrays while they grow."""

    places: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)


def shard_path(out: Path, split: str, number: int) -> Path:
    """Path of a shard."""
    return out / split / f"shard-{number:05d}.tar"


def part_path(out: Path, split: str, number: int) -> Path:
    """Path of the file that says what is in a shard."""
    return parts_folder(out) / f"{split}-{number:05d}.npz"


def pack_shard(out: Path, task: Task, options: Options, *, on_bad: str, tell: Tell, stop: Callable[[], bool]) -> bool:
    """Have the shard of a task on disk; returns whether it was whole already.

    Raises Stopped, Unreadable (on_bad 'stop'), RuntimeError where disk or network failed, OSError.
    """
    _remove_leftovers(out, task)
    part = read_part(out, task.split, task.number)
    if part is not None and _is_whole(out, task, options, part) and _still_bad(task.source, part, options):
        if part.bad and on_bad == "stop":
            place, reason = next(iter(part.bad.items()))
            raise Unreadable(f"{task.source.path(place)}: cannot be packed: {reason}. {MEND}")
        tell(len(task.source), int(task.source.bytes_N.sum()))
        return True
    path = shard_path(out, task.split, task.number)
    with replacing(path) as file:
        writer = _Writer(file)
        rows = _Rows()
        with warnings.catch_warnings():
            # of large images, and of files that are odd in ways that change no pixel
            warnings.filterwarnings("ignore", module=r"PIL\.")
            for place, content in _contents(task.source, stop):
                _add(writer, rows, task.source, place, content, options, on_bad)
                tell(1, int(task.source.bytes_N[place]))
        writer.finish()
    _write_part(part_path(out, task.split, task.number), task, options, rows, writer)
    return False


def _contents(source: ImageIndex, stop: Callable[[], bool]) -> Iterator[tuple[int, Bytes | Failure]]:
    """Yield the bytes of each image, or why there are none, in order; some are read ahead."""
    starts = range(0, len(source), _CHUNK)
    with ThreadPoolExecutor(_READERS, "hrdc-pack") as readers:

        def read(place: int) -> Bytes | Failure:
            array = np.empty(source.bytes_N[place], np.uint8)
            return source.read_into([place], [array]).get(0, array)

        def make(start: int) -> tuple[int, list[Bytes | Failure]]:
            return start, list(readers.map(read, range(start, min(start + _CHUNK, len(source)))))

        ahead = Ahead(make, starts, 2)
        try:
            while (chunk := ahead.get(wait=True)) is not None:
                for place, content in enumerate(chunk[1], chunk[0]):
                    if stop():
                        raise Stopped
                    yield place, content
            ahead.check()
        finally:
            ahead.close()


def _add(
    writer: _Writer,
    rows: _Rows,
    source: ImageIndex,
    place: int,
    content: Bytes | Failure,
    options: Options,
    on_bad: str,
) -> None:
    """Add an image to the shard, or its reason to the list."""
    if isinstance(content, Failure) and content.passing:
        raise unusable("cannot be packed", {source.path(place): content}, "remove the file")
    try:
        if isinstance(content, Failure):
            raise BadImageError(content.reason)
        packed, height, width = pack_image(content.tobytes(), options)
    except BadImageError as error:
        if on_bad == "stop":
            raise Unreadable(f"{source.path(place)}: cannot be packed: {error}. {MEND}") from error
        rows.bad[place] = str(error)
        return
    name = member_name(int(source.labels_N[place]), source.names[place], jpeg=packed.startswith(_JPEG))
    rows.places.append(place)
    rows.offsets.append(writer.add(name, packed))
    rows.bytes.append(len(packed))
    rows.sizes.append((height, width))
    rows.checksums.append(xxhash.xxh3_64_intdigest(packed))


def member_name(label: int, name: str, *, jpeg: bool) -> str:
    """Return '<label>/<name>' as a path that stays below its folder; `jpeg`: what is one is not named .png."""
    path = PurePosixPath(*(part for part in name.split("/") if part not in ("", ".", "..")))
    if jpeg and path.suffix.lower() == ".png":
        path = path.with_name(f"{path.name}.jpg")  # beside x.png there may be an x.jpg
    return f"{label}/{path}"


class _Writer:
    """An uncompressed tar of which every byte follows from names and contents."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.length = file, xxhash.xxh3_64(), 0

    @property
    def checksum(self) -> str:
        return self._digest.hexdigest()

    def add(self, name: str, content: bytes) -> int:
        """Append a member; returns where its content begins."""
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(content), 0o644, 0
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        start = self.length
        self._write(content)
        self._write(bytes(-self.length % BLOCK))
        return start

    def finish(self) -> None:
        """Write the end."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.length % _RECORD))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.length += len(content)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is at `path` afterwards, whole and on disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary_beside(path)
    try:
        with naming(path), aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            aside.replace(path)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"{path}: another packer has removed what was being written: let one packer at a time write to a folder"
            ) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def _remove_leftovers(out: Path, task: Task) -> None:
    """Remove what killed packers left of this shard: nobody else writes it."""
    for path in (shard_path(out, task.split, task.number), part_path(out, task.split, task.number)):
        for left in path.parent.glob(f"{TEMPORARY}{path.name}-*"):
            left.unlink(missing_ok=True)


def _write_part(path: Path, task: Task, options: Options, rows: _Rows, writer: _Writer) -> None:
    told = {
        "bytes": writer.length,
        "checksum": writer.checksum,
        "source": task.source.fingerprint,
        "options": options.as_json(),
        "bad": rows.bad,
    }
    arrays = {
        "places_n": np.array(rows.places, "<i4"),
        "offsets_n": np.array(rows.offsets, "<i8"),
        "bytes_n": np.array(rows.bytes, "<i8"),
        "sizes_n2": np.array(rows.sizes, "<i4").reshape(-1, 2),
        "checksums_n": np.array(rows.checksums, "<u8"),
        "told": np.frombuffer(json.dumps(told).encode(), np.uint8),
    }
    with replacing(path) as file:
        write_arrays(file, arrays)


def read_part(out: Path, split: str, number: int) -> Part | None:
    """Return what is in a shard; None if it has not been written whole."""
    try:
        # checked: a changed byte in it would give images the labels of others
        stored: dict[str, Any] = dict(map_arrays(part_path(out, split, number), check=True))
        told = json.loads(stored.pop("told").tobytes())
        bad = {int(place): reason for place, reason in told.pop("bad").items()}
        return Part(**told, bad=bad, **stored)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_of(part: Part, task: Task, options: Options) -> bool:
    """Whether a part tells of just these images, packed with these options."""
    return part.source == task.source.fingerprint and part.options == options.as_json()


def _is_whole(out: Path, task: Task, options: Options, part: Part) -> bool:
    if not is_of(part, task, options):
        return False
    path = shard_path(out, task.split, task.number)
    with suppress(FileNotFoundError):
        return path.stat().st_size == part.bytes and file_checksum(path) == part.checksum
    return False


def _still_bad(source: ImageIndex, part: Part, options: Options) -> bool:
    """Whether the images that a shard lacks are unreadable to this day: somebody may have mended them."""
    for place in part.bad:
        array = np.empty(source.bytes_N[place], np.uint8)
        if not source.read_into([place], [array]):
            with suppress(BadImageError):
                pack_image(array.tobytes(), options)
                return False
    return True


def has_length(out: Path, split: str, number: int, part: Part) -> bool:
    """Whether the shard is there and as long as its part says."""
    with suppress(FileNotFoundError):
        return shard_path(out, split, number).stat().st_size == part.bytes
    return False
