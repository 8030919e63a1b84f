"""What nodes keep: rate of staging against a plain copy; rate of training from decoded images, and what they cost.

    python -m benchmarks.node_local [--photographs FOLDER] [--gigabytes 1] [--images 384] [--rounds 3]
        [--record records]

Each round copies the same shards with `cp` and fsync and by staging (data/staging.py), and runs the training loader on
the same 800 x 600 JPEGs and on the cache of decoded images made of them (data/decoded.py), one after another. Then
crops out of the photographs themselves are compared with the same crops out of what the cache keeps of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.report import write
from hrdc_hpc.config.node_local import Staging as Options
from hrdc_hpc.config.schema import Data, Loader
from hrdc_hpc.config.types import Component
from hrdc_hpc.data.crops import training_crops
from hrdc_hpc.data.datasets import image_folder
from hrdc_hpc.data.decoded import DecodedIndex, decoded_index, kept_sizes
from hrdc_hpc.data.filling import Filler
from hrdc_hpc.data.headers import read_header
from hrdc_hpc.data.index import ImageIndex, open_split
from hrdc_hpc.data.loaders import train_loader
from hrdc_hpc.data.manifest import Shard
from hrdc_hpc.data.packed import ShardFiles, file_checksum
from hrdc_hpc.data.samplers import uniform
from hrdc_hpc.data.staging import Staging
from hrdc_hpc.record.figures import markdown, show
from hrdc_hpc.record.machine import describe

COLUMNS = ("what", "median", "range")
PIXEL_COLUMNS = ("shorter side of the crop in the cache", "crops", "mean difference", "99th percentile")
SHARDS, SIDE, SEEN, AS_IF, BATCH = 8, 256, 224, 600, 32
SIZE, QUALITY = (800, 600), 95


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder with train/<class>/<image>.jpg")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args(arguments)
    photographs = sorted((args.photographs / "train").rglob("*.jpg"))
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="hrdc-node-local-") as place:
        figures = measure(Path(place), photographs, args)
    load.append(os.getloadavg()[0])
    report = {
        "machine": describe(), "figures": figures, "pixels": compare(photographs), "load": load,
        "arguments": [
            "--photographs=FLOWERS", *(f"--{key}={getattr(args, key)}" for key in ("gigabytes", "images", "rounds")),
            "--record=records",
        ],
    }  # fmt: skip
    show("Copies and decoded images on a node", COLUMNS, rows(report), "rates by round")
    show("Pixels of crops out of the cache", PIXEL_COLUMNS, pixel_rows(report), "against crops of the photographs")
    if args.record:
        write_record(args.record, report)
    return 0


def measure(place: Path, photographs: Sequence[Path], args: argparse.Namespace) -> dict[str, list[float]]:
    """Return figures by round."""
    files = make_shards(place / "shards", int(args.gigabytes * 1e9))
    data, images = make_images(place / "images", photographs, args.images)
    cached = decoded_index(images, SIDE, place / "cache")
    cached.files.folder.mkdir()
    began = time.perf_counter()
    Filler(cached, cores=cores(), skip=False, rank=0, ranks=1, told=lambda: False).fill()
    figures: dict[str, list[float]] = {"filling, images/s": [len(cached) / (time.perf_counter() - began)]}
    for number in range(args.rounds):
        for what, rate in (
            ("cp and fsync, MB/s", copy_plainly(files, place / f"plain-{number}")),
            ("staging, MB/s", stage(files, place / f"staged-{number}")),
            ("loader from JPEGs, images/s", load_images(data, images)),
            ("loader from decoded images, images/s", load_images(data, cached)),
        ):
            figures.setdefault(what, []).append(rate)
    figures["bytes of a JPEG"] = [float(images.bytes_N.mean())]
    figures["bytes of a decoded image"] = [float(cached.bytes_N.mean())]
    return figures


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def make_shards(folder: Path, size: int) -> ShardFiles:
    """Write files of random bytes."""
    folder.mkdir()
    random, shards = np.random.default_rng(0), []
    for number in range(SHARDS):
        path = folder / f"shard-{number:05d}.tar"
        path.write_bytes(random.bytes(size // SHARDS))
        shards.append(Shard(file=path.name, images=1, bytes=size // SHARDS, checksum=file_checksum(path)))
    return ShardFiles(folder, shards)


def copy_plainly(files: ShardFiles, folder: Path) -> float:
    """MB/s of one copy after another, each flushed as staging does."""
    folder.mkdir()
    began = time.perf_counter()
    for number in range(SHARDS):
        with files.source(number).open("rb") as source, (folder / f"{number}").open("wb") as target:
            while chunk := source.read(1 << 22):
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
    return total(files) / 1e6 / (time.perf_counter() - began)


def stage(files: ShardFiles, folder: Path) -> float:
    """MB/s of one process that stages."""
    fresh = ShardFiles(files.folder, files.shards)
    began = time.perf_counter()
    staging = Staging([fresh], Options(to=str(folder), keep_free_gb=0))
    assert staging.join(600)
    seconds = time.perf_counter() - began
    assert staging.state == "whole"
    staging.close()
    return total(files) / 1e6 / seconds


def total(files: ShardFiles) -> int:
    """Bytes of all shards."""
    return sum(shard.bytes for shard in files.shards)


def make_images(folder: Path, photographs: Sequence[Path], number: int) -> tuple[Data, ImageIndex]:
    """Write photographs as 800 x 600 JPEGs."""
    for split, images in (("train", number), ("val", 1)):
        (folder / split / "0").mkdir(parents=True)
        for one in range(images):
            with Image.open(photographs[one % len(photographs)]) as image:
                large = image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
            large.save(folder / split / "0" / f"{one:05d}.jpg", quality=QUALITY)
    data = Data(dataset=Component("image_folder", image_folder.Options(root=folder)), loader=Loader(threads=cores()))
    index = open_split(data, "train")
    assert isinstance(index, ImageIndex)
    return data, index


def load_images(data: Data, index: ImageIndex | DecodedIndex) -> float:
    """Images/s of an epoch of the training loader, after a few batches."""
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    loader = train_loader(
        index, data, sampler, cores=cores(), classes=1, seed=0, stream="main", global_batch=BATCH, rank=0,
        world_size=1, device=torch.device("cpu"),
    )  # fmt: skip
    batches = loader.batches(0, 4 + len(index) // BATCH)
    for _ in range(4):
        next(batches)
    began = time.perf_counter()
    number = sum(len(batch.labels_B) for batch in batches)
    seconds = time.perf_counter() - began
    loader.close()
    return number / seconds


def compare(photographs: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare the crops of one epoch out of photographs with those out of what is kept of them, by size of the crop."""
    sizes_N2 = np.array([read_header(str(path))[:2] for path in photographs], np.int32)
    # each photograph is taken as if its shorter side were of AS_IF pixels: all lengths are scaled alike
    scale_N = sizes_N2.min(axis=1) / AS_IF
    sides = np.rint(SIDE * scale_N).astype(int).tolist()
    kept_N2 = np.concatenate([kept_sizes(sizes_N2[n : n + 1], side) for n, side in enumerate(sides)])
    anchors_N2, shapes_N2, _ = training_crops(
        seed=0, stream="main", epoch=0, positions_B=np.arange(len(photographs)), sizes_B2=kept_N2, scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3), flip=False,
    )  # fmt: skip
    found: dict[str, list[NDArray[np.int16]]] = {"below 112": [], "112 to 223": [], "224 and more": []}
    for path, size, scale, kept, anchor, shape in zip(
        photographs, sizes_N2, scale_N, kept_N2, anchors_N2, shapes_N2, strict=True
    ):
        seen, side = max(1, round(SEEN * scale)), shape.min() / scale
        group = "below 112" if side < 112 else "112 to 223" if side < 224 else "224 and more"
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        small = image.resize((kept[1], kept[0]), Image.Resampling.BILINEAR)
        box = np.array([anchor[1], anchor[0], anchor[1] + shape[1], anchor[0] + shape[0]], float)
        ratio = np.tile(size[::-1] / kept[::-1], 2)
        pair = [
            np.asarray(one.resize((seen, seen), Image.Resampling.BILINEAR, box=tuple(where)), np.int16)
            for one, where in ((image, box * ratio), (small, box))
        ]
        found[group].append(np.abs(pair[0] - pair[1]).ravel())
    return [
        {
            "crop": group, "crops": len(all_of), "mean": float(np.concatenate(all_of).mean()),
            "p99": float(np.percentile(np.concatenate(all_of), 99)),
        }
        for group, all_of in found.items() if all_of
    ]  # fmt: skip


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table of rates."""
    return [
        (what, f"{median(values):,.0f}", f"{min(values):,.0f} to {max(values):,.0f}" if len(values) > 1 else "")
        for what, values in report["figures"].items()
    ]


def pixel_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table of the pixels."""
    return [
        (told["crop"], str(told["crops"]), f"{told['mean']:.2f} of 255", f"{told['p99']:.0f} of 255")
        for told in report["pixels"]
    ]


