from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrdc_hpc.cluster.exit_codes import Exit, of_error
from hrdc_hpc.config.schema import Levels
from hrdc_hpc.data import cache, folders, headers, index
from hrdc_hpc.data.index import DataError, class_info, open_split
from tests.data.images import folder_data, jpeg, picture, png, write_set


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the image folder that may be changed."""
    return Path(shutil.copytree(folder, tmp_path / "set"))


def counted(monkeypatch) -> list[str]:
    """Record which headers are read."""
    read: list[str] = []
    real = folders.read_header
    monkeypatch.setattr(folders, "read_header", lambda path: read.append(str(path)) or real(path))
    return read


# --- headers


def with_thumbnail(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "thumbnail: \xff\xd9".encode("latin-1") + jpeg(image.resize((16, 16)))
    return jpeg(image, exif=exif)


def mpo(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[image.resize((10, 10))])
    return file.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "grey", "cmyk", "png", "trailer", "long trailer", "thumbnail", "mpo"])
def test_whole_images_are_accepted(kind, tmp_path):
    image = picture(1, 60, 80)
    content = {
        "jpeg": lambda: jpeg(image),
        "grey": lambda: jpeg(image.convert("L")),
        "cmyk": lambda: jpeg(image.convert("CMYK")),
        "png": lambda: png(image),
        "trailer": lambda: jpeg(image) + b"\0" * 100,
        "long trailer": lambda: jpeg(image) + b"x" * 20_000,
        "thumbnail": lambda: with_thumbnail(image),
        "mpo": lambda: mpo(image),
    }[kind]()
    (tmp_path / "a").write_bytes(content)
    assert headers.read_header(tmp_path / "a") == (60, 80, len(content))


@pytest.mark.parametrize("lost", [1, 2, 50, 1000])
@pytest.mark.parametrize("make", [jpeg, png, with_thumbnail])
def test_truncated_images_are_found(make, lost, tmp_path):
    content = make(picture(1, 120, 160))
    (tmp_path / "a").write_bytes(content[:-lost])
    with pytest.raises(headers.BadImageError, match=f"truncated: no .* in its {len(content) - lost} bytes"):
        headers.read_header(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "no readable JPEG or PNG header"),
        (jpeg(picture(1, 40, 40))[:10], "no readable JPEG or PNG header|damaged header|truncated"),
        (png(picture(1, 40, 40))[:20], "no readable JPEG or PNG header|damaged header|truncated"),
    ],
)
def test_what_is_no_image_is_found(content, reason, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(headers.BadImageError, match=reason):
        headers.read_header(tmp_path / "a")


def test_a_missing_file_is_bad(tmp_path):
    with pytest.raises(headers.BadImageError, match="cannot be read: No such file"):
        headers.read_header(tmp_path / "none")


# --- image_folder and its index


def test_an_image_folder_is_indexed(folder):
    train, val = open_split(folder_data(folder), "train"), open_split(folder_data(folder), "val")
    assert train.class_names == val.class_names == ("a", "b", "c")
    assert train.counts_C.tolist() == [25, 12, 6]
    assert val.counts_C.tolist() == [4, 3, 3]
    assert train.names[0] == "train/a/000.jpg"
    assert [train.names[i] for i in range(43)] == sorted(train.names[i] for i in range(43))
    for number in (0, 24, 25, 42):
        path = Path(train.path(number))
        assert path.parent.name == train.class_names[train.labels_N[number]]
        with Image.open(path) as image:
            assert train.sizes_N2[number].tolist() == [image.height, image.width]
        assert train.bytes_N[number] == path.stat().st_size
    assert [array.tobytes() for array in train.read([42, 0, 7])] == [
        Path(train.path(i)).read_bytes() for i in (42, 0, 7)
    ]


def test_label_order_is_numeric_for_integers_else_by_code_point(tmp_path):
    numeric = write_set(tmp_path / "n", {"10": 1, "9": 1, "2": 1}, {"2": 1})
    assert open_split(folder_data(numeric), "train").class_names == ("2", "9", "10")
    mixed = write_set(tmp_path / "m", {"10": 1, "9": 1, "b": 1, "B": 1, "ä": 1}, {"b": 1})
    assert open_split(folder_data(mixed), "train").class_names == ("10", "9", "B", "b", "ä")
    assert open_split(folder_data(mixed), "val").labels_N.tolist() == [3]


def test_hidden_and_other_files_are_ignored(own):
    for name in (".DS_Store", ".hidden.jpg", "Thumbs.db", "LICENCE.txt"):
        (own / "train" / "a" / name).write_text("not an image")
    (own / "train" / ".cache").mkdir()
    assert len(open_split(folder_data(own), "train")) == 43


def test_a_second_start_reads_no_header(own, monkeypatch):
    first = open_split(folder_data(own), "train")
    read = counted(monkeypatch)
    again = open_split(folder_data(own), "train")
    assert read == []
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.sizes_N2, first.sizes_N2)


def test_only_changed_files_are_read_again(own, monkeypatch):
    first = open_split(folder_data(own), "train")
    changed = Path(first.path(3))
    changed.write_bytes(jpeg(picture(99, 70, 30)))
    (own / "train" / "b" / "new.png").write_bytes(png(picture(98, 20, 90)))
    read = counted(monkeypatch)
    again = open_split(folder_data(own), "train")
    assert sorted(read) == sorted([str(changed), str(own / "train" / "b" / "new.png")])
    assert again.sizes_N2[3].tolist() == [70, 30]
    assert len(again) == 44
    assert again.fingerprint != first.fingerprint


def test_a_trusted_cache_is_not_compared_with_the_files(own, monkeypatch):
    first = open_split(folder_data(own), "train")
    monkeypatch.setattr(folders, "_list", None)
    trusted = open_split(folder_data(own), "train", trust_cache=True)
    assert trusted.fingerprint == first.fingerprint
    assert trusted.path(42) == first.path(42)


def test_trust_without_a_cache_reads_the_files(own):
    assert len(open_split(folder_data(own), "train", trust_cache=True)) == 43


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 broken", pickle.dumps({"names": 1})])
def test_a_damaged_cache_is_made_again(own, damage):
    first = open_split(folder_data(own), "train")
    file = cache._file("folders", own, "train")
    file.write_bytes(damage)
    assert open_split(folder_data(own), "train").fingerprint == first.fingerprint
    assert cache.load("folders", own, "train") is not None


def test_a_cache_that_cannot_be_written_does_no_harm(own, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_split(folder_data(own), "train")) == 43


def test_the_fingerprint_knows_content_not_time_or_place(own, tmp_path):
    first = open_split(folder_data(own), "train").fingerprint
    moved = Path(shutil.copytree(own, tmp_path / "elsewhere"))
    for path in moved.rglob("*.*"):
        os.utime(path, (1, 1))
    assert open_split(folder_data(moved), "train").fingerprint == first

    def changed(change) -> str:
        copy = Path(shutil.copytree(own, tmp_path / "changed"))
        change(copy / "train")
        result = open_split(folder_data(copy), "train").fingerprint
        shutil.rmtree(copy)
        return result

    def longer(train: Path) -> None:
        with (train / "a" / "000.jpg").open("ab") as file:
            file.write(b"\0")

    def other_size(train: Path) -> None:
        path = train / "a" / "000.jpg"
        shorter = jpeg(picture(0, 30, 30))
        path.write_bytes(shorter + b"\0" * (path.stat().st_size - len(shorter)))

    changes = [
        longer,
        other_size,
        lambda train: (train / "a" / "000.jpg").rename(train / "a" / "000x.jpg"),
        lambda train: (train / "a" / "000.jpg").rename(train / "b" / "000.jpg"),
        lambda train: (
            (train / "c").rename(train / "d") and shutil.move(train.parent / "val" / "c", train.parent / "val" / "d")
        ),
        lambda train: (train / "a" / "000.jpg").unlink(),
    ]
    assert len({first, *(changed(change) for change in changes)}) == len(changes) + 1


def spoil(root: Path) -> list[str]:
    """Damage four training images; returns their paths."""
    paths = [root / "train" / "a" / name for name in ("000.jpg", "003.png", "006.jpg", "001.JPG")]
    paths[0].write_bytes(paths[0].read_bytes()[:-300])
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[2].write_bytes(b"")
    paths[3].write_bytes(b"\0garbage" * 40)
    return [f"train/a/{path.name}" for path in paths]


def test_bad_files_stop_the_run_by_name(own):
    bad = spoil(own)
    with pytest.raises(DataError, match=r"4 of 43 train images cannot be used.*Replace .*on_bad_image: skip") as caught:
        open_split(folder_data(own), "train")
    assert all(name in str(caught.value) for name in bad)
    assert "train/a/006.jpg (empty file)" in str(caught.value)
    assert of_error(caught.value) == Exit.DO_NOT_REQUEUE


def test_bad_files_can_be_left_out_and_mended(own, monkeypatch):
    before = open_split(folder_data(own), "train").fingerprint
    content = (own / "train" / "a" / "000.jpg").read_bytes()
    bad = spoil(own)
    data = folder_data(own, on_bad_image="skip")
    for trust in (False, False, True):
        skipping = open_split(data, "train", trust_cache=trust)
        assert sorted(file.name for file in skipping.skipped) == sorted(bad)
        assert len(skipping) == 39
        assert not {skipping.names[i] for i in range(39)} & set(bad)
        assert skipping.fingerprint != before
    with pytest.raises(DataError, match="4 of 43"):
        open_split(folder_data(own), "train", trust_cache=True)
    status = (own / "train" / "a" / "000.jpg").stat()
    (own / "train" / "a" / "000.jpg").write_bytes(content)
    os.utime(own / "train" / "a" / "000.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(open_split(data, "train")) == 40


def test_many_bad_files_are_named_up_to_twenty(tmp_path):
    root = write_set(tmp_path / "set", {"a": 30}, {"a": 1})
    for path in (root / "train" / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="30 of 30 train images cannot") as caught:
        open_split(folder_data(root), "train")
    assert str(caught.value).count("empty file") == 20
    assert "and 10 more" in str(caught.value)


def test_an_empty_class_is_named(own):
    (own / "train" / "void").mkdir()
    with pytest.raises(ValueError, match=r"1 of 4 classes have no training image: void. Add images or remove"):
        open_split(folder_data(own), "train")


def test_a_class_emptied_by_skipping_is_named(own):
    for path in (own / "train" / "c").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"classes have no training image \(6 bad files were left out\): c"):
        open_split(folder_data(own, on_bad_image="skip"), "train")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.name.startswith("hrdc_hpc.") for record in caplog.records)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_val_class_without_images_is_allowed_and_named(own, caplog):
    open_split(folder_data(own), "val")
    assert warnings(caplog) == []
    shutil.rmtree(own / "val" / "b")
    assert open_split(folder_data(own), "val").counts_C.tolist() == [4, 0, 3]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{own}: 1 of 3 classes have no val image, so no accuracy counts them: b. Add images")
    open_split(folder_data(own), "val", trust_cache=True)  # another rank: one of them has said it
    assert warnings(caplog) == [warning]


def test_val_classes_emptied_by_skipping_are_named(own, caplog):
    for name in "ac":
        for path in (own / "val" / name).iterdir():
            path.write_bytes(b"")
    open_split(folder_data(own, on_bad_image="skip"), "val")
    (warning,) = warnings(caplog)
    assert "2 of 3 classes have no val image (7 bad files were left out), so no accuracy counts them: a, c." in warning


def test_a_class_of_val_that_train_lacks_is_named(own):
    (own / "val" / "zebra").mkdir()
    with pytest.raises(ValueError, match=r"val: 1 folders are not among the 3 classes of the train split: zebra"):
        open_split(folder_data(own), "val")


def test_splits_with_other_classes_are_refused(own, tmp_path):
    other = write_set(tmp_path / "other", {"a": 1, "b": 1, "x": 1, "y": 1}, {"a": 1, "x": 1})
    train, val = open_split(folder_data(own), "train"), open_split(folder_data(other), "val")
    with pytest.raises(ValueError, match="has 2 classes that are not among the 3 of the train split: x, y"):
        index.check_same_classes(train, val)
    index.check_same_classes(train, open_split(folder_data(own), "val"))


def test_no_images_at_all(own):
    for path in (own / "val").rglob("*.*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no val images. Point data.dataset.root at"):
        open_split(folder_data(own), "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no folder .*set; image_folder expects .*set/train/<class>/<image>.jpg"),
        (lambda root: shutil.rmtree(root / "val"), "data.dataset.root: no folder .*set/val; image_folder expects"),
        (lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()], "no class folder in .*set/train"),
        (lambda root: (root / "train" / "a" / "deep").mkdir(), "deep: a folder inside a class folder.*too high"),
        (
            lambda root: (root / "train" / "a" / "x.WEBP").touch(),
            "x.WEBP: this kind of image is not read; allowed",
        ),
    ],
)
def test_a_wrong_layout_is_explained(own, change, message):
    change(own)
    with pytest.raises(ValueError, match=message):
        [open_split(folder_data(own), split) for split in ("train", "val")]


def test_files_that_change_under_the_run_are_named(own):
    train = open_split(folder_data(own), "train")
    Path(train.path(1)).unlink()
    Path(train.path(2)).write_bytes(b"short")
    with pytest.raises(
        DataError, match=r"2 images cannot be read: .*001.JPG \(No such file.*002.jpeg \(5 bytes, \d+ when"
    ):
        train.read([0, 1, 2])


def test_a_disk_that_fails_is_not_blamed_on_the_data(own, monkeypatch):
    train = open_split(folder_data(own), "train")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "readv", fail)
    with pytest.raises(
        RuntimeError, match=r"1 images cannot be read: .*000.jpg \(Input/output error\). Disk or network failed: start"
    ):
        train.read([0])


def test_class_info_has_counts_levels_and_shots(folder):
    train = open_split(folder_data(folder), "train")
    levels = Levels(by="rank", ranks=(1, 1, 1))
    info = class_info(train, folder_data(folder, levels=levels))
    assert info.names == ("a", "b", "c")
    assert info.counts_C.tolist() == [25, 12, 6]
    assert info.levels_C.tolist() == [0, 1, 2]
    assert info.shots_C.tolist() == [1, 2, 2]
    with pytest.raises(ValueError, match=r"data.levels.ranks: got \(1, 1, 5\)"):
        class_info(train, folder_data(folder, levels=Levels(by="rank", ranks=(1, 1, 5))))


def test_real_photographs_are_indexed(shared_data):
    train = open_split(folder_data(shared_data / "flowers"), "train")
    assert sorted(train.counts_C, reverse=True) == [150, 76, 38, 19, 8]
    assert train.skipped == ()
