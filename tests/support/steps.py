"""Training steps on a few random images in memory, with a network small enough to be compiled in a test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.data.index import class_info
from hrdc_hpc.data.pixels import PixelArray
from hrdc_hpc.engine.agreement import Agreement
from hrdc_hpc.engine.around import Around
from hrdc_hpc.engine.deadline import Deadline
from hrdc_hpc.engine.faults import Faults
from hrdc_hpc.engine.journal import SilentJournal
from hrdc_hpc.engine.loop import Run
from hrdc_hpc.engine.parts import Images, Parts, build_parts
from hrdc_hpc.engine.peers import Peers
from hrdc_hpc.engine.place import NeverStop, Place
from hrdc_hpc.engine.precision import pick_precision
from hrdc_hpc.engine.processes import Processes, open_processes
from hrdc_hpc.engine.profile import Profiler
from hrdc_hpc.engine.step import TrainStep
from hrdc_hpc.engine.watchdog import Watchdog
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.health import NOWHERE

SIDE, CLASSES = 8, 4

YAML = f"""
name: steps
data:
  dataset: {{name: cifar10_lt, root: nowhere}}
  levels: {{by: rank, ranks: [1, 2, 1]}}
  shots: {{by: rank, ranks: [1, 2, 1]}}
  image_size: {SIDE}
  eval_resize: {SIDE}
  crop: padded
  crop_padding: 2
model: {{backbone: {{name: tiny, width: 4}}}}
method: hrdc
optim: {{epochs: 4, global_batch: 24, lr: 0.05}}
compute: {{device: cpu, threads: 1}}
log: {{every_steps: 5, tensorboard: false}}
"""


def config_of(*overrides: str) -> RunConfig:
    return loads(YAML, "steps", list(overrides))


def images_of(config: RunConfig) -> Images:
    """Two splits of 120 images; the class shows in the brightness."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), [60, 30, 20, 10]).astype(np.int64)
    pixels = random.integers(0, 120, (len(labels), SIDE, SIDE, 3)) + 40 * labels[:, None, None, None]
    train = PixelArray(Path("steps"), "train", ("a", "b", "c", "d"), pixels.astype(np.uint8), labels)
    return Images(train, train.subset(np.arange(0, 120, 3), "val"), class_info(train, config.data))


class Small(nn.Module):
    """One convolution with batch norm, and the heads."""

    def __init__(self, heads: Sequence[str], classes: int = CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.heads = nn.ModuleDict({name: nn.Linear(8, classes) for name in heads})

    def forward(self, images):
        features = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
        return features, {name: head(features) for name, head in self.heads.items()}


@contextmanager
def alone(meeting: Path, config: RunConfig) -> Iterator[Processes]:
    with open_processes(Place(0, 1, 0, 1, meeting, {"cpus_per_rank": 1}), config.compute) as processes:
        yield processes


def parts_of(config: RunConfig, processes: Processes, images: Images | None = None) -> Parts:
    return build_parts(config, images or images_of(config), processes)


@contextmanager
def run_of(folder: RunFolder, config: RunConfig, parts: Parts, processes: Processes) -> Iterator[Run]:
    """A run of one rank that nobody tells to stop and nobody watches; it saves nothing."""
    place = Place(0, 1, 0, 1, folder.path / "meet.json")
    watchdog = Watchdog(config.guard, place, folder)
    deadline = Deadline(lambda: None, watchdog.times)
    peers = Peers(processes.store, 0, 1, 1.0)
    agreement = Agreement(processes, NeverStop(), deadline)
    profiler = Profiler(None, folder.profile, 0, processes.device)
    journal, faults = SilentJournal(), Faults((), 0)
    around = Around(place, None, journal, profiler, agreement, deadline, watchdog, peers, faults, [NOWHERE])
    yield Run(folder, config, parts, processes, around)
    agreement.close()


def small_step(config: RunConfig, parts: Parts, processes: Processes, seed: int = 0) -> TrainStep:
    """A step of the run's own method on the small network."""
    torch.manual_seed(seed)
    network = Small(parts.method.heads).to(processes.device)
    precision = pick_precision(config.compute, processes.device)
    step = TrainStep(network, parts.method, config, precision, processes, resident=True)  # type: ignore[arg-type]
    step.rehearse({name: loader.blank() for name, loader in parts.loaders.items()}, {})
    return step


def losses_of(step: TrainStep, parts: Parts, config: RunConfig, steps: int) -> list[float]:
    """Take steps and return their losses."""
    losses = []
    streams = [loader.batches(0, steps) for loader in parts.loaders.values()]
    for number in range(steps):
        batches = dict(zip(parts.loaders, (next(stream) for stream in streams), strict=True))
        epoch = number // parts.steps_per_epoch
        scalars = parts.method.scalars(epoch, config.optim.epochs)
        step(batches, {}, {"lr": config.optim.lr, "ema_weight": 0.1, **scalars})
        losses.append(step.loss.item())
    return losses


def classes_of(config: RunConfig) -> ClassInfo:
    return images_of(config).classes