def write_record(folder: Path, report: dict[str, Any]) -> None:
    """Write node-local_<hardware>_<date>.json and .md."""
    notes = [
        f"Load of the machine before and after: {report['load'][0]:.1f}, {report['load'][1]:.1f} on"
        f" {report['machine']['cores']} cores, which other work had, too. Source and target of the copies are the same"
        " disk, and the source lies in the page cache: what is measured is what staging adds to a copy (xxh3, fsync,"
        " rename), not a cluster's file system. No GPU and no node-local NVMe was measured.",
        f"Loader: {SIZE[0]} x {SIZE[1]} JPEGs of quality {QUALITY}, made of the photographs, batches of {BATCH},"
        f" {SEEN} x {SEEN} pixels out, all decoding threads; the cache keeps a shorter side of {SIDE}.",
        f"What the cache costs in pixels: one epoch's random resized crops of the photographs (area 0.08 to 1), cut out"
        f" of each photograph itself and out of what the cache keeps of it, both resized to what the network sees (PIL,"
        f" bilinear with antialiasing). Each photograph is taken as if its shorter side were of {AS_IF} pixels, every"
        " length scaled alike. The smaller the crop, the more it is enlarged, and the less sharp it is.",
        markdown(PIXEL_COLUMNS, pixel_rows(report)),
    ]
    write(
        folder, "node-local", report, module="benchmarks.node_local",
        title="Copies and decoded images on a node", columns=COLUMNS, rows=rows(report), notes=notes,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
