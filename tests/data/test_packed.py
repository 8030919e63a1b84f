"""Reading a packed data set: the same images as from loose files, and damage by name."""

from __future__ import annotations

import os
import pickle
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hrdc_hpc.config.schema import Data, Holdout, Loader
from hrdc_hpc.config.types import Component
from hrdc_hpc.data import holdout
from hrdc_hpc.data.arrays import map_arrays, write_arrays
from hrdc_hpc.data.datasets import packed as packed_set
from hrdc_hpc.data.index import DataError, Names, open_split
from hrdc_hpc.data.manifest import Manifest
from hrdc_hpc.data.packed import PackedIndex, index_arrays, open_packed
from hrdc_hpc.data.preflight import preflight
from hrdc_hpc.pack.__main__ import main
from tests.data.images import folder_data

from packs import config, flip
from ranks import Ranks
from runs import differing, final_state, learnt, make_run


def pack(cfg: str, out: Path, *more: str) -> None:
    assert main(["--cfg", cfg, "--out", str(out), "--shard-gb", "0.00004", "--workers", "1", *more]) == 0


@pytest.fixture(scope="module")
def pack_there(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image folder, packed. Not to be written to."""
    place = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        pack(config(place, folder), place / "pack")
    return place / "pack"


@pytest.fixture
def own(pack_there: Path, tmp_path: Path) -> Path:
    """Return a copy that may be changed."""
    return Path(shutil.copytree(pack_there, tmp_path / "own"))


def packed_data(root: Path, **settings: object) -> Data:
    made = folder_data(root, **settings)
    return Data(**{**vars(made), "dataset": Component("packed", packed_set.Options(root=root))})


# --- the same as from loose files


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_index_is_the_source_s(split, pack_there, folder):
    packed, loose = open_split(packed_data(pack_there), split), open_split(folder_data(folder), split)
    assert isinstance(packed, PackedIndex)
    assert (packed.fingerprint, packed.class_names, packed.split) == (loose.fingerprint, loose.class_names, split)
    for name in ("labels_N", "sizes_N2", "bytes_N", "counts_C"):
        assert np.array_equal(getattr(packed, name), getattr(loose, name))
        assert getattr(packed, name).dtype == getattr(loose, name).dtype
    assert [packed.names[i] for i in range(len(packed))] == [loose.names[i] for i in range(len(loose))]


def test_images_are_read_in_any_order_by_several_threads(pack_there, folder):
    packed, loose = open_packed(pack_there, "train").verifying(), open_split(folder_data(folder), "train")
    order = np.random.default_rng(0).permutation(43)
    expected = [array.tobytes() for array in loose.read(order)]
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: packed.read(order), range(16)):
            packed.will_need(order[:10])
            assert [array.tobytes() for array in got] == expected


def test_a_subset_is_the_same_as_of_loose_files(pack_there, folder):
    held = [
        holdout.split_off(open_split(data, "train"), Holdout(share=0.3))
        for data in (packed_data(pack_there), folder_data(folder))
    ]
    for packed, loose in zip(*held, strict=True):
        assert (packed.fingerprint, packed.split) == (loose.fingerprint, loose.split)
        assert [a.tobytes() for a in packed.read(range(len(packed)))] == [
            a.tobytes() for a in loose.read(range(len(loose)))
        ]
    part, whole = held[0][0], open_split(packed_data(pack_there), "train")
    number = [whole.names[i] for i in range(43)].index(part.names[20])
    assert part.path(20) == whole.path(number)
    again = part.subset([20, 3], "train")
    assert [again.path(0), again.path(1)] == [part.path(20), part.path(3)]


def test_an_index_goes_to_another_process_and_another_folder(pack_there, tmp_path):
    index = open_packed(pack_there, "train")
    index.read([0])
    moved = pickle.loads(pickle.dumps(index)).at(  # noqa: S301 - its own
        Path(shutil.copytree(pack_there / "train", tmp_path / "train"))
    )
    assert moved.read([7])[0].tobytes() == index.read([7])[0].tobytes()
    assert moved.path(0).startswith(f"{tmp_path}/train/shard-00000.tar[0] (")


@pytest.mark.dali
def test_training_on_a_pack_is_training_on_the_files(digits, tmp_path):
    """Same images, order and crops, and so the same weights, bit for bit."""
    pack("digits_lt.yaml", tmp_path / "pack", f"data.dataset.root={digits}")
    short = ("optim.epochs=1", "optim.warmup_epochs=0", "compute.deterministic=true")
    runs = [
        make_run(tmp_path, digits, "loose", *short),
        make_run(
            tmp_path, digits, "packed", *short, f"data.dataset={{name: packed, root: {tmp_path / 'pack'}}}",
            "data.loader.verify=true",
        ),
    ]  # fmt: skip
    for run in runs:
        Ranks(run, 1).finish()
    assert differing(*(final_state(run) for run in runs)) == []
    assert learnt(runs[0]) == learnt(runs[1])


# --- the file of arrays


def test_arrays_are_an_npz_and_aligned(tmp_path):
    arrays = {
        f"a{n}": np.arange(n * 7, dtype=kind).reshape(-1, 7) for n, kind in enumerate(("u1", "<i8", "<f4", "<i2"))
    }
    with (tmp_path / "x.npz").open("wb") as file:
        write_arrays(file, arrays)
    mapped = map_arrays(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as loaded:
        for name, array in arrays.items():
            for got in (mapped[name], loaded[name]):
                assert np.array_equal(got, array)
                assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert all(array.ctypes.data % 64 == 0 for name, array in mapped.items() if len(array))
    assert not any(array.flags.writeable for array in mapped.values() if len(array))


def test_a_torn_file_of_arrays_is_refused(tmp_path):
    for number, content in enumerate((b"", b"PK", b"no zip at all" * 100)):
        (tmp_path / f"{number}").write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged|empty"):
            map_arrays(tmp_path / f"{number}")


def test_any_damage_of_arrays_is_found_where_asked(tmp_path):
    """In the data, in numpy's headers and in those of the zip: a ValueError that names the file, or the same arrays."""
    path, arrays = tmp_path / "x.npz", {"a": np.arange(20, dtype="<i4"), "b": np.arange(6, dtype="<u8").reshape(3, 2)}
    with path.open("wb") as file:
        write_arrays(file, arrays)
    whole, refused = path.read_bytes(), 0
    for offset in range(len(whole)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ mask]) + whole[offset + 1 :])
            try:
                mapped = map_arrays(path, check=True)
            except ValueError as error:
                assert str(error).startswith(f"{path}: damaged: ")  # noqa: PT017 - most of them, not all
                refused += 1
            else:
                for name in mapped.keys() & arrays.keys():
                    assert np.array_equal(mapped[name], arrays[name]), (offset, mask)
    assert refused > len(whole)


