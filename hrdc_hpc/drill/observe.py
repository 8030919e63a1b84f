"""What a run's own files say while it is drilled: where it is, what it did again. Torch-free."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hrdc_hpc.engine.checkpoint_files import list_checkpoints, problem, step_of
from hrdc_hpc.record.files import json_lines
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import attempt_files


@dataclass
class Attempt:
    """One attempt, as far as its metrics file goes."""

    number: int
    first: int | None = None
    """The step it resumed at, 0 for a run from its beginning; None while it starts up."""
    last: int | None = None
    """The furthest step it wrote down."""
    again: int = 0
    """Steps that it wrote down a second time itself, after it had gone back."""
    begun: Counter[str] = field(default_factory=Counter)
    """How often each phase was begun."""
    over: Counter[str] = field(default_factory=Counter)
    """How often each phase was ended."""
    saved: list[int] = field(default_factory=list)
    """Steps whose checkpoints it committed."""
    replayed: list[str] = field(default_factory=list)
    """Outcomes of steps that were not finite."""

    @property
    def phases(self) -> list[str]:
        """Phases that are open, the innermost last."""
        return [name for name in ("startup", "train", "save", "evaluate") if self.begun[name] > self.over[name]]

    @property
    def steps(self) -> int:
        """Steps made by this attempt."""
        return 0 if self.first is None or self.last is None else self.last - self.first

    def note(self, record: dict[str, Any]) -> None:
        """Take in one record."""
        kind = record.get("kind")
        if kind == "phase":
            (self.begun if record["event"] == "begin" else self.over)[record["name"]] += 1
            if (record["name"], record["event"]) == ("startup", "end"):
                self.first = record["step"]
        elif kind == "train":
            self.again += self.last is not None and record["step"] <= self.last
            self.last = max(self.last or 0, record["step"])
        elif kind == "checkpoint":
            self.saved.append(record["step"])
        elif kind == "nonfinite":
            self.replayed.append(str(record.get("outcome")))


class Trace:
    """Reads the metrics files of a run as they grow."""

    def __init__(self, run: Path) -> None:
        self.folder = RunFolder(run)
        self.attempts: list[Attempt] = []
        self._read = 0

    def look(self) -> Attempt | None:
        """Read what is new; the newest attempt, None if there is none yet."""
        files = attempt_files(self.folder)
        for number, path in files.items():
            if self.attempts and number < self.attempts[-1].number:
                continue
            if not self.attempts or number > self.attempts[-1].number:
                self.attempts.append(Attempt(number))
                self._read = 0
            self._grow(path)
        return self.attempts[-1] if self.attempts else None

    def reached(self) -> int:
        """Return the last step that was made by the newest attempt that made any; 0 if none did."""
        for attempt in reversed(self.attempts):
            if attempt.first is not None:
                return max(attempt.first, attempt.last or 0)
        return 0

    def _grow(self, path: Path) -> None:
        if path.stat().st_size == self._read:
            return
        with path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        self._read += whole
        for record in json_lines(content[:whole]):
            self.attempts[-1].note(record)


def repeated(attempts: list[Attempt]) -> int:
    """Return how many steps were made more than once: what each attempt had made beyond where the next one began."""
    total, stands = sum(attempt.again for attempt in attempts), 0
    for attempt in attempts:
        if attempt.first is None:
            continue
        total += max(0, stands - attempt.first)
        stands = max(attempt.first, attempt.last or 0)
    return total


def newest_step(folder: RunFolder) -> int:
    """Return the step of the newest checkpoint that is whole, 0 if there is none."""
    for path in reversed(list_checkpoints(folder.checkpoints)):
        if problem(path) is None:
            return step_of(path) or 0
    return 0


def set_aside(folder: RunFolder) -> int:
    """Return how many damaged checkpoints were set aside so far."""
    return sum(1 for _ in folder.checkpoints.glob("damaged-*"))
