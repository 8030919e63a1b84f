"""Images by number: where each lies, its size and its label. Torch-free.

Axis legend: N images, C classes, B images of one request.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Data
from hrdc_hpc.data.classes import ClassInfo, group_classes
from hrdc_hpc.data.pixels import PixelArray

Split = Literal["train", "val"]
OnBad = Literal["stop", "skip"]
Bytes = NDArray[np.uint8]

_PACKAGE = "hrdc_hpc.data.datasets"
_NAMED = 20
"""Files or classes that an error names before it only counts them."""
_OWN_FAULTS = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
)
"""Errors that lie with a file and come again; others, such as EIO and ESTALE, are a disk's or a server's."""

log = logging.getLogger(__name__)


class DataError(ValueError):
    """Files of the data set cannot be used, and the next start would meet the same ones."""


def name_some(names: Iterable[str]) -> str:
    """Join names with commas; beyond 20 it says how many more there are."""
    all_names = list(names)
    more = f" ... and {len(all_names) - _NAMED} more" if len(all_names) > _NAMED else ""
    return ", ".join(all_names[:_NAMED]) + more


class Names:
    """N file names in two arrays: a path object each would take a hundred times the memory."""

    def __init__(self, blob_M: Bytes, ends_N: NDArray[np.int64]) -> None:
        """Take the joined bytes of all names and where each ends."""
        self.blob_M, self.ends_N = blob_M, ends_N  # no copy: they may be mapped from a file

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Pack names."""
        encoded = [os.fsencode(name) for name in names]
        lengths = np.fromiter((len(name) for name in encoded), np.int64, len(encoded))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends_N)

    def __getitem__(self, number: int) -> str:
        start = self.ends_N[number - 1] if number else 0
        return os.fsdecode(self.blob_M[start : self.ends_N[number]].tobytes())


@dataclass(frozen=True)
class BadFile:
    """A file of the data set that is not a whole image."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class Failure:
    """Why an image could not be used when it was its turn."""

    reason: str
    passing: bool = False
    """Whether disk or network failed rather than the file: another start may find it whole."""


def unusable(
    what: str, failures: Mapping[str, Failure], otherwise: str, *, mend: str = "Replace or remove them"
) -> DataError | RuntimeError:
    """Return the error that names files ({path: why}) and what to do.

    `mend` is how to mend the files, `otherwise` the way out beside it. RuntimeError if disk or network failed,
    DataError if not.
    """
    text = f"{what}: {name_some(f'{path} ({failure.reason})' for path, failure in failures.items())}."
    if any(failure.passing for failure in failures.values()):
        return RuntimeError(f"{text} Disk or network failed: start the run again. If it fails again, {otherwise}.")
    return DataError(f"{text} {mend}, or {otherwise}.")


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The encoded images of one split."""

    mend: ClassVar[str] = "Replace or remove them"
    """What to do about images that cannot be used."""

    root: Path
    """Folder that the names are relative to."""
    split: str
    class_names: tuple[str, ...]
    names: Names
    labels_N: NDArray[np.int64]
    sizes_N2: NDArray[np.int32]
    """Height and width in pixels, EXIF orientation ignored."""
    bytes_N: NDArray[np.int64]
    """Length of the encoded image."""
    fingerprint: str
    """Hash over class names, file names, labels, lengths and sizes; the same on any machine."""
    skipped: tuple[BadFile, ...] = ()
    """Files that were left out because they are not whole images (data.on_bad_image: skip)."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def counts_C(self) -> NDArray[np.int64]:
        """Images per class."""
        return np.bincount(self.labels_N, minlength=len(self.class_names)).astype(np.int64, copy=False)

    def subset(self, numbers: Sequence[int] | NDArray[np.int64], split: str) -> ImageIndex:
        """Return these images, in this order, as a split of their own."""
        names, labels_N = Names.of([self.names[int(number)] for number in numbers]), self.labels_N[numbers]
        sizes_N2, bytes_N = self.sizes_N2[numbers], self.bytes_N[numbers]
        fingerprint = fingerprint_of(self.class_names, names, labels_N, sizes_N2, bytes_N)
        return ImageIndex(
            self.root, split, self.class_names, names, labels_N, sizes_N2, bytes_N, fingerprint, self.skipped
        )

    def path(self, number: int) -> str:
        """Path of an image's file."""
        return f"{self.root}/{self.names[number]}"

    def will_need(self, indices_B: Sequence[int] | NDArray[np.int64]) -> None:
        """Say which images will be read soon. Files of their own gain nothing: to open each is what takes time."""

    def verifying(self) -> ImageIndex:
        """Return the index whose reads also compare checksums (data.loader.verify); files of their own have none."""
        return self

    def read(self, indices_B: Sequence[int] | NDArray[np.int64]) -> list[Bytes]:
        """Return the encoded bytes of images, in the order asked for. Raises, naming every file that fails."""
        arrays = [np.empty(self.bytes_N[i], np.uint8) for i in indices_B]
        failed = self.read_into(indices_B, arrays)
        if failed:
            failures = {self.path(int(indices_B[place])): failure for place, failure in failed.items()}
            raise unusable(f"{len(failed)} images cannot be read", failures, "open the data set anew", mend=self.mend)
        return arrays

    def read_into(self, indices_B: Sequence[int] | NDArray[np.int64], arrays: Sequence[Bytes]) -> dict[int, Failure]:
        """Read images into arrays of their lengths; returns {place in the request: why it failed}. Thread-safe."""
        failed: dict[int, Failure] = {}
        for place, (number, array) in enumerate(zip(indices_B, arrays, strict=True)):
            failure = _read_file(self.path(int(number)), array)
            if failure is not None:
                failed[place] = failure
        return failed


