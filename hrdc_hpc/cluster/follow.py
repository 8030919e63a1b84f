"""Following a run to its end from the files that it writes, across requeues. Torch-free."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hrdc_hpc.cluster.jobs import Job, JobState, job_state
from hrdc_hpc.cluster.results import failure, print_result
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.record.folder import RunFolder

POLL_S = 1.0
ASK_SLURM_S = 10.0
"""Seconds between questions to the controller, which serves a whole cluster."""
LINE_EVERY_S = 10.0
"""Seconds between progress lines where there is no terminal."""
WORTH_TELLING = 0.05
"""Share of time spent waiting for data from which on progress lines say so; all shares are in the metrics."""
GONE_TWICE_S = 5.0
"""A job counts as gone when it still is after this long: a requeue shows an end state in passing."""


@dataclass(frozen=True)
class Progressed:
    """How far a run is, from its newest records."""

    step: int = 0
    steps: int | None = None
    """Of the whole run; None until the first record says how long it will take."""
    epoch: int | None = 0
    """Under way, counted from 0 as in the records; None: a measured run, which has none."""
    loss: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    data_wait: float | None = None
    """Share of the time in which the device waited for data."""
    checkpoint: int | None = None
    """Step of the last committed checkpoint."""
    attempt: int | None = None
    """Whose records these are."""

    def after(self, record: dict[str, Any], global_batch: int) -> Progressed:
        """Return the progress once `record` is known: a new attempt has only what is saved, and the steps to do."""
        if record["attempt"] != self.attempt:
            anew = Progressed(steps=self.steps, checkpoint=self.checkpoint, attempt=record["attempt"])
            return anew._with(record, global_batch)
        return self._with(record, global_batch)

    def _with(self, record: dict[str, Any], global_batch: int) -> Progressed:
        if record["kind"] == "checkpoint":
            return replace(self, checkpoint=record["step"])
        if record["kind"] == "measure":
            steps, eta, speed = record["steps"], record["eta_s"], record["images_per_s"]
            return replace(self, step=record["step"], steps=steps, epoch=None, images_per_s=speed, eta_s=eta)
        if record["kind"] != "train":
            return self
        step, eta, speed = record["step"], record.get("eta_s"), record.get("images_per_s")
        steps = self.steps if eta is None or not speed else step + round(eta * speed / global_batch)
        return replace(
            self, step=step, steps=steps, epoch=record["epoch"], loss=record.get("loss"), images_per_s=speed, eta_s=eta,
            data_wait=record.get("data_wait"),
        )  # fmt: skip

    def text(self) -> str:
        """One line for people."""
        parts = [f"step {self.step}" + (f"/{self.steps}" if self.steps else "")]
        if self.epoch is not None:
            parts.append(f"epoch {self.epoch + 1}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.images_per_s is not None:
            parts.append(f"{self.images_per_s:.0f} images/s")
        if self.data_wait is not None and self.data_wait >= WORTH_TELLING:
            parts.append(f"waits for data {100 * self.data_wait:.0f} % of the time")
        if self.eta_s is not None:
            parts.append(f"{duration(self.eta_s)} to go")
        if self.checkpoint is not None:
            parts.append(f"saved at step {self.checkpoint}")
        return "  ".join(parts)


class MetricsTail:
    """New complete lines of metrics/attempt-*.jsonl, attempt by attempt."""

    def __init__(self, metrics: Path) -> None:
        """`metrics`: the folder."""
        self._metrics = metrics
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the records written since the last call; a line that is still being written waits for the next."""
        files = self._metrics.glob("attempt-*.jsonl")
        for path in sorted(files, key=lambda path: int(path.stem.partition("-")[2])):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                try:
                    yield json.loads(line)
                except ValueError:  # torn by a kill; the next attempt writes to a file of its own
                    continue


class Display(Protocol):
    """Shows progress."""

    def show(self, progress: Progressed, state: str) -> None:
        """Show how far the run is and what state the job is in."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """Plain lines, for a log file or a pipe."""

    def __init__(self) -> None:
        self._shown, self._state, self._next = Progressed(), "", 0.0

    def show(self, progress: Progressed, state: str) -> None:
        """Write a line when there is news, but not more often than every LINE_EVERY_S; a new state at once."""
        if state != self._state:
            self.say(f"job is {state}")
            self._state = state
        if progress.step and progress != self._shown and time.monotonic() >= self._next:
            self.say(progress.text())
            self._shown, self._next = progress, time.monotonic() + LINE_EVERY_S

    def say(self, text: str) -> None:
        """Write a line."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing to leave behind."""


