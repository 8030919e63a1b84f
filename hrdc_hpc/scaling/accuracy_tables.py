"""What a time-to-accuracy study is called, and its tables: a row for each batch, or for each run. Torch-free."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hrdc_hpc.engine.learning_rate import peak_rate
from hrdc_hpc.record.figures import number
from hrdc_hpc.scaling.curves import METRICS, Point, Study, Trained

HOUR_S = 3600

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Columns, and rows of cells."""


def what(study: Study) -> str:
    """'overall 60 %', or without a value where there is none."""
    if study.value is None:
        return study.metric
    return f"{study.metric} {percent(study.value).rstrip('0').rstrip('.')} %"


def title(study: Study) -> str:
    """One line: what is to be reached, on which images, of which prediction."""
    primary = next((run.primary for run in study.runs if run.primary), None)
    of = f", prediction '{primary}'" if primary else ""
    return f"{study.path.name}: time to {what(study)} on the {images(study)} images{of}"


def images(study: Study) -> str:
    """'test' or 'held-out'."""
    return "held-out" if study.config and study.config.data.holdout else "test"


def device(study: Study) -> str:
    """What device-hours are hours of: 'GPU', or 'rank' on CPUs."""
    return "GPU" if any(run.on_gpus for run in study.runs) else "rank"


def unit(study: Study) -> tuple[str, int]:
    """Return in which unit times are given, and its seconds: hours, but minutes where no run has taken one."""
    longest_s = max((point.attempts_device_s for run in study.runs for point in run.points), default=0.0)
    return ("h", HOUR_S) if longest_s >= HOUR_S else ("min", 60)


def times(point: Point) -> tuple[float, float, float, float]:
    """Training, the same times devices, attempts, the same times devices; seconds."""
    return point.training_s, point.training_device_s, point.attempts_s, point.attempts_device_s


@dataclass(frozen=True)
class _Cells:
    """Several seeds in one cell: the median, with the range behind it or without."""

    ranges: bool

    def over(self, values: Iterable[float | None], words: Callable[[float], str]) -> str:
        """Return the cell; '-' where nothing is known."""
        some = [value for value in values if value is not None]
        if not some:
            return "-"
        middle = words(statistics.median(some))
        if not self.ranges or len(set(some)) == 1:
            return middle
        return f"{middle} ({words(min(some))}-{words(max(some))})"

    def spent(self, study: Study, points: Sequence[Point]) -> list[str]:
        """Return training, the same times devices, attempts, the same times devices; in the study's unit."""
        _, seconds = unit(study)
        spent = [[value / seconds for value in times(point)] for point in points]
        return [self.over((values[i] for values in spent), number) for i in range(4)]


def _time_columns(study: Study) -> list[str]:
    short, of = unit(study)[0], device(study)
    return [f"training, {short}", f"training, {of}-{short}", f"attempts, {short}", f"attempts, {of}-{short}"]


def reach_table(study: Study, *, ranges: bool = True) -> Table:
    """Columns and a row for each batch: what it took to reach the value."""
    columns = ("batch", "lr", "warm-up", "images/s", "reached", "epochs", "steps", *_time_columns(study))
    return columns, [_reach_row(study, batch, _Cells(ranges)) for batch in study.batches]


def _reach_row(study: Study, batch: int, cells: _Cells) -> tuple[str, ...]:
    runs = study.of(batch)
    at = [point for run in runs if (point := study.reached(run)) is not None]
    return (
        str(batch),
        cells.over((rate(run) for run in runs), lambda rate: f"{rate:.4g}"),
        cells.over((warm_up(run) for run in runs), "{:g}".format),
        cells.over((run.images_per_s for run in runs), number),
        _reached_words(runs, len(at)),
        cells.over((point.epoch for point in at), "{:g}".format),
        cells.over((point.step for point in at), "{:,g}".format),
        *cells.spent(study, at),
    )


def _reached_words(runs: Sequence[Trained], reached: int) -> str:
    if len(runs) > 1:
        return f"{reached} of {len(runs)}"
    if reached:
        return "yes"
    return "no" if runs[0].finished else f"no: {runs[0].state}"


def end_table(study: Study, *, ranges: bool = True) -> Table:
    """Columns and a row for each batch: accuracy and cost of the whole schedule, of finished runs."""
    balanced = all(_as_on_balanced_images(run.end) for run in study.runs if run.end)
    metrics = [name for name in METRICS if name != "balanced" or not balanced]
    columns = ("batch", "epochs", "steps", *metrics, *_time_columns(study)[:3], "runs")
    return columns, [_end_row(study, batch, metrics, _Cells(ranges)) for batch in study.batches]


def _as_on_balanced_images(point: Point) -> bool:
    """Whether the mean over classes is that over images."""
    overall, balanced = point.accuracy["overall"], point.accuracy["balanced"]
    return balanced is None or (overall is not None and percent(overall) == percent(balanced))


def _end_row(study: Study, batch: int, metrics: Sequence[str], cells: _Cells) -> tuple[str, ...]:
    runs = study.of(batch)
    ends = [run.end for run in runs if run.end]
    return (
        str(batch),
        cells.over((point.epoch for point in ends), "{:g}".format),
        cells.over((point.step for point in ends), "{:,g}".format),
        *(cells.over((point.accuracy[name] for point in ends), percent) for name in metrics),
        *cells.spent(study, ends)[:3],
        _states(runs),
    )


def _states(runs: Sequence[Trained]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in runs).items())


def percent(share: float) -> str:
    """Two digits behind the point."""
    return f"{100 * share:.2f}"


def rate(run: Trained) -> float | None:
    """Peak learning rate."""
    return peak_rate(run.config.optim) if run.config else None


def warm_up(run: Trained) -> float | None:
    """Length of the warm-up, steps."""
    if run.config is None or run.steps_per_epoch is None:
        return None
    return run.config.optim.warmup_epochs * run.steps_per_epoch


def run_table(study: Study) -> Table:
    """Columns and a row for each run, of whatever state."""
    columns = ("run", "state", "attempts", "epochs", "reached at epoch", *METRICS, "why")
    rows = []
    for run in study.runs:
        last, at = run.points[-1] if run.points else None, study.reached(run)
        shares = [last.accuracy[name] if last else None for name in METRICS]
        rows.append(
            (
                run.name,
                run.state,
                str(run.attempts),
                str(last.epoch) if last else "0",
                str(at.epoch) if at else "-",
                *("-" if share is None else percent(share) for share in shares),
                run.why or "-",
            )
        )
    return columns, rows
