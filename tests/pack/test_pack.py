"""The packer on this machine: what it writes, what it refuses, how it ends and goes on."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.data.index import ImageIndex
from hrdc_hpc.data.manifest import Manifest
from hrdc_hpc.data.packed import open_packed, read_unreadable
from hrdc_hpc.pack.__main__ import main
from hrdc_hpc.pack.encode import pack_image
from hrdc_hpc.pack.packing import UNREADABLE_LISTED
from hrdc_hpc.pack.plan import Options, cut, member_bytes
from hrdc_hpc.pack.shard import member_name
from tests.data.images import jpeg, picture, png

from packs import config, contents, flip, start

SMALL = ("--shard-gb", "0.00004", "--workers", "1")


def pack(cfg: str, out: Path, *more: str) -> int:
    return main(["--cfg", cfg, "--out", str(out), *SMALL, *more])


@pytest.fixture
def own(loose: Path, tmp_path: Path) -> Path:
    """Return a copy of the image folder that may be changed."""
    return Path(shutil.copytree(loose, tmp_path / "set"))


# --- what is written


def test_a_shard_is_a_tar_whose_members_are_the_files(packed: Path, loose: Path) -> None:
    names = []
    for path in sorted(packed.glob("train/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                label, name = member.name.split("/", 1)
                names.append(name)
                content = tar.extractfile(member)
                assert content is not None
                assert content.read() == (loose / name).read_bytes()
                assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
                assert name.split("/")[1] == "abc"[int(label)]
    assert names == sorted(str(path.relative_to(loose)) for path in loose.glob("train/*/*"))


def test_the_manifest_says_what_the_pack_is(packed: Path) -> None:
    manifest = Manifest.read(packed)
    assert (manifest.name, manifest.classes) == ("image_folder", ("a", "b", "c"))
    assert manifest.options == {"shorter_side": None, "shard_bytes": 40000, "check": "decode"}
    train = manifest.splits["train"]
    assert (train.images, train.unreadable, train.fingerprint) == (43, 0, train.source)
    assert len(train.shards) > 3
    assert sum(shard.images for shard in train.shards) == 43
    assert Manifest(**{**manifest.as_json(), "splits": manifest.splits, "classes": manifest.classes}) == manifest


def test_shards_follow_from_the_sizes() -> None:
    assert cut(np.array([4, 4, 4, 12, 1, 9, 2]), 10) == (2, 1, 1, 2, 1)
    assert cut(np.array([4, 4]), 8) == (2,)
    assert cut(np.array([], np.int64), 8) == ()
    assert member_bytes(np.array([0, 1, 512, 513])).tolist() == [512, 1024, 1024, 1536]


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("train/a/x.jpg", "7/train/a/x.jpg"),
        ("../a/./x.jpg", "7/a/x.jpg"),
        ("/data/x.PNG", "7/data/x.PNG.jpg"),
        ("a/x.jpeg", "7/a/x.jpeg"),
    ],
)
def test_members_stay_below_their_folder(name: str, member: str) -> None:
    assert member_name(7, name, jpeg=True) == member


def test_names_with_odd_characters(tmp_path: Path) -> None:
    odd = ["ä ö.jpg", "new\nline.jpg", "-rf *.jpg", os.fsdecode(b"\xff\xfe.jpg"), "x" * 200 + ".jpg", "a'b\"c.jpg"]
    for split in ("train", "val"):
        (tmp_path / "set" / split / "class one").mkdir(parents=True)
        for number, name in enumerate(odd):
            (tmp_path / "set" / split / "class one" / name).write_bytes(jpeg(picture(number, 40, 50)))
    out = tmp_path / "pack"
    assert pack(config(tmp_path, tmp_path / "set"), out) == 0
    assert main(["--out", str(out), "--verify", "--workers", "1"]) == 0
    index = open_packed(out, "train")
    assert sorted(index.names[i] for i in range(6)) == sorted(f"train/class one/{name}" for name in odd)
    for number, content in enumerate(index.read(range(6))):
        assert content.tobytes() == (tmp_path / "set" / index.names[number]).read_bytes()


# --- images that are encoded anew


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
def test_large_images_are_made_smaller(mode: str) -> None:
    image = picture(3, 90, 120)
    content = jpeg(image.convert(mode)) if mode in ("L", "CMYK") else png(image.convert(mode))
    packed, height, width = pack_image(content, Options(shorter_side=40))
    with Image.open(io.BytesIO(packed)) as again:
        assert (again.format, again.mode) == ("JPEG", "L" if mode == "L" else "RGB")
        assert (again.height, again.width) == (height, width) == (40, 53)
        seen = np.asarray(again.convert("L"), np.float32)
    with Image.open(io.BytesIO(content)) as source:
        smaller = source.convert("RGB").resize((53, 40), Image.Resampling.LANCZOS)
    assert np.abs(seen - np.asarray(smaller.convert("L"), np.float32)).mean() < 3


def test_odd_images_are_packed_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PIL warns of each palette with transparency: of half a million of them nobody would see anything else."""
    for split in ("train", "val"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        image = picture(1, 60, 60).convert("P")
        image.info["transparency"] = bytes(range(256))
        (tmp_path / "set" / split / "a" / "x.png").write_bytes(png(image))
    assert pack(config(tmp_path, tmp_path / "set"), tmp_path / "pack", "--shorter-side", "40") == 0
    assert capsys.readouterr().err == ""


def test_small_images_stay_as_they_are() -> None:
    for content in (jpeg(picture(1, 40, 90)), png(picture(1, 30, 90))):
        assert pack_image(content, Options(shorter_side=40)) == (content, 40 if content[:1] == b"\xff" else 30, 90)


def test_orientation_is_neither_applied_nor_kept() -> None:
    """The loader ignores it: an image must be seen in the same way before and after."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    packed, height, width = pack_image(jpeg(picture(1, 80, 120), exif=exif), Options(shorter_side=40))
    assert (height, width) == (40, 60)
    with Image.open(io.BytesIO(packed)) as again:
        assert again.size == (60, 40)
        assert not again.getexif()


def test_a_pack_of_smaller_images_is_one_of_its_own(cfg: str, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert pack(cfg, out, "--shorter-side", "44", "--quality", "80") == 0
    assert main(["--out", str(out), "--verify", "--workers", "1"]) == 0
    small, whole = open_packed(out, "train"), open_packed(packed, "train")
    assert small.fingerprint != whole.fingerprint
    assert small.sizes_N2.min(axis=1).tolist() == np.minimum(whole.sizes_N2.min(axis=1), 44).tolist()
    assert Manifest.read(out).options["quality"] == 80


# --- images that cannot be read


def test_unreadable_images_are_listed(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = {"train/a/000.jpg": b"", "train/a/002.jpeg": b"no image", "val/a/043.JPG": None}
    for name, content in damaged.items():
        (own / name).unlink() if content is None else (own / name).write_bytes(content)
    flip(own / "train" / "b" / "027.png", 3000)  # head and end are whole
    (own / "val" / "a" / "043.JPG").symlink_to("nowhere")
    cfg, out = config(tmp_path, own), tmp_path / "pack"
    assert pack(cfg, out) == UNREADABLE_LISTED
    said = capsys.readouterr().out
    assert (
        f"train: 40 images, 0.000 GB, in {len(Manifest.read(out).splits['train'].shards)} shards; 3 unreadable" in said
    )
    reasons = {bad.name: bad.reason for split in ("train", "val") for bad in read_unreadable(out / split)}
    assert reasons["train/a/000.jpg"] == "empty file"
    assert reasons["train/a/002.jpeg"] == "no readable JPEG or PNG header"
    assert reasons["val/a/043.JPG"] == "cannot be read: No such file or directory"
    assert reasons["train/b/027.png"].startswith("damaged")
    assert len(reasons) == 4
    index = open_packed(out, "train")
    assert len(index) == 40
    assert not set(reasons) & {index.names[i] for i in range(40)}
    assert {bad.name for bad in index.skipped} == {name for name in reasons if name.startswith("train")}
    assert main(["--out", str(out), "--verify", "--workers", "1"]) == 0
    assert pack(cfg, out) == UNREADABLE_LISTED  # nothing to do, but still not all of it


@pytest.mark.parametrize("name", ["a/000.jpg", "b/027.png"])
def test_an_unreadable_image_stops_the_packer_where_asked(name: str, own: Path, tmp_path: Path, capsys) -> None:
    """Whether the index finds it or the decoder."""
    if name == "a/000.jpg":
        (own / "train" / name).write_bytes(b"")
    else:
        flip(own / "train" / name, 3000)
    assert pack(config(tmp_path, own), tmp_path / "pack", "--on-bad", "stop") == Exit.DO_NOT_REQUEUE
    said = capsys.readouterr().err
    assert f"train/{name}" in said
    assert "leave out --on-bad stop to have such images listed" in said
    assert not (tmp_path / "pack" / "pack.json").exists()


def test_a_failing_disk_does_not_make_an_image_unreadable(own: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from hrdc_hpc.data.index import Failure

    real = ImageIndex.read_into

    def fail(self, indices, arrays):
        return {0: Failure("Input/output error", passing=True)} if indices == [5] else real(self, indices, arrays)

    monkeypatch.setattr(ImageIndex, "read_into", fail)
    assert pack(config(tmp_path, own), tmp_path / "pack") == Exit.FAILED
    assert "(Input/output error)" in capsys.readouterr().err
    monkeypatch.undo()


# --- starting again


def test_a_finished_pack_is_left_alone(cfg: str, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in packed.rglob("*")}
    assert pack(cfg, packed) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*")} == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_options_are_refused_with_the_difference(
    finished: bool, cfg: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "pack"))
    if not finished:
        (out / "pack.json").unlink()
    before = contents(out)
    assert pack(cfg, out, "--shorter-side", "44") == Exit.DO_NOT_REQUEUE
    told = capsys.readouterr().err
    assert "options.shorter_side: 44, there none" in told
    assert "options.shard_bytes" not in told
    assert contents(out) == before


def test_another_source_is_refused(own: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "train" / "a" / "new.jpg").write_bytes(jpeg(picture(99, 40, 40)))
    out = Path(shutil.copytree(packed, tmp_path / "pack"))
    assert pack(config(tmp_path, own), out) == Exit.DO_NOT_REQUEUE
    assert "sources.train.fingerprint" in capsys.readouterr().err


def test_a_folder_with_something_else_is_refused(cfg: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    assert pack(cfg, tmp_path) == Exit.DO_NOT_REQUEUE
    assert "holds something else" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


def test_only_what_is_damaged_is_written_anew(cfg: str, packed: Path, tmp_path: Path, capsys) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "pack"))
    shards = sorted(out.glob("*/*.tar"))
    flip(shards[1], 700)
    shards[2].unlink()
    os.truncate(shards[3], 100)
    (out / "parts" / "val-00000.npz").write_bytes(b"torn")
    (out / "train" / ".tmp-shard-00000.tar-1-aa").write_bytes(b"left by a kill")
    (out / "pack.json").unlink()
    untouched = shards[0].stat().st_ino
    assert pack(cfg, out) == 0
    assert f"{len(shards) - 4} shards whole already" in capsys.readouterr().out
    assert contents(out) == contents(packed)
    assert shards[0].stat().st_ino == untouched


def test_a_damaged_part_gives_no_image_the_label_of_another(cfg: str, packed: Path, tmp_path: Path) -> None:
    """A part is what a later start makes the index of: each of its bytes counts."""
    out = Path(shutil.copytree(packed, tmp_path / "pack"))
    part = out / "parts" / "train-00000.npz"
    whole = part.read_bytes()
    places = np.load(part)["places_n"]
    start_ = whole.index(places.tobytes())
    for offset in (start_, start_ + 4, *range(0, len(whole), 301)):
        part.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x05]) + whole[offset + 1 :])
        (out / "pack.json").unlink()
        assert pack(cfg, out) == 0
        assert (out / "train" / "index.npz").read_bytes() == (packed / "train" / "index.npz").read_bytes(), offset


def test_a_shard_of_another_pack_is_never_taken_into_the_index(cfg: str, packed: Path, tmp_path: Path) -> None:
    """Two that began at once where files cannot be locked: a part of the right place, but of other images."""
    from hrdc_hpc.config.load import load
    from hrdc_hpc.pack.finish import finish
    from hrdc_hpc.pack.plan import make_plan

    out = Path(shutil.copytree(packed, tmp_path / "pack"))
    plan = make_plan(load(cfg, []).data, Options(shard_bytes=40000))
    assert finish(out, plan) == Manifest.read(packed)
    shutil.copy(out / "parts" / "train-00001.npz", out / "parts" / "train-00000.npz")
    with pytest.raises(RuntimeError, match=r"shard-00000.tar: another packer has written it"):
        finish(out, plan)


def test_a_pack_that_lost_files_is_not_called_finished(cfg: str, packed: Path, tmp_path: Path, capsys) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "pack"))
    (out / "train" / "shard-00001.tar").unlink()
    os.truncate(out / "val" / "index.npz", 100)
    assert pack(cfg, out) == Exit.FAILED
    said = capsys.readouterr().err
    assert f"missing, or of another length: {out}/train/shard-00001.tar, {out}/val/index.npz. Remove" in said
    (out / "pack.json").unlink()
    assert pack(cfg, out) == 0
    assert contents(out) == contents(packed)


def test_a_mended_image_is_taken(own: Path, tmp_path: Path) -> None:
    """One of the same length, so that nothing else tells of it."""
    image, out = own / "train" / "b" / "027.png", tmp_path / "pack"
    flip(image, 3000)
    cfg = config(tmp_path, own)
    assert pack(cfg, out) == UNREADABLE_LISTED
    assert pack(cfg, out, "--on-bad", "stop") == Exit.DO_NOT_REQUEUE
    (out / "pack.json").unlink()
    assert pack(cfg, out, "--on-bad", "stop") == Exit.DO_NOT_REQUEUE
    assert pack(cfg, out) == UNREADABLE_LISTED
    flip(image, 3000)
    (out / "pack.json").unlink()
    assert pack(cfg, out, "--on-bad", "stop") == 0
    assert len(open_packed(out, "train")) == 43


def test_a_damaged_pack_is_not_packed_again(packed: Path, tmp_path: Path) -> None:
    """Its images would get checksums that call the damage right."""
    source = Path(shutil.copytree(packed, tmp_path / "source"))
    index = open_packed(source, "train")
    flip(source / "train" / "shard-00000.tar", int(index.offsets_N[2] + index.bytes_N[2]) - 200)
    out = tmp_path / "pack"
    dataset = f"data.dataset={{name: packed, root: {source}}}"
    assert main(["--cfg", "inat.yaml", "--out", str(out), *SMALL, "--check", "header", dataset]) == UNREADABLE_LISTED
    (bad,) = read_unreadable(out / "train")
    assert bad.name == index.names[2]
    assert bad.reason.startswith("damaged: checksum ")


def test_a_png_beside_a_jpeg_of_its_name_is_not_lost_when_unpacked(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        (tmp_path / "set" / split / "a" / "x.jpg").write_bytes(jpeg(picture(1, 60, 60)))
        (tmp_path / "set" / split / "a" / "x.png").write_bytes(png(picture(2, 60, 60)))
    assert pack(config(tmp_path, tmp_path / "set"), tmp_path / "pack", "--shorter-side", "40") == 0
    with tarfile.open(tmp_path / "pack" / "train" / "shard-00000.tar") as tar:
        assert tar.getnames() == ["0/train/a/x.jpg", "0/train/a/x.png.jpg"]


def test_what_a_pack_says_can_be_given_to_a_shell(loose: Path, tmp_path: Path, capsys) -> None:
    import shlex

    from hrdc_hpc.config.load import load

    out = tmp_path / 'it\'s {a} pack, "odd": #1'
    assert pack(config(tmp_path, loose), out) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    (override,) = shlex.split(line.removeprefix("train on it with: "))
    assert load(config(tmp_path, loose), [override]).data.dataset.options.root == out


def test_locks_are_asked_for_as_network_file_systems_want_it(cfg: str, tmp_path: Path, monkeypatch) -> None:
    """NFS has an exclusive lock for a file that is open for writing alone."""
    real = fcntl.flock

    def flock(file, kind: int) -> None:
        if kind & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert pack(cfg, tmp_path / "pack") == 0


def test_two_that_begin_at_once_with_other_options(cfg: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """The second sees no plan yet, and must not replace the one that the first has written and locked."""
    from hrdc_hpc.pack import packing

    out, real, seen = tmp_path / "pack", packing.write_json_durably, []

    def write(path: Path, value) -> None:
        real(path, value)
        if not seen:  # the other one was quicker
            seen.append(path)
            assert pack(cfg, out, "--shorter-side", "44") == 0

    monkeypatch.setattr(packing, "write_json_durably", write)
    assert pack(cfg, out) == Exit.DO_NOT_REQUEUE
    assert "options.shorter_side: none, there 44" in capsys.readouterr().err
    assert main(["--out", str(out), "--verify", "--workers", "1"]) == 0


def test_a_file_in_the_place_of_the_pack(cfg: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pack").touch()
    assert pack(cfg, tmp_path / "pack") == Exit.DO_NOT_REQUEUE
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_while_processes_are_started(number: signal.Signals, cfg: str, tmp_path: Path) -> None:
    """A terminal and SLURM send it to all of them, also to those that have no handlers yet."""
    out = tmp_path / "pack"
    process = start("--cfg", cfg, "--out", out, *SMALL[:2], "--workers", "2")
    while not (out / "parts" / "plan.json").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    time.sleep(0.25)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (Exit.LEFT if number == signal.SIGINT else Exit.REQUEUE), said
    assert "Traceback" not in said
    assert f"stopped by {number.name}" in said


def test_two_packers_do_not_meet(cfg: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "pack"))
    (out / "pack.json").unlink()
    with (out / "parts" / "plan.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as a task of an array
        assert pack(cfg, out) == Exit.DO_NOT_REQUEUE
        assert "another packer is at work there" in capsys.readouterr().err
        assert pack(cfg, out, "--task", "0/2") == 0
        fcntl.flock(file, fcntl.LOCK_EX)
        assert pack(cfg, out, "--task", "1/2") == 0  # finished by the other one
        (out / "pack.json").unlink()
        assert pack(cfg, out, "--task", "1/2") == Exit.DO_NOT_REQUEUE


def test_a_full_disk_is_found_before_anything_is_written(cfg: str, tmp_path: Path, monkeypatch, capsys) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, 10**4))
    assert pack(cfg, tmp_path / "pack") == Exit.FAILED
    assert "needs up to 0.0 GB, but 0.0 GB are free there" in capsys.readouterr().err
    assert not list(tmp_path.glob("pack/*/*.tar"))


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [
        (signal.SIGINT, Exit.LEFT, "2"),
        pytest.param(signal.SIGINT, Exit.LEFT, "1", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, Exit.REQUEUE, "1", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, Exit.REQUEUE, "2", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, "2", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_packer_goes_on(
    number: signal.Signals, code: int, workers: str, many: tuple[str, Path], tmp_path: Path
) -> None:
    cfg, straight = many
    out = tmp_path / "pack"
    arguments = ("--cfg", cfg, "--out", out, "--shard-gb", "0.0004", "--workers", workers)
    process = start(*arguments)
    while not list(out.glob("parts/*.npz")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    if number != signal.SIGKILL:
        assert f"stopped by {number.name}; whole shards stay in {out}: the same command goes on" in said
        assert not list(out.rglob(".tmp-*"))
    assert not (out / "pack.json").exists(), "it was over before it could be stopped"
    process = start(*arguments)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "600 of 600 images" in said
    assert "whole already" in said
    assert contents(out) == contents(straight)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A config with 600 images, enough to be interrupted, and an undisturbed pack of them, by one process."""
    place = tmp_path_factory.mktemp("many")
    contents_ = [jpeg(picture(number, 300, 400)) for number in range(4)]
    for split, count in (("train", 500), ("val", 100)):
        (place / "set" / split / "a").mkdir(parents=True)
        for number in range(count):
            (place / "set" / split / "a" / f"{number}.jpg").write_bytes(contents_[number % 4])
    cfg = config(place, place / "set")
    assert main(["--cfg", cfg, "--out", str(place / "pack"), "--shard-gb", "0.0004", "--workers", "1"]) == 0
    return cfg, place / "pack"


@pytest.mark.slow
def test_killed_twenty_times_at_random(many: tuple[str, Path], tmp_path: Path) -> None:
    cfg, straight = many
    draw, out, kills = random.Random(20), tmp_path / "pack", 0
    arguments = ("--cfg", cfg, "--out", out, "--shard-gb", "0.0004", "--workers")
    while kills < 20:
        process = start(*arguments, str(1 + kills % 2), by_job=kills >= 10)
        while process.poll() is None and not (out / "parts" / "plan.json").exists():
            time.sleep(0.005)
        time.sleep(draw.uniform(0.2, 1.5))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
        if (out / "pack.json").exists():  # it got that far: its last steps are to be killed again
            (out / "pack.json").unlink()
            for part in draw.sample(sorted(out.glob("parts/*.npz")), 8):
                part.unlink()
    process = start(*arguments, "2")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert contents(out) == contents(straight)


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--cfg is missing"),
        (["--cfg", "digits_lt.yaml", "--quality", "90"], "--quality goes with --shorter-side"),
        (["--cfg", "digits_lt.yaml", "--tasks", "4", "--time", "10"], "which also needs --partition or --profile"),
        (["--cfg", "digits_lt.yaml", "--shorter-side", "0"], "must be a whole number from 1"),
        (["--cfg", "digits_lt.yaml", "--shard-gb", "-1"], "must be a number of GB above 0"),
        (["--verify", "--cfg", "digits_lt.yaml"], "--verify goes with --out and --workers alone"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], said: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "pack"), *arguments])
    assert ended.value.code == Exit.DO_NOT_REQUEUE
    assert said in capsys.readouterr().err


