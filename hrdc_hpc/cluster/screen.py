"""How runs are shown: the table of many, the page of one. Torch-free."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hrdc_hpc.cluster.follow import duration
from hrdc_hpc.cluster.goodput import Account, Goodput, line
from hrdc_hpc.cluster.history import Story
from hrdc_hpc.cluster.overview import Overview, Survey

_PLAIN_WIDTH = 10_000
"""Columns where nobody looks at a terminal: nothing is left out or wrapped."""
_NOTE_WIDTH = 24
"""Least width of the last column, which may wrap."""
_NOTE_MOST = 100
"""Characters of a note in a table; a run's page has more of it, --json and the log all."""
_PAGE_MOST = 400
_ENDED_WIDTH = 20
_STYLES = {
    "running": "green", "finished": "bold", "queued": "cyan", "requeued": "cyan", "failed": "red", "lost": "red",
    "stopped": "yellow", "unknown": "dim", "prepared": "dim",
}  # fmt: skip


def console() -> Console:
    """Return a console on standard output, as wide as the terminal, as COLUMNS says, or without bounds."""
    bounded = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(file=sys.stdout, width=None if bounded else _PLAIN_WIDTH, highlight=False)


_Cell = Callable[[Overview], str]
_COLUMNS: tuple[tuple[str, int, _Cell], ...] = (
    ("state", 0, lambda row: state_of(row)),
    ("attempt", 4, lambda row: "-" if row.attempt is None else str(row.attempt)),
    ("last end", 6, lambda row: row.last_end or "-"),
    ("epoch", 7, lambda row: _of_all(row.epoch, row.epochs)),
    ("step", 1, lambda row: _of_all(row.step, row.steps)),
    ("loss", 5, lambda row: "-" if row.loss is None else f"{row.loss:.3f}"),
    ("bal. acc. %", 2, lambda row: percent(row.accuracy)),
    ("images/s", 8, lambda row: _speed(row)),
    ("to go", 3, lambda row: "-" if row.eta_s is None else duration(row.eta_s)),
    ("saved", 9, lambda row: _saved(row)),
    ("nodes", 10, lambda row: row.nodes or "-"),
    ("job", 4, lambda row: row.job_id or "-"),
)  # fmt: skip
"""Name, what may be left out first where the terminal is narrow (higher first, 0 never), and the text."""


def table(survey: Survey, names: Mapping[str, str], width: int) -> Table:
    """Return one row per run, with the columns for which there is room, the most important ones first.

    Args:
        survey: the runs.
        names: what to call each, by the path of its folder.
        width: columns of the terminal.
    """
    rows = [[cell(row) for _, _, cell in _COLUMNS] for row in survey.runs]
    notes = [_short(note(row)) for row in survey.runs]
    shown = _that_fit(rows, max([3, *(len(names[row.run]) for row in survey.runs)]), any(notes), width)
    made = Table(title_justify="left", box=None, pad_edge=False, header_style="bold")
    made.add_column("run", overflow="fold")
    for i in shown:
        made.add_column(_COLUMNS[i][0], no_wrap=True, justify="left" if _COLUMNS[i][0] in _LEFT else "right")
    if any(notes):
        made.add_column("note", overflow="fold", min_width=min(_NOTE_WIDTH, max(map(len, notes))))
    for row, cells, text in zip(survey.runs, rows, notes, strict=True):
        texts = [Text(cells[i], style=_STYLES[row.state] if i == 0 else "") for i in shown]
        made.add_row(Text(names[row.run]), *texts, *([Text(text)] if any(notes) else []))
    return made


_LEFT = ("state", "last end", "nodes", "job")


def _that_fit(rows: Sequence[Sequence[str]], name: int, notes: bool, width: int) -> list[int]:
    """Return the columns for which there is room beside the names and the notes."""
    shown = list(range(len(_COLUMNS)))
    widths = [max([len(_COLUMNS[i][0]), *(len(row[i]) for row in rows)]) + 2 for i in shown]
    room = width - name - (_NOTE_WIDTH + 2 if notes else 0)
    while sum(widths[i] for i in shown) > room and (droppable := [i for i in shown if _COLUMNS[i][1]]):
        shown.remove(max(droppable, key=lambda i: _COLUMNS[i][1]))
    return shown


def state_of(row: Overview) -> str:
    """A word or two for the state."""
    return row.doing or row.state


def note(row: Overview) -> str:
    """What the columns do not say: the scheduler's word, when a job may start, why it is not going on."""
    if row.state in ("queued", "requeued") and row.may_start is not None:
        return f"{row.word}, may start at {clock(row.may_start)}"
    return row.word


def _short(text: str, most: int = _NOTE_MOST) -> str:
    """Return the first line of a text, cut where it is long."""
    first, *more = text.splitlines() or [""]
    return first if len(first) <= most and not more else f"{first[:most]} ..."


def text_line(row: Overview, name: str) -> str:
    """Return one line, for --watch without a terminal."""
    parts = [state_of(row), f"step {_of_all(row.step, row.steps)}" if row.step is not None else ""]
    parts.append("" if row.loss is None else f"loss {row.loss:.3f}")
    parts.append("" if row.accuracy is None else f"{row.accuracy_of} {percent(row.accuracy)} %")
    parts.append("" if row.eta_s is None else f"{duration(row.eta_s)} to go")
    return f"{name}: " + "  ".join(part for part in (*parts, _short(note(row))) if part)


