"""The model of scaling/model.py beside published runs that it was not fitted to, and what it predicts of our own.

    python -m benchmarks.scaling_published [--record records]

Nothing is run: the figures are calculated, from data sheets, from what the sources say of network and batch, and from
what is assumed where they say nothing. One published row sets a constant (the anchor); the others are predicted, and a
row that the model misses stays missed. Takes a second; writes scaling-published_<date> and scaling-predicted_<date>.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.published_rows import DEVICES, INSTEAD, NETWORKS, NOT_COMPARED, ROWS, Published
from hrdc_hpc.config.cluster import Device, Network
from hrdc_hpc.config.load import load
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.figures import markdown, number, percent, show
from hrdc_hpc.record.machine import describe
from hrdc_hpc.scaling.belief import Belief
from hrdc_hpc.scaling.predict import Paper, on_paper

NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROFILES = {"h200_ndr": 8, "a100_hdr": 4, "a100_25gbe": 4}
"""Cluster profile: GPUs of a node."""
BATCH, GLOBAL_BATCH = 256, 4096
"""Images per GPU of the weak table; of all GPUs of the strong one."""
FEWEST = 8
"""Images per GPU below which the strong table ends: nobody would."""
ESTIMATES: Mapping[str, tuple[str, int, Sequence[tuple[int, int]]]] = {
    "8 GPUs, 8 x NDR400": ("8x NDR400", 8, ((98, 99), (96, 100), (98, 99))),
    "4 GPUs, 4 x HDR200": ("4x HDR200", 4, ((94, 99), (89, 99), (94, 99))),
    "8 GPUs, 1 x HDR100": ("1x HDR100", 8, ((70, 91), (52, 75), (68, 91))),
    "4 GPUs, 25 GbE": ("25 GbE", 4, ((37, 48), (21, 24), (35, 44))),
}
"""Estimates made before the model, 16 nodes, 256 images per GPU, without and with overlap, in percent: 1000 classes in
fp32, two heads of 8142 classes in fp32, the same in bf16."""


PUBLISHED_NOTE = """
Images/s are per GPU. Efficiency is images/s per GPU over that of the base: of MLPerf's small batches 8 H100 at 400
images each, of the others one node at the same batch per GPU. Error: model over published, less 1. Range: what the
model's assumptions leave open, meant to hold nine of ten; it holds fewer, because it knows nothing of loaders and
software that fall short of the roofline. Read a prediction on paper as what the hardware allows."""
ANCHOR_NOTE = """
Anchor: that row sets the only constant that comes from published runs, 3.2 ms of a step that do not grow with its
images. Shares of the peaks (80 % of arithmetic, 90 % of memory bandwidth) were measured on an H200 and are taken for
every GPU. Overlap (50 % of compute), the spread of a rank's steps (1 %), latencies and 85 % of a network's rate are
assumed and set by no row. The published figures were known when the model was written, so this is no blind test; its
form was not changed for a row."""
PREDICTED_NOTE = """
Nothing was run. Each profile's assumptions stand above its tables; the profiles are in configs/clusters/. How far the
model is from published runs, and how often they lie in its range: scaling-published of the same day. Efficiency is
against one node of the same table; 'bf16 gradients': the efficiency with compute.gradients=bf16."""
ESTIMATES_NOTE = """
16 nodes, 256 images per GPU, H200 on every network. Each cell: the estimate without/with overlap; the model's. In
percent: compute over compute and exposed communication."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A published figure beside the model's."""

    published: Published
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Predicted over published, less 1."""
        return self.predicted / self.published.figure - 1

    @property
    def inside(self) -> bool:
        """Whether the published figure lies in the range."""
        return self.low <= self.published.figure <= self.high


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, predict, and write the records if asked to."""
    parser = argparse.ArgumentParser(prog="scaling_published.py", description=__doc__.split("\n")[0])
    parser.add_argument("--record", type=Path, help="folder for the two records")
    options = parser.parse_args(arguments)
    compared = [compare(row) for row in ROWS]
    show("The model beside published runs", COLUMNS, [cells(one) for one in compared], summary(compared))
    predictions = {profile: predictions_of(profile) for profile in PROFILES}
    for profile, tables in predictions.items():
        short = [[row[column] for column in (0, 1, 4, 6, 7)] for row in table_cells(tables["weak"])]
        show(f"{profile}, {BATCH} images per GPU", [TABLE[column] for column in (0, 1, 4, 6, 7)], short, "")
    if options.record:
        write_published(options.record, compared)
        write_predicted(options.record, predictions)
    return 0


def config_of(row: Published) -> RunConfig:
    """Return a run of ResNet-50 with one head of 1000 classes, on the row's device and network."""
    device = DEVICES[row.device]
    overrides = ["method=ce", f"data.image_size={row.side}", f"compute.gradients={row.gradients}"]
    if not device.half:
        overrides.append("compute.precision=fp32")
    if row.stack == "eager":
        overrides.append("compute.compile=false")
    return over(load("inat.yaml", overrides), device, NETWORKS[row.network])