class Bar:
    """A bar over the steps, on a terminal."""

    def __init__(self) -> None:
        self._console = Console()
        self._bar = Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=self._console)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, progress: Progressed, state: str) -> None:
        """Redraw."""
        done = progress.step or progress.checkpoint or 0
        text = progress.text() if progress.step else f"job is {state}" + (f", saved at step {done}" if done else "")
        self._bar.update(self._task, total=progress.steps, completed=done, description=text)

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Stop redrawing."""
        self._bar.stop()


def follow(run: Path, job: Job, global_batch: int, display: Display | None = None) -> int:
    """Follow a run until its folder says finished or its job is gone for good; prints the result or the cause.

    Args:
        run: the run folder.
        job: its newest job.
        global_batch: images per step, to reckon the number of steps from the time to finish.
        display: where to show it; a bar on a terminal and lines elsewhere if None.

    Returns:
        The exit code: 0 finished, else what the failing rank left with.
    """
    shown = display or (Bar() if sys.stdout.isatty() else Lines())
    try:
        state = _watch(run, job, global_batch, shown)
    finally:
        shown.close()
    summary = RunFolder(run).summary()
    if summary is not None:
        print_result(summary, run)
        return 0
    text, code = failure(run, job, state.word)
    sys.stdout.write(f"{text}\n")
    return code


def duration(seconds: float) -> str:
    """4210 as '1:10:10'."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def _watch(run: Path, job: Job, global_batch: int, display: Display) -> JobState:
    """Show progress until the job is gone; a finished run's job is waited for too, so that nothing is left behind."""
    tail, progress, evaluated = MetricsTail(RunFolder(run).metrics), Progressed(), set()
    every = POLL_S if job.kind == "local" else ASK_SLURM_S
    state, asked, gone_since = JobState("queued", "submitted"), 0.0, None
    last_look = False
    while True:
        for record in tail.new():
            progress = progress.after(record, global_batch)
            if record["kind"] == "start":
                display.say(_start(record))
            if record["kind"] in ("eval", "eval_ema") and (record["kind"], record["step"]) not in evaluated:
                evaluated.add((record["kind"], record["step"]))
                display.say(_evaluation(record))
        if last_look:
            display.show(progress, state.word)
            return state
        finished = job.kind == "slurm" and RunFolder(run).state() == "finished"
        if not finished and time.monotonic() - asked >= (every if gone_since is None else GONE_TWICE_S):
            state, asked = _ask(run, job, state, display), time.monotonic()
            finished = state.phase == "gone" and (job.kind == "local" or gone_since is not None)
            gone_since = asked if state.phase == "gone" else None
        if finished:  # what was written up to now is read once more
            last_look = True
            continue
        display.show(progress, state.word)
        time.sleep(POLL_S)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _ask(run: Path, job: Job, before: JobState, display: Display) -> JobState:
    try:
        return job_state(run, job)
    except SchedulerError as error:  # a controller that restarts is no end of the job
        display.say(f"SLURM does not answer, asking again: {error}")
        return before


def _start(record: dict[str, Any]) -> str:
    """One line: how large the network is, and what 'auto' and unset settings came to."""
    ranks = record["world_size"]
    forms = [name for key, name in (("compiled", "compiled"), ("cuda_graph", "CUDA graph")) if record.get(key)]
    parts = [f"{record['parameters']:,} parameters", f"{ranks} rank{'s'[: ranks > 1]}", record["device"]]
    what = "trains" if record.get("steps_per_epoch") else "measures"
    return f"{what}: " + ", ".join([*parts, record["precision"], *(forms or ["eager"])])


def _evaluation(record: dict[str, Any]) -> str:
    """One line: the prediction that is reported; all of them are in the metrics and in the table at the end."""
    name = record["primary"]
    shares = record["accuracy"][name]
    averaged = " (averaged weights)" if record["kind"] == "eval_ema" else ""
    groups = ", ".join(f"{group} {_percent(shares[group])}" for group in ("many", "medium", "few"))
    return f"evaluated at step {record['step']}: {name} {_percent(shares['overall'])} % ({groups}){averaged}"
