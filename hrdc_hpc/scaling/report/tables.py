"""The tables of the report that people read. Pure, torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hrdc_hpc.record.figures import number
from hrdc_hpc.record.measurement import Measurement, Node
from hrdc_hpc.scaling import large_batch, words
from hrdc_hpc.scaling.advice import Advice, Expected
from hrdc_hpc.scaling.cost import Cost, time_limit_min
from hrdc_hpc.scaling.report.blocks import Grid
from hrdc_hpc.scaling.report.columns import gradient_all_reduce_s
from hrdc_hpc.scaling.rows import Row, Size
from hrdc_hpc.scaling.summary import SHARES, Range, Summary, percentile, start_up, state_of
from hrdc_hpc.scaling.view import StudyView

_NONE = "-"
NOT_MEASURED = "not measured"


def sizes(view: StudyView, advice: Advice) -> Grid:
    """What was measured, and what the configured epochs take."""
    rows = [_size(view, one, advice.costs.get(one.size)) for one in advice.measured]
    return Grid(
        title=f"Measured, {advice.mode} scaling",
        columns=(
            *words.size_columns(view), "batch", "images/s", "speed-up", "efficiency", "step p50", "step p95",
            f"{view.config.optim.epochs} epochs", f"{words.worker(view)}-hours", "jobs", "peak rate", "repeats", "note",
        ),
        rows=rows,
        words=frozenset({len(words.size_columns(view)) + 11}),
        failed=frozenset(i for i, one in enumerate(advice.measured) if not one.finished),
        caption=(
            "Medians over the repeats, their range in brackets. Batch: images per step over all ranks; peak rate: the"
            f" learning rate by the linear rule.{_jobs_caption(view)}"
        ),
    )  # fmt: skip


def _jobs_caption(view: StudyView) -> str:
    limit = time_limit_min(view)
    return f" Jobs: of the time limit of {words.time_text(60 * limit)}." if limit else ""


def _size(view: StudyView, one: Summary, price: Cost | str | None) -> list[str]:
    name = words.size_cells(view, one.size)
    repeats = f"{one.finished} of {one.asked}"
    if one.rate is None or one.speed_up is None or one.efficiency is None or one.p50_s is None or one.p95_s is None:
        return [*name, f"{one.size.global_batch:,}", *[_NONE] * 9, repeats, "; ".join(one.troubles) or "no figures"]
    notes = [*one.troubles, *([price] if isinstance(price, str) else [])]
    return [
        *name,
        f"{one.size.global_batch:,}",
        words.range_text(one.rate),
        words.range_text(one.speed_up),
        words.percent_text(one.efficiency),
        words.time_text(one.p50_s),
        words.time_text(one.p95_s),
        *_cost(price),
        f"{large_batch.rate_for(view.config.optim, one.size.global_batch):.4g}",
        repeats,
        "; ".join(notes),
    ]


def brief(view: StudyView, advice: Advice) -> Grid:
    """What was measured, for 120 columns of a console."""
    done = [one for one in advice.measured if one.efficiency]
    return Grid(
        title=f"Measured, {advice.mode} scaling",
        columns=(
            *words.size_columns(view), "batch", "images/s", "efficiency", "step p50", "step p95",
            f"{view.config.optim.epochs} epochs", f"{words.worker(view)}-hours", "repeats",
        ),
        rows=[_brief(view, one, advice.costs.get(one.size)) for one in advice.measured],
        failed=frozenset(i for i, one in enumerate(advice.measured) if not one.finished),
        caption="Medians over the repeats, their range in brackets." if done else "",
    )  # fmt: skip


def _brief(view: StudyView, one: Summary, price: Cost | str | None) -> list[str]:
    name = [*words.size_cells(view, one.size), f"{one.size.global_batch:,}"]
    repeats = f"{one.finished} of {one.asked}"
    if one.rate is None or one.efficiency is None or one.p50_s is None or one.p95_s is None:
        return [*name, *[_NONE] * 6, repeats]
    steps = [words.time_text(one.p50_s), words.time_text(one.p95_s)]
    return [*name, number(one.rate.median), words.percent_text(one.efficiency), *steps, *_cost(price)[:2], repeats]


def brief_predictions(view: StudyView, advice: Advice) -> Grid:
    """What the model makes of sizes, for 120 columns of a console."""
    return Grid(
        title=f"Predicted, {advice.mode} scaling",
        columns=(
            *words.size_columns(view), "batch", "images/s", "efficiency", "off by",
            f"{view.config.optim.epochs} epochs", f"{words.worker(view)}-hours",
        ),
        rows=[
            [
                *words.size_cells(view, one.size),
                f"{one.size.global_batch:,}",
                *_guess(one),
                _off(one),
                *_cost(one.cost)[:2],
            ]
            for one in advice.expected
        ],
        caption=_of_ranges(advice),
    )  # fmt: skip


def _of_ranges(advice: Advice) -> str:
    beside = any(one.measured is not None for one in advice.expected)
    said = "In brackets where the truth is about nine times in ten; efficiency has a range of its own"
    return f"{said}. Off by: the model against the measurement." if beside else f"{said}."


def _cost(price: Cost | str | None) -> list[str]:
    if not isinstance(price, Cost):
        return [_NONE] * 3
    jobs = _NONE if price.jobs is None else str(price.jobs)
    return [words.time_text(3600 * price.hours.median), number(price.gpu_hours.median), jobs]


def predictions(view: StudyView, advice: Advice) -> Grid:
    """What the model makes of sizes, beside what was measured."""
    return Grid(
        title=f"Predicted, {advice.mode} scaling",
        columns=(
            *words.size_columns(view), "batch", "images/s", "efficiency", "measured images/s", "off by", "step",
            f"{view.config.optim.epochs} epochs", f"{words.worker(view)}-hours", "jobs", "peak rate", "note",
        ),
        rows=[_prediction(view, one) for one in advice.expected],
        words=frozenset({len(words.size_columns(view)) + 10}),
        caption=_of_ranges(advice),
    )  # fmt: skip


def _prediction(view: StudyView, one: Expected) -> list[str]:
    guess = one.predicted
    limit = view.limits.max_nodes if view.limits else None
    notes = [
        *(["extrapolated far"] if guess.extrapolated else []),
        *([f"more than the {limit} nodes of a job"] if limit and one.size.nodes > limit else []),
        *([one.cost] if isinstance(one.cost, str) else []),
    ]
    return [
        *words.size_cells(view, one.size),
        f"{one.size.global_batch:,}",
        *_guess(one),
        number(one.measured),
        _off(one),
        words.time_text(guess.step_s),
        *_cost(one.cost),
        f"{large_batch.rate_for(view.config.optim, one.size.global_batch):.4g}",
        "; ".join(notes),
    ]


def _guess(one: Expected) -> list[str]:
    guess = one.predicted
    rate = Range(median=guess.images_per_s, low=guess.low, high=guess.high)
    return [words.range_text(rate), words.percent_text(one.efficiency)]


def _off(one: Expected) -> str:
    return _NONE if one.measured is None else f"{100 * (one.predicted.images_per_s / one.measured - 1):+.1f} %"


def shares(view: StudyView, advice: Advice) -> Grid:
    """Where the time of a step goes, and what it would lose without communication or reading."""
    done = [one for one in advice.measured if one.shares]
    return Grid(
        title=f"Where the time of a step goes, {advice.mode} scaling",
        columns=(*words.size_columns(view), *SHARES, "without communication", "resident images", "both"),
        rows=[
            [
                *words.size_cells(view, one.size),
                *(f"{100 * share:.1f} %" for share in (one.shares or {}).values()),
                *(_ceiling(one, variant) for variant in ("no_sync", "resident", "resident_no_sync")),
            ]
            for one in done
        ],
        caption=(
            "Shares: marks inside the step, rank 0. The last three: images/s of windows that took turns with those as"
            " in training, and in brackets what a step as in training loses against them, by neighbouring windows."
        ),
    )


def _ceiling(one: Summary, variant: str) -> str:
    rate, seconds = (one.ceilings or {}).get(variant), (one.costs_s or {}).get(variant)
    if rate is None or seconds is None:
        return _NONE
    return f"{number(rate)} ({_signed_time(seconds)})"


def _signed_time(seconds: float) -> str:
    return f"{'-' if seconds < 0 else ''}{words.time_text(abs(seconds))}"


def around(view: StudyView, advice: Advice) -> Grid:
    """Start-up, checkpoints, memory and energy."""
    done = [(one, _found(view, one.size)) for one in advice.measured if one.rate]
    return Grid(
        title=f"Start-up, checkpoint, memory, energy, {advice.mode} scaling",
        columns=(
            *words.size_columns(view), "start-up", "checkpoint", "training stands still", "until durable",
            "memory of a node", "memory of a GPU", "energy of a step", "of the run", "gradients", "all-reduce of them",
            "rate",
        ),
        rows=[_around(view, one, found, advice.costs.get(one.size)) for one, found in done],
        caption=(
            "All-reduce: of all gradients, by itself, the slowest rank, median; rate: their bytes over that time."
            " Energy: of all GPUs (NVML)."
        ),
    )  # fmt: skip


def _found(view: StudyView, size: Size) -> list[Measurement]:
    return [row.found for row in view.rows_of(size) if row.found is not None and row.step_s]


def _around(view: StudyView, one: Summary, found: Sequence[Measurement], price: Cost | str | None) -> list[str]:
    host = [node.peak_host_bytes for each in found for node in each.nodes if node.peak_host_bytes is not None]
    device = [node.peak_device_bytes for each in found for node in each.nodes if node.peak_device_bytes is not None]
    reduces = [seconds for each in found if (seconds := gradient_all_reduce_s(each)) is not None]
    reduce_s = statistics.median(reduces) if reduces else None
    kwh = price.energy_kwh if isinstance(price, Cost) else None
    gradients = max(each.gradient_bytes for each in found)
    return [
        *words.size_cells(view, one.size),
        words.time_text(one.start_up_s or 0.0),
        words.bytes_text(max(each.checkpoint_bytes for each in found)),
        words.time_text(one.checkpoint_stall_s or 0.0),
        words.time_text(one.checkpoint_s or 0.0),
        words.bytes_text(max(host)) if host else NOT_MEASURED,
        words.bytes_text(max(device)) if device else NOT_MEASURED,
        NOT_MEASURED if one.energy_j is None else f"{number(one.energy_j)} J",
        _NONE if kwh is None else f"{number(kwh)} kWh",
        words.bytes_text(gradients),
        _NONE if reduce_s is None else words.time_text(reduce_s),
        _NONE if not reduce_s else f"{words.bytes_text(round(gradients / reduce_s))}/s",
    ]


def residuals(view: StudyView) -> Grid:
    """Each run beside what the fitted model makes of it."""
    assert view.fit is not None
    return Grid(
        title="Residuals",
        columns=("size", "mode", "run", "measured step", "fitted step", "off by"),
        rows=[
            [
                words.named(view, one.size), one.size.mode, one.run, words.time_text(one.measured_s),
                words.time_text(one.fitted_s), f"{100 * one.error:+.1f} %",
            ]
            for one in view.fit.residuals
        ],
        words=frozenset({0, 1, 2}),
    )  # fmt: skip


def parameters(view: StudyView) -> Grid:
    """The fitted figures."""
    assert view.fit is not None
    return Grid(
        title="Parameters",
        columns=("parameter", "value", "standard error", "unit", "how"),
        rows=[
            [one.name, f"{one.value:.4g}", _NONE if one.error is None else f"{one.error:.2g}", one.unit,
             f"held: {one.held}" if one.held else "fitted"]
            for one in view.fit.parameters
        ],
        words=frozenset({0, 3, 4}),
    )  # fmt: skip


def runs(view: StudyView) -> Grid:
    """Every row, with or without figures."""
    ordered = [row for mode in view.modes for size in view.sizes(mode) for row in view.rows_of(size)]
    return Grid(
        title="Every run",
        columns=("mode", "size", "repeat", "run", "state", "images/s", "step p50", "step p95", "start-up", "nodes"),
        rows=[_run(view, row) for row in ordered],
        words=frozenset({0, 1, 3, 4, 9}),
        failed=frozenset(i for i, row in enumerate(ordered) if row.images_per_s is None),
    )


def _run(view: StudyView, row: Row) -> list[str]:
    size = [row.size.mode, words.named(view, row.size), str(row.repeat), row.run]
    if row.found is None or not row.step_s:
        return [*size, state_of(row), *[_NONE] * 5]
    return [
        *size,
        row.state,
        number(row.images_per_s),
        words.time_text(percentile(row.step_s, 50)),
        words.time_text(percentile(row.step_s, 95)),
        words.time_text(start_up(row.found)),
        words.hosts([node.name for node in row.found.nodes]),
    ]


def nodes(view: StudyView) -> Grid:
    """Every node that took part, those alike together."""
    seen = {node.name: node for row in view.rows if row.found is not None for node in row.found.nodes}
    kinds: dict[tuple[str, int], list[Node]] = {}
    for node in seen.values():
        kinds.setdefault((node.device, node.cores), []).append(node)
    return Grid(
        title="Nodes",
        columns=("nodes", "how many", "machines", "cores for the ranks of a node", "device"),
        rows=[
            [words.hosts([node.name for node in some]), str(len(some)), str(len({node.machine for node in some})),
             str(cores), device]
            for (device, cores), some in kinds.items()
        ],
        words=frozenset({0, 4}),
        caption="Machines: fewer than nodes where nodes share one (by the kernel's boot id).",
    )  # fmt: skip


def software(view: StudyView) -> Grid:
    """Network, precision and versions, each distinct combination once."""
    found = [row.found for row in view.rows if row.found is not None]
    kinds = dict.fromkeys(
        (
            one.backend, one.interface or "not known", one.precision, one.images,
            ", ".join(f"{name} {version}" for name, version in one.versions.items()) or "not known",
        )
        for one in found
    )  # fmt: skip
    return Grid(
        title="Network and versions",
        columns=("backend", "interface", "precision", "images", "versions"),
        rows=[list(kind) for kind in kinds],
        words=frozenset(range(5)),
    )
