"""Loaders and decoders that ours is measured beside; see benchmarks.loader."""

from __future__ import annotations

import argparse
import io
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from hrdc_hpc.data.stages import Turn

SIDE = 224
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_AHEAD = 2
"""Batches that a worker makes ahead, as the DataLoader does by default."""


@dataclass
class Peer:
    """Something that makes batches."""

    name: str
    turn: Callable[[Callable[..., Turn], float], Turn]
    """Take a turn of so many seconds; the first argument times calls that return images."""
    processor_s: Callable[[], float] = field(default=time.process_time)
    """Processor time of all that works for it."""
    close: Callable[[], None] = field(default=lambda: None)


class _Files(Dataset[torch.Tensor]):
    """Encoded images of an image folder or of a pack, decoded and cropped by torchvision."""

    def __init__(self, root: Path, *, packed: bool, pil: bool) -> None:
        from torchvision import transforms
        from torchvision.transforms import v2

        self._root, self._packed, self._pil = root, packed, pil
        self._paths = [] if packed else sorted(root.rglob("*.jpg"))
        self._index: Any = None
        if pil:
            self._transform: Any = transforms.Compose(
                [
                    transforms.RandomResizedCrop(SIDE, _SCALE, _RATIO, antialias=True),
                    transforms.RandomHorizontalFlip(),
                    transforms.PILToTensor(),
                ]
            )
        else:
            self._transform = v2.Compose(
                [v2.RandomResizedCrop(SIDE, _SCALE, _RATIO, antialias=True), v2.RandomHorizontalFlip()]
            )
        self._length = len(self._paths) or len(self._open())
        self._index = None

    def _open(self) -> Any:
        from hrdc_hpc.data.packed import open_packed

        if self._index is None:
            self._index = open_packed(self._root, "train")
        return self._index

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> torch.Tensor:
        encoded = self._open().read([number])[0] if self._packed else np.fromfile(self._paths[number], np.uint8)
        if self._pil:
            with Image.open(io.BytesIO(encoded.tobytes())) as image:
                made: torch.Tensor = self._transform(image.convert("RGB"))
                return made
        from torchvision.io import ImageReadMode, decode_jpeg

        cropped: torch.Tensor = self._transform(decode_jpeg(torch.from_numpy(encoded), ImageReadMode.RGB))
        return cropped


def _prepare(_: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)


def _cpu_s(process: int) -> float:
    """Processor time of a process so far, all of its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def torchvision_loaders(root: Path, options: argparse.Namespace, *, packed: bool = False) -> list[Peer]:
    """Return torchvision's DataLoader with both of its decoders; the workers are started here."""
    return [_data_loader(root, options, packed=packed, pil=pil) for pil in (True, False)]


def _data_loader(root: Path, options: argparse.Namespace, *, packed: bool, pil: bool) -> Peer:
    files = _Files(root, packed=packed, pil=pil)
    epochs = itertools.count()

    def order() -> Iterator[int]:
        for epoch in epochs:
            yield from np.random.default_rng(epoch).permutation(len(files)).tolist()

    loader = DataLoader(
        files, batch_size=options.batch, sampler=order(), num_workers=options.threads, prefetch_factor=_AHEAD,
        worker_init_fn=_prepare, persistent_workers=False,
    )  # fmt: skip
    batches = iter(loader)
    workers = [int(worker.pid) for worker in batches._workers]  # type: ignore[attr-defined]  # nothing else tells

    def processor_s() -> float:
        return time.process_time() + sum(map(_cpu_s, workers))

    def turn(timed: Callable[..., Turn], seconds: float) -> Turn:
        for _ in range(_AHEAD * options.threads + 1):  # what lies ready
            next(batches)
        began = processor_s()
        done = timed(lambda: len(next(batches)), seconds)
        return Turn(done.images, done.seconds, processor_s() - began)

    name = f"DataLoader, {'PIL' if pil else 'decode_jpeg + v2'}"
    # until its workers have made what they make ahead
    next(batches)
    close = batches._shutdown_workers  # type: ignore[attr-defined]
    return Peer(f"{name}, packed at 320" if packed else name, turn, processor_s, close)


def pure_dali(files: Sequence[Path], options: argparse.Namespace) -> Peer:
    """DALI's own reader and its own random crop, with the operators of ours."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(options.batch, options.threads, None, seed=0, prefetch_queue_depth=2)
    with pipeline:
        encoded, _ = fn.readers.file(files=[str(path) for path in files], random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, adjust_orientation=False, random_area=_SCALE,
            random_aspect_ratio=_RATIO,
        )  # fmt: skip
        images = fn.resize(images, size=[SIDE, SIDE], interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(fn.flip(images, horizontal=fn.random.coin_flip()))
    pipeline.build()

    def work() -> int:
        (images_BHWC,) = pipeline.run()
        return len(torch.from_numpy(np.array(images_BHWC.as_array())))

    def turn(timed: Callable[..., Turn], seconds: float) -> Turn:
        for _ in range(5):
            work()
        return timed(work, seconds)

    return Peer("pure DALI", turn)


def _bare(name: str, files: Sequence[Path], options: argparse.Namespace, decode: Callable[[Any], Any]) -> Peer:
    encoded = [np.fromfile(path, np.uint8) for path in files]
    groups = itertools.cycle([encoded[k : k + options.batch] for k in range(0, len(encoded), options.batch)])

    def turn(timed: Callable[..., Turn], seconds: float) -> Turn:
        with ThreadPoolExecutor(options.threads) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)

            def work() -> int:
                return len(list(pool.map(decode, next(groups))))

            return timed(work, seconds)

    return Peer(name, turn)


def bare_turbo(files: Sequence[Path], options: argparse.Namespace) -> Peer:
    """libjpeg-turbo through torchvision's decode_jpeg."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return _bare(
        "bare libjpeg-turbo (decode_jpeg)", files, options,
        lambda encoded: decode_jpeg(torch.from_numpy(encoded), ImageReadMode.RGB).shape,
    )  # fmt: skip


def bare_pil(files: Sequence[Path], options: argparse.Namespace) -> Peer:
    """libjpeg-turbo through PIL."""

    def decode(encoded: Any) -> None:
        with Image.open(io.BytesIO(memoryview(encoded))) as image:
            image.load()

    return _bare("bare libjpeg-turbo (PIL)", files, options, decode)
