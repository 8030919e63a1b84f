"""Data sets that list files name: anybody's own, and ImageNet-LT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrdc_hpc.config.schema import Data, Holdout
from hrdc_hpc.config.types import Component
from hrdc_hpc.data import folders
from hrdc_hpc.data.datasets import image_list, imagenet_lt
from hrdc_hpc.data.index import DataError, open_split
from hrdc_hpc.data.lists import read_list
from hrdc_hpc.data.preflight import preflight
from tests.data.images import jpeg, picture, png

pytestmark = pytest.mark.slow

TRAIN = """\
a b/rose 1.jpg 1
tulip.JPEG 0

a b/rose 2.png\t2
  a b/rose 1 .jpg   0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with two lists and the images that they name, and one that they do not."""
    root = tmp_path / "set"
    (root / "a b").mkdir(parents=True)
    (root / "lists").mkdir()
    for number, name in enumerate(["a b/rose 1.jpg", "tulip.JPEG", "a b/rose 1 .jpg", "val.jpg", "not listed.jpg"]):
        (root / name).write_bytes(jpeg(picture(number, 20 + number, 40)))
    (root / "a b/rose 2.png").write_bytes(png(picture(9, 29, 40)))
    (root / "train.txt").write_text(TRAIN)
    (root / "lists/val.txt").write_bytes(b"\xef\xbb\xbfval.jpg 2\r\n")  # as a Windows editor writes it
    return root


def listed(root: Path, *, on_bad_image: Any = "stop", **settings: Any) -> Data:
    options = image_list.Options(root=root, **({"val": "lists/val.txt"} | settings))
    return Data(dataset=Component("image_list", options), on_bad_image=on_bad_image)


def test_lists_are_read_line_by_line(root):
    preflight(listed(root))
    train, val = open_split(listed(root), "train"), open_split(listed(root), "val")
    assert [train.names[i] for i in range(4)] == ["a b/rose 1.jpg", "tulip.JPEG", "a b/rose 2.png", "a b/rose 1 .jpg"]
    assert train.labels_N.tolist() == [1, 0, 2, 0]
    assert train.sizes_N2.tolist() == [[20, 40], [21, 40], [29, 40], [22, 40]]
    assert train.class_names == val.class_names == ("0", "1", "2")
    assert train.read([2])[0].tobytes() == (root / "a b/rose 2.png").read_bytes()
    assert [val.names[0], val.labels_N.tolist()] == ["val.jpg", [2]]


def test_classes_may_have_names(root):
    (root / "names.txt").write_text("\ufefftulip\r\nrose\nlily of the valley\n", "utf-8")
    assert open_split(listed(root, classes="names.txt"), "val").class_names == ("tulip", "rose", "lily of the valley")
    (root / "names.txt").write_text("tulip\nrose\nrose\n")
    with pytest.raises(ValueError, match=r"names.txt: 2 different names in 3 lines; the training list has 3 classes"):
        open_split(listed(root, classes="names.txt"), "train")


def test_many_labels_are_ordered_as_numbers(root):
    names = [f"image{i}.jpg" for i in range(12)]
    for i, name in enumerate(names):
        (root / name).write_bytes(jpeg(picture(i, 20, 20)))
    (root / "train.txt").write_text("".join(f"{name} {i}\n" for i, name in reversed(list(enumerate(names)))))
    train = open_split(listed(root), "train")
    assert train.class_names[:3] == ("0", "1", "2")
    assert train.labels_N.tolist() == list(range(11, -1, -1))


def test_lists_and_their_images_may_lie_elsewhere(root, tmp_path):
    (tmp_path / "other").mkdir()
    (root / "val.jpg").rename(tmp_path / "other/val.jpg")
    (root / "train.txt").rename(tmp_path / "train.txt")
    settings = {"train": str(tmp_path / "train.txt"), "val_root": tmp_path / "other"}
    val = open_split(listed(root, **settings), "val")
    assert Path(val.path(0)) == tmp_path / "other/val.jpg"
    # absolute paths, and a root that holds everything
    lines = [f"{root / 'tulip.JPEG'} 0\n", f"{root / 'a b/rose 1.jpg'} 1\n"]
    (tmp_path / "train.txt").write_text("".join(lines))
    for top in (root, Path("/")):
        train = open_split(listed(top, train=str(tmp_path / "train.txt"), val=str(root / "lists/val.txt")), "train")
        assert train.read([1])[0].tobytes() == (root / "a b/rose 1.jpg").read_bytes()
        assert not train.names[0].startswith("/")
    with pytest.raises(ValueError, match=r"train.txt:1: .*tulip.JPEG is not below .*such as /\."):
        open_split(
            listed(tmp_path / "other", train=str(tmp_path / "train.txt"), val=str(root / "lists/val.txt")), "train"
        )


letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0/\ufeff"), min_size=1)


@given(
    st.lists(
        st.tuples(letters.filter(lambda name: name == name.strip() and name != ".."), st.integers(0, 99)), min_size=1
    )
)
def test_any_name_that_a_file_can_have_is_read(tmp_path_factory, entries):
    file = tmp_path_factory.mktemp("list") / "list.txt"
    expected = dict(entries)
    file.write_bytes("".join(f"{name} {label}\n" for name, label in expected.items()).encode())
    listed = read_list(file, Path("/data"))
    assert dict(zip(listed.names, listed.labels_N.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tulip.JPEG", "expected 'path label' with the class's number as the label; got 'tulip.JPEG'$"),
        ("tulip.JPEG rose", "expected 'path label'.* got 'tulip.JPEG rose'$"),
        ("tulip.JPEG -1", "expected 'path label'"),
        ("tulip.JPEG 1.0", "expected 'path label'"),
        ("tulip.JPEG ²", "expected 'path label'"),
        ("tulip.JPEG 1000000000", "expected 'path label'"),
        ("tulip.JPEG " + 5000 * "9", "expected 'path label'"),
        ("tu\0lip.JPEG 1", "expected 'path label'"),
        ("tulip.JPEG,1", ".* got 'tulip.JPEG,1'. Of a CSV, drop the header and put a blank in place of the comma"),
        ("a b/rose 1.jpg 1", "a b/rose 1.jpg is listed already, in line 1. Remove one of the two."),
        ("./a b//rose 1.jpg 1", "a b/rose 1.jpg is listed already, in line 1"),
        ("../elsewhere.jpg 1", r"\.\./elsewhere.jpg is not below .*/set/, which data.dataset.root names"),
        ("a b/../../elsewhere.jpg 1", r"\.\./elsewhere.jpg is not below"),
        ("x.jpg 7", "label 7, but no line of the file has 3, 4, 5, 6. Labels are numbered 0, 1, 2"),
    ],
)
def test_a_wrong_line_is_named(line, message, root):
    (root / "train.txt").write_text(TRAIN + line + "\n")
    with pytest.raises(ValueError, match=rf"train.txt:6: {message}"):
        open_split(listed(root), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", b"tulip.JPEG 0\n\xff\xfet\0 0\n", "train.txt:2: not UTF-8"),
        ("train.txt", b"\n \n", "train.txt: lists no image; expected one 'path label' a line"),
        ("lists/val.txt", b"val.jpg 0\nb.jpg 3\n", r"val.txt:2: label 3 is none of the 3 classes .* 0 to 2 \(1 such"),
        ("lists/val.txt", b"val.jpg 0\ntulip.JPEG 0\n", r"val.txt:2: tulip.JPEG is in .*train.txt, too \(1 such"),
    ],
)
def test_a_wrong_list_is_explained(name, content, message, root):
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_split(listed(root), "val")


@pytest.mark.parametrize("way", ["up", "link", "relative"])
def test_an_image_in_both_lists_is_found_whatever_its_root_is_called(way, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(root)
    ways = {"up": root / "lists" / "..", "link": tmp_path / "link", "relative": Path(root.name)}
    (root / "lists/val.txt").write_text("tulip.JPEG 0\n")
    with pytest.raises(ValueError, match=r"val.txt:1: tulip.JPEG is in .*train.txt, too"):
        open_split(listed(root, val_root=ways[way]), "val")


def test_what_is_missing_is_found_before_anything_is_queued(root, tmp_path):
    for settings, message in (
        ({"train": "none.txt"}, r"data.dataset.train: no file .*none.txt; image_list expects lists of 'path label'"),
        ({"val_root": tmp_path / "none"}, r"data.dataset.val_root: no folder .*none"),
        ({"classes": "none.txt"}, r"data.dataset.classes: no file .*none.txt"),
    ):
        with pytest.raises(ValueError, match=message):
            preflight(listed(root, **settings))


def test_with_a_holdout_there_need_be_no_val_list(root):
    (root / "lists/val.txt").unlink()
    data = replace(listed(root), holdout=Holdout())
    preflight(data)
    assert len(open_split(data, "train")) == 4
    for check in (lambda: preflight(listed(root)), lambda: open_split(data, "val")):
        with pytest.raises(ValueError, match=r"data.dataset.val: no file .*val.txt.* Or set data.holdout=\{\} if"):
            check()


def test_missing_and_damaged_images_are_named(root):
    (root / "tulip.JPEG").unlink()
    (root / "a b/rose 1 .jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 4 train .*tulip.JPEG \(cannot be read: No such file.* 1 .jpg \(no"):
        open_split(listed(root), "train")
    (root / "train.txt").write_text(TRAIN + "not listed.jpg 0\n")
    skipping = open_split(listed(root, on_bad_image="skip"), "train")
    assert [len(skipping), len(skipping.skipped)] == [3, 2]


def test_headers_are_read_once_and_a_changed_list_is_noticed(root, monkeypatch):
    first = open_split(listed(root), "train")
    read: list[str] = []
    real = folders.read_header
    monkeypatch.setattr(folders, "read_header", lambda path: read.append(Path(path).name) or real(path))
    assert open_split(listed(root), "train").fingerprint == first.fingerprint
    assert read == []
    (root / "tulip.JPEG").write_bytes(jpeg(picture(3, 55, 55)))
    assert open_split(listed(root), "train").sizes_N2[1].tolist() == [55, 55]
    assert read == ["tulip.JPEG"]
    (root / "train.txt").write_text(TRAIN + "not listed.jpg 1\n")
    for trust in (True, False):
        assert open_split(listed(root), "train", trust_cache=trust).labels_N.tolist() == [1, 0, 2, 0, 1]
    assert read == ["tulip.JPEG", "not listed.jpg"]
    (root / "tulip.JPEG").unlink()
    assert len(open_split(listed(root), "train", trust_cache=True)) == 5


# --- ImageNet-LT


def write_imagenet(root: Path) -> Path:
    """Write lists and images of 3 classes, whose order by number is not that of their names."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, wnid in enumerate(["n02", "n10", "n01"]):
        for which, images in (("train", 4 - label), ("val", 1), ("test", 2)):
            folder = "val" if which == "test" else "train"
            (root / folder / wnid).mkdir(parents=True, exist_ok=True)
            for i in range(images):
                name = f"{folder}/{wnid}/{wnid}_{which}{i}.JPEG"
                (root / name).write_bytes(jpeg(picture(i, 20 + label, 30)))
                lists[which].append(f"{name} {label}\n")
    for which, lines in lists.items():
        (root / f"ImageNet_LT_{which}.txt").write_text("".join(lines))
    return root


