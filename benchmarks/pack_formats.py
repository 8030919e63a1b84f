"""Why a tar: reading encoded images at random from shards, one blob and single files, and what smaller images cost.

    python -m benchmarks.pack_formats [--images 2000] [--rounds 3] [--photographs FOLDER] [--record records]

Every form holds the same encoded images, of iNaturalist's mean length. A round reads all of them in an order of its
own, once after the pages were given back to the system (cold) and once more (hot), by each form in turn. Then the index
of 437,513 images is opened, and the photographs of a folder are made smaller as the packer does and compared after the
crop of an evaluation. Needs 2 GB of disk below --disk, which it frees again, and two minutes.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.report import write
from hrdc_hpc.data.folders import open_folders
from hrdc_hpc.data.index import Bytes, ImageIndex
from hrdc_hpc.data.packed import PackedIndex, open_packed
from hrdc_hpc.pack.__main__ import main as pack
from hrdc_hpc.pack.encode import smaller
from hrdc_hpc.record.figures import markdown, number, show
from hrdc_hpc.record.machine import describe

COLUMNS = (
    "form", "threads", "cold, images/s", "over the blob", "hot, images/s", "over the blob", "hot, CPU us/image",
    "bytes beside the images",
)  # fmt: skip
LOSS_COLUMNS = ("shorter side, quality", "images", "bytes", "mean difference", "99th percentile", "PSNR, dB")
BATCH, AHEAD = 64, 512
"""Images of a read, and how many the order tells ahead."""
CLASSES = 20
INDEX_IMAGES = 437_513
EVAL_RESIZE, EVAL_SIZE = 256, 224
AS_IF = 600
"""Pixels that the shorter side of every photograph is taken for: those at hand are smaller than iNaturalist's."""
REENCODINGS = ((384, 90), (320, 90), (320, 95), (256, 90))
_TEMPLATE = """
name: formats
data: {{dataset: {{name: image_folder, root: "{root}"}}}}
model: {{backbone: {{name: tiny, width: 8}}}}
method: ce
optim: {{epochs: 1, global_batch: 32}}
"""
_OPEN = """
import sys, time, numpy as np
from pathlib import Path
from hrdc_hpc.data.packed import open_packed
import xxhash
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024
before = private()
start = time.perf_counter()
index = open_packed(Path(sys.argv[1]), "train", check=sys.argv[2] == "check")
opened = time.perf_counter() - start
touched = np.random.default_rng(0).permutation(len(index))
index.labels_N[touched].sum(), index.sizes_N2[touched].sum(), index.offsets_N[touched].sum(), index.counts_C
del touched
print(opened, private() - before)
"""