def page(
    row: Overview, stories: Sequence[Story], account: Account, logs: Sequence[Path], commands: Mapping[str, str]
) -> Group:
    """Return all that is known of one run.

    Args:
        row: where it is.
        stories: its attempts.
        account: its goodput.
        logs: files with the output of its newest job, as far as they are there.
        commands: what to do next, by what it does.
    """
    facts = Table.grid(padding=(0, 2))
    for key, value in _facts(row).items():
        facts.add_row(Text(key, style="bold"), Text(value))
    if account.run.total_s:
        facts.add_row(Text("goodput", style="bold"), Text(line(account.run)))
    for path in logs:
        facts.add_row(Text("log", style="bold"), Text(str(path), overflow="fold"))
    for what, command in commands.items():
        facts.add_row(Text(what, style="bold"), Text(command, overflow="fold"))
    parts: list[Table | Text] = [facts]
    if stories:
        parts += [Text(""), _attempts(stories, account), Text("")]
        parts += [Text(_LEGEND), _spent(account)]
    return Group(*parts)


def _facts(row: Overview) -> dict[str, str]:
    state = state_of(row) if row.doing is None else f"running: {row.doing}"
    words = _short(note(row), _PAGE_MOST)
    facts = {"run": row.run, "state": f"{state}; {words}" if words else state}
    if row.step is not None:
        epochs = "" if row.epochs is None else f", {_of_all(row.epoch, row.epochs)} epochs"
        facts["progress"] = f"step {_of_all(row.step, row.steps)}{epochs}" + (
            f", {row.images_per_s:.0f} images/s, {duration(row.eta_s)} to go" if row.eta_s and row.images_per_s else ""
        )
    if row.loss is not None:
        facts["metrics"] = f"loss {row.loss:.4f}" + (
            "" if row.accuracy is None else f"; balanced accuracy of {row.accuracy_of} {percent(row.accuracy)} %"
        )
    if row.saved_step is not None:
        age = "" if row.saved_age_s is None else f", {duration(row.saved_age_s)} ago"
        facts["checkpoint"] = f"step {row.saved_step}{age}"
    if row.staging is not None and row.state == "running":
        facts["staging"] = row.staging
    if row.job_id:
        facts["job"] = row.job_id + (f" on {row.nodes}" if row.nodes else "")
    return facts


def _attempts(stories: Sequence[Story], account: Account) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("", "began", "lasted", "ranks", "steps", "saved", "in vain"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("nodes", overflow="fold", min_width=5)
    made.add_column("ended", overflow="fold", min_width=_ENDED_WIDTH)
    for story in stories:
        own = account.attempts.get(story.attempt)
        words = story.cause if story.words in ("", story.cause, "at work") else f"{story.cause}: {story.words}"
        made.add_row(
            str(story.attempt),
            clock(story.began),
            duration(story.ended - story.began),
            str(story.world_size),
            f"{story.resumed_at}-{story.last_step}",
            str(story.saved_step),
            str(own.repeated_steps) if own else "-",
            Text(story.nodes),
            Text(_short(words)),
        )
    return made


def _spent(account: Account) -> Table:
    """Where the time went: a row per attempt, with the wait before it, and one for all of them."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    short = {part: name for part, name in _SHORT.items() if part != "measuring" or account.run.seconds[part]}
    for name in ("", *short.values(), "all", "good"):
        made.add_column(name, justify="right", no_wrap=True)
    rows = {str(number): one for number, one in account.attempts.items()} | {"all": account.run}
    for name, one in rows.items():
        made.add_row(name, *(_time(one.seconds[part]) for part in short), _time(one.total_s), _share(one))
    made.add_row("%", *(f"{100 * account.run.share(part):.1f}" for part in short), "100")
    return made


_SHORT = {
    "training": "train", "repeated": "again", "measuring": "meas.", "startup": "start", "evaluation": "eval",
    "saving": "save", "queue": "queue", "unsubmitted": "away", "other": "other",
}  # fmt: skip
"""Column by part of the goodput; that of measuring is shown where there was any."""
_LEGEND = "where the time went (again: trained in vain; away: not submitted; a wait is that of the attempt after it)"


def _share(goodput: Goodput) -> str:
    return f"{100 * goodput.share('training'):.0f} %"


def _time(seconds: float) -> str:
    return "-" if not seconds else f"{seconds:.1f} s" if seconds < 100 else duration(seconds)


def clock(when: float) -> str:
    """Return a time of day; with month and day if it is not today's."""
    moment, today = datetime.fromtimestamp(when).astimezone(), datetime.fromtimestamp(time.time()).astimezone()
    return moment.strftime("%H:%M:%S" if moment.date() == today.date() else "%m-%d %H:%M:%S")


def percent(share: float | None) -> str:
    """Return a share as a number of percent, or '-'."""
    return "-" if share is None else f"{100 * share:.1f}"


def _of_all(done: int | None, total: int | None) -> str:
    if done is None:
        return "-" if total is None else f"-/{total}"
    return str(done) if total is None else f"{done}/{total}"


def _speed(row: Overview) -> str:
    return "-" if row.images_per_s is None or row.state != "running" else f"{row.images_per_s:.0f}"


def _saved(row: Overview) -> str:
    if row.saved_step is None:
        return "-"
    return f"{row.saved_step}" + ("" if row.saved_age_s is None else f", {duration(row.saved_age_s)} ago")
