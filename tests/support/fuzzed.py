"""Decodes damaged JPEGs through the real loaders and prints what became of each: `python fuzzed.py FOLDER SEED NUMBER`.

It runs in a process of its own, so that a crash of the decoder is the end of that process only. FOLDER holds whole
JPEGs; the damaged ones are written to FOLDER/damaged.
"""

from __future__ import annotations

import json
import random
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hrdc_hpc.config.schema import Data, Loader
from hrdc_hpc.config.types import Component
from hrdc_hpc.data.headers import read_header
from hrdc_hpc.data.index import ImageIndex, Names, make_index
from hrdc_hpc.data.loader import EvalLoader, TrainLoader
from hrdc_hpc.data.samplers import uniform

BATCH = 20
"""Decoded three at a time: of more than 4 * (threads + 1) images DALI prepares some in other threads."""


def segments(content: bytes) -> list[tuple[int, int, int]]:
    """Marker, first byte and end of each segment in front of the pixels."""
    found, at = [], 2
    while content[at] == 0xFF and content[at + 1] != 0xDA:
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        found.append((content[at + 1], at + 4, at + 2 + length))
        at += 2 + length
    return [*found, (0xDA, at + 4, at + 2 + int.from_bytes(content[at + 2 : at + 4], "big"))]


def flip_bits(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 3, 30))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(1, len(content)) :]


def damage_header(content: bytearray, draw: random.Random) -> None:
    end = segments(bytes(content))[-1][2]
    for _ in range(draw.choice((1, 2, 8))):
        content[draw.randrange(end)] = draw.randrange(256)


def damage_tables(content: bytearray, draw: random.Random) -> None:
    """Quantisation and Huffman tables, frame and scan headers."""
    chosen = [one for one in segments(bytes(content)) if one[0] in (0xDB, 0xC4, 0xC0, 0xC2, 0xDA)]
    _, first, end = draw.choice(chosen)
    for _ in range(draw.choice((1, 4))):
        content[draw.randrange(first - 2, end)] = draw.choice((0, 255, draw.randrange(256)))


def move_piece(content: bytearray, draw: random.Random) -> None:
    """A piece is lost, doubled or overwritten by another one."""
    start, length = draw.randrange(len(content)), draw.randrange(1, 600)
    piece = content[start : start + length]
    at = draw.randrange(len(content))
    content[at : at + draw.choice((0, length, 2 * length))] = draw.choice((b"", piece))


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bits,
    truncate,
    damage_header,
    damage_tables,
    move_piece,
)


def damaged_files(folder: Path, seed: int, number: int) -> ImageIndex:
    """Write damaged copies; the index knows them by the sizes that they had when they were whole."""
    draw = random.Random(seed)
    whole = sorted(path for path in folder.iterdir() if path.is_file())
    contents = [path.read_bytes() for path in whole]
    sizes = [read_header(path)[:2] for path in whole]
    (folder / "damaged").mkdir()
    names, lengths, sizes_N2 = [], [], []
    for i in range(number):
        source = draw.randrange(len(whole))
        content = bytearray(contents[source])
        mutation = MUTATIONS[i % len(MUTATIONS)]
        mutation(content, draw)
        name = f"{i:04d}-{mutation.__name__}.jpg"
        (folder / "damaged" / name).write_bytes(content)
        names.append(name)
        lengths.append(len(content))
        sizes_N2.append(sizes[source])
    return make_index(
        root=folder / "damaged",
        split="train",
        class_names=["a"],
        names=Names.of(names),
        labels_N=np.zeros(number, np.int64),
        sizes_N2=np.array(sizes_N2, np.int32),
        bytes_N=np.array(lengths, np.int64),
        bad=(),
        on_bad_image="skip",
    )


def outcome(loader: TrainLoader | EvalLoader, batches: list) -> dict[str, object]:
    valid = {int(i): bool(v) for b in batches for i, v in zip(b.indices_B, b.valid_B.tolist(), strict=True) if i >= 0}
    spread = [float(image.float().std()) for b in batches for image in b.images_BHWC[b.valid_B > 0]]
    return {
        "pixels": {
            int(i): zlib.crc32(image.numpy().tobytes())
            for b in batches
            for i, image in zip(b.indices_B, b.images_BHWC, strict=True)
            if i >= 0
        },
        "seen": len(valid),
        "decoded": sum(valid.values()),
        "named": {Path(path).name: reason for path, reason in loader.reasons.items()},
        "flat": sum(value < 1 for value in spread),
    }


def main() -> None:
    folder, seed, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    index = damaged_files(folder, seed, number)
    data = Data(
        dataset=Component("image_folder"),
        on_bad_image="skip",
        image_size=32,
        eval_resize=36,
        loader=Loader(threads=2),
    )
    device, result = torch.device("cpu"), {}
    with EvalLoader(index, data, batch_size=BATCH, rank=0, world_size=1, device=device, cores=2) as loader:
        result["evaluation"] = outcome(loader, list(loader.batches()))
    alone = replace(data, loader=Loader(threads=1, prefetch=1))
    with EvalLoader(index, alone, batch_size=1, rank=0, world_size=1, device=device, cores=1) as loader:
        result["alone"] = outcome(loader, list(loader.batches()))
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    with TrainLoader(
        index, data, sampler, classes=1, seed=0, stream="main", global_batch=BATCH, rank=0, world_size=1,
        device=device, cores=2,
    ) as loader:  # fmt: skip
        result["training"] = outcome(loader, list(loader.batches(0, loader.steps_per_epoch)))
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
