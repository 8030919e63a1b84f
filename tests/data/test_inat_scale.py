"""iNaturalist 2018 at its true size in entries: 8,142 classes, 437,513 images, small pictures; packed, staged, read.

What a rank of 64 needs and sees; the images are tiny, so nothing here speaks of decoding.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from benchmarks.mini_inat import IMAGES, make_mini_inat
from hrdc_hpc.config.node_local import Staging as Options
from hrdc_hpc.data import order
from hrdc_hpc.data.packed import PackedIndex, open_packed
from hrdc_hpc.data.samplers import uniform
from hrdc_hpc.data.staging import Staging

pytestmark = [pytest.mark.slow, pytest.mark.dali, pytest.mark.timeout(600)]

WORLD, BATCH = 64, 4096
T = TypeVar("T")

_FIRST_BATCH = """
import sys, time, resource
began = time.perf_counter()
import torch
from pathlib import Path
from hrdc_hpc.config.schema import Data
from hrdc_hpc.config.types import Component
from hrdc_hpc.data.loader import TrainLoader
from hrdc_hpc.data.packed import open_packed
from hrdc_hpc.data.samplers import uniform
from hrdc_hpc.data.datasets import packed

def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1000

imported, before = time.perf_counter(), resident()
root, step = Path(sys.argv[1]), int(sys.argv[2])
index = open_packed(root, "train")
sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
sampler.order(0, 0, "main")
memory = resident() - before
data = Data(dataset=Component("packed", packed.Options(root=root)), image_size=32, eval_resize=32)
loader = TrainLoader(
    index, data, sampler, classes=8142, seed=0, stream="main", global_batch=4096, rank=63, world_size=64,
    device=torch.device("cpu"), cores=1,
)
batch = next(loader.batches(step, step + 3))
print(time.perf_counter() - imported, memory, batch.step, len(batch.indices_B))
loader.close()
"""


def timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, packed by the command that a user types."""
    place = tmp_path_factory.mktemp("inat")
    _, made_s = timed(lambda: make_mini_inat(place / "inat"))
    command = [
        sys.executable, "-m", "hrdc_hpc.pack", "--cfg", "inat.yaml", "--out", str(place / "pack"),
        "--shard-gb", "0.2", "--check", "header", f"data.dataset.root={place / 'inat'}",
    ]  # fmt: skip
    done, packed_s = timed(lambda: subprocess.run(command, check=False, capture_output=True, text=True, timeout=500))
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"{IMAGES} entries: made in {made_s:.0f} s, packed in {packed_s:.0f} s")
    return place / "pack"


@pytest.fixture(scope="module")
def index(pack: Path) -> PackedIndex:
    return open_packed(pack, "train")


def test_all_entries_are_there(index: PackedIndex) -> None:
    assert len(index) == IMAGES
    assert len(index.class_names) == 8142
    assert (index.counts_C.max(), index.counts_C.min()) == (1000, 2)


def test_an_epoch_of_64_ranks_takes_every_position_at_most_once(index: PackedIndex) -> None:
    sampler = uniform.build(uniform.Options(), index.labels_N, index.counts_C)
    steps = order.steps_per_epoch(IMAGES, BATCH)
    left_out = []
    for epoch in range(2):
        seen_N = np.zeros(IMAGES, np.int64)
        for step in range(epoch * steps, (epoch + 1) * steps):
            found, positions_G, indices_G = order.global_batch(
                sampler, seed=0, stream="main", step=step, images=IMAGES, global_batch=BATCH
            )
            assert found == epoch
            assert positions_G[0] == (step - epoch * steps) * BATCH
            for rank in range(WORLD):
                np.add.at(seen_N, indices_G[order.rank_slice(rank, WORLD, BATCH)], 1)
        assert seen_N.max() == 1
        left_out.append(np.flatnonzero(seen_N == 0))
        assert len(left_out[-1]) == IMAGES % BATCH
    both = np.intersect1d(*left_out)
    assert len(both) < 0.05 * len(left_out[0]), "other images are left out in the next epoch"


def first_batch(pack: Path, step: int) -> tuple[float, float]:
    """Seconds from the imports to the batch of a step, and MB of the index and one order, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_BATCH, str(pack), str(step)], check=False, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds, memory, found, images = (float(word) for word in done.stdout.split())
    assert (found, images) == (step, BATCH // WORLD)
    return seconds, memory


def test_first_batch_comes_soon_and_in_mid_epoch_hardly_later(pack: Path) -> None:
    (first_s, memory), (middle_s, _) = (min(first_batch(pack, step) for _ in range(3)) for step in (0, 53))
    print(f"first batch after {first_s:.2f} s, of step 53 after {middle_s:.2f} s; {memory:.0f} MB a rank")
    assert first_s < 5
    assert middle_s < first_s + 1
    assert memory < 60


def test_staged_copies_are_read_and_whole(pack: Path, tmp_path: Path) -> None:
    index = open_packed(pack, "train").verifying()
    staging, seconds = timed(lambda: staged(index, tmp_path / "node"))
    assert staging.state == "whole"
    numbers_B = np.arange(0, IMAGES, 101)
    arrays = [np.empty(length, np.uint8) for length in index.bytes_N[numbers_B]]
    assert index.read_into(numbers_B, arrays) == {}, "every checksum is right"
    shards = index.files.shards
    assert all(index.files.path(number).is_relative_to(tmp_path / "node") for number in range(len(shards)))
    print(f"{sum(shard.bytes for shard in shards) / 1e6:.0f} MB staged in {seconds:.1f} s")


def staged(index: PackedIndex, to: Path) -> Staging:
    staging = Staging([index.files], Options(to=str(to), keep_free_gb=0))
    assert staging.join(120)
    staging.close()
    return staging
