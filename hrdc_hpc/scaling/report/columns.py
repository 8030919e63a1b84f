"""The figures of a study as records with flat names, units in them: for CSV, JSON and spreadsheets. Pure, torch-free.

A figure that is not known is None: an empty cell, or null.
"""

from __future__ import annotations

import statistics
from typing import Any

from hrdc_hpc.record.measurement import Measurement
from hrdc_hpc.scaling import large_batch
from hrdc_hpc.scaling.advice import Advice, Expected
from hrdc_hpc.scaling.caveats import one_machine
from hrdc_hpc.scaling.cost import Cost
from hrdc_hpc.scaling.rows import Row, Size
from hrdc_hpc.scaling.summary import CEILINGS, SHARES, Range, Summary, ceiling, paired, percentile, shares_of, start_up
from hrdc_hpc.scaling.view import StudyView

Record = dict[str, Any]

VARIANTS = {
    "no_sync": "without_communication",
    "resident": "resident",
    "resident_no_sync": "resident_without_communication",
}
"""What the windows of each variant are called."""
ROW = (
    "mode", "nodes", "ranks_per_node", "ranks", "global_batch_images", "batch_per_rank_images", "repeat", "run",
    "state", "why", "images_per_s", "steps", "step_p50_s", "step_p95_s",
    *(f"{part.replace(' ', '_')}_s" for part in SHARES),
    *(f"{name}_images_per_s" for name in VARIANTS.values()), *(f"{name}_saves_s" for name in VARIANTS.values()),
    "gradient_bytes", "gradient_all_reduce_s", "start_up_s", "checkpoint_bytes", "checkpoint_stall_s", "checkpoint_s",
    "peak_host_bytes", "peak_device_bytes", "energy_j_per_step", "images", "precision", "backend", "interface",
    "devices", "node_names", "machines", "versions", "notes", "caveat",
)  # fmt: skip
SIZE = (
    "mode", "nodes", "ranks_per_node", "ranks", "global_batch_images", "batch_per_rank_images", "repeats_asked",
    "repeats_finished", "images_per_s", "images_per_s_low", "images_per_s_high", "speed_up", "speed_up_low",
    "speed_up_high", "efficiency_percent", "efficiency_low_percent", "efficiency_high_percent", "step_p50_s",
    "step_p95_s", *(f"{part.replace(' ', '_')}_percent" for part in SHARES),
    *(f"{name}_images_per_s" for name in VARIANTS.values()), *(f"{name}_saves_s" for name in VARIANTS.values()),
    "start_up_s", "checkpoint_stall_s", "checkpoint_s", "energy_j_per_step",
    "peak_learning_rate", "epochs", "steps_per_epoch", "steps_of_the_run", "time_h", "time_low_h", "time_high_h",
    "gpu_hours", "gpu_hours_low", "gpu_hours_high", "jobs", "energy_kwh", "why", "caveat",
)  # fmt: skip
PREDICTION = (
    "mode", "nodes", "ranks_per_node", "ranks", "global_batch_images", "batch_per_rank_images", "extrapolated",
    "images_per_s", "images_per_s_low", "images_per_s_high", "measured_images_per_s", "off_percent", "speed_up",
    "efficiency_percent", "efficiency_low_percent", "efficiency_high_percent", "step_s", "parts_s",
    "peak_learning_rate", "epochs", "steps_per_epoch", "steps_of_the_run", "time_h", "time_low_h", "time_high_h",
    "gpu_hours", "gpu_hours_low", "gpu_hours_high", "jobs", "energy_kwh", "why",
)  # fmt: skip


def row_records(view: StudyView) -> list[Record]:
    """One for each row, by mode, size and repeat; columns of ROW."""
    ordered = [row for mode in view.modes for size in view.sizes(mode) for row in view.rows_of(size)]
    caveat = one_machine(view)
    return [_whole(ROW, {**_of_row(row), "caveat": caveat}) for row in ordered]


def size_records(view: StudyView, advice: Advice) -> list[Record]:
    """One for each size that was asked for; columns of SIZE."""
    caveat = one_machine(view)
    return [
        _whole(SIZE, {**_of_summary(view, one, advice.costs.get(one.size)), "caveat": caveat})
        for one in advice.measured
    ]


def prediction_records(view: StudyView, advice: Advice) -> list[Record]:
    """One for each predicted size; columns of PREDICTION."""
    return [_whole(PREDICTION, _of_expected(view, one)) for one in advice.expected]


def _whole(columns: tuple[str, ...], known: Record) -> Record:
    assert known.keys() <= set(columns), known.keys() - set(columns)
    return {column: known.get(column) for column in columns}


def _of_size(size: Size) -> Record:
    return {
        "mode": size.mode,
        "nodes": size.nodes,
        "ranks_per_node": size.ranks_per_node,
        "ranks": size.ranks,
        "global_batch_images": size.global_batch,
        "batch_per_rank_images": size.global_batch / size.ranks,
    }


