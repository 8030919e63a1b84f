"""Class folders of JPEG or PNG files:

    <root>/train/<class>/<image>.jpg
    <root>/val/<class>/<image>.jpg

Label order: the class folders of the train split; by number if every name is an integer (2 before 10), else in plain
code-point order (sorted() of Python: 'B' before 'a'). Images lie directly in their class's folder: nested folders are
refused, because they mostly mean a root one level too high. Files that are not images are ignored, and so is whatever
begins with a dot; images of other kinds (.webp, .tif ...) are refused. Torch-free.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hrdc_hpc.config.types import OPERATIONAL, options

if TYPE_CHECKING:
    from hrdc_hpc.data.index import ImageIndex, OnBad, Split


@options
class Options:
    """Where the class folders lie."""

    root: Annotated[Path, OPERATIONAL]
    """Folder that holds the folders of both splits."""
    train: str = "train"
    """Folder of the training split, below root."""
    val: str = "val"
    """Folder of the validation split, below root."""


def known(options: Options) -> None:
    """Classes and training images are not known without its files."""


def preflight(options: Options) -> None:
    """ValueError if a split's folder is missing or training has no class folder."""
    preflight_train(options)
    without = ", or data.holdout={} where there are no images to evaluate"
    _refuse_missing(options, options.root / options.val, without)


def preflight_train(options: Options) -> None:
    """ValueError for what training alone needs: with data.holdout there may be no val folder."""
    _refuse_missing(options, options.root)
    train = options.root / options.train
    _refuse_missing(options, train)
    if not any(entry.is_dir() and not entry.name.startswith(".") for entry in train.iterdir()):
        raise ValueError(f"data.dataset.root: no class folder in {train}; {_layout(options)}.")


def _refuse_missing(options: Options, folder: Path, more: str = "") -> None:
    if not folder.is_dir():
        raise ValueError(
            f"data.dataset.root: no folder {folder}; {_layout(options)}. Set data.dataset.root, train and val{more}."
        )


def _layout(options: Options) -> str:
    return f"image_folder expects {options.root}/{options.train}/<class>/<image>.jpg and the same below {options.val}/"


def open(options: Options, split: Split, on_bad_image: OnBad, *, trust_cache: bool = False) -> ImageIndex:  # noqa: A001 - a data set's contract
    """Return the index of a split; see folders.open_folders for what it raises beside preflight's errors."""
    from hrdc_hpc.data.folders import class_folders, open_folders

    (preflight_train if split == "train" else preflight)(options)
    classes = class_folders(options.root / options.train)
    folder = options.train if split == "train" else options.val
    return open_folders(options.root, folder, split, classes, on_bad_image, trust_cache=trust_cache)
