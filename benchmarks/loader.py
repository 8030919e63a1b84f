"""Our loader beside pure DALI, torchvision's DataLoader and the bare decoders: `python -m benchmarks.loader`.

By the protocol of the project: the same JPEGs, crops of the same distribution and the same output (uint8, 224 pixels),
all contenders in one run, in turns, what lay ready at the start of a turn dropped, median and paired ratio with their
range. Two sets: JPEGs of 800 x 600 pixels at about 260 kB, which are iNaturalist's mean, and photographs as they are.
The first are made of the photographs: enlarged and cut. Without --photographs both are made of the two photographs that
scikit-learn has. Results go into records/.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.loader_peers import Peer, bare_pil, bare_turbo, pure_dali, torchvision_loaders
from hrdc_hpc.record.figures import markdown, number, percent, show, spread

LARGE, AS_IS = "800x600", "photographs"
SIDE, RESIZE, SHORTER, QUALITY = 224, 256, 320, 90
COLUMNS = ("images", "contender", "images/s", "range", "CPU ms/image", "it / ours, packed", "range ")
STAGE_COLUMNS = ("stage, 800x600 packed", "images/s", "range", "CPU ms/image", "of the loader's CPU")
_OURS = "ours, packed"
_PLACES = ("bare", "ours, loose", "ours, packed", "pure DALI", "DataLoader", "ours, packed at")
"""By how names begin, the order in a round."""
_TEMPLATE = """
name: loader
data:
  dataset: {{name: {name}, root: "{root}"}}
  loader: {{threads: {threads}}}
model: {{backbone: {{name: tiny, width: 8}}}}
method: ce
optim: {{epochs: 1, global_batch: 32}}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(words)
    with tempfile.TemporaryDirectory(prefix="loader-", dir=options.disk) as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        report = measure(options, Path(folder))
    # the record names no folder of the machine
    hidden = {"--photographs": ["--photographs", "FLOWERS"], "--disk": [], "--out": []}
    said: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        said += [] if before in hidden else hidden.get(word, [word])
    _write(options, {"arguments": said, **report})
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__, allow_abbrev=False)
    parser.add_argument("--photographs", type=Path, help="folder of JPEGs, searched whole")
    parser.add_argument("--images", type=int, default=160, help="JPEGs of 800 x 600 that are made (default: 160)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads or workers of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--disk", type=Path, help="folder to write below (default: the system's)")
    parser.add_argument("--out", type=Path, default=Path("records"))
    return parser.parse_args(words)


# --- the images


def photographs(folder: Path | None) -> list[Image.Image | Path]:
    """Return the JPEGs below a folder, or scikit-learn's two photographs."""
    if folder is not None:
        return list(sorted(folder.rglob("*.jpg")))
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(array) for array in load_sample_images().images]


def enlarged(image: Image.Image, number: int, length: int) -> bytes:
    """Return an 800 x 600 JPEG (4:2:0) of a photograph, cut at a place of its number, of at most `length` bytes."""
    wanted_w, wanted_h = 800, 600
    scale = max(wanted_w / image.width, wanted_h / image.height) * (1 + number % 5 / 10)
    image = image.resize((round(image.width * scale) + 1, round(image.height * scale) + 1), Image.Resampling.LANCZOS)
    left, top = (number * 37) % (image.width - wanted_w + 1), (number * 53) % (image.height - wanted_h + 1)
    image = image.crop((left, top, left + wanted_w, top + wanted_h))
    for quality in (100, 99, 98, 97, 95, 92, 88, 80):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=2)
        if file.tell() <= length:
            break
    return file.getvalue()


def make_set(root: Path, contents: Sequence[bytes]) -> Path:
    """Write an image folder of four classes; validation images, which nobody reads, are the first ones."""
    for number_, content in enumerate(contents):
        for split in ("train", *["val"] * (number_ < 4)):
            folder = root / split / f"class_{number_ % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number_:05d}.jpg").write_bytes(content)
    return root


def config_of(place: Path, name: str, root: Path, threads: int) -> Path:
    """Write the config of a run on a data set."""
    path = place / f"{root.name}-{name}.yaml"
    path.write_text(_TEMPLATE.format(name=name, root=root, threads=threads))
    return path


def packed(place: Path, root: Path, out: Path, *more: str) -> Path:
    """Pack an image folder."""
    from hrdc_hpc.pack.__main__ import main as pack

    cfg = config_of(place, "image_folder", root, 1)
    if pack(["--cfg", str(cfg), "--out", str(out), "--workers", "1", *more]) != 0:
        raise RuntimeError(f"{root} could not be packed")
    return out