def _of_row(row: Row) -> Record:
    record = {**_of_size(row.size), "repeat": row.repeat, "run": row.run, "state": row.state, "why": row.why}
    if row.found is None or not row.step_s:
        return record
    marks = shares_of(row.found)
    marks[SHARES[-1]] = max(0.0, statistics.median(row.step_s) - sum(marks.values()))
    return {
        **record,
        "images_per_s": row.images_per_s,
        "steps": len(row.step_s),
        "step_p50_s": percentile(row.step_s, 50),
        "step_p95_s": percentile(row.step_s, 95),
        **{f"{part.replace(' ', '_')}_s": seconds for part, seconds in marks.items()},
        **{f"{VARIANTS[one]}_images_per_s": ceiling(row.found, one) for one in CEILINGS},
        **{f"{VARIANTS[one]}_saves_s": paired(row.found, one) for one in CEILINGS},
        **_around(row.found),
    }


def _around(found: Measurement) -> Record:
    """What is not a step: network, start-up, checkpoint, memory, place."""
    return {
        "gradient_bytes": found.gradient_bytes,
        "gradient_all_reduce_s": gradient_all_reduce_s(found),
        "start_up_s": start_up(found),
        "checkpoint_bytes": found.checkpoint_bytes,
        "checkpoint_stall_s": found.checkpoint_stall_s,
        "checkpoint_s": found.checkpoint_s,
        "peak_host_bytes": _largest(node.peak_host_bytes for node in found.nodes),
        "peak_device_bytes": _largest(node.peak_device_bytes for node in found.nodes),
        "energy_j_per_step": found.energy_j,
        "images": found.images,
        "precision": found.precision,
        "backend": found.backend,
        "interface": found.interface,
        "devices": "; ".join(sorted({node.device for node in found.nodes})),
        "node_names": " ".join(node.name for node in found.nodes),
        "machines": len({node.machine for node in found.nodes}),
        "versions": "; ".join(f"{name} {version}" for name, version in found.versions.items()),
        "notes": " | ".join(found.notes),
    }


def gradient_all_reduce_s(found: Measurement) -> float | None:
    """Median time of an all-reduce of all gradients by itself; None if that size was not timed."""
    whole = [one for one in found.all_reduces if one.bytes == found.gradient_bytes and one.seconds]
    return statistics.median(whole[0].seconds) if whole else None


def _largest(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _range(name: str, value: Range | None, unit: str = "", factor: float = 1) -> Record:
    if value is None:
        return {}
    parts = (("", value.median), ("_low", value.low), ("_high", value.high))
    return {f"{name}{part}{unit}": factor * figure for part, figure in parts}


def _of_summary(view: StudyView, one: Summary, price: Cost | str | None) -> Record:
    shares, ceilings, costs = one.shares or {}, one.ceilings or {}, one.costs_s or {}
    troubles = [*one.troubles, *([price] if isinstance(price, str) else [])]
    return {
        **_of_size(one.size),
        "repeats_asked": one.asked,
        "repeats_finished": one.finished,
        **_range("images_per_s", one.rate),
        **_range("speed_up", one.speed_up),
        **_range("efficiency", one.efficiency, "_percent", 100),
        "step_p50_s": one.p50_s,
        "step_p95_s": one.p95_s,
        **{f"{part.replace(' ', '_')}_percent": 100 * share for part, share in shares.items()},
        **{f"{VARIANTS[name]}_images_per_s": rate for name, rate in ceilings.items()},
        **{f"{VARIANTS[name]}_saves_s": seconds for name, seconds in costs.items()},
        "start_up_s": one.start_up_s,
        "checkpoint_stall_s": one.checkpoint_stall_s,
        "checkpoint_s": one.checkpoint_s,
        "energy_j_per_step": one.energy_j,
        **_of_cost(view, one.size, price),
        "why": "; ".join(troubles),
    }


def _of_cost(view: StudyView, size: Size, price: Cost | str | None) -> Record:
    run = {
        "peak_learning_rate": large_batch.rate_for(view.config.optim, size.global_batch),
        "epochs": view.config.optim.epochs,
    }
    if not isinstance(price, Cost):
        return run
    return {
        **run,
        "steps_per_epoch": price.steps_per_epoch,
        "steps_of_the_run": price.steps,
        **_range("time", price.hours, "_h"),
        **_range("gpu_hours", price.gpu_hours),
        "jobs": price.jobs,
        "energy_kwh": price.energy_kwh,
    }


def _of_expected(view: StudyView, one: Expected) -> Record:
    guess = one.predicted
    return {
        **_of_size(one.size),
        "extrapolated": guess.extrapolated,
        **_range("images_per_s", Range(median=guess.images_per_s, low=guess.low, high=guess.high)),
        "measured_images_per_s": one.measured,
        "off_percent": None if one.measured is None else 100 * (guess.images_per_s / one.measured - 1),
        "speed_up": one.speed_up.median,
        **_range("efficiency", one.efficiency, "_percent", 100),
        "step_s": guess.step_s,
        "parts_s": "; ".join(f"{part} {seconds:.6g}" for part, seconds in guess.parts.items()),
        **_of_cost(view, one.size, one.cost),
        "why": one.cost if isinstance(one.cost, str) else "",
    }
