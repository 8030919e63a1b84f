"""What a reader must know before believing the figures of a study. Pure, torch-free.

The first is the heaviest: nodes that share a machine show the method, never scaling.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence

from hrdc_hpc.cluster.overview import GOING
from hrdc_hpc.record.measurement import Measurement
from hrdc_hpc.scaling import words
from hrdc_hpc.scaling.rows import Mode, Row, Size
from hrdc_hpc.scaling.summary import Summary, base_of, summaries
from hrdc_hpc.scaling.view import StudyView

_COMING = ("prepared", *GOING)
"""States of rows that may still bring figures."""
_SPREAD = 0.1
"""By which repeats, or most steps, may differ before the reader is told."""
_TORN = 3.0
"""Times the median step that 5 % of the base's steps may exceed."""
_TOO_GOOD = 1.2
"""An efficiency above it comes from a base that was disturbed."""
_POOR = 0.1
"""Median of the model's misses from which on it is not to be relied on."""
_FIGURE = re.compile(r"\d+(?:\.\d+)?")
_ALIKE: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("devices", lambda found: ", ".join(sorted({node.device for node in found.nodes}))),
    ("precision", lambda found: found.precision),
    ("backend", lambda found: found.backend if found.world_size > 1 else ""),
    ("network interface", lambda found: (found.interface or "not known") if len(found.nodes) > 1 else ""),
    ("versions", lambda found: ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))),
)
"""What must be the same in all rows for them to be compared; '': it plays no part in the row."""


def caveats(view: StudyView) -> list[str]:
    """Return them, a sentence or two each, the heaviest first; no row with figures: a sentence that says so."""
    found = {row.run: row.found for row in view.rows if row.found is not None}
    measured = [one for mode in view.modes for one in summaries(view, mode)]
    return list(
        dict.fromkeys(
            [
                *filter(None, [one_machine(view)]),
                *filter(None, [disturbed(view, mode) for mode in view.modes]),
                *_misfit(view),
                *_nothing(view, bool(found)),
                *_processors(view, list(found.values())),
                *_unfinished(view),
                *_bases(view),
                *_shapes(view),
                *_unlike(list(found.values())),
                *_repeats(view, measured),
                *_spread(view, measured),
                *_resident(list(found.values())),
                *view.warnings,
                *_notes([note for one in found.values() for note in one.notes]),
            ]
        )
    )


def one_machine(view: StudyView) -> str:
    """Return the heaviest caveat, which every form must begin with: nodes of a run are one machine; '' if none are."""
    found = [row.found for row in view.rows if row.found is not None]
    shared = max((_together([node.machine for node in one.nodes]) for one in found), default=0)
    if shared < 2:
        return ""
    return f"{shared} nodes of this study are one machine: figures show the method, not scaling."


def _together(machines: Sequence[str]) -> int:
    return max((machines.count(machine) for machine in machines if machine), default=0)


def disturbed(view: StudyView, mode: Mode) -> str:
    """Return why a mode's base cannot be believed, which every speed-up and efficiency is against; '' if it can."""
    base = base_of(view, mode)
    if base is None:
        return ""
    measured, name = summaries(view, mode), words.named(view, base[0])
    own = next(one for one in measured if one.size == base[0])
    if _is_torn(own):
        return (
            f"{mode}: the base itself, {name}, was disturbed: half of its steps take up to"
            f" {words.time_text(own.p50_s or 0)}, but 5 % over {words.time_text(own.p95_s or 0)}. Measure it again:"
            " no speed-up or efficiency here can be relied on."
        )
    odd = {one.size: one.efficiency.median for one in measured if one.efficiency}
    odd = {size: kept for size, kept in odd.items() if kept > _TOO_GOOD}
    if not odd:
        return ""
    return (
        f"{mode}: an efficiency of {100 * max(odd.values()):,.0f} % ({words.listed(view, list(odd))}) cannot be: the"
        f" base itself, {name}, was disturbed. Measure it again."
    )


def _is_torn(one: Summary) -> bool:
    return bool(one.p50_s and one.p95_s and one.p95_s > _TORN * one.p50_s)


def _misfit(view: StudyView) -> Iterator[str]:
    missed = [abs(one.error) for one in view.fit.residuals] if view.fit else []
    if missed and statistics.median(missed) > _POOR:
        yield (
            f"The model misses the measured runs by {100 * statistics.median(missed):.0f} % (median): do not rely on"
            " what it predicts."
        )


def _nothing(view: StudyView, some: bool) -> Iterator[str]:
    if some:
        return
    if view.rows:
        states = words.joined(list(dict.fromkeys(row.state for row in view.rows)))
        yield f"No size has figures yet ({words.counted(len(view.rows), 'row')}: {states}): there is nothing to advise."
    else:
        yield "Nothing was run: all figures are predictions on paper."