# --- the measurement


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Make the sets, let everybody take turns; return everything as plain values."""
    from hrdc_hpc.data.stages import timed
    from hrdc_hpc.record.machine import describe

    pictures = photographs(options.photographs)
    opened = [picture if isinstance(picture, Image.Image) else None for picture in pictures]
    large = []
    for k in range(options.images):
        picture = pictures[k % len(pictures)]
        image = opened[k % len(pictures)] or Image.open(picture).convert("RGB")  # type: ignore[arg-type]
        large.append(enlarged(image, k, 310_000))
    as_is = [picture.read_bytes() for picture in pictures if isinstance(picture, Path)]
    roots = {LARGE: make_set(place / "large", large)}
    if as_is:
        roots[AS_IS] = make_set(place / "photographs", as_is)
    contenders: list[tuple[str, Peer]] = []
    # workers are forked before DALI has threads
    for what, root in roots.items():
        contenders += [(what, peer) for peer in torchvision_loaders(root / "train", options)]
    packs = {what: packed(place, root, place / f"{root.name}-pack") for what, root in roots.items()}
    small = packed(place, roots[LARGE], place / "small", "--shorter-side", str(SHORTER), "--quality", str(QUALITY))
    contenders += [(LARGE, peer) for peer in torchvision_loaders(small, options, packed=True)]
    parts, ours = _ours(options, place, roots, packs, small)
    contenders += ours
    for what, root in roots.items():
        files = sorted((root / "train").rglob("*.jpg"))
        contenders += [(what, pure_dali(files, options)), (what, bare_turbo(files, options))]
        contenders.append((what, bare_pil(files, options)))
    rows: dict[tuple[str, str], list[Any]] = {}
    # who is compared stands beside the other: what else the machine does then meets both
    contenders.sort(key=lambda one: (one[0], _PLACES.index(_kind(one[1].name))))
    for turn in range(options.rounds):
        # every second round backwards: no place in a round is better than another
        for what, peer in [*contenders, *parts][:: -1 if turn % 2 else 1]:
            sys.stderr.write(f"loader: round {turn + 1} of {options.rounds}: {what}, {peer.name}\n")
            rows.setdefault((what, peer.name), []).append(peer.turn(timed, options.seconds))
            settle(peer.processor_s)
    for _, peer in contenders:
        peer.close()
    lengths = {
        "large": float(np.mean([len(c) for c in large])),
        "photographs": float(np.mean([len(c) for c in as_is])) if as_is else None,
        "shorter side": _mean_bytes(small),
    }
    return {
        "what": "loader beside peers", "machine": describe(), "settings": {
            key: getattr(options, key) for key in ("images", "batch", "threads", "rounds", "seconds")
        }, "bytes": lengths, "rows": [_row(what, name, turns) for (what, name), turns in rows.items()],
        "shorter_side": cost_in_pixels(roots[LARGE], small),
    }  # fmt: skip


def _kind(name: str) -> str:
    return next(kind for kind in reversed(_PLACES) if name.startswith(kind))


def _ours(
    options: argparse.Namespace, place: Path, roots: dict[str, Path], packs: dict[str, Path], small: Path
) -> tuple[list[tuple[str, Peer]], list[tuple[str, Peer]]]:
    """Return our stages, and our loader on loose files, packs and the pack of smaller images."""
    import torch

    from hrdc_hpc.config import registry
    from hrdc_hpc.config.load import load
    from hrdc_hpc.data.index import ImageIndex, open_split
    from hrdc_hpc.data.stages import Stages

    def stages(name: str, root: Path, device: str = "cpu") -> Stages:
        config = load(str(config_of(place, name, root, options.threads)), [])
        index = open_split(config.data, "train")
        assert isinstance(index, ImageIndex)
        sampler = registry.build(
            "hrdc_hpc.data.samplers", config.data.sampler, index.labels_N, index.counts_C, epochs=1
        )  # fmt: skip
        return Stages(
            index, config.data, sampler, batch=options.batch, threads=options.threads, device=torch.device(device)
        )

    def peer(name: str, stage: Callable[[float], Any]) -> Peer:
        return Peer(name, lambda _, seconds: stage(seconds))

    found, parts = [], []
    for what, root in roots.items():
        found.append((what, peer("ours, loose files", stages("image_folder", root).whole(options.threads))))
        on_pack = stages("packed", packs[what])
        found.append((what, peer(_OURS, on_pack.whole(options.threads))))
        if what == LARGE:
            parts = [(what, peer(f"stage: {name}", stage)) for name, stage in on_pack.parts().items()]
    if torch.cuda.is_available():
        there = stages("packed", packs[LARGE], "cuda").whole(options.threads)
        found.append((LARGE, peer("ours, packed, decoded on the GPU", there)))
    on_small = stages("packed", small).whole(options.threads)
    found.append((LARGE, peer(f"ours, packed at a shorter side of {SHORTER}", on_small)))
    return parts, found


def settle(processor_s: Callable[[], float], limit_s: float = 5.0) -> None:
    """Wait until what a contender still does ahead is done: it must not take time from the next one."""
    end = time.monotonic() + limit_s
    before = processor_s()
    while time.monotonic() < end:
        time.sleep(0.05)
        now = processor_s()
        if now - before < 0.01:
            return
        before = now


def _row(what: str, name: str, turns: Sequence[Any]) -> dict[str, Any]:
    rates = [turn.images / turn.seconds for turn in turns]
    cpu = sum(turn.cpu_s for turn in turns) / sum(turn.images for turn in turns)
    return {
        "images": what, "name": name, "images_per_s": statistics.median(rates), "range": [min(rates), max(rates)],
        "rounds": rates, "cpu_s_per_image": cpu,
    }  # fmt: skip


def _mean_bytes(pack: Path) -> float:
    from hrdc_hpc.data.packed import open_packed

    return float(open_packed(pack, "train").bytes_N.mean())


def cost_in_pixels(root: Path, pack: Path) -> dict[str, float]:
    """What the smaller images are away from the larger ones after the resize and crop of an evaluation."""
    from hrdc_hpc.data.packed import open_packed

    index = open_packed(pack, "train")
    gaps = []
    for k in range(0, len(index), max(1, len(index) // 40)):
        with (
            Image.open(io.BytesIO(index.read([k])[0].tobytes())) as small,
            Image.open(root / "train" / index.names[k].removeprefix("train/")) as large,
        ):
            gaps.append(np.abs(_evaluated(small) - _evaluated(large)))
    gap = np.stack(gaps)
    return {"images": len(gaps), "mean": float(gap.mean()), "p99": float(np.percentile(gap, 99)),
            "psnr_db": float(20 * np.log10(255 / np.sqrt((gap**2).mean())))}  # fmt: skip


def _evaluated(image: Image.Image) -> NDArray[np.float64]:
    width, height = (round(RESIZE * side / min(image.size)) for side in image.size)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), float)


# --- the record


def _ratios(report: dict[str, Any], what: str, name: str, to: str) -> list[float]:
    rows = {(row["images"], row["name"]): row["rounds"] for row in report["rows"]}
    return [a / b for a, b in zip(rows[what, name], rows[what, to], strict=True)]


def _found(report: dict[str, Any], what: str, name: str) -> dict[str, Any]:
    return next(row for row in report["rows"] if (row["images"], row["name"]) == (what, name))


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the contenders."""
    rows: list[tuple[str, ...]] = []
    for row in report["rows"]:
        if row["name"].startswith("stage: "):
            continue
        ratios = _ratios(report, row["images"], row["name"], _OURS)
        rows.append(
            (row["images"], row["name"], number(row["images_per_s"]), spread(row["range"]),
             number(1000 * row["cpu_s_per_image"]), f"{statistics.median(ratios):.2f}",
             f"{min(ratios):.2f}-{max(ratios):.2f}")
        )  # fmt: skip
    return rows


