"""The plots of the report: efficiency, throughput, shares of a step. Torch-free; matplotlib is imported when drawing.

Colours are Okabe and Ito's, which the colour-blind can tell apart; modes differ by marker and dash as well. A plot says
by itself what a reader must know: failed sizes are marked, and nodes that are one machine are named above it.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hrdc_hpc.scaling import words
from hrdc_hpc.scaling.advice import Advice
from hrdc_hpc.scaling.report.blocks import Picture
from hrdc_hpc.scaling.rows import Mode, Size
from hrdc_hpc.scaling.summary import SHARES, Range
from hrdc_hpc.scaling.view import StudyView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 160
_WIDTH = 8.0
"""Inches."""
_STRIP = 0.12
"""Share of a plot's height that is kept for sizes without figures, if there are any."""
_NEAR = 0.85
"""A wanted efficiency from which on its label and that of the ideal need room from each other."""
_NUMBERED = 10
"""Bars of a panel that have room for figures."""


@dataclass(frozen=True)
class _Look:
    """Colours of a theme."""

    paper: str
    ink: str
    faint: str
    modes: dict[Mode, str]
    shares: Sequence[str]


_LIGHT = _Look(
    "#ffffff",
    "#1a1a1a",
    "#767676",
    {"weak": "#0072b2", "strong": "#d55e00"},
    ("#e69f00", "#0072b2", "#d55e00", "#009e73", "#b0b0b0"),
)
_DARK = _Look(
    "#16181c",
    "#e6e6e6",
    "#9a9a9a",
    {"weak": "#56b4e9", "strong": "#f0894a"},
    ("#e69f00", "#56b4e9", "#d55e00", "#009e73", "#8a8a8a"),
)
_MARKERS: dict[Mode, str] = {"weak": "o", "strong": "s"}
_DASHES: dict[Mode, Any] = {"weak": "-", "strong": (0, (5, 2))}


def pictures(view: StudyView, advices: Sequence[Advice]) -> list[Picture]:
    """Return the plots that there is something to draw for."""
    some = [one for one in advices if one.base is not None]
    if not some:
        return []
    wanted = f"{100 * view.wanted:g} %"
    drawn = [
        Picture(
            "efficiency",
            f"Efficiency: the share of the base's images/s per {words.worker(view)} that is kept."
            f" {_told_by(view)}; dotted: the ideal and the wanted {wanted}.",
        ),
        Picture(
            "throughput",
            "Images per second; both axes are logarithmic, so that the ideal, which loses nothing, is straight.",
        ),
    ]
    if any(one.shares for advice in some for one in advice.measured):
        drawn.append(Picture("shares", "Where the time of a step goes, as measured on rank 0."))
    return drawn


def _told_by(view: StudyView) -> str:
    """What lines and dots are."""
    if view.on_paper:
        return "Lines: predicted on paper, nothing was measured; bands: where the truth is about nine times in ten"
    dots = "Dots: median of the repeats with their range"
    return f"{dots}; lines with a band: the fitted model" if view.predictions else dots


def draw(view: StudyView, advices: Sequence[Advice], name: str, *, dark: bool = False, note: str = "") -> bytes:
    """Draw a plot as PNG; `note` stands above it. Raises ImportError where matplotlib is not installed."""
    look = _DARK if dark else _LIGHT
    target = io.BytesIO()
    with _style(look):
        figure_of(view, advices, name, look, note).savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def figure_of(
    view: StudyView, advices: Sequence[Advice], name: str, look: _Look = _LIGHT, note: str = ""
) -> Figure:  # fmt: skip
    """Make a plot's figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    painters: dict[str, Callable[[Figure, StudyView, Sequence[Advice], _Look, str], None]] = {
        "efficiency": _efficiency,
        "throughput": _throughput,
        "shares": _shares,
    }
    figure = Figure(figsize=(_WIDTH, 4.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    painters[name](figure, view, [one for one in advices if one.base is not None], look, note)
    return figure


@contextmanager
def _style(look: _Look) -> Iterator[None]:
    """The same plot whatever the user's own matplotlib settings are."""
    import matplotlib.style

    ours = {
        "figure.facecolor": look.paper, "axes.facecolor": look.paper, "savefig.facecolor": look.paper,
        "text.color": look.ink, "axes.labelcolor": look.ink, "axes.edgecolor": look.faint, "xtick.color": look.ink,
        "ytick.color": look.ink, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False,
        "grid.color": look.faint, "grid.alpha": 0.25, "legend.frameon": False, "lines.linewidth": 1.8,
    }  # fmt: skip
    with warnings.catch_warnings(), matplotlib.style.context(["default", ours]):
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
        yield


def _at(view: StudyView, size: Size) -> int:
    """Where a size stands on the x axis."""
    return size.nodes if words.by_nodes(view) else size.ranks


def _what(view: StudyView) -> str:
    return "nodes" if words.by_nodes(view) else f"{words.worker(view)}s"