def _read_file(path: str, array: Bytes) -> Failure | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            view, done = memoryview(array), 0  # type: ignore[arg-type]  # numpy arrays are buffers
            length = os.fstat(descriptor).st_size
            if length != len(view):
                return Failure(f"{length} bytes, {len(view)} when the data set was indexed")
            while done < length:
                got = os.readv(descriptor, [view[done:]])
                if got == 0:
                    return Failure(f"ends after {done} of {length} bytes")
                done += got
        finally:
            os.close(descriptor)
    except OSError as error:
        return failure_of(error)
    return None


def failure_of(error: OSError) -> Failure:
    """Return what an error of the operating system says of an image."""
    return Failure(error.strerror or str(error), passing=error.errno not in _OWN_FAULTS)


def make_index(
    *,
    root: Path,
    split: str,
    class_names: Sequence[str],
    names: Names,
    labels_N: NDArray[np.int64],
    sizes_N2: NDArray[np.int32],
    bytes_N: NDArray[np.int64],
    bad: Sequence[BadFile],
    on_bad_image: OnBad,
) -> ImageIndex:
    """Apply the policy for bad files and check the classes; `bad` are not among the N images.

    Raises DataError (on_bad_image 'stop') naming the bad files; ValueError for no image at all or, in the training
    split, a class without one.
    """
    if bad and on_bad_image == "stop":
        raise DataError(
            f"{root}: {len(bad)} of {len(bad) + len(names)} {split} images cannot be used: {name_some(map(str, bad))}."
            " Replace or remove them, or set data.on_bad_image: skip to leave them out."
        )
    refuse_empty(root, split, class_names, labels_N, left_out=len(bad))
    return ImageIndex(
        root=root,
        split=split,
        class_names=tuple(class_names),
        names=names,
        labels_N=labels_N,
        sizes_N2=sizes_N2,
        bytes_N=bytes_N,
        fingerprint=fingerprint_of(class_names, names, labels_N, sizes_N2, bytes_N),
        skipped=tuple(bad),
    )