def over(config: RunConfig, device: Device, network: Network) -> RunConfig:
    """Return the run on that device and network."""
    return replace(config, cluster=replace(config.cluster, device=device, network=network))


def compare(row: Published) -> Compared:
    """Return what the model makes of a row."""
    paper = on_paper(config_of(row), classes=1000)
    if row.base is None:
        one = paper.predict(*row.size)
        return Compared(published=row, predicted=one.images_per_s / one.ranks, low=one.low / one.ranks,
                        high=one.high / one.ranks)  # fmt: skip
    middle, low, high = paper.efficiency(row.size, row.base)
    return Compared(published=row, predicted=middle, low=low, high=high)


COLUMNS = ("published run", "GPUs x batch", "published", "model", "range", "error", "in range", "role")


def cells(one: Compared) -> list[str]:
    """Return a row of the table."""
    row = one.published
    tell = percent if row.base is not None else lambda value: number(value, 4)
    return [
        row.name,
        f"{row.size[0] * row.size[1]:,} x {row.size[2]}",
        tell(row.figure),
        tell(one.predicted),
        f"{tell(one.low)} to {tell(one.high)}",
        f"{100 * one.error:+.1f} %",
        "yes" if one.inside else "no",
        row.role,
    ]


def summary(compared: Sequence[Compared]) -> str:
    """Return the errors of the predicted rows in a sentence for each kind."""
    said = []
    for kind, rows in (
        ("images/s", [one for one in compared if one.published.base is None]),
        ("efficiency", [one for one in compared if one.published.base is not None]),
    ):
        errors = [abs(one.error) for one in rows if one.published.role == "predicted"]
        inside = sum(one.inside for one in rows if one.published.role == "predicted")
        said.append(
            f"{kind}: {len(errors)} predicted rows, median error {percent(statistics.median(errors))}, worst"
            f" {percent(max(errors))}; {inside} of the published figures lie in the range."
        )
    return " ".join(said)


def predictions_of(profile: str) -> dict[str, list[dict[str, Any]]]:
    """Return what the model expects of ResNet-50 with two heads of 8142 classes on a profile, weak and strong."""
    gpus = PROFILES[profile]
    papers = {
        number_format: on_paper(load("inat.yaml", [f"cluster.profile={profile}", f"compute.gradients={number_format}"]))
        for number_format in ("fp32", "bf16")
    }
    return {
        "weak": [_row(papers, n, gpus, BATCH, (1, gpus, BATCH)) for n in NODES],
        "strong": [
            _row(papers, n, gpus, GLOBAL_BATCH / (n * gpus), (1, gpus, GLOBAL_BATCH / gpus))
            for n in NODES
            if GLOBAL_BATCH / (n * gpus) >= FEWEST
        ],
    }


def _row(
    papers: Mapping[str, Paper], nodes: int, gpus: int, batch: float, base: tuple[int, int, float]
) -> dict[str, Any]:
    one = papers["fp32"].predict(nodes, gpus, batch)
    row: dict[str, Any] = {key: value for key, value in asdict(one).items() if key not in ("drawn_s", "noise")} | {
        "images_per_s": one.images_per_s, "images_per_s_low": one.low, "images_per_s_high": one.high,
        "gpu_hours_per_epoch": 437_513 / one.images_per_s * one.ranks / 3600,
    }  # fmt: skip
    for number_format, paper in papers.items():
        row[f"efficiency_{number_format}"] = paper.efficiency((nodes, gpus, batch), base)
    return row


TABLE = ("nodes", "GPUs", "batch/GPU", "step, ms", "images/s", "range", "efficiency", "range", "bf16 gradients",
        "exposed, ms", "GPU-hours/epoch")  # fmt: skip


def table_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of a table of predictions."""
    return [
        [
            f"{row['nodes']}",
            f"{row['nodes'] * row['ranks_per_node']:,}",
            f"{row['batch_per_rank']:g}",
            f"{1e3 * row['step_s']:.1f}",
            number(row["images_per_s"]),
            f"{number(row['images_per_s_low'])} to {number(row['images_per_s_high'])}",
            percent(row["efficiency_fp32"][0]),
            f"{percent(row['efficiency_fp32'][1])} to {percent(row['efficiency_fp32'][2])}",
            percent(row["efficiency_bf16"][0]),
            f"{1e3 * row['exposed_s']:.2f}",
            number(row["gpu_hours_per_epoch"]),
        ]
        for row in rows
    ]


def estimates() -> list[list[str]]:
    """Return the earlier estimates at 16 nodes beside the model's, on H200 GPUs for all networks."""
    lines = []
    runs: tuple[tuple[list[str], int], ...] = (
        (["method=ce"], 1000), ([], 8142), (["compute.gradients=bf16"], 8142),
    )  # fmt: skip
    for name, (network, gpus, told) in ESTIMATES.items():
        line = [name]
        for (overrides, classes), (without, within) in zip(runs, told, strict=True):
            config = over(load("inat.yaml", overrides), DEVICES["H200"], NETWORKS[network])
            paper = on_paper(config, classes=classes)
            mine = [_of_compute(paper, gpus, overlap) for overlap in (None, "as assumed")]
            line.append(f"{without}/{within}; {100 * mine[0]:.0f}/{100 * mine[1]:.0f}")
        lines.append(line)
    return lines


