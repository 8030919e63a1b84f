"""The report of a study, in all its forms, and what is said on the console. Torch-free."""

from __future__ import annotations

import csv
import io
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hrdc_hpc.record.figures import show
from hrdc_hpc.record.files import temporary_beside, write_json_durably, write_text_durably
from hrdc_hpc.scaling import words
from hrdc_hpc.scaling.advice import Advice, advise
from hrdc_hpc.scaling.caveats import caveats, one_machine
from hrdc_hpc.scaling.report import columns, plots, tables
from hrdc_hpc.scaling.report.blocks import Block, Picture, Text, without_empty
from hrdc_hpc.scaling.report.columns import Record
from hrdc_hpc.scaling.report.document import document, title
from hrdc_hpc.scaling.report.markdown import to_markdown
from hrdc_hpc.scaling.report.page import to_html
from hrdc_hpc.scaling.view import StudyView

PAGE = "report.html"
_WIDTH = 118
"""Characters of a line on the console."""
_PLOTS = ("efficiency", "throughput", "shares")
_NO_PLOTS = "No plots: matplotlib is not installed (pip install 'hrdc-hpc[report]')."


def write_report(folder: Path, view: StudyView) -> list[Path]:
    """Write all forms into the folder, which is made, over those of before; returns the files, the page first.

    Without matplotlib there are no plots, and the pages say so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    advices = [advise(view, mode) for mode in view.modes]
    pictures = plots.pictures(view, advices)
    images, missing = _draw(view, advices, pictures)
    blocks = [*document(view, advices, [one for one in pictures if one.name in images]), *missing]
    texts = {
        PAGE: to_html(title(view), blocks, images),
        "report.md": to_markdown(blocks),
        "rows.csv": _csv(columns.ROW, columns.row_records(view)),
        "sizes.csv": _csv(columns.SIZE, _all(columns.size_records, view, advices)),
        "predictions.csv": _csv(columns.PREDICTION, _all(columns.prediction_records, view, advices)),
    }
    for name, text in texts.items():
        write_text_durably(folder / name, text)
    for name in _PLOTS:
        _put(folder / f"{name}.png", images[name][0] if name in images else None)
    write_json_durably(folder / "report.json", plain(view, advices))
    return [folder / name for name in (*texts, "report.json", *(f"{name}.png" for name in images))]


def _draw(
    view: StudyView, advices: Sequence[Advice], pictures: Sequence[Picture]
) -> tuple[dict[str, tuple[bytes, bytes]], list[Block]]:
    note = one_machine(view)
    images: dict[str, tuple[bytes, bytes]] = {}
    try:
        for one in pictures:
            light = plots.draw(view, advices, one.name, note=note)
            images[one.name] = light, plots.draw(view, advices, one.name, dark=True, note=note)
    except ImportError:
        return {}, [Text(_NO_PLOTS)]
    return images, []


def _put(path: Path, content: bytes | None) -> None:
    """Write a picture, or take away the one of before."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    aside = temporary_beside(path)
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _all(records: Any, view: StudyView, advices: Sequence[Advice]) -> list[Record]:
    return [record for advice in advices for record in records(view, advice)]


def _csv(header: Sequence[str], records: Sequence[Record]) -> str:
    target = io.StringIO()
    writer = csv.DictWriter(target, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return target.getvalue()


def plain(view: StudyView, advices: Sequence[Advice]) -> dict[str, Any]:
    """Return the whole report as plain values, units in the names."""
    return {
        "warnings": caveats(view),
        "study": view.name,
        "date": view.date,
        "command": view.command,
        "wanted_efficiency_percent": 100 * view.wanted,
        "train_images": view.train_images,
        "limits": asdict(view.limits) if view.limits else None,
        "modes": {
            one.mode: {
                "advice": list(one.sentences),
                "base": asdict(one.base) if one.base else None,
                "most": asdict(one.most.size) if one.most else None,
                "most_predicted": asdict(one.most_expected.size) if one.most_expected else None,
                "sizes": columns.size_records(view, one),
                "predictions": columns.prediction_records(view, one),
            }
            for one in advices
        },
        "rows": columns.row_records(view),
        "fit": asdict(view.fit) if view.fit else None,
        "about": dict(view.about),
    }


def tell(view: StudyView) -> None:
    """Say warnings, advice and tables on the console, and on paper what they rest on."""
    _list("! ", caveats(view))
    for mode in view.modes:
        advice = advise(view, mode)
        sys.stdout.write(f"\n{words.MODES[mode].format(worker=words.worker(view))}\n")
        _list("- ", advice.sentences)
        for grid in (tables.brief(view, advice), tables.brief_predictions(view, advice)):
            if grid.rows:
                sys.stdout.write("\n")
                known = without_empty(grid)
                show(known.title, known.columns, _marked(known.rows, known.failed), known.caption)
        for one in advice.measured:
            for why in one.troubles:
                sys.stdout.write(f"x {words.named(view, one.size)}, {mode}: {why}\n")
    if view.on_paper and view.fit:
        sys.stdout.write("\nWhat the predictions rest on\n")
        _list("- ", view.fit.assumptions)
    sys.stdout.flush()


def _list(mark: str, lines: Sequence[str]) -> None:
    for line in lines:
        text = textwrap.fill(
            line, _WIDTH, initial_indent=mark, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        sys.stdout.write(f"{text}\n")


def _marked(rows: Sequence[Sequence[str]], failed: frozenset[int]) -> list[list[str]]:
    return [[f"x {row[0]}", *row[1:]] if i in failed else list(row) for i, row in enumerate(rows)]
