"""Whether other ways of computing the step learn the same: `python -m benchmarks.agreement --root DIR`.

The run of cifar10_lt.yaml is begun several times: eager fp32 with three seeds, and with the first of them compiled,
in the other memory format, in bf16 and, on a GPU, as one CUDA graph. The mean losses of windows of steps are compared:
each way must lie no further from the eager run of its seed than the three eager runs lie from each other. Rounding
grows with the steps, so equal curves are not to be expected; a curve outside the spread of the seeds is a fault.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hrdc_hpc import bench

COLUMNS = ("way", "within the spread", "largest share of it", "mean share of it", "loss at the end", "note")
SEEDS = 3
WAYS = {
    "channels_last off": ["compute.channels_last=false"],
    "bf16": ["compute.precision=bf16"],
    "compiled": ["compute.compile=true"],
    "CUDA graph": ["compute.cuda_graph=true"],
    "CUDA graph, compiled, bf16": ["compute.cuda_graph=true", "compute.compile=true", "compute.precision=bf16"],
}
_EAGER = ["compute.precision=fp32", "compute.compile=false", "compute.cuda_graph=false"]
_WINDOW = 10
_NOTES = (
    f"Mean losses of windows of {_WINDOW} steps. The spread is the largest less the smallest of the three eager runs'"
    " in a window; the share of it is a way's distance from the eager run of the same seed. Within the spread: windows"
    " in which the share is at most 1, of all windows.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Begin the runs and write the record; 0 if all lie within the spread, 1 if not, 78 for a mistake."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    if lacking := bench.missing():
        sys.stderr.write(f"benchmarks.agreement: {lacking}\n")
        return 1
    if not options.root.is_dir():
        sys.stdout.write(f"agreement: not measured: {options.root} with the CIFAR-10 files is not there (--root)\n")
        return 0
    try:
        report = measure(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"benchmarks.agreement: {error}\n")
        return 78 if isinstance(error, ValueError) else 1
    _write(options, report)
    return 0 if all(row.get("largest", 0) <= 1 for row in report["rows"]) else 1


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")
    parser.add_argument("--root", type=Path, required=True, help="folder with the CIFAR-10 files")
    parser.add_argument("--steps", type=int, default=100, help="of each run (default: 100)")
    parser.add_argument("--ways", help=f"only those that begin with one of these (of {', '.join(WAYS)})")
    parser.add_argument("--out", type=Path, default=Path("records"))
    return parser.parse_intermixed_args(words)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take the steps of all runs; return plain values."""
    import torch

    from hrdc_hpc.record.machine import describe

    gpu = torch.cuda.is_available() and "compute.device=cpu" not in options.overrides
    eager = [losses(options, [*_EAGER, f"seed={seed}"], f"eager, seed {seed}") for seed in range(SEEDS)]
    rows: list[dict[str, Any]] = [{"name": f"eager fp32, seed {s}", "losses": curve} for s, curve in enumerate(eager)]
    wanted = tuple((options.ways or "").split(","))
    for name, settings in WAYS.items():
        if "graph" in name and not gpu:
            rows.append({"name": name, "failed": "not measured: needs an NVIDIA GPU"})
        elif name.startswith(wanted):
            curve = losses(options, [*_EAGER, "seed=0", *settings], name)
            rows.append({"name": name, "losses": curve, **compared(curve, eager)})
    chosen = {"steps": options.steps, "device": "cuda" if gpu else "cpu", "overrides": options.overrides}
    told = ["--root", "DIR", "--steps", str(options.steps), *options.overrides]
    return {"settings": chosen, "machine": describe(), "arguments": told, "rows": rows}


def compared(curve: Sequence[float], eager: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return how far a curve lies from the first eager one, as shares of the eager ones' spread, over windows."""
    shares = []
    for start in range(0, len(curve) - _WINDOW + 1, _WINDOW):
        window = slice(start, start + _WINDOW)
        means = [mean(one[window]) for one in eager]
        shares.append(abs(mean(curve[window]) - means[0]) / (max(means) - min(means)))
    within = sum(share <= 1 for share in shares)
    return {"largest": max(shares), "mean": mean(shares), "within": within, "windows": len(shares)}


def losses(options: argparse.Namespace, settings: Sequence[str], what: str) -> list[float]:
    """Return the losses of a run's first steps, exactly as the trainer takes them."""
    from hrdc_hpc.config.load import load
    from hrdc_hpc.engine.learning_rate import learning_rate
    from hrdc_hpc.engine.parts import build_parts, open_images, rehearse, step_draws
    from hrdc_hpc.engine.place import Place
    from hrdc_hpc.engine.processes import open_processes
    from hrdc_hpc.engine.step import EMA_WEIGHT, LR

    bench.say(what)
    config = load("cifar10_lt.yaml", [f"data.dataset.root={options.root}", *options.overrides, *settings])
    taken = []
    with (
        tempfile.TemporaryDirectory() as folder,
        open_processes(Place(0, 1, 0, 1, Path(folder) / "meet.json"), config.compute) as processes,
    ):
        parts = build_parts(config, open_images(config, processes, local_first=True), processes)
        rehearse(config, parts, processes)
        for step, batch in enumerate(parts.loaders["main"].batches(0, options.steps)):
            epoch = step // parts.steps_per_epoch
            rate = learning_rate(step, steps_per_epoch=parts.steps_per_epoch, optim=config.optim)
            scalars = {LR: rate, EMA_WEIGHT: 0.0, **parts.method.scalars(epoch, config.optim.epochs)}
            draws = {"main": step_draws(parts.method, config.seed, "main", batch, processes.device)}
            parts.step({"main": batch}, draws, scalars)
            taken.append(parts.step.loss.clone())
        parts.close()
        return [float(loss) for loss in taken]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table."""
    if "failed" in row:
        return (row["name"], "-", "-", "-", "-", row["failed"])
    end = f"{mean(row['losses'][-_WINDOW:]):.4f}"
    if "largest" not in row:
        return (row["name"], "-", "-", "-", end, "")
    told = f"{row['within']} of {row['windows']}"
    return (row["name"], told, f"{row['largest']:.3f}", f"{row['mean']:.3f}", end, "")


def _write(options: argparse.Namespace, report: dict[str, Any]) -> None:
    from benchmarks.report import write
    from hrdc_hpc.record.figures import show
    from hrdc_hpc.record.machine import sentence

    title = f"Losses of {report['settings']['steps']} steps: other ways of computing beside three eager seeds"
    rows = [cells(row) for row in report["rows"]]
    show(title, COLUMNS, rows, f"{_NOTES[0]}\n{sentence(report['machine'])}")
    write(
        options.out, "agreement", report, module="benchmarks.agreement", title=title, columns=COLUMNS, rows=rows,
        notes=["The run is that of `configs/cifar10_lt.yaml`: ResNet-32, imbalance 100, HRDC, batch 128.", *_NOTES],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