def _of_compute(paper: Paper, gpus: int, overlap: Literal["as assumed"] | None) -> float:
    """Share of the step that is compute, at 16 nodes."""
    beliefs = dict(paper.beliefs)
    if overlap is None:
        beliefs["overlap"] = Belief(1e-9, 0.0, "none")
    one = replace(paper, beliefs=beliefs).predict(16, gpus, BATCH)
    return one.compute_s / (one.compute_s + one.exposed_s)


def write_published(folder: Path, compared: Sequence[Compared]) -> None:
    """Write the comparison."""
    machine = describe()
    details = [
        [row.name, row.network, f"{row.gradients} gradients, {row.stack}", row.known, row.assumed] for row in ROWS
    ]
    missed = [[one.published.name, f"{100 * one.error:+.1f} %", one.published.reason or "-"] for one in compared]
    parts = [
        "# The scaling model beside published training runs of ResNet-50",
        _head(machine, "scaling-published"),
        summary(compared),
        markdown(COLUMNS, [cells(one) for one in compared]),
        PUBLISHED_NOTE.strip().replace("\n", " "),
        ANCHOR_NOTE.strip().replace("\n", " "),
        "## Row by row: why",
        markdown(("published run", "error", "likely reason"), missed),
        "## What the model was told",
        markdown(("published run", "network of a node", "numbers", "from the source", "assumed"), details),
        "Not compared, with the reason:\n\n" + "\n".join(f"- {line}" for line in NOT_COMPARED),
        "What was not measured: everything; no GPU was at hand. All of it is calculation.",
    ]
    rows = [asdict(one.published) | {"predicted": one.predicted, "low": one.low, "high": one.high, "error": one.error,
                                     "inside": one.inside} for one in compared]  # fmt: skip
    devices = {name: asdict(device) for name, device in DEVICES.items()}
    networks = {name: asdict(network) for name, network in NETWORKS.items()}
    report = {"machine": machine, "rows": rows, "devices": devices, "networks": networks}
    _write(folder, "scaling-published", parts, report)


def write_predicted(folder: Path, predictions: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
    """Write the predictions."""
    machine = describe()
    parts = [
        "# ResNet-50 with two heads of 8,142 classes on 1 to 512 nodes, predicted on paper",
        _head(machine, "scaling-predicted"),
        PREDICTED_NOTE.strip().replace("\n", " "),
    ]
    for profile, tables in predictions.items():
        paper = on_paper(load("inat.yaml", [f"cluster.profile={profile}"]))
        parts += [
            f"## {profile}",
            "\n".join(f"- {line}" for line in paper.assumptions),
            f"Weak: {BATCH} images per GPU.",
            markdown(TABLE, table_cells(tables["weak"])),
            f"Strong: {GLOBAL_BATCH:,} images in all, down to {FEWEST} per GPU.",
            markdown(TABLE, table_cells(tables["strong"])),
        ]
    parts += [
        "## Beside the estimates made before the model",
        ESTIMATES_NOTE.strip().replace("\n", " "),
        markdown(("network of a node", "1000 classes, fp32", "two heads of 8142, fp32", "the same, bf16"), estimates()),
        INSTEAD,
    ]
    report = {"machine": machine, "predictions": predictions, "estimates": estimates()}
    _write(folder, "scaling-predicted", parts, report)


def _head(machine: Mapping[str, Any], what: str) -> str:
    commit = (machine["commit"] or "unknown")[:7] + (" with changes" if machine["changed"] else "")
    file = f"{what}_{machine['date']}.json"
    return (
        f"Hardware: none was used; calculated. Python {machine['python']}, numpy {machine['packages'].get('numpy')}."
        f" Commit {commit}, {machine['date']}. All figures: [{file}]({file})."
        "\n\n```console\npython -m benchmarks.scaling_published --record records\n```"
    )


def _write(folder: Path, what: str, parts: Sequence[str], report: Mapping[str, Any]) -> None:
    page = folder / f"{what}_{report['machine']['date']}.md"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(parts) + "\n")
    page.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(f"record: {page}\n")


if __name__ == "__main__":
    sys.exit(main())