def _axis(axes: Axes, view: StudyView, advices: Sequence[Advice]) -> None:
    """A log2 axis with plain numbers at the sizes, as many as there is room for."""
    some = [size for one in advices for size in _all_sizes(one)]
    places = sorted({_at(view, size) for size in some})
    octaves = max(1.0, math.log2(places[-1] / places[0]))
    margin = 0.08 * octaves
    axes.set_xscale("log", base=2)
    axes.set_xlim(places[0] * 2**-margin, places[-1] * 2**margin)
    shown: list[int] = []
    for place in (*(p for p in places if math.log2(p).is_integer()), *places):  # powers of two are sure of a place
        if all(abs(math.log2(place / other)) >= 0.045 * octaves for other in shown):
            shown.append(place)
    axes.set_xticks(sorted(shown), [f"{place:,}" for place in sorted(shown)])
    axes.xaxis.minorticks_off()
    per = {size.ranks_per_node for size in some}
    each = f" ({words.counted(per.pop(), words.worker(view))} each)" if words.by_nodes(view) else ""
    axes.set_xlabel(f"{_what(view)}{each}")
    axes.grid(visible=True)
    axes.set_axisbelow(True)


def _all_sizes(advice: Advice) -> list[Size]:
    return [*(one.size for one in advice.measured), *(one.size for one in advice.expected)]


def _efficiency(figure: Figure, view: StudyView, advices: Sequence[Advice], look: _Look, note: str) -> None:
    axes = figure.add_subplot()
    _axis(axes, view, advices)
    tops = [100.0]
    for advice in advices:
        dots = [
            (_at(view, one.size), one.efficiency.times(100)) for one in advice.measured if one.efficiency is not None
        ]
        curve = [(_at(view, one.size), one.efficiency.times(100)) for one in advice.expected]
        _series(axes, advice, dots, curve, look, _model(view))
        tops += [value.high for _, value in (*dots, *curve)]
    axes.set_ylim(0, min(150.0, 1.06 * max(tops)))
    axes.set_yticks(range(0, int(axes.get_ylim()[1]) + 1, 20))
    near = view.wanted > _NEAR
    wanted = f"wanted\n{100 * view.wanted:g} %"
    for height, label, at in ((100, "ideal", "bottom"), (100 * view.wanted, wanted, "top")):
        axes.axhline(height, color=look.ink, linestyle=":", linewidth=1.2)
        axes.annotate(label, (1.01, height), xycoords=("axes fraction", "data"), va=at if near else "center",
                      fontsize=10, annotation_clip=False)  # fmt: skip
    axes.set_ylabel("efficiency, % of ideal")
    _failed(axes, view, advices, look)
    _legend(figure, axes, len(advices), note)


def _throughput(figure: Figure, view: StudyView, advices: Sequence[Advice], look: _Look, note: str) -> None:
    axes = figure.add_subplot()
    _axis(axes, view, advices)
    for advice in advices:
        dots = [(_at(view, one.size), one.rate) for one in advice.measured if one.rate is not None]
        curve = [
            (_at(view, one.size), Range(median=guess.images_per_s, low=guess.low, high=guess.high))
            for one in advice.expected
            for guess in [one.predicted]
        ]
        _series(axes, advice, dots, curve, look, _model(view))
    axes.set_yscale("log")
    _ideal(axes, view, advices, look)
    _plain_rates(axes)
    axes.set_ylabel("images per second")
    _failed(axes, view, advices, look)
    _legend(figure, axes, len(advices), note)


def _ideal(axes: Axes, view: StudyView, advices: Sequence[Advice], look: _Look) -> None:
    """A line through each base; one for modes whose bases are within 2 %."""
    drawn: list[float] = []
    for advice in advices:
        rates = {one.size: one.rate.median for one in advice.measured if one.rate is not None}
        rates |= {one.size: one.predicted.images_per_s for one in advice.expected if one.size not in rates}
        assert advice.base is not None
        per_rank = rates[advice.base] / advice.base.ranks
        if any(abs(per_rank / other - 1) < 0.02 for other in drawn):
            continue
        drawn.append(per_rank)
        ends = sorted(_all_sizes(advice), key=lambda size: size.ranks)
        ends = [max(ends[0], advice.base, key=lambda size: size.ranks), ends[-1]]
        points = [(_at(view, size), per_rank * size.ranks) for size in ends]
        axes.plot(*zip(*points, strict=True), color=look.ink, linestyle=":", linewidth=1.2, label="ideal", zorder=1)


def _plain_rates(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, as plain numbers; at all digits where the range is narrow."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_ylim()
    digits = (1, 2, 5) if high / low > 12 else (1, 1.5, 2, 3, 4, 5, 7) if high / low > 3 else range(1, 10)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=digits, numticks=30))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _model(view: StudyView) -> str:
    return "on paper" if view.on_paper else "model"