def test_small_images_in_memory_are_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "cifar10_lt.yaml", "--out", str(tmp_path / "pack")]) == Exit.DO_NOT_REQUEUE
    assert capsys.readouterr().err.startswith("pack: ")


def test_the_batch_script(cfg: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--partition", "gpu", "--tasks", "12", "--array-parallelism", "5", "--cpus-per-rank", "8", "--dry-run"]
    out = tmp_path / "pack"
    assert main(["--cfg", cfg, "--out", str(out), *flags, "--shorter-side", "320", "--sbatch", "exclusive=true"]) == 0
    text = capsys.readouterr().out
    for line in ("--partition=gpu", "--array=0-11%5", "--cpus-per-task=8", "--exclusive", "--requeue", "--nodes=1"):
        assert f"#SBATCH {line}\n" in text
    assert (
        f'--out {out} --shard-gb=2.0 --check=decode --on-bad=list --shorter-side=320 --task="$SLURM_ARRAY_TASK_ID/12"'
        in text
    )
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert not out.exists()


def test_tasks_share_the_shards(cfg: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pack"
    for task in ("1/3", "2/3"):
        assert pack(cfg, out, "--task", task) == 0
        assert "are still to come, from other tasks" in capsys.readouterr().out
    assert not (out / "pack.json").exists()
    assert pack(cfg, out, "--task", "0/3") == 0
    assert contents(out) == contents(packed)
