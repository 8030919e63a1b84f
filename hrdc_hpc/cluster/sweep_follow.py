"""Following a sweep to the end of all its elements, and its results in one table. Torch-free."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hrdc_hpc.cluster import runs, sweep_results
from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.follow import ASK_SLURM_S, GONE_TWICE_S, LINE_EVERY_S, POLL_S, MetricsTail, Progressed
from hrdc_hpc.cluster.jobs import Job, JobState, job_states, last_job
from hrdc_hpc.cluster.results import failure
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.cluster.sweep_members import Member
from hrdc_hpc.record.files import write_text_durably
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.table import print_table

_FAILURES_SHOWN = 5
"""Elements whose end is told at length."""


@dataclass
class Watched:
    """An element while it is followed."""

    name: str
    run: Path
    global_batch: int
    tail: MetricsTail
    job: Job | None = None
    state: JobState = field(default_factory=lambda: JobState("gone", "was not submitted"))
    gone_since: float | None = None
    """Monotonic; a requeue shows an end state in passing, so that an end counts when it is still seen later."""
    progress: Progressed = field(default_factory=Progressed)
    finished: bool = False
    over: bool = False
    """Whether its end is known: finished, or its job gone for good."""

    @property
    def word(self) -> str:
        """One word on where it is."""
        if self.finished:
            return "finished"
        if self.job is None:
            return "not submitted"
        return "ended" if self.over else {"gone": "ending"}.get(self.state.phase, self.state.phase)

    def look(self) -> None:
        """Read what the run wrote since the last look."""
        for record in self.tail.new():
            self.progress = self.progress.after(record, self.global_batch)

    def expect(self, job: Job | None) -> None:
        """Note the run's newest job."""
        if job != self.job:
            self.job, self.gone_since, self.over = job, None, False

    def take(self, state: JobState, now: float) -> None:
        """Note where its job is; a local one that is finished is waited for, so that nothing is left behind."""
        self.state = state
        if state.phase != "gone":
            self.gone_since, self.over = None, False
            return
        self.gone_since = self.gone_since or now
        local = self.job is not None and self.job.kind == "local"
        self.over = local or now - self.gone_since >= GONE_TWICE_S


class Watch:
    """All elements of a sweep; SLURM is asked for all of them at once."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.elements = [
            Watched(m.element.name, m.run, m.config.optim.global_batch, MetricsTail(RunFolder(m.run).metrics))
            for m in members
        ]
        self._asked: float | None = None
        self.trouble: str | None = None
        """Why the last question was not answered."""

    def look(self) -> None:
        """Read what the runs wrote, and ask where their jobs are if that is due."""
        some = [one for one in self.elements if not (one.over and one.finished)]  # what failed may be launched again
        for one in some:
            one.look()
        if self._is_due(some):
            self._asked = time.monotonic()
            self._ask(some, self._asked)

    def _is_due(self, some: Sequence[Watched]) -> bool:
        """This machine is asked at each look; SLURM now and then, and when a run says that it is finished."""
        if self._asked is None or not any(one.job is not None and one.job.kind == "slurm" for one in some):
            return True
        doubtful = any(one.gone_since is not None and not one.over for one in some)
        if time.monotonic() - self._asked >= (GONE_TWICE_S if doubtful else ASK_SLURM_S):
            return True
        return any(RunFolder(one.run).state() == "finished" for one in some)

    def _ask(self, some: Sequence[Watched], now: float) -> None:
        for one in some:
            one.expect(last_job(one.run) if one.run.exists() else None)
            one.finished = RunFolder(one.run).state() == "finished"  # whatever SLURM says, or does not say
            one.over = one.finished and (one.job is None or one.job.kind == "slurm")
        asked = [one for one in some if not one.over]
        try:
            states = job_states({one.run: one.job for one in asked if one.job is not None})
        except SchedulerError as error:  # a controller that restarts is no end of the jobs
            self.trouble = f"SLURM does not answer, asking again: {error}"
            return
        self.trouble = None
        for one in asked:
            if one.job is not None:
                one.take(states[one.run], now)

    def at_work(self) -> int:
        """Elements whose job is there."""
        return sum(one.job is not None and not one.over for one in self.elements)

    def all_over(self) -> bool:
        """Whether nothing is left to wait for; what nobody submitted does not come by itself."""
        return all(one.over or one.job is None for one in self.elements)


class Display(Protocol):
    """Shows a sweep."""

    def show(self, watch: Watch) -> None:
        """Show where the elements are."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """A line for each change, and one for the whole sweep now and then."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}
        self._counted, self._next = "", 0.0

    def show(self, watch: Watch) -> None:
        """Write what changed."""
        if watch.trouble:
            self._say_new("", watch.trouble)
        for one in watch.elements:
            self._say_new(one.name, f"{one.name}: {one.word}" + (f" ({one.state.word})" if one.word == "ended" else ""))
        counts = _counts(watch)
        if counts != self._counted and time.monotonic() >= self._next:
            say(counts)
            self._counted, self._next = counts, time.monotonic() + LINE_EVERY_S

    def _say_new(self, name: str, text: str) -> None:
        if self._shown.get(name) != text:
            say(text)
            self._shown[name] = text

    def close(self) -> None:
        """Nothing to leave behind."""


