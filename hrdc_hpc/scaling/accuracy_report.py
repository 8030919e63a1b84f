"""A time-to-accuracy study as tables: on the console, Markdown, CSV, JSON. Torch-free.

report/to-accuracy.md     what each batch took, medians over seeds; every run; how to read it
report/to-accuracy.csv    a line for each run
report/to-accuracy.json   the same, with the curves
report/to-accuracy.png    the curves
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster.jobs import last_job
from hrdc_hpc.record.figures import markdown, show
from hrdc_hpc.record.files import write_json_durably, write_text_durably
from hrdc_hpc.record.machine import describe, sentence
from hrdc_hpc.scaling import accuracy_tables as tables
from hrdc_hpc.scaling.curves import METRICS, Point, Study, Wanted

_NAME = "to-accuracy"


def _file(folder: Path, suffix: str) -> Path:
    return folder / "report" / f"{_NAME}.{suffix}"


def asked_last(folder: Path) -> Wanted | None:
    """What the last report was read for; None before the first."""
    try:
        told = json.loads(_file(folder, "json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Wanted(metric=told["metric"], value=told["value"] if told["asked"] else None)


def write(study: Study) -> Path:
    """Write all forms into the study's report/; return the page's path. An earlier report is replaced."""
    _file(study.path, "md").parent.mkdir(exist_ok=True)
    machine, pictured = describe(), _picture(study)
    write_text_durably(_file(study.path, "csv"), _csv(study))
    write_json_durably(_file(study.path, "json"), {"machine": machine, **plain(study)})
    page = _file(study.path, "md")
    write_text_durably(page, "\n\n".join(_page(study, sentence(machine), pictured)) + "\n")
    return page


def _picture(study: Study) -> str:
    """Draw the curves; return what the page has in their place."""
    if not any(run.points for run in study.runs):
        return "No run has been evaluated so far: nothing to draw."
    if importlib.util.find_spec("matplotlib") is None:
        return "Without a picture: matplotlib is not installed (pip install 'hrdc-hpc[report]')."
    from hrdc_hpc.scaling.accuracy_plot import draw

    draw(study, _file(study.path, "png"))
    return f"![{tables.what(study)} over epochs and {tables.device(study)}-hours]({_NAME}.png)"


def show_tables(study: Study) -> None:
    """Print what each batch took, and how it ended; runs without a result are named."""
    show(tables.title(study), *tables.reach_table(study, ranges=False), caption="\n".join(_caption(study)))
    of = _over_seeds(study).replace(" (lowest-highest)", "")
    show("At the end of the schedule, top-1 accuracy, %", *tables.end_table(study, ranges=False), caption=of)
    rest = [run for run in study.runs if not run.finished]
    if rest:
        rows = [(run.name, run.state, run.why or "-") for run in rest]
        show("Without a result", ("run", "state", "why"), rows, "")


def _page(study: Study, machine: str, picture: str) -> list[str]:
    command = shlex.join(["python", *study.command[1:]])
    parts = [
        f"# {tables.title(study)}",
        _about(study, machine),
        f"```console\n{command}\n```",
        markdown(*tables.reach_table(study)),
        "At the end of the schedule, top-1 accuracy in per cent:",
        markdown(*tables.end_table(study)),
        picture,
        "Every run, at its last evaluation:",
        markdown(*tables.run_table(study)),
    ]
    return [*parts, *notes(study)]


def _about(study: Study, machine: str) -> str:
    """What was trained, and where; `machine`: the one that we are on."""
    config = study.config
    elsewhere = any(
        (job := last_job(study.path / run.name)) and job.kind == "slurm" for run in study.runs if run.config
    )
    hardware = "The machine that wrote this page (the runs were SLURM's)" if elsewhere else "Hardware"
    trained = (
        f"{config.data.dataset.name}, {config.method.name}, {config.model.backbone.name}, {config.optim.epochs} epochs,"
        f" evaluated every {config.eval.every_epochs}; {len(study.batches)} batches,"
        f" {max(len(study.of(batch)) for batch in study.batches)} seeds. "
        if config
        else ""
    )
    return f"{trained}{hardware}: {machine}"


def plain(study: Study) -> dict[str, Any]:
    """Return everything as plain values; accuracies are shares of 1, times seconds."""
    return {
        "metric": study.metric,
        "value": study.value,
        "asked": study.asked,
        "images": tables.images(study),
        "device": tables.device(study),
        "runs": [
            {
                "run": run.name, "batch": run.batch, "seed": run.seed, "state": run.state, "why": run.why,
                "attempts": run.attempts, "learning_rate": tables.rate(run), "warm_up_steps": tables.warm_up(run),
                "steps_per_epoch": run.steps_per_epoch, "primary": run.primary, "images_per_s": run.images_per_s,
                "reached": asdict(point) if (point := study.reached(run)) else None,
                "end": asdict(run.end) if run.end else None, "curve": [asdict(point) for point in run.points],
            }
            for run in study.runs
        ],
    }  # fmt: skip


_CSV = (
    "run", "batch", "seed", "state", "attempts", "learning_rate", "warm_up_steps", "steps_per_epoch", "images_per_s",
    "metric", "value_percent", "reached", "epochs", "steps", "training_h", "training_device_h", "attempts_h",
    "attempts_device_h", "device", "end_epochs", *(f"end_{name}_percent" for name in METRICS), "end_training_h",
    "end_training_device_h", "end_attempts_h", "end_attempts_device_h", "why",
)  # fmt: skip


def _csv(study: Study) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    value = _percent(study.value)
    for run in study.runs:
        at, end = study.reached(run), run.end
        writer.writerow(
            [
                run.name, run.batch, run.seed, run.state, run.attempts, tables.rate(run), tables.warm_up(run),
                run.steps_per_epoch, run.images_per_s, study.metric, value, at is not None,
                *([at.epoch, at.step, *_hours(at)] if at else [None] * 6), tables.device(study),
                end.epoch if end else None, *(_percent(end.accuracy[name] if end else None) for name in METRICS),
                *(_hours(end) if end else [None] * 4), run.why,
            ]
        )  # fmt: skip
    return text.getvalue()


def _hours(point: Point) -> list[float]:
    return [seconds / tables.HOUR_S for seconds in tables.times(point)]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 6)


def _caption(study: Study) -> list[str]:
    told = [
        "lr: the peak. warm-up: in steps. reached: the first evaluation at or above the value. training: steps that"
        " count; attempts: wall clock with starts, evaluations, saves and repeated steps."
    ]
    return [*told, *_origin(study), _reading(study)]


def _origin(study: Study) -> list[str]:
    """Where the value is from, if it was not asked for."""
    if study.asked or study.value is None:
        return []
    which = "finished runs" if any(run.finished for run in study.runs) else "runs evaluated so far"
    value = tables.what(study)
    return [f"No value was asked for: {value} is the highest that all {which} reached, read off the same curves."]


def _reading(study: Study) -> str:
    if tables.images(study) == "held-out":
        return "Read on the held-out images: a batch may be chosen by them."
    return (
        "Read on the test images, not to choose by them: whoever chooses a batch by accuracy sets data.holdout first."
    )


def _over_seeds(study: Study) -> str:
    seeds = max(len(study.of(batch)) for batch in study.batches)
    return f"median (lowest-highest) of {seeds} seeds" if seeds > 1 else "one seed"


def notes(study: Study) -> list[str]:
    """How the figures came about, a paragraph each."""
    of, config = tables.device(study), study.config
    told = [
        f"Reached: the first evaluation at or above {tables.what(study)}; nothing is known of the time between two"
        " evaluations. Its epochs, steps and times are of the runs that reached it:"
        f" {_over_seeds(study)}.",
        "Training: time of the steps that count, net of starts, evaluations, saves and steps done again after a"
        " restart. Attempts: the wall clock of all attempts up to that evaluation, with all of these; waiting in the"
        " queue is in neither. images/s: over the training time.",
        "GPU-hours (or minutes): times the GPUs that the job held."
        if of == "GPU"
        else "rank-hours (or minutes): times the ranks, for no GPU was used. They say nothing of GPU-hours: a CPU is as"
        " busy with a small batch as with a large one, a GPU mostly is not.",
        "The curve is read, not used for choosing: no epoch, checkpoint or setting was taken by it, and the result of a"
        f" run is its last evaluation. {_reading(study)}",
    ]
    told += _origin(study)
    if config:
        told.append(f"{_rate_rule(study)} All batches train for {config.optim.epochs} epochs under the same schedule.")
    return told


def _rate_rule(study: Study) -> str:
    optim = study.config.optim if study.config else None
    if optim is None or optim.lr_batch is None:
        return "optim.lr_batch is unset: every batch trained at the same learning rate."
    return (
        f"Learning rate: the peak after the warm-up, {optim.lr:g} for {optim.lr_batch} images and in proportion to the"
        " batch (linear rule, arXiv 1706.02677)."
    )