@dataclass(frozen=True)
class Form:
    """One way to store the images."""

    name: str
    paths: list[Path]
    threads: int
    read: Callable[[NDArray[np.int64]], int]
    """Reads images in this order; bytes read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="pack_formats.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kilobytes", type=int, default=260, help="mean length of an image (default: 260)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photographs", type=Path, help="folder of JPEGs, searched whole, for the cost in pixels")
    parser.add_argument("--disk", type=Path, default=Path(), help="folder to write below (default: here)")
    parser.add_argument("--record", type=Path, help="folder for pack-formats_<hardware>_<date>.json and .md")
    options = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.disk, prefix=".tmp-formats-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        place = Path(folder).absolute()
        lengths = make_files(place / "set", options.images, options.kilobytes * 1000)
        pack_files(place)
        measured = measure(list(forms(place)), options.images, options.rounds)
        sizes = {name: on_disk(place / part) for name, part in PLACES.items()}
        index = measure_index(place)
    losses = [loss(options.photographs, *chosen) for chosen in REENCODINGS] if options.photographs else []
    chosen = {"images": options.images, "kilobytes": options.kilobytes, "rounds": options.rounds}
    report: dict[str, Any] = {
        "machine": describe(), "settings": chosen,
        "arguments": [*(f"--{key}={value}" for key, value in chosen.items()), "--record=records"],
        "load": [before, os.getloadavg()[0]],
        "image_bytes": int(lengths.sum()), "forms": measured, "on_disk": sizes, "index": index, "reencoding": losses,
    }  # fmt: skip
    if losses:
        report["arguments"].append("--photographs=FLOWERS")
    show("Encoded images, read at random", COLUMNS, rows(report), caption(report))
    if losses:
        show("What smaller images cost", LOSS_COLUMNS, loss_rows(report), "After the crop of an evaluation")
    if options.record:
        write_record(options.record, report)
    return 0


PLACES = {"shards (tar)": "pack/train", "one blob": "blob", "a file each": "set/train", "tar in order": "pack/train"}
"""Where the bytes of each form lie."""


def make_files(root: Path, images: int, mean: int) -> NDArray[np.int64]:
    """Write an image folder; lengths spread like those of photographs. A JPEG header, then noise: nobody decodes it."""
    generator = np.random.default_rng(0)
    lengths: NDArray[np.int64] = np.clip(
        generator.lognormal(0, 0.4, images) * mean / np.exp(0.08), 20_000, None
    ).astype(np.int64)
    head = io.BytesIO()
    Image.new("RGB", (800, 600)).save(head, "JPEG")
    noise = generator.integers(0, 255, int(lengths.max()) + images, np.uint8).tobytes()  # 255 would begin a marker
    for split, count in (("train", images), ("val", 1)):
        for label in range(CLASSES):
            (root / split / f"{label}").mkdir(parents=True)
        for image in range(count):
            path = root / split / f"{image % CLASSES}" / f"{image:06d}.jpg"
            body = head.getvalue()[:-2] + noise[image : image + int(lengths[image]) - len(head.getvalue())]
            path.write_bytes(body + b"\xff\xd9")
    return lengths


def pack_files(place: Path) -> None:
    """Write the same images as shards and as one blob."""
    cfg = place / "formats.yaml"
    cfg.write_text(_TEMPLATE.format(root=place / "set"))
    asks = ["--cfg", str(cfg), "--out", str(place / "pack"), "--shard-gb", "0.2", "--check", "header", "--workers", "2"]
    if pack(asks):
        raise RuntimeError("the packer failed")
    loose = open_loose(place)
    (place / "blob").mkdir()
    with (place / "blob" / "images.bin").open("wb") as file:
        for image in range(len(loose)):
            file.write(Path(loose.path(image)).read_bytes())
    os.sync()  # what is not on disk cannot be given back


def open_loose(place: Path) -> ImageIndex:
    """Return the index of the single files."""
    return open_folders(place / "set", "train", "train", [str(label) for label in range(CLASSES)], "stop")


def forms(place: Path) -> Iterator[Form]:
    """Yield what is compared."""
    loose, packed = open_loose(place), open_packed(place / "pack", "train")
    files = [Path(loose.path(image)) for image in range(len(loose))]
    shards = sorted((place / "pack" / "train").glob("*.tar"))
    blob = place / "blob" / "images.bin"
    starts = np.cumsum(loose.bytes_N) - loose.bytes_N
    descriptor = os.open(blob, os.O_RDONLY)

    def from_blob(images: Sequence[int], arrays: Sequence[Bytes]) -> None:
        for image, array in zip(images, arrays, strict=True):
            if os.preadv(descriptor, [memoryview(array)], int(starts[image])) != len(array):  # type: ignore[arg-type]
                raise RuntimeError("the blob ended early")

    for threads in (1, 4):
        yield Form("shards (tar)", shards, threads, reader(packed, packed.read_into, threads))
        yield Form("shards (tar), told ahead", shards, threads, reader(packed, packed.read_into, threads, packed))
        yield Form("one blob", [blob], threads, reader(loose, from_blob, threads))
        yield Form("a file each", files, threads, reader(loose, loose.read_into, threads))
    yield Form("tar in order", shards, 1, lambda _: in_order(shards))


def reader(
    index: ImageIndex, read_into: Callable[..., Any], threads: int, told: PackedIndex | None = None
) -> Callable[[NDArray[np.int64]], int]:
    """Return what reads images as the loader does: batches into one buffer, each cut into parts for the threads."""

    def read(order: NDArray[np.int64]) -> int:
        buffer, done = np.empty(2 * BATCH * int(index.bytes_N.max()), np.uint8), 0
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(order), BATCH):
                numbers = order[start : start + BATCH]
                if told is not None:
                    soon = slice(0, AHEAD) if start == 0 else slice(start + AHEAD - BATCH, start + AHEAD)
                    told.will_need(order[soon])
                ends = np.cumsum(index.bytes_N[numbers])
                arrays = np.split(buffer[: ends[-1]], ends[:-1])
                part = -(-len(numbers) // threads)
                cuts = [slice(first, first + part) for first in range(0, len(numbers), part)]
                for failed in pool.map(lambda cut, n=numbers, a=arrays: read_into(n[cut], a[cut]), cuts):
                    if failed:
                        raise RuntimeError(f"could not be read: {failed}")
                done += int(ends[-1])
        return done

    return read


def in_order(shards: Sequence[Path]) -> int:
    """Read shards from beginning to end, as readers do that shuffle within a window."""
    done = 0
    for path in shards:
        with tarfile.open(path, "r|", bufsize=1 << 20) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                done += len(content.read())
    return done


def forget(paths: Sequence[Path]) -> None:
    """Have the system give back the pages of files; names and inodes stay in its memory."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(chosen: Sequence[Form], images: int, rounds: int) -> list[dict[str, Any]]:
    """Return images per second and CPU time of each form, one figure a round."""
    figures: list[dict[str, Any]] = [
        {"form": form.name, "threads": form.threads, "files": len(form.paths), "cold": [], "hot": [], "cpu_us": []}
        for form in chosen
    ]
    for turn in range(rounds):
        order = np.random.default_rng(turn).permutation(images)
        for shift in range(len(chosen)):
            place = (shift + turn) % len(chosen)
            form, told = chosen[place], figures[place]
            forget(form.paths)
            start = time.perf_counter()
            form.read(order)
            told["cold"].append(images / (time.perf_counter() - start))
            start, used = time.perf_counter(), _cpu()
            form.read(order)
            told["hot"].append(images / (time.perf_counter() - start))
            told["cpu_us"].append(1e6 * (_cpu() - used) / images)
        sys.stderr.write(f"round {turn + 1} of {rounds}\n")
    return figures


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def on_disk(folder: Path) -> int:
    """Bytes that a folder takes, index and folders included."""
    return sum(path.stat().st_blocks * 512 for path in [folder, *folder.rglob("*")])


