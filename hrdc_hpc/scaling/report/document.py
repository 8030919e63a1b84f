"""The report of a study from first to last line, as blocks that each form writes down in its own way. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from hrdc_hpc.scaling import words
from hrdc_hpc.scaling.advice import Advice
from hrdc_hpc.scaling.caveats import caveats
from hrdc_hpc.scaling.report import tables
from hrdc_hpc.scaling.report.blocks import Block, Bullets, Command, Grid, Heading, Picture, Text, without_empty
from hrdc_hpc.scaling.view import StudyView

_NO_FIGURE = frozenset({"", "-"})
_HOW_ON_PAPER = (
    "Images/s: the images of a step over its predicted time; the brackets hold what the assumptions leave open.",
    "Efficiency: images/s per {worker} against the smallest size. Its brackets are those of the ratio: what is not"
    " known of the device is not known of both sizes alike, and cancels.",
    "Time to finish: epochs x floor(training images / batch) steps, and nothing else. No figure here says how many"
    " epochs a batch needs.",
)
_HOW_PREDICTED = (
    "Predicted efficiency: against the measured base. Its brackets are those of the ratio, in which what is not known"
    " of both sizes cancels, with what the repeats of the base leave open."
)
_HOW = (
    "Images/s: over all timed steps of the windows as in training; the first steps of each window are left out.",
    "Speed-up: images/s against the smallest size with figures. Efficiency: speed-up over the growth in ranks; in weak"
    " and in strong scaling alike.",
    "Step p50, p95: the step time that half, and 95 %, of the steps of all repeats do not exceed; rank 0.",
    "Time to finish: epochs x floor(training images / batch) steps, the saves in between, a start-up for each job and"
    " the last checkpoint. Jobs stop at the time limit, save, and go on in the next. Evaluation and waiting in the"
    " queue are not in it, and no figure here says how many epochs a batch needs.",
)


def document(view: StudyView, advices: Sequence[Advice], pictures: Sequence[Picture] = ()) -> list[Block]:
    """Write the report; `pictures` are those that were drawn."""
    parts: list[Block] = [Heading(1, title(view))]
    if warnings := caveats(view):
        parts.append(Bullets(warnings, warns=True))
    parts += _about(view)
    for advice in advices:
        parts += [Heading(2, words.MODES[advice.mode].format(worker=words.worker(view))), Bullets(advice.sentences)]
    parts += pictures
    if advices:
        parts.append(Heading(2, "Sizes"))
    for advice in advices:
        parts += _known([tables.sizes(view, advice), tables.predictions(view, advice)])
    if any(row.images_per_s for row in view.rows):
        parts.append(Heading(2, "Where the time goes"))
        parts += _known(tables.shares(view, advice) for advice in advices)
        empty = _NO_FIGURE if words.worker(view) == "GPU" else _NO_FIGURE | {tables.NOT_MEASURED}
        parts += _known((tables.around(view, advice) for advice in advices), empty)
    parts += _model(view)
    if view.rows:
        parts += [Heading(2, "Runs, nodes, versions")]
        parts += _known([tables.runs(view), tables.nodes(view), tables.software(view)])
    return [*parts, Heading(2, "How the figures are made"), Bullets(_how(view))]


def title(view: StudyView) -> str:
    """Of the report."""
    return f"Scaling of {view.name}, on paper" if view.on_paper else f"Scaling study {view.name}"


def _known(grids: Iterable[Grid], empty: frozenset[str] = _NO_FIGURE) -> list[Grid]:
    """The tables that have rows, without the columns that nothing is known of."""
    return [without_empty(grid, empty) for grid in grids if grid.rows]


def _how(view: StudyView) -> list[str]:
    if view.on_paper:
        return [line.format(worker=words.worker(view)) for line in _HOW_ON_PAPER]
    return [*_HOW, *([_HOW_PREDICTED] if view.predictions else [])]


def _about(view: StudyView) -> Iterator[Block]:
    config = view.config
    images = "an unknown number of" if view.train_images is None else f"{view.train_images:,}"
    yield Text(
        f"{config.model.backbone.name} with {config.method.name} on {config.data.dataset.name}: {images} training"
        f" images, {config.optim.epochs} epochs, a global batch of {config.optim.global_batch:,} in the config. Wanted:"
        f" {100 * view.wanted:g} % efficiency.{f' Written {view.date}.' if view.date else ''}"
    )
    if view.command:
        yield Command(view.command)


def _model(view: StudyView) -> Iterator[Block]:
    if view.fit is None:
        return
    if view.on_paper:
        yield from (Heading(2, "What the predictions rest on"), Bullets(view.fit.assumptions))
        return
    yield Heading(2, "The fitted model")
    errors = sorted(abs(one.error) for one in view.fit.residuals)
    fits = (
        f" It misses the {words.counted(len(errors), 'measured run')} by {100 * statistics.median(errors):.1f} %"
        f" (median) and {100 * errors[-1]:.1f} % at worst."
        if errors
        else ""
    )
    yield Text(f"{view.fit.model.rstrip('.')}.{fits}")
    if view.fit.assumptions:
        yield Bullets(view.fit.assumptions)
    yield from _known([tables.parameters(view), tables.residuals(view)])
