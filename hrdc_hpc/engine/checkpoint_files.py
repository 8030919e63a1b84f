"""What a checkpoint looks like on disk, and how to tell a whole one. Torch-free.

`checkpoints/step-<8 digits>/` holds

    state.pt        what torch.save wrote
    manifest.json   written last: format, step, size and xxh3_128 of each file, what the run was, and its own checksum

A folder of that name without a manifest, with a file of another size or content than the manifest says, or with the
manifest of another step, is damaged. The manifest's own checksum is taken the same way in every format, so that a
damaged manifest is told from one that a newer version wrote.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from hrdc_hpc.record.files import fsync_folder, write_text_durably

FORMAT = 1
STATE = "state.pt"
MANIFEST = "manifest.json"

_BEST = "best"
_CHECKSUM = "xxh3_128"
_CHUNK = 1 << 22


class Damaged(Exception):
    """A checkpoint is not whole; the text says why."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    about: dict[str, Any]
    files: dict[str, tuple[int, str]]
    """Size in bytes and xxh3_128 by file name."""

    @property
    def bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(size for size, _ in self.files.values())


@dataclass(frozen=True)
class Best:
    """The best evaluation so far; `about["best"]` of a checkpoint, in a run that has a holdout."""

    step: int
    accuracy: float
    """Mean over the classes, of the live weights' primary prediction on the held out images; a share of 1."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Best | None:
        """Read it from what a checkpoint says of itself; None if there is none, as in those of older versions."""
        told = about.get(_BEST)
        return cls(told["step"], told["accuracy"]) if told else None


def better(best: Best | None, step: int, accuracy: float | None) -> Best | None:
    """Return the better one of the best so far and the evaluation after `step` steps; of equal ones the earlier."""
    if accuracy is None or (best and best.accuracy >= accuracy):
        return best
    return Best(step, accuracy)


def with_best(about: dict[str, Any], best: Best | None) -> dict[str, Any]:
    """Return `about` with the best evaluation in it; as it is without one."""
    return {**about, _BEST: asdict(best)} if best else about


def best_step(folder: Path) -> int:
    """Return the step of the best evaluation, as the newest checkpoint whose manifest is sound tells it.

    Nothing but manifests is read: whether the checkpoint of that step is there and whole is for the caller to see.
    Raises ValueError if no checkpoint tells of a best one.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            about = look(path).about
        except Damaged:
            continue
        if best := Best.of(about):
            return best.step
        raise ValueError(
            f"{folder}: {path.name} names no best evaluation; there is one only in a run with data.holdout, after its"
            " first evaluation. Give the number of a step"
        )
    raise ValueError(f"{folder}: no checkpoint there, so no best one")


def folder_name(step: int) -> str:
    """Return the name of the checkpoint after `step` steps."""
    assert step >= 0, f"step {step}"
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step that a checkpoint's name tells; None for any other name."""
    match = re.fullmatch(r"step-(\d{8,})", path.name)
    return int(match[1]) if match and folder_name(int(match[1])) == path.name else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return what is named like a checkpoint, oldest step first; none has been verified."""
    if not folder.is_dir():
        return []
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found)]


def problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if every byte is as it was written."""
    try:
        verify(path)
    except Damaged as why:
        return str(why)
    return None


def verify(path: Path) -> Manifest:
    """Read all of a checkpoint. Raises Damaged if it is not whole, RuntimeError if this version cannot read it."""
    manifest = look(path)
    for name, (_, checksum) in manifest.files.items():
        digest = xxhash.xxh3_128()
        with _reading(path / name), (path / name).open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        _compare(name, digest.hexdigest(), checksum)
    return manifest


def look(path: Path) -> Manifest:
    """Read the manifest and compare the sizes, not the contents; raises like `verify`."""
    with _reading(path / MANIFEST):
        raw = (path / MANIFEST).read_bytes()
    value = _opened(raw)
    if value.get("format") != FORMAT:
        raise RuntimeError(
            f"{path} has format {value.get('format')}; this version of hrdc_hpc reads format {FORMAT}."
            " Go on with the version that wrote it"
        )
    manifest = Manifest(
        value["step"], value["about"], {n: (f["bytes"], f[_CHECKSUM]) for n, f in value["files"].items()}
    )
    if manifest.step != step_of(path):
        raise Damaged(f"its {MANIFEST} is that of step {manifest.step}")
    for name, (size, _) in manifest.files.items():
        with _reading(path / name):
            found = (path / name).stat().st_size
        if found != size:
            raise Damaged(f"{name} has {found} bytes, not {size}")
    return manifest


def read_state(path: Path) -> io.BytesIO:
    """Return the content of state.pt, read once: the bytes that were verified are the bytes returned."""
    manifest = look(path)
    with _reading(path / STATE):
        content = (path / STATE).read_bytes()
    _compare(STATE, xxhash.xxh3_128_hexdigest(content), manifest.files[STATE][1])
    return io.BytesIO(content)


def render(manifest: Manifest) -> bytes:
    """Return the content of manifest.json."""
    files = {name: {"bytes": size, _CHECKSUM: checksum} for name, (size, checksum) in manifest.files.items()}
    return _sealed({"format": FORMAT, "step": manifest.step, "files": files, "about": manifest.about})


def amend(path: Path, manifest: Manifest) -> None:
    """Put another manifest in the place of a whole checkpoint's; at any moment one of both is there, whole."""
    write_text_durably(path / MANIFEST, render(manifest).decode())


def plain_about(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy as it will be read back. Raises TypeError if it would come back as something else."""
    given = dict(about)
    try:
        copy: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"about: {error}; give plain JSON values") from error
    if copy != given:
        raise TypeError("about: does not survive JSON; give text keys, and lists instead of tuples")
    return copy


class HashedFile:
    """A file that is hashed while it is written, for torch.save.

    An error of the disk is kept for `finish` instead of raised: torch.save would try to complete its archive while the
    first error is on its way.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._digest = xxhash.xxh3_128()
        self._bytes = 0
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        if self._error is None:
            try:
                rest = view
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._error = error
            self._digest.update(view)
            self._bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def finish(self) -> tuple[int, str]:
        """Return size and checksum once everything is on disk; raises the first OSError."""
        if self._error is not None:
            raise self._error
        os.fsync(self._file.fileno())
        return self._bytes, self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to damaged-<its name>-<n>; nothing of it is deleted."""
    for number in itertools.count(1):
        aside = path.with_name(f"damaged-{path.name}-{number}")
        if not os.path.lexists(aside):
            path.rename(aside)
            fsync_folder(path.parent)
            return aside
    raise AssertionError


def _sealed(body: Mapping[str, Any]) -> bytes:
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(body).encode())
    return (json.dumps({**body, _CHECKSUM: checksum}, indent=1) + "\n").encode()


def _opened(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from error
    # written anew it must be the same to the last byte: no flipped bit is harmless
    if not isinstance(value, dict) or _sealed({k: v for k, v in value.items() if k != _CHECKSUM}) != raw:
        raise Damaged(f"{MANIFEST} has another checksum than was written")
    return value


def _compare(name: str, found: str, written: str) -> None:
    if found != written:
        raise Damaged(f"{name} has checksum {found}, not {written}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a missing or unreadable file into Damaged; a file system that does not answer is no damage."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{path.name} is missing") from error
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EISDIR):
            raise
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error
