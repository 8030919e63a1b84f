"""Scaling studies made of figures that are written down here, so that reports can be checked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from hrdc_hpc.config.load import load
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.measurement import AllReduce, Measurement, Node, Share
from hrdc_hpc.scaling.rows import Mode, Row, Size
from hrdc_hpc.scaling.view import Fit, Limits, Parameter, Predicted, Residual, StudyView

GPUS = 4
"""Of a node."""
BATCH = 256
"""Images per GPU in weak scaling, and of the base in strong."""


@cache
def inat(*overrides: str) -> RunConfig:
    return load("inat.yaml", [f"optim.global_batch={BATCH * GPUS}", *overrides])


def size(mode: Mode, nodes: int, *, gpus: int = GPUS, batch: int | None = None) -> Size:
    whole = batch if batch is not None else BATCH * nodes * gpus if mode == "weak" else BATCH * gpus
    return Size(nodes=nodes, ranks_per_node=gpus, mode=mode, global_batch=whole)


def found(of: Size, step_s: float, *, names: Sequence[str] = (), **more: Any) -> Measurement:
    """Three rounds of three steps, the middle one of which is `step_s`; without communication 20 % faster."""
    steps = [0.98 * step_s, step_s, 1.02 * step_s]
    names = names or [f"n{i:03}" for i in range(of.nodes)]
    values: dict[str, Any] = {
        "world_size": of.ranks,
        "ranks_per_node": of.ranks_per_node,
        "global_batch": of.global_batch,
        "images": "real",
        "warm_up": 5,
        "windows": {
            "as_is": [steps] * 3,
            "no_sync": [[0.8 * s for s in steps]] * 3,
            "resident": [[0.95 * s for s in steps]] * 3,
            "resident_no_sync": [[0.75 * s for s in steps]] * 3,
        },
        "shares": Share(
            data_wait_s=0.05 * step_s, compute_s=0.65 * step_s, communication_s=0.2 * step_s, optimizer_s=0.04 * step_s
        ),
        "gradient_bytes": 227_000_000,
        "buckets": (27_000_000,) * 8,
        "all_reduces": [AllReduce(bytes=227_000_000, seconds=(0.030, 0.031, 0.035))],
        "backend": "nccl",
        "interface": "ib0",
        "nodes": [
            Node(
                name=name, machine=f"boot-{name}", cores=48, device="NVIDIA A100-SXM4-80GB",
                peak_host_bytes=90_000_000_000, peak_device_bytes=31_000_000_000,
            )
            for name in names
        ],
        "precision": "bf16",
        "startup_s": {"meeting": 8.0, "data": 22.0, "rehearsal": 45.0, "total": 80.0},
        "checkpoint_bytes": 683_000_000,
        "checkpoint_stall_s": 0.4,
        "checkpoint_s": 2.5,
        "energy_j": 300.0 * of.ranks * step_s,
        "versions": {"torch": "2.14.1", "nccl": "2.28", "driver": "580.65"},
    }  # fmt: skip
    return Measurement(**{**values, **more})


def row(of: Size, step_s: float, repeat: int = 1, **more: Any) -> Row:
    run = f"{of.mode}-{of.nodes}x{of.ranks_per_node}-r{repeat}"
    return Row(size=of, repeat=repeat, run=run, state="finished", found=found(of, step_s, **more))


def failed(of: Size, repeat: int = 1, state: str = "failed", why: str = "rank 3 of node n007: out of memory") -> Row:
    return Row(size=of, repeat=repeat, run=f"{of.mode}-{of.nodes}x{of.ranks_per_node}-r{repeat}", state=state, why=why)


def parts_of(of: Size) -> dict[str, float]:
    """Seconds of a step: gradients of 227 MB at 12 GB/s of a node, over which 60 % of the computing overlaps."""
    compute = 0.012 + of.global_batch / of.ranks / 2400
    sent = 0.0 if of.nodes == 1 else 2 * (of.nodes - 1) / of.nodes * 0.227 / 12 + 0.0006 * of.nodes
    return {"data": 0.001, "compute": compute, "exposed communication": max(0.1 * sent, sent - 0.4 * compute) + 0.001}


def model_step_s(of: Size) -> float:
    return sum(parts_of(of).values()) + 0.004


def predicted(of: Size, largest: int) -> Predicted:
    step_s = model_step_s(of)
    rate = of.global_batch / step_s
    width = 0.02 + 0.03 * max(0, (of.nodes / largest) ** 0.5 - 0.5)
    return Predicted(
        size=of, step_s=step_s, images_per_s=rate, low=rate * (1 - width), high=rate * (1 + width),
        extrapolated=of.nodes > 4 * largest, parts=parts_of(of),
    )  # fmt: skip


def believable(nodes: Sequence[int] = (1, 2, 3, 4, 8, 16, 32, 64), lost: int = 16) -> StudyView:
    """Weak and strong, three repeats; every weak run of `lost` nodes failed, and one strong run there."""
    noise = (0.0, 0.015, -0.01)
    rows = []
    for mode in ("weak", "strong"):
        for count in nodes:
            of = size(mode, count)
            for repeat in (1, 2, 3):
                if count == lost and (mode == "weak" or repeat == 2):
                    rows.append(failed(of, repeat))
                    continue
                wobble = 1 + noise[repeat - 1] * (1 + count / 16) + 0.02 * (-1) ** count
                part = parts_of(of)
                shares = Share(
                    data_wait_s=part["data"], compute_s=part["compute"],
                    communication_s=part["exposed communication"], optimizer_s=0.002,
                )  # fmt: skip
                rows.append(row(of, model_step_s(of) * wobble, repeat, shares=shares))
    sizes = [size(mode, count) for mode in ("weak", "strong") for count in (*nodes, 128, 256)]
    sizes = [one for one in sizes if one.global_batch >= one.ranks]
    residuals = [
        Residual(size=one.size, run=one.run, measured_s=sum(steps) / len(steps), fitted_s=model_step_s(one.size))
        for one in rows
        if (steps := one.step_s)
    ]  # fmt: skip
    return StudyView(
        name="inat-scaling",
        config=inat(),
        rows=rows,
        train_images=437_513,
        predictions=[predicted(one, max(nodes)) for one in sizes],
        fit=Fit(
            model="step = max(data, compute + exposed communication), ring all-reduce",
            parameters=[
                Parameter(name="bandwidth between nodes", value=21.3, unit="GB/s", error=0.8),
                Parameter(name="latency between nodes", value=12.0, unit="us", held="too few sizes to tell it"),
            ],
            residuals=residuals,
            assumptions=["Every node is as fast as every other.", "The file system is not the limit."],
        ),
        limits=Limits(partition="gpu", max_nodes=64, max_time_min=1440),
        command="python -m hrdc_hpc.scaling --cfg inat.yaml --partition gpu --nodes 1,2,3,4,8,16,32,64",
        date="2026-11-25",
    )


def without(view: StudyView, *kept: int) -> StudyView:
    """Return the study with rows of these numbers of nodes only, and nothing predicted."""
    return replace(view, rows=[one for one in view.rows if one.size.nodes in kept], predictions=(), fit=None)
