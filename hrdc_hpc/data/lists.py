"""List files: one image a line, as 'path label'. Torch-free.

The label is what stands behind the last blank of the line, so a path may hold blanks. Labels are numbers, 0 to C - 1.
Empty lines are ignored; there is no header and no comment.

Axis legend: N images, C classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrdc_hpc.data.folders import Listing, in_threads, open_files
from hrdc_hpc.data.index import ImageIndex, OnBad, Split, name_some

_KIND = "lists"
_PIECE = 512
"""Files that a thread looks at in one go."""
_MOST_CLASSES = 1_000_000
"""A larger label is a mistake in the file: an array of so many classes would be made of it."""
_MOST_DIGITS = 18
"""Python itself refuses to read a number of some thousand digits, without a word of the line."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """What a list file says."""

    file: Path
    root: Path
    """Folder that the names are relative to."""
    names: list[str]
    lines_N: NDArray[np.int64]
    """Line of each image, from 1."""
    labels_N: NDArray[np.int64]
    stamp: bytes
    """Hash of the file."""

    def line(self, number: int) -> str:
        """Name the line of an image, for messages."""
        return f"{self.file}:{self.lines_N[number]}"

    def classes(self) -> int:
        """Return the number of classes of a training list. ValueError for a gap in its labels."""
        found = np.unique(self.labels_N)
        missing = np.setdiff1d(np.arange(found[-1]), found)
        if len(missing):
            at = self.line(int(np.argmax(self.labels_N)))
            raise ValueError(
                f"{at}: label {found[-1]}, but no line of the file has {name_some(map(str, missing.tolist()))}. Labels"
                " are numbered 0, 1, 2 ... without a gap."
            )
        return len(found)

    def open(
        self, split: Split, class_names: Sequence[str], on_bad_image: OnBad, *, trust_cache: bool = False
    ) -> ImageIndex:
        """Index the images, in the order of the lines; see folders.open_files. ValueError: labels that are no class."""
        unknown = np.flatnonzero(self.labels_N >= len(class_names))
        if len(unknown):
            first = int(unknown[0])
            raise ValueError(
                f"{self.line(first)}: label {self.labels_N[first]} is none of the {len(class_names)} classes of the"
                f" training list, which are 0 to {len(class_names) - 1} ({len(unknown)} such lines)"
            )
        return open_files(
            self._look,
            root=self.root,
            kind=_KIND,
            key=str(self.file.resolve()),
            split=split,
            class_names=class_names,
            on_bad_image=on_bad_image,
            trust_cache=trust_cache,
            stamp=self.stamp,
        )

    def _look(self) -> Listing:
        pieces = [self.names[start : start + _PIECE] for start in range(0, len(self.names), _PIECE)]
        found = in_threads(lambda piece: [_length_and_mtime(f"{self.root}/{name}") for name in piece], pieces)
        facts = np.array(list(chain.from_iterable(found)), np.int64).reshape(-1, 2)
        return Listing(self.names, self.labels_N, facts[:, 0].copy(), facts[:, 1].copy())


def _length_and_mtime(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - a path object each takes as long as the call itself
    except OSError:  # the header reader says why
        return 0, 0
    return status.st_size, status.st_mtime_ns


def read_list(file: Path, root: Path) -> ImageList:
    """Read a list file whose paths are relative to `root`, or absolute and below it.

    Raises ValueError, naming file and line, for what is not 'path label', a label that is no number of a class, a path
    outside root and an image that an earlier line has named.
    """
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        at = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}:{at}: not UTF-8. A list file is text, one 'path label' a line.") from error
    line_of: dict[str, int] = {}
    labels: list[int] = []
    prefix = f"{root}".rstrip("/") + "/"
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name, label = _entry(f"{file}:{number}", line.strip(), prefix)
        earlier = line_of.setdefault(name, number)
        if earlier != number:
            raise ValueError(f"{file}:{number}: {name} is listed already, in line {earlier}. Remove one of the two.")
        labels.append(label)
    if not labels:
        raise ValueError(f"{file}: lists no image; expected one 'path label' a line")
    return ImageList(
        file=file,
        root=root,
        names=list(line_of),
        lines_N=np.fromiter(line_of.values(), np.int64, len(line_of)),
        labels_N=np.array(labels, np.int64),
        stamp=hashlib.blake2b(content, digest_size=16).digest(),
    )


def _entry(place: str, line: str, prefix: str) -> tuple[str, int]:
    parts = line.rsplit(None, 1)
    if (
        len(parts) != 2
        or "\0" in line  # no file's name holds one
        or not (parts[1].isascii() and parts[1].isdigit())
        or len(parts[1]) > _MOST_DIGITS
        or int(parts[1]) >= _MOST_CLASSES
    ):
        hint = ". Of a CSV, drop the header and put a blank in place of the comma" if "," in line else ""
        raise ValueError(
            f"{place}: expected 'path label' with the class's number as the label; got '{line[:200]}'{hint}"
        )
    path, label = parts
    if path.startswith(prefix):
        path = path[len(prefix) :]
    if "./" in path or "//" in path:  # as find and shells write them; one image has one name
        path = os.path.normpath(path)
    if path.startswith("/") or path.split("/", 1)[0] == "..":
        raise ValueError(
            f"{place}: {path} is not below {prefix}, which data.dataset.root names. List paths relative to it, or set"
            " data.dataset.root to a folder that holds all images, such as /."
        )
    return path, int(label)


def refuse_overlap(train: ImageList, other: ImageList) -> None:
    """ValueError if an image of `other` is trained on."""
    # two ways to write a folder, or a link to it, are one folder
    train_root, other_root = train.root.resolve(), other.root.resolve()
    trained = {f"{train_root}/{name}" for name in train.names}
    both = [number for number, name in enumerate(other.names) if f"{other_root}/{name}" in trained]
    if both:
        first = both[0]
        raise ValueError(
            f"{other.line(first)}: {other.names[first]} is in {train.file}, too ({len(both)} such images): evaluation"
            " on images that were trained on says nothing. Remove them from one of the lists, or set data.holdout."
        )
