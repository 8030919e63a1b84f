"""The curves of a time-to-accuracy study as a picture: over epochs, and over device-hours. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hrdc_hpc.scaling import accuracy_tables as tables
from hrdc_hpc.scaling.curves import Point, Study, Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Told apart by the colour-blind (Okabe and Ito); markers tell the same in grey."""
_MARKERS = "osD^vP*"
_MANY = 60
"""Points from which on markers hide the curve."""


def draw(study: Study, target: Path) -> None:
    """Write the picture; a run must have been evaluated."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    epochs, hours = figure.subplots(1, 2, sharey=True)
    short, seconds = tables.unit(study)
    unit = {"h": "hours", "min": "minutes"}[short]
    _curves(epochs, study, lambda point: point.epoch)
    _curves(hours, study, lambda point: point.training_device_s / seconds)
    epochs.set_xlabel("epoch")
    epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    hours.set_xlabel(f"{tables.device(study)}-{unit} of training (starts and evaluations left out)")
    epochs.set_ylabel(f"{study.metric} accuracy on the {tables.images(study)} images, %")
    _explain(epochs, study)
    figure.legend(*epochs.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(target, dpi=120)


def _curves(axes: Axes, study: Study, along: Callable[[Point], float]) -> None:
    for number, batch in enumerate(study.batches):
        runs = [run for run in study.of(batch) if run.points]
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        several = len(runs) > 1
        for run in runs:
            _line(axes, _xy(study, run.points, along), colour, "" if several else marker, thin=several)
        if runs:
            label = f"batch {batch}" + (f" (median of {len(runs)})" if several else "")
            middle = _median(study, runs, along) if several else _xy(study, runs[0].points, along)
            _line(axes, middle, colour, marker, label=label)
        _marks(axes, study, runs, along, colour)
    if study.value is not None:
        axes.axhline(100 * study.value, color="0.35", linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            tables.what(study), (0.01, 100 * study.value), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", color="0.25", fontsize=9,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.grid(visible=True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _xy(study: Study, points: Sequence[Point], along: Callable[[Point], float]) -> list[tuple[float, float]]:
    return [(along(p), 100 * share) for p in points if (share := p.accuracy[study.metric]) is not None]


def _median(study: Study, runs: Sequence[Trained], along: Callable[[Point], float]) -> list[tuple[float, float]]:
    """Over the runs, of the evaluations that all of them have."""
    by_epoch = [{point.epoch: point for point in run.points} for run in runs]
    shared = [epoch for epoch in by_epoch[0] if all(epoch in points for points in by_epoch)]
    together = [[xy for points in by_epoch for xy in _xy(study, [points[epoch]], along)] for epoch in shared]
    return [(statistics.median(x for x, _ in some), statistics.median(y for _, y in some)) for some in together if some]


def _line(
    axes: Axes, xy: Sequence[tuple[float, float]], colour: str, marker: str, *, label: str = "", thin: bool = False
) -> None:
    axes.plot(
        [x for x, _ in xy], [y for _, y in xy], color=colour, marker=marker if len(xy) <= _MANY else "", markersize=4,
        linewidth=0.8 if thin else 1.8, alpha=0.5 if thin else 1.0, label=label or "_",
    )  # fmt: skip


def _marks(axes: Axes, study: Study, runs: Sequence[Trained], along: Callable[[Point], float], colour: str) -> None:
    """A ring where a run reached the value, a cross where one without a result stands."""
    reached = [xy for run in runs if (point := study.reached(run)) for xy in _xy(study, [point], along)]
    short = [xy for run in runs if not run.finished for xy in _xy(study, run.points[-1:], along)]
    axes.scatter(*_columns(reached), s=90, facecolors="none", edgecolors=colour, linewidths=2, zorder=3)
    axes.scatter(*_columns(short), s=70, marker="x", color=colour, linewidths=2, zorder=3)


def _explain(axes: Axes, study: Study) -> None:
    """Put into the legend what ring, cross and thin lines are, where there are any."""
    if any(study.reached(run) for run in study.runs):
        label = f"first at or above {tables.what(study)}"
        axes.scatter([], [], s=90, facecolors="none", edgecolors="0.4", linewidths=2, label=label)
    if any(run.points and not run.finished for run in study.runs):
        axes.scatter([], [], s=70, marker="x", color="0.4", linewidths=2, label="not finished")
    if any(len(study.of(batch)) > 1 for batch in study.batches):
        axes.plot([], [], color="0.4", linewidth=0.8, alpha=0.5, label="each seed")


def _columns(xy: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in xy], [y for _, y in xy]