def _series(axes: Axes, advice: Advice, dots: Sequence[Any], curve: Sequence[Any], look: _Look, model: str) -> None:
    """Measured dots with their range over the fitted curve with its band."""
    colour, mode = look.modes[advice.mode], advice.mode
    if curve:
        places = [place for place, _ in curve]
        axes.plot(places, [value.median for _, value in curve], color=colour, linestyle=_DASHES[mode],
                  marker="" if len(curve) > 1 else "_", label=f"{mode}, {model}", zorder=2)  # fmt: skip
        axes.fill_between(
            places, [value.low for _, value in curve], [value.high for _, value in curve], color=colour, alpha=0.18,
            linewidth=0,
        )  # fmt: skip
    if dots:
        middle = [value.median for _, value in dots]
        spread = [
            [value.median - value.low for _, value in dots],
            [value.high - value.median for _, value in dots],
        ]
        axes.errorbar(
            [place for place, _ in dots], middle, yerr=spread, color=colour, marker=_MARKERS[mode], markersize=6.5,
            markeredgecolor=look.paper, linestyle="" if curve else _DASHES[mode], elinewidth=1.6, capsize=4,
            label=f"{mode}, measured", zorder=3,
        )  # fmt: skip


def _failed(axes: Axes, view: StudyView, advices: Sequence[Advice], look: _Look) -> None:
    """Crosses for sizes without figures, in a strip that is made free at the top; a line a mode."""
    from matplotlib.patches import Rectangle

    missing = {one.mode: [each.size for each in one.measured if not each.finished] for one in advices}
    if not any(missing.values()):
        return
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    share = _STRIP / (1 - _STRIP)
    top = high * (high / low) ** share if axes.get_yscale() == "log" else high + share * (high - low)
    axes.set_yticks(ticks)  # none in the strip, or its crosses would seem to have a height
    axes.set_ylim(low, top)
    strip = Rectangle((0, 1 - _STRIP), 1, _STRIP, transform=axes.transAxes, color=look.faint, alpha=0.18, linewidth=0)
    axes.add_patch(strip)
    axes.annotate("no\nfigures", (1.01, 1 - _STRIP / 2), xycoords="axes fraction", va="center", fontsize=10)
    for i, (mode, sizes) in enumerate(missing.items()):
        if sizes:
            places, height = [_at(view, size) for size in sizes], 1 - _STRIP * (2 * i + 1) / (2 * len(missing))
            axes.plot(places, [height] * len(sizes), transform=axes.get_xaxis_transform(), marker="x",
                      markersize=8, markeredgewidth=2.4, color=look.modes[mode], linestyle="",
                      label=f"{mode}, no figures", clip_on=False, zorder=4)  # fmt: skip


def _legend(figure: Figure, axes: Axes, modes: int, note: str) -> None:
    """Above the plot, a row a mode, under the note."""
    handles, labels = axes.get_legend_handles_labels()
    kinds = ("measured", "model", "on paper", "no figures", "ideal")
    known = dict(zip(labels, handles, strict=True))
    ordered = [label for kind in kinds for label in known if label.endswith(kind)]
    columns = math.ceil(len(ordered) / modes)
    _place_legend(figure, {label: known[label] for label in ordered}, columns, note)


def _place_legend(figure: Figure, known: dict[str, Any], columns: int, note: str) -> None:
    figure.legend(
        known.values(), known.keys(), loc="outside upper left", ncols=columns, fontsize=10, alignment="left",
        title=note or None, title_fontproperties={"weight": "bold", "size": 10},
    )  # fmt: skip


def _shares(figure: Figure, view: StudyView, advices: Sequence[Advice], look: _Look, note: str) -> None:
    """A panel a mode, a bar a size."""
    some = [one for one in advices if one.measured]
    panels = figure.subplots(1, len(some), sharey=True, squeeze=False)[0]
    for axes, advice in zip(panels, some, strict=True):
        _bars(axes, view, advice, look)
        axes.set_xlabel(f"{_what(view)}, {advice.mode} scaling")
    panels[0].set_ylabel("share of a step, %")
    handles, labels = panels[0].get_legend_handles_labels()
    _place_legend(figure, dict(zip(labels, handles, strict=True)), 3, note)


def _bars(axes: Axes, view: StudyView, advice: Advice, look: _Look) -> None:
    places = range(len(advice.measured))
    foot = [0.0] * len(advice.measured)
    for part, colour in zip(SHARES, look.shares, strict=True):
        heights = [100 * one.shares[part] if one.shares else 0.0 for one in advice.measured]
        axes.bar(places, heights, bottom=foot, color=colour, width=0.8, label=part, edgecolor=look.paper, linewidth=0.6)
        for place, height, below in zip(places, heights, foot, strict=True):
            if height >= 7 and len(places) <= _NUMBERED:
                axes.annotate(f"{height:.0f}", (place, below + height / 2), ha="center", va="center", fontsize=9,
                              color=_ink_on(colour))  # fmt: skip
        foot = [below + height for below, height in zip(foot, heights, strict=True)]
    for place, one in zip(places, advice.measured, strict=True):
        if not one.finished:
            axes.annotate("no figures", (place, 50), rotation=90, ha="center", va="center", fontsize=9, color=look.ink)
    small = 11 if len(places) <= _NUMBERED else 8
    axes.set_xticks(places, [f"{_at(view, one.size):,}" for one in advice.measured], fontsize=small)
    axes.set_ylim(0, 100)


def _ink_on(colour: str) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "#ffffff"
