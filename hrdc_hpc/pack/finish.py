"""The index and the manifest of a packed data set, once all its shards are there. Torch-free.

Whoever does it writes the same: where two tasks see at once that they are the last, both may.

Axis legend: N images of a split, n images of a shard.
"""

from __future__ import annotations

import io
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

import hrdc_hpc
from hrdc_hpc.data.arrays import write_arrays
from hrdc_hpc.data.index import ImageIndex, Names, fingerprint_of, refuse_empty
from hrdc_hpc.data.manifest import MANIFEST, Manifest, Shard, SplitFacts
from hrdc_hpc.data.packed import INDEX, UNREADABLE, index_arrays, unreadable_line
from hrdc_hpc.pack.plan import Plan, encoder
from hrdc_hpc.pack.shard import Part, has_length, is_of, read_part, replacing, shard_path
from hrdc_hpc.record.files import write_json_durably


def missing(out: Path, plan: Plan) -> int:
    """Shards that are not there yet."""
    return sum(_part(out, split, number) is None for split in plan.sources for number in range(len(plan.counts[split])))


def finish(out: Path, plan: Plan) -> Manifest:
    """Write the indexes, the lists of unreadable images and the manifest, from the shards' parts.

    Every shard is there. ValueError if what could be read leaves a class without a training image.
    """
    parts = _parts(out, plan)
    splits = {split: _finish_split(out, plan, split, parts[split]) for split in plan.sources}
    manifest = Manifest(
        name=plan.name,
        classes=plan.sources["train"].class_names,
        options=plan.options.as_json(),
        versions={
            "hrdc_hpc": hrdc_hpc.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            **encoder(),
        },
        splits=splits,
    )
    write_json_durably(out / MANIFEST, manifest.as_json())
    return manifest


def _part(out: Path, split: str, number: int) -> Part | None:
    part = read_part(out, split, number)
    return part if part is not None and has_length(out, split, number, part) else None


def _finish_split(out: Path, plan: Plan, split: str, parts: Sequence[Part]) -> SplitFacts:
    source = plan.sources[split]
    firsts = np.cumsum([0, *plan.counts[split]])[:-1].tolist()
    numbers_N = np.concatenate(
        [first + part.places_n.astype(np.int64) for first, part in zip(firsts, parts, strict=True)]
    )
    bad = [
        (first + place, reason) for first, part in zip(firsts, parts, strict=True) for place, reason in part.bad.items()
    ]
    names = Names.of([source.names[number] for number in numbers_N.tolist()])
    labels_N = source.labels_N[numbers_N]
    refuse_empty(out, split, source.class_names, labels_N, left_out=len(bad) + len(source.skipped))
    sizes_N2 = np.concatenate([part.sizes_n2 for part in parts])
    bytes_N = np.concatenate([part.bytes_n for part in parts])
    content = io.BytesIO()
    write_arrays(
        content,
        index_arrays(
            names=names,
            labels_N=labels_N,
            sizes_N2=sizes_N2,
            bytes_N=bytes_N,
            shards_N=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.places_n) for part in parts]),
            offsets_N=np.concatenate([part.offsets_n for part in parts]),
            checksums_N=np.concatenate([part.checksums_n for part in parts]),
        ),
    )
    _write(out / split / INDEX, content.getvalue())
    _write(out / split / UNREADABLE, _unreadable(source, bad))
    return SplitFacts(
        images=len(labels_N),
        bytes=int(bytes_N.sum()),
        unreadable=len(bad) + len(source.skipped),
        fingerprint=fingerprint_of(source.class_names, names, labels_N, sizes_N2, bytes_N),
        source=source.fingerprint,
        index_bytes=len(content.getvalue()),
        index_checksum=xxhash.xxh3_64_hexdigest(content.getvalue()),
        shards=tuple(
            Shard(
                file=shard_path(out, split, number).name,
                images=len(part.places_n),
                bytes=part.bytes,
                checksum=part.checksum,
            )
            for number, part in enumerate(parts)
        ),
    )


def _parts(out: Path, plan: Plan) -> dict[str, list[Part]]:
    parts: dict[str, list[Part]] = {split: [] for split in plan.sources}
    for task in plan.tasks():
        part, path = read_part(out, task.split, task.number), shard_path(out, task.split, task.number)
        if part is None:
            raise RuntimeError(f"{path}: has gone while the index was made; start again")
        if not is_of(part, task, plan.options):
            raise RuntimeError(f"{path}: another packer has written it, of other images or with other options")
        parts[task.split].append(part)
    return parts


def _unreadable(source: ImageIndex, bad: Sequence[tuple[int, str]]) -> bytes:
    """Lines for what the data set itself refused, then for what could not be packed."""
    refused = [unreadable_line(file.name, None, file.reason) for file in source.skipped]
    found = [unreadable_line(source.names[n], int(source.labels_N[n]), reason) for n, reason in bad]
    return b"".join([*refused, *found])


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)
