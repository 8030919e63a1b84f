"""Image files: listing them by class folders, and reading their headers once. Torch-free.

Axis legend: N files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.data import cache
from hrdc_hpc.data.headers import EXTENSIONS, REFUSED, BadImageError, read_header
from hrdc_hpc.data.index import BadFile, ImageIndex, Names, OnBad, Split, make_index, name_some

THREADS = 16
"""Files looked at at once: a parallel file system answers each slowly and many at a time."""
_KIND = "folders"
_Arrays = Mapping[str, NDArray[Any]]

T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Map over threads, in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders below `folder`: by number when all are integers, else in code-point order."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


@dataclass(frozen=True)
class Listing:
    """Every image file, as the folders tell it."""

    names: list[str]
    """Below the root; no two alike."""
    labels_N: NDArray[np.int64]
    bytes_N: NDArray[np.int64]
    mtimes_N: NDArray[np.int64]


def open_folders(
    root: Path, folder: str, split: Split, class_names: Sequence[str], on_bad_image: OnBad, *, trust_cache: bool = False
) -> ImageIndex:
    """Index root/folder/<class>/<image>; labels are places in `class_names`, images are in code-point order per class.

    Raises ValueError for a folder that is no class, a nested folder or an image of a kind that is not read;
    DataError for bad files under 'stop'.
    """
    return open_files(
        lambda: _list(root, folder, class_names),
        root=root,
        kind=_KIND,
        key=folder,
        split=split,
        class_names=class_names,
        on_bad_image=on_bad_image,
        trust_cache=trust_cache,
    )


def open_files(
    find: Callable[[], Listing],
    *,
    root: Path,
    kind: str,
    key: str,
    split: Split,
    class_names: Sequence[str],
    on_bad_image: OnBad,
    trust_cache: bool,
    stamp: bytes = b"",
) -> ImageIndex:
    """Index the files that `find` lists below root, reading the headers of those that are new or have changed.

    kind and key name the cache. With trust_cache nothing is listed or read where it was filled for the same classes and
    the same stamp, which stands for what `find` reads. Raises as make_index does.
    """
    stored = cache.load(kind, root, key)
    if not (trust_cache and stored is not None and _same(stored, class_names, stamp)):
        listing = find()
        sizes_N2 = _sizes_from_cache(stored, listing)
        unknown = np.flatnonzero(sizes_N2[:, 0] == 0)
        bad = _read_headers(root, listing, sizes_N2, unknown)
        stored = _arrays(listing, sizes_N2, class_names, bad)
        stored["stamp"] = np.frombuffer(stamp, np.uint8)
        cache.save(kind, root, key, stored)
    return make_index(
        root=root,
        split=split,
        class_names=class_names,
        names=Names(stored["names"], stored["names_ends"]),
        labels_N=stored["labels_N"],
        sizes_N2=stored["sizes_N2"],
        bytes_N=stored["bytes_N"],
        bad=[BadFile(*pair) for pair in zip(_names(stored, "bad"), _names(stored, "reasons"), strict=True)],
        on_bad_image=on_bad_image,
    )


def _same(stored: _Arrays, class_names: Sequence[str], stamp: bytes) -> bool:
    kept = stored.get("stamp", np.empty(0, np.uint8)).tobytes()
    return kept == stamp and _names(stored, "classes") == list(class_names)


def _list(root: Path, folder: str, class_names: Sequence[str]) -> Listing:
    present = class_folders(root / folder)
    unknown = sorted(set(present) - set(class_names))
    if unknown:
        raise ValueError(
            f"{root / folder}: {len(unknown)} folders are not among the {len(class_names)} classes of the train split:"
            f" {name_some(unknown)}. Remove them, or add training images of them."
        )
    inside = set(present)
    found = in_threads(lambda name: _list_class(root, f"{folder}/{name}") if name in inside else [], class_names)
    flat = list(chain.from_iterable(found))
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found])
    facts = np.array([row[1:] for row in flat], np.int64).reshape(-1, 2)
    return Listing([row[0] for row in flat], labels.astype(np.int64), facts[:, 0].copy(), facts[:, 1].copy())


def _list_class(root: Path, folder: str) -> list[tuple[str, int, int]]:
    """(name, bytes, mtime in ns) of every image of a class; other files are ignored, other images refused."""
    files = []
    with os.scandir(root / folder) as opened:
        entries = list(opened)
    for entry in entries:
        name = entry.name.lower()
        if name.startswith("."):
            continue
        if name.endswith(EXTENSIONS):
            try:
                status = entry.stat()
            except OSError:  # a dangling link: the header reader says so
                files.append((f"{folder}/{entry.name}", 0, 0))
                continue
            files.append((f"{folder}/{entry.name}", status.st_size, status.st_mtime_ns))
        elif name.endswith(REFUSED):
            raise ValueError(
                f"{entry.path}: this kind of image is not read; allowed: {', '.join(EXTENSIONS)}. Convert or remove it."
            )
        elif entry.is_dir():
            raise ValueError(
                f"{entry.path}: a folder inside a class folder. Images lie directly in their class's folder; is"
                " data.dataset.root one level too high?"
            )
    return sorted(files)


def _sizes_from_cache(stored: _Arrays | None, listing: Listing) -> NDArray[np.int32]:
    """int32 [N, 2]: sizes of the files that have not changed since an earlier start, 0 for the others."""
    sizes_N2 = np.zeros((len(listing.names), 2), np.int32)
    if stored is None:
        return sizes_N2
    number_of = {name: i for i, name in enumerate(_names(stored, "names"))}
    rows = np.fromiter((number_of.get(name, -1) for name in listing.names), np.int64, len(listing.names))
    here = np.flatnonzero(rows >= 0)
    there = rows[here]
    same = (stored["bytes_N"][there] == listing.bytes_N[here]) & (stored["mtimes_N"][there] == listing.mtimes_N[here])
    sizes_N2[here[same]] = stored["sizes_N2"][there[same]]
    return sizes_N2


def _read_headers(
    root: Path, listing: Listing, sizes_N2: NDArray[np.int32], wanted: NDArray[np.int64]
) -> dict[int, BadFile]:
    """Fill in the sizes of the wanted files; returns the bad ones by number."""

    def read(number: int) -> tuple[int, int] | str:
        try:
            height, width, _ = read_header(root / listing.names[number])
        except BadImageError as error:
            return str(error)
        return height, width

    bad = {}
    for number, result in zip(wanted, in_threads(read, wanted.tolist()), strict=True):
        if isinstance(result, str):
            bad[int(number)] = BadFile(listing.names[number], result)
        else:
            sizes_N2[number] = result
    return bad


def _arrays(
    listing: Listing, sizes_N2: NDArray[np.int32], class_names: Sequence[str], bad: Mapping[int, BadFile]
) -> dict[str, NDArray[Any]]:
    """Return what is kept: the good files as arrays and the bad ones by name, to be looked at again next time."""
    good = np.ones(len(listing.names), bool)
    good[list(bad)] = False
    arrays: dict[str, NDArray[Any]] = {
        "labels_N": listing.labels_N[good],
        "sizes_N2": sizes_N2[good],
        "bytes_N": listing.bytes_N[good],
        "mtimes_N": listing.mtimes_N[good],
    }
    texts = {
        "names": [name for name, is_good in zip(listing.names, good, strict=True) if is_good],
        "classes": class_names,
        "bad": [file.name for file in bad.values()],
        "reasons": [file.reason for file in bad.values()],
    }
    for key, values in texts.items():
        packed = Names.of(values)
        arrays[key] = packed.blob_M
        arrays[f"{key}_ends"] = packed.ends_N
    return arrays


def _names(stored: _Arrays, key: str) -> list[str]:
    names = Names(stored[key], stored[f"{key}_ends"])
    return [names[i] for i in range(len(names))]