def refuse_empty(
    root: Path, split: str, class_names: Sequence[str], labels_N: NDArray[np.int64], *, left_out: int
) -> None:
    """ValueError for no image at all or, in the training split, a class without one."""
    beside = f" ({left_out} bad files were left out)" if left_out else ""
    if not len(labels_N):
        raise ValueError(f"{root}: no {split} images{beside}. Point data.dataset.root at the data set.")
    counts_C = np.bincount(labels_N, minlength=len(class_names))
    if split == "train" and not counts_C.all():
        empty = [class_names[int(c)] for c in np.flatnonzero(counts_C == 0)]
        raise ValueError(
            f"{root}: {len(empty)} of {len(class_names)} classes have no training image{beside}: {name_some(empty)}."
            " Add images or remove the classes."
        )


def fingerprint_of(
    class_names: Sequence[str],
    names: Names,
    labels_N: NDArray[np.int64],
    sizes_N2: NDArray[np.int32],
    bytes_N: NDArray[np.int64],
) -> str:
    """Return ImageIndex.fingerprint."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\0".join(class_names).encode("utf-8", "surrogateescape"))
    for array, kind in (
        (names.blob_M, "u1"),
        (names.ends_N, "<i8"),
        (labels_N, "<i8"),
        (sizes_N2, "<i4"),
        (bytes_N, "<i8"),
    ):
        digest.update(b"\0\0" + np.ascontiguousarray(array, kind).tobytes())
    return digest.hexdigest()


def open_split(data: Data, split: Split, *, trust_cache: bool = False) -> ImageIndex | PixelArray:
    """Open a split of the run's data set, after making the data set if it is one that can be made offline.

    `trust_cache` takes an index that an earlier start on this data set kept, without a look at every file: where many
    ranks start, let one open the split first and the others after it, trusting. Who does not trust it also warns of
    classes without a val image. Raises ValueError for a wrong layout, DataError for bad files.
    """
    file = registry.module(_PACKAGE, data.dataset.name)
    options = data.dataset.options if data.dataset.options is not None else file.Options()
    if hasattr(file, "prepare"):
        file.prepare(options)
    index = cast(ImageIndex | PixelArray, file.open(options, split, data.on_bad_image, trust_cache=trust_cache))
    if data.loader.verify and isinstance(index, ImageIndex):
        index = index.verifying()
    if not trust_cache:
        _warn_of_absent_classes(index)
    return index


def _warn_of_absent_classes(index: ImageIndex | PixelArray) -> None:
    """Training refuses such a class, evaluation cannot: a holdout may be small. But it is often an upload cut short."""
    absent = np.flatnonzero(index.counts_C == 0)
    if len(absent):
        log.warning(
            "%s: %d of %d classes have no %s image%s, so no accuracy counts them: %s. Add images if that is not meant.",
            index.root,
            len(absent),
            len(index.class_names),
            index.split,
            f" ({len(index.skipped)} bad files were left out)" if index.skipped else "",
            name_some(index.class_names[int(c)] for c in absent),
        )


def check_same_classes(train: ImageIndex | PixelArray, val: ImageIndex | PixelArray) -> None:
    """ValueError, naming them, if the validation split has classes that the training split lacks."""
    extra = sorted(set(val.class_names) - set(train.class_names))
    if extra or len(val.class_names) > len(train.class_names):
        raise ValueError(
            f"{val.root}: the val split has {len(extra)} classes that are not among the {len(train.class_names)} of the"
            f" train split: {name_some(extra)}. Remove them, or add training images of them."
        )


def class_info(train: ImageIndex | PixelArray, data: Data) -> ClassInfo:
    """Return names, counts, levels and shots of the training classes. ValueError for ranks that do not add up."""
    counts_C = train.counts_C
    return ClassInfo(
        names=train.class_names,
        counts_C=counts_C,
        levels_C=group_classes(counts_C, data.levels, "data.levels"),
        shots_C=group_classes(counts_C, data.shots, "data.shots"),
    )