def _processors(view: StudyView, found: Sequence[Measurement]) -> Iterator[str]:
    if not found or words.worker(view) == "GPU":
        return
    yield (
        "These are figures of a CPU: ranks of a node share its cores and its memory, so they say nothing about GPUs."
    )


def _unfinished(view: StudyView) -> Iterator[str]:
    missing = [row for row in view.rows if row.images_per_s is None]
    coming = [row for row in missing if row.state in _COMING]
    lost = [row for row in missing if row not in coming]
    if lost and len(lost) < len(view.rows):
        sizes = words.listed(view, [row.size for row in lost])
        yield f"{words.counted(len(lost), 'row')} of {len(view.rows)} ended without figures ({sizes}); see the rows."
    if coming and len(coming) < len(view.rows):
        yield f"{words.counted(len(coming), 'row')} of {len(view.rows)} still to come: this is an interim report."


def _bases(view: StudyView) -> Iterator[str]:
    for mode in view.modes:
        base, sizes = base_of(view, mode), view.sizes(mode)
        if base and base[0] != sizes[0]:
            yield (
                f"{mode}: {words.named(view, sizes[0])} has no figures, so speed-up and efficiency are against"
                f" {words.named(view, base[0])}."
            )
        if base and base[0].nodes > 1:
            yield f"{mode}: one node was not measured; what the first network hop costs is not in the efficiency."


def _shapes(view: StudyView) -> Iterator[str]:
    """Repeats of a size that ran on other nodes, and rows that ran in another shape than they were asked for."""
    moved: list[Size] = []
    for mode in view.modes:
        for size in view.sizes(mode):
            found = [row.found for row in view.rows_of(size) if row.found is not None]
            if len({frozenset(node.name for node in one.nodes) for one in found}) > 1:
                moved.append(size)
    if moved:
        yield (
            f"Repeats ran on different nodes ({words.listed(view, moved)}): their range holds the difference between"
            " nodes as well."
        )
    for row in view.rows:
        if row.found is not None and _is_other(row, row.found):
            yield (
                f"{row.run} ran as {len(row.found.nodes)} x {row.found.ranks_per_node} ranks with a batch of"
                f" {row.found.global_batch}, not as {row.size.nodes} x {row.size.ranks_per_node} with"
                f" {row.size.global_batch}: do not trust its row."
            )


def _is_other(row: Row, found: Measurement) -> bool:
    asked = (row.size.nodes, row.size.ranks_per_node, row.size.global_batch)
    return asked != (len(found.nodes), found.ranks_per_node, found.global_batch)


def _unlike(found: Sequence[Measurement]) -> Iterator[str]:
    for what, of in _ALIKE:
        kinds = sorted({of(one) for one in found} - {""})
        if len(kinds) > 1:
            yield f"Not all rows have the same {what}: {'; '.join(kinds)}. Sizes are compared all the same."


def _repeats(view: StudyView, measured: Sequence[Summary]) -> Iterator[str]:
    once = [one.size for one in measured if one.finished == 1]
    if once:
        yield f"One repeat only ({words.listed(view, once)}): there is no telling how much a repeat would differ."


def _spread(view: StudyView, measured: Sequence[Summary]) -> Iterator[str]:
    differ = [one.size for one in measured if one.rate and one.rate.high - one.rate.low > _SPREAD * one.rate.median]
    torn = {base[0] for mode in view.modes if disturbed(view, mode) and (base := base_of(view, mode))}
    uneven = [one.size for one in measured if one.p50_s and one.p95_s and one.p95_s > (1 + _SPREAD) * one.p50_s]
    uneven = [size for size in uneven if size not in torn]
    if differ:
        yield f"Repeats differ by more than {100 * _SPREAD:g} % ({words.listed(view, differ)}): read the range."
    if uneven:
        yield (
            f"Step times are uneven ({words.listed(view, uneven)}): 5 % of the steps take over {100 * _SPREAD:g} %"
            " longer than the median; data, network or other jobs disturb them."
        )


def _resident(found: Sequence[Measurement]) -> Iterator[str]:
    kinds = {one.images for one in found}
    if kinds == {"resident"}:
        yield "Made-up images that lie on the device: reading and decoding are not in these figures."
    elif "resident" in kinds:
        yield "Some rows read images, some used made-up ones that lie on the device: these do not compare."


def _notes(notes: Sequence[str]) -> Iterator[str]:
    """What the runs say themselves; of notes that differ in a figure only, the one with the largest."""
    alike: dict[str, list[str]] = {}
    for note in notes:
        alike.setdefault(_FIGURE.sub("#", note), []).append(note)
    for same in alike.values():
        most = max(same, key=lambda note: [float(figure) for figure in _FIGURE.findall(note)])
        others = len(same) if len(set(same)) > 1 else 0
        said = f"{most[:1].upper()}{most[1:].rstrip('.')}"
        yield f"{said} (the most of {others} runs that say so)." if others else f"{said}."