def measure_index(place: Path) -> dict[str, float]:
    """Return seconds to open an index of iNaturalist's length, with and without its checksum, and private memory."""
    from hrdc_hpc.data.arrays import write_arrays
    from hrdc_hpc.data.index import Names
    from hrdc_hpc.data.manifest import MANIFEST, Manifest
    from hrdc_hpc.data.packed import INDEX, file_checksum, index_arrays

    count = np.arange(INDEX_IMAGES)
    names = Names.of([f"train_val2018/Plantae/{image % 8142}/{image:032x}.jpg" for image in range(INDEX_IMAGES)])
    out, path = place / "pack", place / "pack" / "train" / INDEX
    with path.open("wb") as file:
        write_arrays(
            file,
            index_arrays(
                names=names, labels_N=count % CLASSES, sizes_N2=np.full((INDEX_IMAGES, 2), 600, np.int32),
                bytes_N=np.full(INDEX_IMAGES, 260_000), shards_N=(count // 7700).astype(np.int32),
                offsets_N=count * 260_000, checksums_N=count.astype(np.uint64),
            ),
        )  # fmt: skip
    facts, text = Manifest.read(out).splits["train"], (out / MANIFEST).read_text()
    text = text.replace(f'"index_bytes": {facts.index_bytes}', f'"index_bytes": {path.stat().st_size}')
    (out / MANIFEST).write_text(text.replace(facts.index_checksum, file_checksum(path)))
    told: dict[str, float] = {"file_bytes": path.stat().st_size}
    for how in ("check", "trust"):
        words = [sys.executable, "-c", _OPEN, str(out), how]
        seconds, private = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        told |= {f"{how}_s": float(seconds), f"{how}_private_bytes": float(private)}
    return told


def loss(folder: Path, side: int, quality: int) -> dict[str, Any]:
    """Compare photographs with what the packer makes of them, as an evaluation sees both (uint8, 0 to 255).

    Every length is scaled as if the photograph's shorter side were of AS_IF pixels.
    """
    before = after = images = 0
    differences = np.zeros(256, np.int64)
    psnr = []
    for path in sorted(folder.rglob("*.jpg"))[::3]:
        with Image.open(path) as image:
            scale = min(image.size) / AS_IF
            content, _, _ = smaller(image, round(side * scale), quality)
            target = round(EVAL_RESIZE * scale)
            size = [target * length // min(image.size) for length in image.size]
            whole = seen(image, scale, size)
        with Image.open(io.BytesIO(content)) as image:
            difference = np.abs(seen(image, scale, size) - whole)
        images, before, after = images + 1, before + path.stat().st_size, after + len(content)
        differences += np.bincount(difference.ravel(), minlength=256)
        psnr.append(10 * np.log10(255**2 / np.mean(difference.astype(np.float64) ** 2)))
    shares = np.cumsum(differences) / differences.sum()
    return {
        "shorter_side": side, "quality": quality, "images": images, "bytes": after / before,
        "mean": float((differences * np.arange(256)).sum() / differences.sum()),
        "p99": int(np.searchsorted(shares, 0.99)), "psnr": float(np.median(psnr)),
    }  # fmt: skip


def seen(image: Image.Image, scale: float, size: Sequence[int]) -> NDArray[np.int16]:
    """Return the pixels of an evaluation: resized to `size`, width and height, and the middle 224 (scaled) of it."""
    crop = round(EVAL_SIZE * scale)
    left, top = ((length - crop) // 2 for length in size)
    resized = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + crop, top + crop)), np.int16)


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table of the forms; ratios are medians of those within a round."""
    blobs = {told["threads"]: told for told in report["forms"] if told["form"] == "one blob"}
    lines: list[tuple[str, ...]] = []
    for told in report["forms"]:
        over = report["on_disk"][told["form"].partition(",")[0]] / report["image_bytes"] - 1
        cells = [told["form"], str(told["threads"])]
        for kind in ("cold", "hot"):
            ratios = [ours / blob for ours, blob in zip(told[kind], blobs[told["threads"]][kind], strict=True)]
            cells += [_spread(told[kind]), f"{median(ratios):.2f}"]
        lines.append((*cells, _spread(told["cpu_us"]), f"{100 * over:.1f} %"))
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{number(median(values))} ({number(min(values))}-{number(max(values))})"


def loss_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table of the pixels."""
    return [
        (
            f"{told['shorter_side']}, {told['quality']}", str(told["images"]), f"{100 * told['bytes']:.0f} %",
            f"{told['mean']:.2f} of 255", f"{told['p99']} of 255", f"{told['psnr']:.1f}",
        )
        for told in report["reencoding"]
    ]  # fmt: skip


