"""Measure this machine: `python -m hrdc_hpc.bench step` or `loader`.

`step` climbs a ladder of number formats, layouts and forms of execution with the run's own training step, in turns, and
prints images per second, the speed-up over the first rung, the model FLOPs utilisation and the share of the memory's
bandwidth. It needs no data set: a batch of random images lies on the device.

`loader` runs the run's own training loader and its stages in turns, and prints images per second, processor time an
image, the share of what the bare JPEG decoder can do and the cores that a GPU's rate needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from hrdc_hpc.config.schema import RunConfig
    from hrdc_hpc.data.classes import ClassInfo
    from hrdc_hpc.data.index import ImageIndex

_NEEDS = {name: name for name in ("numpy", "pydantic", "torch", "torchvision")} | {"yaml": "pyyaml", "PIL": "pillow"}
"""Modules, and the packages that have them."""
COLUMNS = ("rung", "images/s", "range", "speed-up", "MFU", "memory", "first step, s", "note")
CAPTION = (
    "Median and range over the rounds; speed-up: median of the ratios to the first rung within a round. Memory: share"
    " of the measured copy bandwidth that the estimated bytes of the step need (caches can lift it above 100 %)."
    " First step: building, warm-up, compiling and capturing, once."
)


LOADER_COLUMNS = ("what", "threads", "images/s", "range", "CPU ms/image", "of the loader's CPU", "note")
LOADER_CAPTION = (
    "Median and range over the rounds; CPU: of all threads, over all rounds. Read: encoded bytes, which lie in the"
    " system's memory after the first round. Feed: draws, reading and handing over, all that is done for an image"
    " before it is decoded. Stages that decode find their bytes read."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(78, f"bench: {message}; see --help\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    top = _Parser(prog="python -m hrdc_hpc.bench", description=__doc__)
    top.add_argument("command", choices=sorted(_COMMANDS), help="what to measure; COMMAND --help lists its options")
    command = top.parse_args(arguments[:1]).command
    options = _COMMANDS[command]().parse_intermixed_args(arguments[1:])
    options.command = command
    return options


def _about(command: str) -> str:
    """Return what this file says of a command."""
    return next((part for part in (__doc__ or "").split("\n\n") if part.startswith(f"`{command}`")), "")


def _step_parser() -> _Parser:
    parser = _Parser(prog="python -m hrdc_hpc.bench step", description=_about("step"), allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run, e.g. method=ce")
    parser.add_argument("--cfg", default="cifar10_lt.yaml", help="the run (default: cifar10_lt.yaml)")
    parser.add_argument("--model", metavar="NAME", help="backbone instead of the run's, e.g. resnet50")
    parser.add_argument("--batch", type=_natural, metavar="N", help="images a step instead of the run's")
    parser.add_argument("--image-size", type=_natural, metavar="S", help="side of the images, pixels")
    parser.add_argument(
        "--classes", type=_natural, metavar="C",
        help="made-up long-tailed classes (default: those of the data set if it is there; else 10 for cifar10, 1000)",
    )  # fmt: skip
    parser.add_argument("--rungs", metavar="A,B", help="only rungs whose names begin with one of these (fp32,compile)")
    parser.add_argument("--rounds", type=_natural, default=3, metavar="N", help="turns of each rung (default: 3)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=_positive, default=3.0, metavar="S", help="length of a turn (default: 3)")
    length.add_argument("--steps", type=_natural, metavar="N", help="length of a turn in steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    return parser


def _loader_parser() -> _Parser:
    parser = _Parser(prog="python -m hrdc_hpc.bench loader", description=_about("loader"), allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. data.dataset.root=/data/inat")
    parser.add_argument("--cfg", default="inat.yaml", help="the run (default: inat.yaml)")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="JPEG and PNG files below it, not the data set's")
    parser.add_argument(
        "--threads", type=_naturals, metavar="N,N",
        help="decoding threads, one or several numbers (default: data.loader.threads, else the cores one may use)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=_natural, default=64, metavar="N", help="images of a rank's batch (default: 64)"
    )
    parser.add_argument("--feed-rate", type=_positive, metavar="R", help="images/s that a GPU takes: cores for them")
    parser.add_argument("--rounds", type=_natural, default=3, metavar="N", help="turns of each stage (default: 3)")
    parser.add_argument("--seconds", type=_positive, default=2.0, metavar="S", help="length of a turn (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    return parser


_COMMANDS: dict[str, Callable[[], _Parser]] = {"step": _step_parser, "loader": _loader_parser}


def _naturals(text: str) -> list[int]:
    return [_natural(word) for word in text.split(",")]


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0; got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return value


def missing() -> str | None:
    """Say in one line which packages a measurement needs and this Python has not; None if all are there."""
    absent = [package for module, package in _NEEDS.items() if find_spec(module) is None]
    if not absent:
        return None
    return f"needs {', '.join(absent)}, which {sys.executable} has not: pip install {' '.join(absent)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says; 0, 78 for a mistake in it or in the config, 1 for the world."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if lacking := missing():
        sys.stderr.write(f"bench: {lacking}\n")
        return 1
    try:
        if options.json and not options.json.parent.is_dir():  # found after the measurement, that would be lost
            raise ValueError(f"--json: no folder {options.json.parent}. Make it, or name a file in another one.")
        report = {"step": measure_step, "loader": measure_loading}[options.command](options)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 78 if isinstance(error, ValueError) else 1
    return 0


def measure_step(options: argparse.Namespace) -> dict[str, Any]:
    """Climb the ladder, print the table, return everything as plain values. ValueError for a config that cannot be."""
    from hrdc_hpc.config.load import load
    from hrdc_hpc.record.figures import show
    from hrdc_hpc.record.machine import describe, sentence

    config = load(options.cfg, [*options.overrides, *_overrides(options)])
    settings, climbed = _climb(options, config)
    report = {"what": "step", "settings": settings, "machine": describe(), **climbed}
    title = (
        f"Training step: {settings['backbone']}, method {settings['method']}, {settings['classes']} classes, batch"
        f" {settings['batch']}, {settings['image_size']} px"
    )
    caption = f"{CAPTION}\n{limits(report)}\n{sentence(report['machine'])}"
    show(title, COLUMNS, [cells(row) for row in report["rows"]], caption)
    return report


def measure_loading(options: argparse.Namespace) -> dict[str, Any]:
    """Time the run's loader and its stages, print the table, return everything as plain values.

    ValueError for a config that cannot be, or without encoded images.
    """
    import os

    import torch

    from hrdc_hpc.config.load import load
    from hrdc_hpc.data.index import ImageIndex, open_split
    from hrdc_hpc.engine.loading import measure_loader
    from hrdc_hpc.record.figures import show
    from hrdc_hpc.record.machine import describe, sentence

    config = load(options.cfg, options.overrides)
    index = _images_below(options.images) if options.images else open_split(config.data, "train")
    if not isinstance(index, ImageIndex):
        raise ValueError(f"{options.cfg}: its images lie in memory, decoded. Name a run with encoded ones, or --images")
    if options.batch > len(index):
        raise ValueError(f"--batch: {options.batch} is more than the {len(index)} images there are. Take fewer.")
    gpu = config.compute.device != "cpu" and torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0))
    threads = options.threads or [config.data.loader.threads or cores]
    device = torch.device("cuda" if gpu else "cpu")
    measured = measure_loader(
        config, index, batch=options.batch, threads=threads, device=device, rounds=options.rounds,
        seconds=options.seconds, say=say,
    )  # fmt: skip
    settings = {
        "cfg": options.cfg, "overrides": options.overrides, "batch": options.batch, "threads": threads,
        "image_size": config.data.image_size, "device": device.type, "feed_rate": options.feed_rate,
    }  # fmt: skip
    report = {"what": "loader", "settings": settings, "machine": describe(), **measured}
    title = (
        f"Training loader: {measured['images']:,} images of {measured['mean_bytes'] / 1000:.0f} kB, batch"
        f" {options.batch}, {config.data.image_size} px, on {device.type}"
    )
    caption = f"{LOADER_CAPTION}\n{findings(report)}\n{sentence(report['machine'])}"
    show(title, LOADER_COLUMNS, loader_rows(report), caption)
    return report


def _images_below(folder: Path) -> ImageIndex:
    from hrdc_hpc.data.loose import as_index, find

    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    images, _ = find([str(path) for path in folders])
    if not images:
        raise ValueError(f"--images: no JPEG or PNG file in or below {folder}")
    return as_index(images, ["images"])


def loader_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the loader's table."""
    from hrdc_hpc.record.figures import number, percent, spread

    whole = report["rows"][-1].get("cpu_s_per_image")
    return [
        (row["name"], str(row["threads"]), *["-"] * 4, row["failed"])
        if "failed" in row
        else (
            row["name"],
            str(row["threads"]),
            number(row["images_per_s"]),
            spread(row["range"]),
            number(1000 * row["cpu_s_per_image"]),
            percent(row["cpu_s_per_image"] / whole) if whole else "-",
            "",
        )
        for row in report["rows"]
    ]