def stage_table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of our stages."""
    whole = _found(report, LARGE, _OURS)["cpu_s_per_image"]
    return [
        (row["name"].removeprefix("stage: "), number(row["images_per_s"]), spread(row["range"]),
         number(1000 * row["cpu_s_per_image"]), percent(row["cpu_s_per_image"] / whole))
        for row in report["rows"]
        if row["name"].startswith("stage: ")
    ]  # fmt: skip


def aims(report: dict[str, Any]) -> list[str]:
    """Return what was aimed at, and what came out."""
    whole = _found(report, LARGE, _OURS)["cpu_s_per_image"]
    feed = _found(report, LARGE, "stage: feed")["cpu_s_per_image"] / whole

    def cpu(what: str, name: str, other: str) -> float:
        ours, theirs = (float(_found(report, what, one)["cpu_s_per_image"]) for one in (name, other))
        return ours / theirs

    beside = 1 - _found(report, LARGE, "stage: decode, resize, flip")["cpu_s_per_image"] / whole
    lines = [
        f"- The feed (order, crops, reading, wrapping) takes {percent(feed)} of the loader's processor time; aimed at:"
        f" at most 3 %. All that is not done by DALI's operators, so also copying the images out, labels and threads"
        f" that wake each other, takes {percent(beside)} (a difference of two rows, as uncertain as both)."
    ]
    for what in dict.fromkeys(row["images"] for row in report["rows"]):
        ratios = sorted(1 / ratio for ratio in _ratios(report, what, "pure DALI", _OURS))
        lines.append(
            f"- {what}: our loader on the pack takes {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            f" times pure DALI's rate with the same operators (aimed at: 1), and"
            f" {cpu(what, _OURS, 'pure DALI'):.2f} times its processor time."
        )
    lines.append(
        "- Where that is below 1: the operators are the same, and here decoding has all cores, so that whatever ours"
        " does beside them is missing there: an order and crops that are the same on any number of ranks, a check of"
        " every header, labels. Part of it comes back, as batches of fewer than 64 images are decoded together."
    )
    ours = f"ours, packed at a shorter side of {SHORTER}"
    for peer in ("DataLoader, PIL", "DataLoader, decode_jpeg + v2"):
        faster, same = (
            statistics.median(_ratios(report, LARGE, ours, other)) for other in (peer, f"{peer}, packed at {SHORTER}")
        )
        lines.append(
            f"- From the pack at a shorter side of {SHORTER} our loader is {faster:.2f} times as fast as torchvision's"
            f" {peer} on the originals (aimed at: 3) and takes {cpu(LARGE, ours, peer):.2f} times its processor time;"
            f" {same:.2f} times as fast as that is on the same pack, with"
            f" {cpu(LARGE, ours, f'{peer}, packed at {SHORTER}'):.2f} times its processor time."
        )
    resize = _found(report, LARGE, "stage: decode, resize")["cpu_s_per_image"]
    resize -= _found(report, LARGE, "stage: decode, crop")["cpu_s_per_image"]
    lines.append(
        f"- {percent(resize / whole)} of our processor time is DALI's antialiased resize, as it is of pure DALI's;"
        " torchvision's resize of bytes takes less, and so on a CPU DALI is not faster than decode_jpeg + v2."
    )
    cost = report["shorter_side"]
    lines.append(
        f"- What that costs in pixels, after an evaluation's resize and crop ({cost['images']} images): mean difference"
        f" {cost['mean']:.2f} of 255, 99th percentile {cost['p99']:.0f}, PSNR {cost['psnr_db']:.1f} dB; bytes"
        f" {report['bytes']['shorter side'] / 1000:.0f} kB an image instead of {report['bytes']['large'] / 1000:.0f}."
    )
    return lines


_NOTES = (
    "CPU: processor time of all threads and worker processes, which other work on the machine changes little. Ratio:"
    " within a round, above 1 is faster than ours. Every contender ends with uint8 images of 224 pixels in torch's"
    " memory; nothing is normalised. Pure DALI: readers.file, image_random_crop, resize (linear, antialias), flip."
    " DataLoader: ImageFolder, RandomResizedCrop(antialias), RandomHorizontalFlip, PILToTensor, or decode_jpeg and"
    " transforms.v2. Bare: whole images decoded in threads, nothing else. All files lie in the system's memory.",
)


def _write(options: argparse.Namespace, report: dict[str, Any]) -> None:
    from benchmarks.report import write
    from hrdc_hpc.record.machine import sentence

    settings = report["settings"]
    title = (
        f"Training loader beside peers: {settings['threads']} threads or workers, batch {settings['batch']}, {SIDE} px"
    )
    rows, stages, reached = table(report), stage_table(report), aims(report)
    show(title, COLUMNS, rows, f"{_NOTES[0]}\n{sentence(report['machine'])}")
    show("Stages", STAGE_COLUMNS, stages, "\n".join(reached))
    rounds = f"{options.rounds} rounds of {options.seconds:g} s for each contender, interleaved."
    write(
        options.out, "loader", report, module="benchmarks.loader", title=title, columns=COLUMNS, rows=rows,
        notes=[rounds, *_NOTES, markdown(STAGE_COLUMNS, stages), "\n".join(reached)],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
