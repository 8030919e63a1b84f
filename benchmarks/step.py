"""Our training step beside timm's, pytorch/examples' and torchvision's: `python -m benchmarks.step --model resnet32`.

By the protocol of the project: the same network, batch, images and optimizer, all contenders in one run, in turns
(A-B-A-B), the first step of each turn dropped, median and paired ratio with their range. Our rungs use the method `ce`,
one head, which is what the peers train; one row has HRDC's two heads. With HRDC_PEERS=FOLDER peers' own scripts are
run, from checkouts of pytorch-image-models, examples and vision in FOLDER. Results go into records/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrdc_hpc import bench

_SETTINGS: dict[str, tuple[str, list[str], int, int]] = {
    # model: the run that the settings come from, what differs, batch on a CPU and on a GPU
    "resnet32": ("cifar10_lt.yaml", [], 128, 128),
    "resnet50": ("inat.yaml", [], 16, 256),
    "tiny": ("cifar10_lt.yaml", ["model.backbone=tiny"], 32, 32),
}
_DEFAULT, _TWO_HEADS = "ours, default", "ours, default, HRDC's two heads"
COLUMNS = ("contender", "images/s", "range", "ours, default / it", "MFU", "note")
_NOTES = (
    "Ratio: median over the rounds of our default's rate divided by this row's in the same round, and its range; above"
    " 1 our default is faster. Our default is what a run gets that sets nothing in `compute`. Peers are as their"
    " scripts are by default, with the options in their names: 'own script' calls the function that trains an epoch in"
    " an unmodified checkout, 'loop re-expressed' is the same step written anew in `benchmarks/peers.py`. Peers take"
    " normalised float images; our steps begin with bytes and normalise them.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record; 0, 78 for a mistake, 1 for what the world did."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(words)
    if lacking := bench.missing():
        sys.stderr.write(f"benchmarks.step: {lacking}\n")
        return 1
    try:
        report = measure(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"benchmarks.step: {error}\n")
        return 78 if isinstance(error, ValueError) else 1
    _write(options, {"arguments": words, **report})
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of our run")
    parser.add_argument("--model", choices=sorted(_SETTINGS), default="resnet32")
    parser.add_argument("--classes", type=int, help="default: 10 for small images, else 1000")
    parser.add_argument("--batch", type=int, help="default: 128 for resnet32, 16 (GPU: 256) for resnet50")
    parser.add_argument("--image-size", type=int, help="default: 32 or 224")
    parser.add_argument("--rungs", default="fp32,bf16,fp16,compile,graph", help="of our ladder, by how names begin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn")
    parser.add_argument("--out", type=Path, default=Path("records"))
    return parser.parse_intermixed_args(words)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders; return everything as plain values."""
    import torch

    from hrdc_hpc.config.load import load
    from hrdc_hpc.engine.ladder import Rung, climb, made_up_classes, rungs
    from hrdc_hpc.engine.place import Place
    from hrdc_hpc.engine.processes import open_processes
    from hrdc_hpc.engine.rounds import Length
    from hrdc_hpc.record.machine import describe

    cfg, differs, on_cpu, on_gpu = _SETTINGS[options.model]
    gpu = torch.cuda.is_available() and "compute.device=cpu" not in options.overrides
    given = [*differs, "method=ce", f"optim.global_batch={options.batch or (on_gpu if gpu else on_cpu)}"]
    if options.image_size:
        given += [f"data.image_size={options.image_size}", f"data.eval_resize={options.image_size}"]
    config = load(cfg, [*given, *options.overrides])
    classes = made_up_classes(config, options.classes or (10 if cfg.startswith("cifar") else 1000))
    with (
        tempfile.TemporaryDirectory() as meeting,
        open_processes(Place(0, 1, 0, 1, Path(meeting) / "meet.json"), config.compute) as processes,
    ):
        ladder = rungs(config.compute, processes.device)
        ladder = [rung for rung in ladder if rung.name.startswith(tuple(options.rungs.split(",")))]
        ladder.insert(0, Rung(_DEFAULT, {}))
        others, notes = _others(load(cfg, [*given, "method=hrdc", *options.overrides]), config, classes, processes)
        length = Length(options.rounds, options.seconds)
        climbed = climb(config, classes, processes, ladder, length, bench.say, others)
        settings = {
            "model": options.model, "batch": config.optim.global_batch, "image_size": config.data.image_size,
            "classes": classes.number, "device": processes.device.type,
        }  # fmt: skip
    for row in climbed["rows"]:
        row["note"] = notes.get(row["name"], "" if row["name"] == _DEFAULT else "ours")
    return {"what": "step beside peers", "settings": settings, "machine": describe(), **climbed}


def _others(two_heads: Any, config: Any, classes: Any, processes: Any) -> tuple[list[Any], dict[str, str]]:
    """Return the contenders that are no rungs, and the notes of their rows."""
    from benchmarks.peers import Setting, peers
    from hrdc_hpc.data.normalise import normalise
    from hrdc_hpc.engine.ladder import Steps, random_batch
    from hrdc_hpc.engine.parts import build_model
    from hrdc_hpc.engine.rounds import Contender

    batch = random_batch(config, classes, processes.device)
    images_BCSS = normalise(batch.images_BHWC, config.data.mean, config.data.std, channels_last=False)
    setting = Setting(lambda: build_model(config, classes, processes.device)[0], images_BCSS, batch.labels_B)
    there = peers(setting)
    hrdc = Contender(_TWO_HEADS, Steps(two_heads, classes, batch, processes), config.optim.global_batch)
    notes = {peer.contender.name: peer.note for peer in there} | {_TWO_HEADS: "ours"}
    return [hrdc, *(peer.contender for peer in there)], notes


def cells(row: dict[str, Any], ours: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table."""
    from hrdc_hpc.engine.rounds import Timing, paired
    from hrdc_hpc.record.figures import number, percent, spread

    if "failed" in row:
        return (row["name"], "-", "-", "-", "-", f"{row['failed']}")
    ratio = paired(Timing(ours.get("rounds", [])), Timing(row["rounds"]))
    told = f"{ratio['ratio']:.2f} ({ratio['range'][0]:.2f}-{ratio['range'][1]:.2f})" if ratio else "-"
    mfu = percent(row["mfu"]) if "mfu" in row else "-"
    return (row["name"], number(row["images_per_s"]), spread(row["range"]), told, mfu, row["note"])


def _write(options: argparse.Namespace, report: dict[str, Any]) -> None:
    from benchmarks.report import write
    from hrdc_hpc.record.figures import show
    from hrdc_hpc.record.machine import sentence

    settings, ours = report["settings"], report["rows"][0]
    title = (
        f"Training step beside peers: {settings['model']}, batch {settings['batch']}, {settings['image_size']} px,"
        f" {settings['classes']} classes"
    )
    rows = [cells(row, ours) for row in report["rows"]]
    facts = bench.limits(report)
    show(title, COLUMNS, rows, f"{_NOTES[0]}\n{facts}\n{sentence(report['machine'])}")
    rounds = f"{options.rounds} rounds of about {options.seconds:g} s for each contender, interleaved."
    write(
        options.out, f"step-{settings['model']}", report, module="benchmarks.step", title=title, columns=COLUMNS,
        rows=rows, notes=[rounds, *_NOTES, facts],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
