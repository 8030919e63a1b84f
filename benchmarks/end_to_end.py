"""Our real run on CIFAR10-LT beside a plain loop over a DataLoader: `python -m benchmarks.end_to_end --root DIR`.

Four figures a stack, taken in turns in several rounds: compute only (one resident batch), loader only, end to end, and
the share of the end-to-end time that is spent waiting for data. Pipeline efficiency is end to end over the lower of
loader and compute. Ours is the trainer itself in a run folder, with its journal, log steps and lease; the other stack
is torchvision's usual transforms on the same images in worker processes, and a plain loop. Results go into records/.

Axis legend: N images, B images of the batch, S side.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrdc_hpc import bench
from hrdc_hpc.engine.place import NeverStop

if TYPE_CHECKING:
    from hrdc_hpc.config.schema import RunConfig

COLUMNS = ("stack", "compute only", "loader only", "end to end", "range", "data wait", "efficiency", "note")
_NOTES = (
    "Images per second, medians over the rounds. Data wait: share of the end-to-end time that the loop waits for its"
    " loader. Efficiency: end to end over the lower of loader only and compute only, within a round, median.",
    "Ours: `hrdc_hpc/engine/trainer.py` on the run's own config, images on the device, augmentation within the step."
    " The other stack: ToTensor, RandomCrop, flip and normalise per image in worker processes, one head, fp32 NCHW,"
    " the loss read back in every step.",
)
OURS, PLAIN = "hrdc_hpc", "DataLoader + plain loop"
_FIGURES = ("compute", "loader", "end_to_end", "data_wait")
Figures = dict[str, float]
"""Rates in images per second by the names of _FIGURES, and data_wait, a share."""


class StopAfter(NeverStop):
    """Stops the trainer some seconds after it first asks."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._until is None:
            self._until = time.monotonic() + self._seconds
        return "measured" if time.monotonic() > self._until else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record; 0, also where the data set is not there, 78 for a mistake, 1 for the world."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(words)
    if lacking := bench.missing():
        sys.stderr.write(f"benchmarks.end_to_end: {lacking}\n")
        return 1
    if importlib.util.find_spec("xxhash") is None:
        sys.stdout.write("end to end: not measured: needs xxhash: pip install xxhash\n")
        return 0
    if not options.root.is_dir():
        sys.stdout.write(f"end to end: not measured: {options.root} with the CIFAR-10 files is not there (--root)\n")
        return 0
    try:
        report = measure(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"benchmarks.end_to_end: {error}\n")
        return 78 if isinstance(error, ValueError) else 1
    # where the data lies is nobody else's business
    told = ["--root", "DIR", *(word for word in words if word not in ("--root", str(options.root)))]
    _write(options, {"arguments": told, **report})
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of our run")
    parser.add_argument("--root", type=Path, required=True, help="folder with the CIFAR-10 files")
    parser.add_argument(
        "--workers", type=int, help="worker processes of the DataLoader (default: one a core, at most 8)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of one figure of one round")
    parser.add_argument("--log-every", type=int, help="steps (default: 5 on a CPU, 100 on a GPU)")
    parser.add_argument("--out", type=Path, default=Path("records"))
    return parser.parse_intermixed_args(words)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take all figures of both stacks in turns; return plain values."""
    import torch

    from hrdc_hpc.config.load import load
    from hrdc_hpc.record.machine import describe

    gpu = torch.cuda.is_available() and "compute.device=cpu" not in options.overrides
    log_every = options.log_every or (100 if gpu else 5)
    config = load(
        "cifar10_lt.yaml",
        [
            f"data.dataset.root={options.root}",
            f"log.every_steps={log_every}",
            f"cluster.gpus_per_node={int(gpu)}",
            *options.overrides,
        ],
    )
    workers = options.workers if options.workers is not None else min(8, torch.get_num_threads())
    taken: dict[str, list[Figures]] = {OURS: [], PLAIN: []}
    for number in range(options.rounds):
        for stack, take in ((OURS, _ours), (PLAIN, lambda config, s: _plain(config, s, workers))):
            bench.say(f"round {number + 1} of {options.rounds}: {stack}")
            taken[stack].append(take(config, options.seconds))
    settings = {
        "batch": config.optim.global_batch, "backbone": config.model.backbone.name, "workers": workers,
        "log_every": log_every, "device": "cuda" if gpu else "cpu",
    }  # fmt: skip
    rows = [{"name": stack, "rounds": figures} for stack, figures in taken.items()]
    return {"what": "end to end", "settings": settings, "machine": describe(), "rows": rows}


def _ours(config: RunConfig, seconds: float) -> Figures:
    """Take one round of ours: compute and loader by themselves, then a real run until time is up."""
    from hrdc_hpc.engine.ladder import Steps, random_batch
    from hrdc_hpc.engine.parts import build_parts, open_images
    from hrdc_hpc.engine.place import Place
    from hrdc_hpc.engine.processes import open_processes
    from hrdc_hpc.engine.roofline import synchronize

    images_a_step = config.optim.global_batch
    with tempfile.TemporaryDirectory() as folder:
        with open_processes(Place(0, 1, 0, 1, Path(folder) / "meet.json"), config.compute) as processes:
            images = open_images(config, processes, local_first=True)
            steps = Steps(config, images.classes, random_batch(config, images.classes, processes.device), processes)
            steps(2)
            compute = images_a_step * _per_second(lambda: steps(1), seconds)
            parts = build_parts(config, images, processes)
            loaders = [loader.batches(0, 10**9) for loader in parts.loaders.values()]

            def fetch() -> None:
                for loader in loaders:
                    next(loader).images_BHWC  # noqa: B018 - rendering is the work
                synchronize(processes.device)

            fetch()
            loader_only = images_a_step * _per_second(fetch, seconds / 3)
            parts.close()
        rate, wait = _real_run(config, Path(folder), seconds)
    return {"compute": compute, "loader": loader_only, "end_to_end": rate, "data_wait": wait}


def _real_run(config: RunConfig, folder: Path, seconds: float) -> tuple[float, float]:
    """Train in a new run folder until time is up; return images per second and the share of waiting, from its log."""
    from hrdc_hpc.config.load import to_yaml
    from hrdc_hpc.engine.place import Place
    from hrdc_hpc.engine.trainer import train
    from hrdc_hpc.record.folder import RunFolder
    from hrdc_hpc.record.metrics import read_metrics

    run = RunFolder.create(folder / "run", config_text=to_yaml(config), manifest={})
    train(run.path, Place(0, 1, 0, 1, folder / "run_meet.json"), StopAfter(seconds))
    # the first record has the first step in it, with whatever is made only once
    records = [record for record in read_metrics(run) if record["kind"] == "train"][1:]
    if not records:
        raise RuntimeError("the run ended before its second log step; give more --seconds or a smaller --log-every")
    times = [1 / record["images_per_s"] for record in records]  # all over the same number of steps
    waited = sum(time * record["data_wait"] for time, record in zip(times, records, strict=True))
    return len(times) / sum(times), waited / sum(times)


def _per_second(work: Callable[[], object], seconds: float) -> float:
    """Calls per second over about that many seconds, at least two calls."""
    start, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - start < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - start)


def _plain(config: RunConfig, seconds: float, workers: int) -> Figures:
    """Take one round of the other stack on the same images, batch and network."""
    import torch

    from benchmarks.peers import LR, MOMENTUM, WEIGHT_DECAY, Logits
    from hrdc_hpc.data.index import open_split
    from hrdc_hpc.models.network import build_network

    device = torch.device("cuda" if config.compute.device != "cpu" and torch.cuda.is_available() else "cpu")
    split: Any = open_split(config.data, "train", trust_cache=True)
    torch.manual_seed(config.seed)
    model = Logits(build_network(config.model, ("plain",), len(split.class_names))).to(device)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    loss_of = torch.nn.CrossEntropyLoss().to(device)
    loader = _data_loader(split, config, workers, pin=device.type == "cuda")

    def step(images_BCSS: torch.Tensor, labels_B: torch.Tensor) -> None:
        logits_BC = model(images_BCSS.to(device, non_blocking=True))
        loss = loss_of(logits_BC, labels_B.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    size = config.optim.global_batch
    batches = _endless(loader)
    images_BCSS, labels_B = (part.to(device) for part in next(batches))
    step(images_BCSS, labels_B)
    compute = size * _per_second(lambda: step(images_BCSS, labels_B), seconds)
    loader_only = size * _per_second(lambda: next(batches), seconds)
    waited = 0.0

    def whole() -> None:
        nonlocal waited
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        step(*batch)

    start = time.perf_counter()
    rate = size * _per_second(whole, seconds)
    return {
        "compute": compute, "loader": loader_only, "end_to_end": rate,
        "data_wait": waited / (time.perf_counter() - start),
    }  # fmt: skip


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _data_loader(split: Any, config: RunConfig, workers: int, *, pin: bool) -> Any:
    import torch

    pictures: Any = Pictures(split.images_NHWC, split.labels_N, config)
    # fork would copy locks of torch's threads, which then nobody opens: a worker hung now and then
    return torch.utils.data.DataLoader(
        pictures, batch_size=config.optim.global_batch, shuffle=True,
        num_workers=workers, pin_memory=pin, drop_last=True, persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,
    )  # fmt: skip


class Pictures:
    """The split as a map-style data set: a PIL image and the usual transforms for each item."""

    def __init__(self, images_NHWC: Any, labels_N: Any, config: RunConfig) -> None:
        from torchvision import transforms

        self._images, self._labels = images_NHWC, labels_N
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(config.data.image_size, padding=config.data.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config.data.mean, config.data.std),
            ]
        )

    def __len__(self) -> int:
        """Images."""
        return len(self._labels)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        """Return a transformed image [3, S, S] and its label."""
        from PIL import Image

        return self._transform(Image.fromarray(self._images[number])), int(self._labels[number])


def cells(row: dict[str, Any], note: str) -> tuple[str, ...]:
    """Return a row of the table."""
    from hrdc_hpc.record.figures import number, percent, spread

    rounds: list[Figures] = row["rounds"]
    middle = {name: statistics.median(figures[name] for figures in rounds) for name in _FIGURES}
    ends = [figures["end_to_end"] for figures in rounds]
    efficiency = statistics.median(f["end_to_end"] / min(f["compute"], f["loader"]) for f in rounds)
    return (
        row["name"],
        *(number(middle[name]) for name in _FIGURES[:3]),
        spread([min(ends), max(ends)]),
        percent(middle["data_wait"]),
        f"{efficiency:.2f}",
        note,
    )


def _write(options: argparse.Namespace, report: dict[str, Any]) -> None:
    from benchmarks.report import write
    from hrdc_hpc.record.figures import show
    from hrdc_hpc.record.machine import sentence

    settings = report["settings"]
    title = f"End to end on CIFAR10-LT: {settings['backbone']}, batch {settings['batch']}, {settings['device']}"
    notes = {OURS: f"log every {settings['log_every']} steps", PLAIN: f"{settings['workers']} workers"}
    rows = [cells(row, notes[row["name"]]) for row in report["rows"]]
    show(title, COLUMNS, rows, f"{_NOTES[0]}\n{sentence(report['machine'])}")
    rounds = f"{options.rounds} rounds of about {options.seconds:g} s for each figure, interleaved."
    write(
        options.out, "end-to-end-cifar10lt", report, module="benchmarks.end_to_end", title=title, columns=COLUMNS,
        rows=rows, notes=[rounds, *_NOTES],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
