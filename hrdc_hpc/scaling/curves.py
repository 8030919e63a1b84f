"""Accuracy over time of the runs of a time-to-accuracy study, and where each reached a value. Torch-free.

Curves are read, nothing is chosen by them: a run's last evaluation is its result. One point for each evaluation that
counts: of a step that was trained again after a restart, the later one's, whose weights the run went on with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hrdc_hpc.cluster import overview
from hrdc_hpc.cluster.goodput import Stay, account
from hrdc_hpc.cluster.overview import Overview
from hrdc_hpc.cluster.shape import ranks_per_node
from hrdc_hpc.cluster.sweep import Sweep
from hrdc_hpc.cluster.timeline import stays_of
from hrdc_hpc.config.grid import Element
from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics

Metric = Literal["overall", "balanced", "many", "medium", "few"]
"""Top-1 accuracy of the method's primary prediction, as evaluations have it."""
METRICS: tuple[Metric, ...] = get_args(Metric)
_WAITING = ("queue", "unsubmitted")
_EXACT = 1e-9
"""A share and the same number in per cent, divided by 100, may differ in their last bit."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be reached."""

    metric: Metric
    value: float | None
    """As a share of 1; None: the highest value that every finished run reached."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation. Times are from the run's first start to this evaluation's end."""

    step: int
    epoch: int
    accuracy: Mapping[str, float | None]
    """Of the primary prediction, by metric; shares of 1, None for a group without images."""
    training_s: float
    """Of the steps that count: without starts, evaluations, saves and steps that were done again."""
    attempts_s: float
    """Wall clock of all attempts, with all of these; without waiting in the queue."""
    training_device_s: float
    """The same times the devices of each attempt."""
    attempts_device_s: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One run of the study, however far it came."""

    name: str
    batch: int
    seed: int
    state: str
    """As `status` has it; 'not submitted' where there is no run folder."""
    why: str = ""
    """Of a run that is not finished, where it is or why it ended, in one line."""
    config: RunConfig | None = None
    """None where there is no run folder, or its config cannot be read."""
    steps_per_epoch: int | None = None
    primary: str | None = None
    attempts: int = 0
    on_gpus: bool = False
    points: Sequence[Point] = ()

    @property
    def finished(self) -> bool:
        """Whether the whole schedule was trained."""
        return self.state == "finished"

    @property
    def end(self) -> Point | None:
        """The result of a finished run."""
        return self.points[-1] if self.finished and self.points else None

    @property
    def images_per_s(self) -> float | None:
        """Over all steps that count, until the last evaluation."""
        last = self.points[-1] if self.points else None
        return self.batch * last.step / last.training_s if last and last.training_s else None

    def highest(self, metric: Metric) -> float | None:
        """Return the highest value of the curve; None before the first evaluation."""
        return max((share for point in self.points if (share := point.accuracy.get(metric)) is not None), default=None)

    def reached(self, metric: Metric, value: float) -> Point | None:
        """Return the first evaluation at or above the value; None: there is none so far."""
        at_least = value - _EXACT
        return next(
            (p for p in self.points if (share := p.accuracy.get(metric)) is not None and share >= at_least), None
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """All runs, and the value that they are read for."""

    path: Path
    command: Sequence[str]
    metric: Metric
    value: float | None
    """As a share of 1; None: no run has been evaluated so far."""
    asked: bool
    """Whether the value was asked for, not taken from the curves."""
    runs: Sequence[Trained]
    """In the order of the sweep: by batch, then by seed."""

    @property
    def batches(self) -> list[int]:
        """In the order they were asked for."""
        return list(dict.fromkeys(run.batch for run in self.runs))

    def of(self, batch: int) -> list[Trained]:
        """Return the runs of a batch."""
        return [run for run in self.runs if run.batch == batch]

    def reached(self, run: Trained) -> Point | None:
        """Return where the run reached the value; None: not so far."""
        return None if self.value is None else run.reached(self.metric, self.value)

    @property
    def config(self) -> RunConfig | None:
        """Of a run: for what all have in common."""
        return next((run.config for run in self.runs if run.config), None)


def parse_wanted(text: str) -> Wanted:
    """Read 'overall=60' (per cent) or 'overall'. Raises ValueError."""
    metric, equals, value = (part.strip() for part in text.partition("="))
    known = next((name for name in METRICS if name == metric), None)
    if known is None:
        raise ValueError(
            f"--to-accuracy: must be METRIC=VALUE or METRIC, such as overall=60, METRIC one of {', '.join(METRICS)};"
            f" got {text!r}"
        )
    if not equals:
        return Wanted(metric=known, value=None)
    try:
        percent = float(value)
    except ValueError:
        percent = math.nan
    if not 0 < percent <= 100:
        raise ValueError(f"--to-accuracy: the value is in per cent, above 0 and at most 100; got {value!r}")
    return Wanted(metric=known, value=percent / 100)


def read(there: Sweep, wanted: Wanted) -> Study:
    """Read the runs of a study, whatever they have come to. Asks SLURM once where it has jobs of them."""
    folders = [there.run(element) for element in there.elements]
    seen = {Path(row.run): row for row in overview.survey([f for f in folders if f.is_dir()]).runs}
    runs = [_read_run(element, there.run(element), seen.get(there.run(element))) for element in there.elements]
    value = wanted.value if wanted.value is not None else highest_of_all(runs, wanted.metric)
    return Study(
        path=there.path, command=there.command, metric=wanted.metric, value=value, asked=wanted.value is not None,
        runs=runs,
    )  # fmt: skip


def highest_of_all(runs: Sequence[Trained], metric: Metric) -> float | None:
    """Return the highest value that each finished run reached; each that was evaluated, as long as none is finished."""
    some = [run for run in runs if run.finished] or runs
    return min((high for run in some if (high := run.highest(metric)) is not None), default=None)


def _read_run(element: Element, folder: Path, seen: Overview | None) -> Trained:
    batch, seed = (int(element.values[key]) for key in ("optim.global_batch", "seed"))
    run = Trained(name=element.name, batch=batch, seed=seed, state="not submitted")
    if seen is None:
        return run
    run = replace(run, state=seen.state, why=_why(seen), attempts=seen.attempts)
    try:
        config = loads(RunFolder(folder).config.read_text(encoding="utf-8"), str(folder))
    except (OSError, ValueError) as error:  # of another version, say
        return replace(run, why=f"its config cannot be read: {str(error).splitlines()[0]}")
    stays = stays_of(folder, works=seen.state == "running")
    starts = [record for stay in stays for record in stay.records if record["kind"] == "start"]
    on_gpus = any(str(start["device"]).startswith("cuda") for start in starts)
    evaluations = [record for record in read_metrics(folder) if record["kind"] == "eval"]
    devices = _devices(folder, config, on_gpus)
    return replace(
        run, config=config, on_gpus=on_gpus, steps_per_epoch=int(starts[-1]["steps_per_epoch"]) if starts else None,
        primary=str(evaluations[-1]["primary"]) if evaluations else None,
        points=[_point(record, stays, devices) for record in evaluations],
    )  # fmt: skip


def _why(seen: Overview) -> str:
    if seen.state == "finished":
        return ""
    reached = f"step {seen.step} of {seen.steps}" if seen.step is not None and seen.steps else ""
    doing = seen.doing or "" if seen.state == "running" else ""
    return "; ".join(part for part in (" ".join(seen.word.split()), doing, reached) if part)


def _devices(folder: Path, config: RunConfig, on_gpus: bool) -> dict[int, float]:
    """GPUs that each attempt held, by its number; ranks where none is used."""
    cluster = config.cluster
    each = cluster.gpus_per_node / ranks_per_node(cluster) if on_gpus and cluster.gpus_per_node else 1.0
    attempts = read_attempts(RunFolder(folder))
    return {a["attempt"]: each * int(a.get("info", {}).get("world_size", 1)) for a in attempts}


def _point(evaluation: Mapping[str, Any], stays: Sequence[Stay], devices: Mapping[int, float]) -> Point:
    told = account(_until(evaluation, stays))
    training = {number: spent.seconds["training"] for number, spent in told.attempts.items()}
    wall = {
        number: spent.total_s - sum(spent.seconds[part] for part in _WAITING) for number, spent in told.attempts.items()
    }
    return Point(
        step=int(evaluation["step"]),
        epoch=int(evaluation["epoch"]),
        accuracy={name: evaluation["accuracy"][evaluation["primary"]].get(name) for name in METRICS},
        training_s=sum(training.values()),
        attempts_s=sum(wall.values()),
        training_device_s=sum(devices[number] * seconds for number, seconds in training.items()),
        attempts_device_s=sum(devices[number] * seconds for number, seconds in wall.items()),
    )


def _until(evaluation: Mapping[str, Any], stays: Sequence[Stay]) -> list[Stay]:
    """The attempts as they were when the evaluation was written down."""
    before = [stay for stay in stays if stay.attempt < evaluation["attempt"]]
    own = next(stay for stay in stays if stay.attempt == evaluation["attempt"])
    same = [
        i for i, record in enumerate(own.records)
        if record["kind"] == "eval" and record["step"] == evaluation["step"]
    ]  # fmt: skip
    return [*before, replace(own, records=own.records[: same[-1] + 1], ended=float(evaluation["time"]))]