def test_an_index_at_full_scale_takes_little_memory(own):
    """437,513 images: what is not looked at is not in memory."""
    number = 437_513
    names = Names.of([f"train_val2018/Plantae/{n % 8142}/{n:032x}.jpg" for n in range(number)])
    whole, zeros = np.arange(number, dtype=np.int64), np.zeros(number, np.int64)
    arrays = index_arrays(
        names=names, labels_N=whole % 3, sizes_N2=np.full((number, 2), 600, np.int32), bytes_N=zeros + 260_000,
        shards_N=zeros.astype(np.int32), offsets_N=whole * 260_000, checksums_N=whole.astype(np.uint64),
    )  # fmt: skip
    with (own / "train" / "index.npz").open("wb") as file:
        write_arrays(file, arrays)
    facts = Manifest.read(own)
    text = (own / "pack.json").read_text()
    length = (own / "train" / "index.npz").stat().st_size
    (own / "pack.json").write_text(text.replace(str(facts.splits["train"].index_bytes), str(length)))
    tracemalloc.start()
    index = open_packed(own, "train", check=False)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert length > 45e6
    assert taken < 20e6
    assert (index.names[number - 1], len(index)) == (names[number - 1], number)


# --- damage


def test_a_damaged_image_is_noticed_where_asked(own):
    index = open_split(packed_data(own), "train")
    flip(own / "train" / "shard-00001.tar", int(index.offsets_N[index.files.firsts[1] + 1]) + 30)
    number = int(index.files.firsts[1]) + 1
    index.read([number])
    checked = open_split(packed_data(own, loader=Loader(verify=True)), "train")
    with pytest.raises(DataError, match="1 images cannot be read") as caught:
        checked.read([0, number, 2])
    assert f"{own}/train/shard-00001.tar[1] ({index.names[number]}) (damaged: checksum " in str(caught.value)