def findings(report: dict[str, Any]) -> str:
    """Return what the loader reaches and what a GPU's rate would need, in a few sentences."""
    from hrdc_hpc.record.figures import number, percent

    loader, rate = report["rows"][-1], report["settings"]["feed_rate"]
    if "failed" in loader:
        return f"The loader failed: {loader['failed']}."
    said = (
        f"The loader reaches {percent(report['of_the_bare_decoder'])} of the rate at which libjpeg-turbo decodes the"
        f" whole images, and {percent(report['of_decoding_the_crops'])} of that of decoding the crops alone. The feed"
        f" takes {percent(report['feed_share_of_cpu'])} of its processor time."
    )
    if rate is None:
        return f"{said} A core feeds {number(1 / loader['cpu_s_per_image'])} images/s."
    return f"{said} {number(rate)} images/s need {number(rate * loader['cpu_s_per_image'])} cores like these."


def _overrides(options: argparse.Namespace) -> list[str]:
    given = {
        "model.backbone": options.model,
        "optim.global_batch": options.batch,
        "data.image_size": options.image_size,
        "data.eval_resize": options.image_size,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def _climb(options: argparse.Namespace, config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was measured with what settings, and the figures."""
    from hrdc_hpc.engine.ladder import climb, rungs
    from hrdc_hpc.engine.place import Place
    from hrdc_hpc.engine.processes import open_processes
    from hrdc_hpc.engine.rounds import Length

    with (
        tempfile.TemporaryDirectory() as meeting,
        open_processes(Place(0, 1, 0, 1, Path(meeting) / "meet.json"), config.compute) as processes,
    ):
        classes = _classes(options.classes, config)
        ladder = rungs(config.compute, processes.device)
        wanted = tuple((options.rungs or "").split(","))
        chosen = [rung for rung in ladder if rung.name.startswith(wanted)]
        if not chosen:
            names = ", ".join(rung.name for rung in ladder)
            raise ValueError(f"--rungs: none begins with {' or '.join(wanted)}; there are {names}")
        length = Length(options.rounds, options.seconds, options.steps)
        climbed = climb(config, classes, processes, chosen, length, say)
    settings = {
        "cfg": options.cfg,
        "overrides": options.overrides,
        "backbone": config.model.backbone.name,
        "method": config.method.name,
        "classes": classes.number,
        "batch": config.optim.global_batch,
        "image_size": config.data.image_size,
        "device": processes.device.type,
    }
    return settings, climbed


def _classes(wanted: int | None, config: RunConfig) -> ClassInfo:
    """Return the data set's classes if it lies there and no number is wanted, else made-up ones."""
    from hrdc_hpc.data.index import class_info, open_split
    from hrdc_hpc.engine.ladder import made_up_classes

    dataset = config.data.dataset
    root = getattr(dataset.options, "root", None)
    if wanted is None and root is not None and Path(root).is_dir():
        return class_info(open_split(config.data, "train"), config.data)
    return made_up_classes(config, wanted or (10 if dataset.name.startswith(("cifar10_", "digits")) else 1000))


def say(what: str) -> None:
    """Tell on standard error what is being done."""
    sys.stderr.write(f"bench: {what}\n")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table."""
    from hrdc_hpc.record.figures import number, percent, spread

    if "failed" in row:
        return (row["name"], *["-"] * (len(COLUMNS) - 2), row["failed"])
    ratio = row["speed_up"]
    return (
        row["name"],
        number(row["images_per_s"]),
        spread(row["range"]),
        f"{ratio['ratio']:.2f} ({ratio['range'][0]:.2f}-{ratio['range'][1]:.2f})" if ratio else "-",
        percent(row["mfu"]) if "mfu" in row else "-",
        percent(row["memory_share"]) if "memory_share" in row else "-",
        f"{row['first_s']:.1f}",
        "",
    )


def limits(report: dict[str, Any]) -> str:
    """Return what the network costs and what the machine could do, in two sentences."""
    from hrdc_hpc.record.figures import number

    moved = "; ".join(
        f"{name} {' / '.join(number(traffic[form] / 1e6) for form in ('eager', 'fused', 'bound'))}"
        for name, traffic in report["bytes_per_image"].items()
    )
    products = ", ".join(f"{name} {number(value / 1e12)}" for name, value in report["matmul_flops_per_s"].items())
    return (
        f"{number(report['flops_per_image'] / 1e9)} GFLOP an image (forward and backward); MB an image, eager / fused /"
        f" bound: {moved}. Measured here: copy {number(report['bandwidth_bytes_per_s'] / 1e9)} GB/s, matrix product in"
        f" TFLOP/s: {products}."
    )


if __name__ == "__main__":
    sys.exit(main())
