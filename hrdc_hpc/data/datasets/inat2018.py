"""iNaturalist 2018 in its official layout:

    <root>/train2018.json  <root>/val2018.json          annotations (COCO style)
    <root>/train_val2018/<group>/<category>/<image>.jpg

The label of an image is its category_id, a number: 0 to 8,141. Sizes come from the JSON files, so that no header of the
437,513 images is read: a missing or empty file is found when the split is opened, a damaged one when it is decoded.

The JSON files are checked against what was published: 8,142 categories, so many training images of each as were counted
there (437,513), 3 of each for evaluation (24,426). Torch-free.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hrdc_hpc.config.types import OPERATIONAL, options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hrdc_hpc.data.index import ImageIndex, OnBad, Split

_IMAGES = "train_val2018"
_KIND = "inat2018"
_TITLE = "iNaturalist 2018"
_VAL_PER_CLASS = 3
_PIECE = 512
"""Files that a thread looks at in one go."""


@options
class Options:
    """Where the data set lies."""

    root: Annotated[Path, OPERATIONAL] = Path("data/inat2018")
    """Folder that holds train2018.json, val2018.json and train_val2018/."""
    check: Annotated[bool, OPERATIONAL] = True
    """Refuse files that list other images than the published ones; false: a selection of them is meant."""


def known(options: Options) -> tuple[int, int] | None:
    """Classes and training images, without its files; None of a selection."""
    return (8142, 437_513) if options.check else None


def preflight(options: Options) -> None:
    """ValueError naming what is missing of the official layout; parses nothing."""
    files = [options.root / f"{split}2018.json" for split in ("train", "val")]
    missing = [str(path) for path in files if not path.is_file()]
    if not (options.root / _IMAGES).is_dir():
        missing.append(f"{options.root / _IMAGES}/")
    if missing:
        raise ValueError(
            f"data.dataset.root: missing {', '.join(missing)}; inat2018 expects {options.root}/train2018.json,"
            f" val2018.json and {_IMAGES}/<group>/<category>/<image>.jpg as the official archives unpack. Set"
            " data.dataset.root to the folder that holds them."
        )


def open(options: Options, split: Split, on_bad_image: OnBad, *, trust_cache: bool = False) -> ImageIndex:  # noqa: A001 - a data set's contract
    """Return the index of a split, images in the order of the JSON file.

    Raises ValueError for missing files, a JSON that is not of this form, labels that are no training classes, an image
    in both splits or, under 'check', other numbers of images than the published ones; DataError for missing or empty
    images under 'stop'.
    """
    import numpy as np

    from hrdc_hpc.data import published
    from hrdc_hpc.data.index import BadFile, Names, make_index, name_some

    preflight(options)
    arrays = _annotations(options.root, split)
    train = arrays if split == "train" else _annotations(options.root, "train")
    classes = _unpack(train, "classes")
    labels_N, file = arrays["labels_N"], options.root / f"{split}2018.json"
    extra = np.unique(labels_N[(labels_N < 0) | (labels_N >= len(classes))])
    if len(extra):
        raise ValueError(
            f"{file}: category_id {name_some(map(str, extra.tolist()))} are not among the {len(classes)} categories of"
            f" train2018.json, which are 0 to {len(classes) - 1}"
        )
    if options.check:
        train_C = published.training_images("inat2018")
        known_C = train_C if split == "train" else np.full(len(train_C), _VAL_PER_CLASS)
        published.refuse_others(file, _TITLE, split, labels_N, classes, known_C)
    if split != "train" and not trust_cache:
        both = sorted(set(_unpack(train, "names")) & set(_unpack(arrays, "names")))
        if both:
            raise ValueError(
                f"{file}: {len(both)} images are in train2018.json, too: {name_some(both)}. Evaluation on images that"
                " were trained on says nothing: remove them from one of the files."
            )
    bytes_N = _lengths(options.root, split, arrays, trust_cache=trust_cache)
    good = bytes_N > 0
    names = Names(arrays["names"], arrays["names_ends"])
    bad = [
        BadFile(names[int(number)], "empty file" if bytes_N[number] == 0 else "no such file")
        for number in np.flatnonzero(~good)
    ]
    if bad:
        names = Names.of([names[int(number)] for number in np.flatnonzero(good)])
    return make_index(
        root=options.root,
        split=split,
        class_names=classes,
        names=names,
        labels_N=labels_N[good],
        sizes_N2=arrays["sizes_N2"][good],
        bytes_N=bytes_N[good],
        bad=bad,
        on_bad_image=on_bad_image,
    )


def _unpack(arrays: dict[str, NDArray[Any]], key: str) -> list[str]:
    from hrdc_hpc.data.index import Names

    names = Names(arrays[key], arrays[f"{key}_ends"])
    return [names[number] for number in range(len(names))]


def _annotations(root: Path, split: str) -> dict[str, NDArray[Any]]:
    """Names, labels, sizes and class names of a JSON file; kept between starts (the official one is 100 MB)."""
    import numpy as np

    from hrdc_hpc.data import cache

    path = root / f"{split}2018.json"
    status = path.stat()
    stamp = np.array([status.st_size, status.st_mtime_ns], np.int64)
    arrays = cache.load(_KIND, root, split)
    if arrays is None or not np.array_equal(arrays["stamp"], stamp):
        try:
            arrays = _parse(json.loads(path.read_bytes()))
        except (KeyError, TypeError, ValueError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: not an annotation file of iNaturalist 2018: {what}") from error
        arrays["stamp"] = stamp
        cache.save(_KIND, root, split, arrays)
    return arrays


def _parse(content: dict[str, Any]) -> dict[str, NDArray[Any]]:
    import numpy as np

    from hrdc_hpc.data.index import Names

    images, categories = content["images"], sorted(content["categories"], key=lambda c: c["id"])
    if [c["id"] for c in categories] != list(range(len(categories))):
        raise ValueError("the ids of its categories are not 0, 1, 2 ...")
    for what, values in (
        ("the id", [image["id"] for image in images]),
        ("the file", [image["file_name"] for image in images]),
        ("an annotation of the image", [a["image_id"] for a in content["annotations"]]),
    ):
        twice = [value for value, times in Counter(values).items() if times > 1]
        if twice:
            raise ValueError(f"it lists {what} {twice[0]} more than once ({len(twice)} of {len(values)} so)")
    label_of = {a["image_id"]: a["category_id"] for a in content["annotations"]}
    odd = [label for label in label_of.values() if type(label) is not int]
    if odd:
        raise ValueError(f"category_id {odd[0]!r} is no whole number")
    without = [image["file_name"] for image in images if image["id"] not in label_of]
    if without:
        raise ValueError(f"{len(without)} images have no annotation, the first is {without[0]}")
    names = Names.of([image["file_name"] for image in images])
    classes = Names.of([str(c["name"]) for c in categories])
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int32).reshape(-1, 2)
    if sizes.size and sizes.min() < 1:
        raise ValueError("an image has no width or height")
    return {
        "names": names.blob_M,
        "names_ends": names.ends_N,
        "classes": classes.blob_M,
        "classes_ends": classes.ends_N,
        "labels_N": np.array([label_of[image["id"]] for image in images], np.int64),
        "sizes_N2": sizes,
    }


def _lengths(root: Path, split: str, arrays: dict[str, NDArray[Any]], *, trust_cache: bool) -> NDArray[Any]:
    """int64 [N]: bytes of each image's file, -1 where there is none."""
    import numpy as np

    from hrdc_hpc.data import cache
    from hrdc_hpc.data.folders import in_threads

    kept = cache.load(_KIND + "-bytes", root, split)
    if trust_cache and kept is not None and np.array_equal(kept["stamp"], arrays["stamp"]):
        return kept["bytes_N"]

    names = _unpack(arrays, "names")
    # many a task: a future for each of 437,513 files would take longer than the file system
    pieces = [names[start : start + _PIECE] for start in range(0, len(names), _PIECE)]
    found = in_threads(lambda piece: [_length(f"{root}/{name}") for name in piece], pieces)
    bytes_N = np.fromiter(chain.from_iterable(found), np.int64, len(names))
    cache.save(_KIND + "-bytes", root, split, {"bytes_N": bytes_N, "stamp": arrays["stamp"]})
    return bytes_N


def _length(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a path object each takes as long as the call itself
    except OSError:
        return -1