def imagenet(root: Path, **settings: Any) -> Data:
    options = imagenet_lt.Options(root=root, **({"check": False} | settings))
    return Data(dataset=Component("imagenet_lt", options))


def test_imagenet_lt_evaluates_the_test_list(tmp_path):
    root = write_imagenet(tmp_path)
    preflight(imagenet(root))
    train = open_split(imagenet(root), "train")
    assert train.class_names == ("n02", "n10", "n01")
    assert train.counts_C.tolist() == [4, 3, 2]
    test, val = (open_split(imagenet(root, evaluate=which), "val") for which in ("test", "val"))
    assert [test.names[0], len(test)] == ["val/n02/n02_test0.JPEG", 6]
    assert [val.names[0], len(val)] == ["train/n02/n02_val0.JPEG", 3]
    assert imagenet(root, evaluate="val") != imagenet(root)
    assert Data(dataset=imagenet(root).dataset, holdout=Holdout()).holdout is not None


def test_imagenet_lt_says_what_is_missing(tmp_path):
    root = write_imagenet(tmp_path / "set")
    (root / "ImageNet_LT_test.txt").unlink()
    (root / "train").rename(root / "moved")
    with pytest.raises(ValueError, match=r"missing .*ImageNet_LT_test.txt, .*set/train/; .*Set data.dataset.root and"):
        preflight(imagenet(root, check=True))
    preflight(imagenet(root, evaluate="val"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/n02/x.JPEG 1", r":10: n02/ with label 1, which earlier lines give to n10/\. Each class"),
        ("train/n02/x.JPEG 3", r":10: n02/ with label 3, but 0 in earlier lines\. Each class"),
    ],
)
def test_imagenet_lt_refuses_labels_that_are_no_classes_of_it(line, message, tmp_path):
    root = write_imagenet(tmp_path)
    with (root / "ImageNet_LT_train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        open_split(imagenet(root), "train")


def test_imagenet_lt_refuses_an_evaluation_list_with_other_labels(tmp_path):
    root = write_imagenet(tmp_path)
    file = root / "ImageNet_LT_test.txt"
    file.write_text(file.read_text().replace("n10_test1.JPEG 1", "n10_test1.JPEG 2"))
    with pytest.raises(ValueError, match=r"_test.txt:4: n10/ with label 2, but 1 in the training list\. Take lists"):
        open_split(imagenet(root), "val")
    assert len(open_split(imagenet(root, evaluate="val"), "val")) == 3


def test_imagenet_lt_is_checked_against_the_published_numbers(tmp_path, shared_data):
    counts_C = np.loadtxt(shared_data / "counts" / "imagenet_lt_counts.txt", dtype=np.int64)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()

    def lines(which: str, per_class: list[int], folder: str) -> list[str]:
        each = zip(range(1000), per_class, strict=True)
        return [f"{folder}/n{c:08d}/{which}{i}.JPEG {c}\n" for c, images in each for i in range(images)]

    lists = {
        "train": lines("train", counts_C.tolist(), "train"),
        "val": lines("val", [20] * 1000, "train"),
        "test": lines("test", [50] * 1000, "val"),
    }
    for which, entries in lists.items():
        (tmp_path / f"ImageNet_LT_{which}.txt").write_text("".join(entries))
    # the numbers are right, and so the images are looked for, none of which is there
    with pytest.raises(DataError, match="20000 of 20000 val images cannot be used"):
        open_split(imagenet(tmp_path, check=True, evaluate="val"), "val")
    for which, split, evaluate, message in (
        ("test", "val", "test", r"class 999 \('n00000999'\) has 49 test images, but 50 in ImageNet-LT; 1 of 1000 cl"),
        ("val", "val", "val", r"class 999 \('n00000999'\) has 19 val images, but 20 .* 19999 images instead of 20000"),
        ("train", "train", "test", r"class 999 .* has 20 train images, but 21 .* 115845 images instead of 115846"),
    ):
        (tmp_path / f"ImageNet_LT_{which}.txt").write_text("".join(lists[which][:-1]))
        with pytest.raises(ValueError, match=f"ImageNet_LT_{which}.txt: {message}"):
            open_split(imagenet(tmp_path, check=True, evaluate=evaluate), split)