class Screen:
    """A table that is redrawn, as many elements as fit; those at work first."""

    _ORDER = ("running", "ending", "queued", "ended", "not submitted", "finished")

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def show(self, watch: Watch) -> None:
        """Redraw."""
        table = Table(expand=True, caption=watch.trouble or _counts(watch), caption_justify="left")
        table.add_column("element", no_wrap=True, min_width=min(60, max(len(one.name) for one in watch.elements)))
        table.add_column("state", no_wrap=True, min_width=len("not submitted"))
        table.add_column("progress", no_wrap=True, ratio=1)  # cut first where the terminal is narrow
        room = max(3, self._console.height - 7)
        for one in sorted(watch.elements, key=lambda one: self._ORDER.index(one.word))[:room]:
            text = one.progress.text() if one.word == "running" else ""
            table.add_row(Text(one.name), one.word, Text(text or ("" if one.word == "finished" else one.state.word)))
        self._live.update(table, refresh=True)

    def close(self) -> None:
        """Leave the last table."""
        self._live.stop()


def _counts(watch: Watch) -> str:
    counts = Counter(one.word for one in watch.elements)
    return f"{len(watch.elements)} elements: " + ", ".join(
        f"{counts[word]} {word}" for word in Screen._ORDER if counts[word]
    )


def nothing_more(_: int) -> bool:
    """Return that nothing is left to be started."""
    return False


def follow(path: Path, members: Sequence[Member], more: Callable[[int], bool] = nothing_more) -> int:
    """Follow to the end of all; prints the results, and why elements did not finish. Ctrl-C leaves jobs in peace.

    Args:
        path: the sweep's folder.
        members: its elements.
        more: called with the number of elements at work, at each look; starts further ones, and returns whether there
            are any left after that.

    Returns:
        The exit code: 0 if all are finished.
    """
    watch = Watch(members)
    try:
        watch_to_the_end(watch, more)
    except KeyboardInterrupt:
        if more is not nothing_more:
            raise
        say(f"\nthe sweep goes on; follow it:  {runs.follow_command(path)}")
        return Exit.LEFT
    return tell(path, watch, measured=any(member.config.measure for member in members))


def watch_to_the_end(watch: Watch, more: Callable[[int], bool] = nothing_more) -> None:
    """Show the sweep until nothing is at work, nor left to be started."""
    display: Display = Screen() if sys.stdout.isatty() else Lines()
    pause_s = max(POLL_S, len(watch.elements) / 50)  # each look opens every run's metrics
    try:
        while True:
            watch.look()
            if more(watch.at_work()):
                display.show(watch)
            else:
                watch.look()
                display.show(watch)
                if watch.all_over():
                    return
            time.sleep(pause_s)
    finally:
        display.close()


def tell(path: Path, watch: Watch, *, measured: bool = False) -> int:
    """Print the results and the ends of those that have none; the exit code.

    `measured`: whether it is a scaling study, which has a report of its own.
    """
    if measured:
        say(f"report of the study: {runs.report_command(path)}")
    else:
        _tell_results(path)
    failed = [one for one in watch.elements if not one.finished]
    for one in failed[:_FAILURES_SHOWN]:
        if one.job is None:
            say(f"{one.name}: was not submitted")
        else:
            say(f"{one.name}: {failure(one.run, one.job, one.state.word)[0]}")
    if len(failed) > _FAILURES_SHOWN:
        say(f"... and {len(failed) - _FAILURES_SHOWN} more did not finish")
    if failed:
        say(f"{len(failed)} of {len(watch.elements)} did not finish; again:  {runs.resubmit_command(path)}")
    say(f"{'study' if measured else 'sweep'} folder: {path}")
    return Exit.FAILED if failed else Exit.DONE


def _tell_results(path: Path) -> None:
    rows = sweep_results.result_rows(path)
    print_table(sweep_results.table(rows, f"sweep {path.name}"))
    try:
        write_text_durably(path / "results.md", sweep_results.markdown(rows))
    except OSError as error:  # somebody else's sweep may be followed too
        say(f"results.md is not written: {error}")