def test_a_missing_or_shortened_shard_is_named(own):
    index = open_packed(own, "train")
    (own / "train" / "shard-00000.tar").unlink()
    os.truncate(own / "train" / "shard-00001.tar", 2000)
    first = int(index.files.firsts[1])
    with pytest.raises(DataError) as caught:
        index.read([0, first])
    assert f"shard-00000.tar[0] ({index.names[0]}) (No such file or directory)" in str(caught.value)
    assert f"shard-00001.tar[0] ({index.names[first]}) (the shard has 2000 bytes, " in str(caught.value)
    index.will_need([0, first])  # says nothing: the read does
    with pytest.raises(ValueError, match=r"shard-00000.tar: missing, but \d+ bytes when it was packed"):
        preflight(packed_data(own))


def test_a_shard_that_shrinks_while_it_is_open_is_named(own):
    index = open_packed(own, "train")
    index.read([0])
    os.truncate(own / "train" / "shard-00000.tar", int(index.offsets_N[1]) + 10)
    with pytest.raises(DataError, match=r"\[1\].*the shard ends after 10 of its"):
        index.read([1])


def test_what_is_no_finished_pack_is_refused(own, tmp_path):
    flip(own / "train" / "index.npz", 3000)
    with pytest.raises(ValueError, match=r"index.npz: damaged: checksum"):
        open_split(packed_data(own), "train")
    open_split(packed_data(own), "train", trust_cache=True)  # one rank of a node has looked
    (own / "train" / "index.npz").unlink()
    with pytest.raises(ValueError, match=r"index.npz: missing"):
        open_split(packed_data(own), "train")
    manifest = (own / "pack.json").read_text()
    for content, said in (
        ("{", "damaged"),
        ('{"format": 99}', "format 99, this version reads 1"),
        ("[]", "format None"),
    ):
        (own / "pack.json").write_text(content)
        with pytest.raises(ValueError, match=said):
            preflight(packed_data(own))
    (own / "pack.json").write_text(manifest.replace('"name": "image_folder"', '"nickname": "x"'))
    with pytest.raises(ValueError, match="not as this version writes it"):
        preflight(packed_data(own))
    with pytest.raises(ValueError, match=r"no packed data set .*python -m hrdc_hpc.pack --cfg CONFIG --out"):
        preflight(packed_data(tmp_path / "none"))


@pytest.mark.dali
@pytest.mark.parametrize("verify", [True, False])
def test_the_loader_names_a_damaged_image(verify, own):
    from tests.data.test_loader import train_loader

    index = open_packed(own, "train")
    for number in range(len(index)):
        flip(index.files.path(int(index.shards_N[number])), int(index.offsets_N[number]))  # no JPEG begins so
    data = packed_data(own, loader=Loader(threads=1, verify=verify))
    with train_loader(data) as loader, pytest.raises(DataError) as caught:
        next(iter(loader.batches(0, 1)))
    text = str(caught.value)
    assert f"10 of 10 images cannot be {'read' if verify else 'decoded'}" in text
    step = loader._plan.place(0)[2]
    for number in step.tolist():
        assert index.path(number) in text
    assert ("checksum" in text) == verify
    assert "Mend the pack (python -m hrdc_hpc.pack --verify --out PACK" in text
