"""ImageNet-LT: the long-tailed selection of ImageNet-2012 that its public list files name.

    <root>/ImageNet_LT_train.txt  ImageNet_LT_val.txt  ImageNet_LT_test.txt      'path label' lines
    <root>/train/<wnid>/<image>.JPEG                                            images of ImageNet-2012
    <root>/val/<wnid>/<image>.JPEG

1,000 classes; 115,846 training images, 1,280 of the most frequent class and 5 of the rarest; 20,000 for validation, 20
of each class out of ImageNet's training images; 50,000 for the test, ImageNet's own validation images. The label is the
number in the list, 0 to 999, in the order of the WordNet ids, which are the names of the classes. The lists are checked
against these numbers. Evaluated is the test list, whose figures all papers print: settings are chosen on the validation
list (evaluate: val) or on data.holdout.

Source: 'Large-Scale Long-Tailed Recognition in an Open World' (arXiv 1904.05160). Torch-free.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from hrdc_hpc.config.types import OPERATIONAL, options

if TYPE_CHECKING:
    from hrdc_hpc.data.index import ImageIndex, OnBad, Split
    from hrdc_hpc.data.lists import ImageList

_TITLE = "ImageNet-LT"
_PER_CLASS = {"val": 20, "test": 50}


@options
class Options:
    """Where images and lists lie, and what is evaluated."""

    root: Annotated[Path, OPERATIONAL] = Path("data/imagenet_lt")
    """Folder that the paths in the lists are relative to: it holds train/ and val/ of ImageNet-2012."""
    lists: Annotated[str, OPERATIONAL] = "."
    """Folder of the list files: below root, or an absolute path."""
    evaluate: Literal["test", "val"] = "test"
    """List that is evaluated: 'test' for results, 'val' to choose settings."""
    check: Annotated[bool, OPERATIONAL] = True
    """Refuse lists that name other images than the published ones; false: a selection of them is meant."""


def known(options: Options) -> tuple[int, int] | None:
    """Classes and training images, without its files."""
    return (1000, 115_846) if options.check else None


def _file(options: Options, which: str) -> Path:
    return options.root / options.lists / f"ImageNet_LT_{which}.txt"


def preflight(options: Options) -> None:
    """ValueError naming what is missing of images and lists."""
    needed = [_file(options, which) for which in ("train", options.evaluate)]
    missing = [str(file) for file in needed if not file.is_file()]
    folders = ("train", "val") if options.evaluate == "test" else ("train",)
    if options.check:
        missing += [f"{options.root / name}/" for name in folders if not (options.root / name).is_dir()]
    if missing:
        raise ValueError(
            f"data.dataset.root: missing {', '.join(missing)}; imagenet_lt expects the images of ImageNet-2012 in"
            f" {options.root}/train/<wnid>/ and val/<wnid>/, and the public list files in"
            f" {options.root / options.lists}. Set data.dataset.root and data.dataset.lists."
        )


def open(options: Options, split: Split, on_bad_image: OnBad, *, trust_cache: bool = False) -> ImageIndex:  # noqa: A001 - a data set's contract
    """Return the index of a split, images in the order of the lines; 'val' is the list that is evaluated.

    Raises ValueError, naming file and line, for whatever is wrong with the lists and, under 'check', for other numbers
    of images than the published ones; DataError for images that cannot be used under 'stop'.
    """
    import numpy as np

    from hrdc_hpc.data import published
    from hrdc_hpc.data.lists import read_list, refuse_overlap

    preflight(options)
    train = read_list(_file(options, "train"), options.root)
    names = _wordnet_ids(train)
    which = "train" if split == "train" else options.evaluate
    chosen = train if split == "train" else read_list(_file(options, which), options.root)
    if chosen is not train:
        refuse_overlap(train, chosen)
        _refuse_other_labels(chosen, names)
    if options.check:
        train_C = published.training_images("imagenet_lt")
        known_C = train_C if which == "train" else np.full(len(train_C), _PER_CLASS[which])
        published.refuse_others(chosen.file, _TITLE, which, chosen.labels_N, names, known_C)
    return chosen.open(split, names, on_bad_image, trust_cache=trust_cache)


def _refuse_other_labels(chosen: ImageList, wordnet_ids: list[str]) -> None:
    """ValueError where the folder of an image is a class of the training list with another label."""
    label_of = {name: label for label, name in enumerate(wordnet_ids)}
    for number, (name, label) in enumerate(zip(chosen.names, chosen.labels_N.tolist(), strict=True)):
        folder = name.rpartition("/")[0].rpartition("/")[2]
        if label_of.get(folder, label) != label:
            raise ValueError(
                f"{chosen.line(number)}: {folder}/ with label {label}, but {label_of[folder]} in the training list."
                " Take lists that belong together."
            )


def _wordnet_ids(train: ImageList) -> list[str]:
    """Names of the classes: the folder of their training images. ValueError for a class in two, or two in one."""
    folder_of: dict[int, str] = {}
    label_of: dict[str, int] = {}
    for number, (name, label) in enumerate(zip(train.names, train.labels_N.tolist(), strict=True)):
        folder = name.rpartition("/")[0].rpartition("/")[2]
        if folder_of.setdefault(label, folder) != folder:
            raise ValueError(
                f"{train.line(number)}: {folder}/ with label {label}, which earlier lines give to {folder_of[label]}/."
                " Each class of ImageNet-LT is one folder."
            )
        if label_of.setdefault(folder, label) != label:
            raise ValueError(
                f"{train.line(number)}: {folder}/ with label {label}, but {label_of[folder]} in earlier lines."
                " Each class of ImageNet-LT is one folder."
            )
    return [folder_of[label] for label in range(train.classes())]