def caption(report: dict[str, Any]) -> str:
    """Say what the figures are of."""
    index, chosen = report["index"], report["settings"]
    return (
        f"{chosen['images']:,} images of {report['image_bytes'] / chosen['images'] / 1e3:.0f} kB, batches of {BATCH};"
        f" median (range) of {chosen['rounds']} rounds, ratios within a round; load of the machine before and after:"
        f" {report['load'][0]:.1f}, {report['load'][1]:.1f} on {report['machine']['cores']} cores. The index of"
        f" {INDEX_IMAGES:,} images: a file of"
        f" {index['file_bytes'] / 1e6:.1f} MB, opened in {index['trust_s']:.3f} s ({index['check_s']:.3f} s with its"
        f" checksum); memory of a rank's own once every image's label, size and offset was looked at:"
        f" {index['trust_private_bytes'] / 1e6:.1f} MB."
    )


def write_record(folder: Path, report: dict[str, Any]) -> None:
    """Write pack-formats_<hardware>_<date>.json and .md."""
    notes = [
        caption(report),
        "Cold: the pages of the files were given back (POSIX_FADV_DONTNEED) before; names and inodes stay in memory,"
        " which flatters a file each, and whatever the machine's host keeps stays, too. Hot: the same order at once"
        f" again. Told ahead: the index asks for the {AHEAD} images that the order names next (POSIX_FADV_WILLNEED)."
        " Tar in order is read from beginning to end with Python's tarfile, as loaders do that shuffle within a window:"
        " it is here for comparison, it cannot give a random order. LMDB, HDF5 and WebDataset's own reader were not"
        " measured: they are not installed. A parallel file system was not measured.",
        "Why a tar: it is a blob with headers. Reading at random differs from one blob by less than the rounds differ,"
        " the bytes beside the images are few, a few files take the place of one for each image (which a parallel file"
        " system asks its metadata server for, one by one), and every other program reads it.",
    ]
    if report["reencoding"]:
        notes += [
            f"What `--shorter-side` costs: every third photograph, made smaller as the packer does it (Lanczos, JPEG"
            f" 4:2:0) and compared with itself after the evaluation's resize to {EVAL_RESIZE} and crop of {EVAL_SIZE}"
            " pixels (PIL, bilinear with antialiasing, of both). The photographs are smaller than those of"
            f" iNaturalist: each is taken as if its shorter side were of {AS_IF} pixels, every length scaled alike."
            " Bytes: of the same images before, which were encoded at another quality. Both are resized to the same"
            " size; an evaluation truncates the longer side of each by itself, so that a crop may lie a pixel beside.",
            markdown(LOSS_COLUMNS, loss_rows(report)),
        ]
    write(
        folder, "pack-formats", report, module="benchmarks.pack_formats",
        title="Forms of a packed data set: encoded images, read at random", columns=COLUMNS, rows=rows(report),
        notes=notes,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
