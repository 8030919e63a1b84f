"""Images that list files name, one a line:

    flowers/rose 1.jpg 0
    flowers/tulip.jpg 1

The path is relative to root and may hold blanks; the label is a number, and the labels of the training list are 0 to
C - 1 without a gap. Images that the lists do not name are ignored. The classes have the names of a file with one a
line, in the order of the labels, or else their numbers. Torch-free.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hrdc_hpc.config.types import OPERATIONAL, options

if TYPE_CHECKING:
    from hrdc_hpc.data.index import ImageIndex, OnBad, Split


@options
class Options:
    """Which lists, and what their paths are relative to."""

    root: Annotated[Path, OPERATIONAL]
    """Folder that the paths in the lists are relative to."""
    val_root: Annotated[Path, OPERATIONAL] | None = None
    """The same for the validation list; unset: root."""
    train: Annotated[str, OPERATIONAL] = "train.txt"
    """List of the training images: below root, or an absolute path."""
    val: Annotated[str, OPERATIONAL] = "val.txt"
    """List of the validation images: below root, or an absolute path."""
    classes: Annotated[str, OPERATIONAL] | None = None
    """File with a class's name in each line: below root, or an absolute path. Unset: they are called '0', '1' ..."""


def known(options: Options) -> None:
    """Classes and training images are not known without its files."""


def preflight(options: Options) -> None:
    """ValueError naming what is missing of folders and lists."""
    preflight_train(options)
    if options.val_root is not None:
        _refuse_missing_folder("val_root", options.val_root)
    _refuse_missing_file("val", options.root / options.val, " Or set data.holdout={} if there are none to evaluate.")


def preflight_train(options: Options) -> None:
    """ValueError for what training alone needs: with data.holdout there may be no val list."""
    _refuse_missing_folder("root", options.root)
    _refuse_missing_file("train", options.root / options.train)
    if options.classes is not None:
        _refuse_missing_file("classes", options.root / options.classes)


def _refuse_missing_folder(key: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"data.dataset.{key}: no folder {folder}; the paths in the lists are relative to it.")


def _refuse_missing_file(key: str, file: Path, more: str = "") -> None:
    if not file.is_file():
        raise ValueError(
            f"data.dataset.{key}: no file {file}; image_list expects lists of 'path label' lines there. Name another"
            f" one, below root or as an absolute path.{more}"
        )


def open(options: Options, split: Split, on_bad_image: OnBad, *, trust_cache: bool = False) -> ImageIndex:  # noqa: A001 - a data set's contract
    """Return the index of a split, images in the order of the lines.

    Raises ValueError, naming file and line, for whatever is wrong with the lists or for an image in both; DataError for
    images that cannot be used under 'stop'.
    """
    from hrdc_hpc.data.lists import read_list, refuse_overlap

    (preflight_train if split == "train" else preflight)(options)
    train = read_list(options.root / options.train, options.root)
    names = _names(options, train.classes())
    if split == "train":
        return train.open(split, names, on_bad_image, trust_cache=trust_cache)
    val = read_list(options.root / options.val, options.val_root or options.root)
    refuse_overlap(train, val)
    return val.open(split, names, on_bad_image, trust_cache=trust_cache)


def _names(options: Options, classes: int) -> list[str]:
    if options.classes is None:
        return [str(label) for label in range(classes)]
    file = options.root / options.classes
    try:
        names = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8") from error
    if len(names) != classes or len(set(names)) != classes:
        raise ValueError(
            f"{file}: {len(set(names))} different names in {len(names)} lines; the training list has {classes} classes,"
            " and each needs a name of its own"
        )
    return names
