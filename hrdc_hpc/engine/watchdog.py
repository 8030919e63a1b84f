"""Ends a rank that gets nowhere, with the stacks of all its threads and a word on whom it was waiting for. Torch-free.

The main thread says what it begins (`at`), which costs a store to memory; a thread looks on. A collective that waits
for a missing peer releases the interpreter, so that thread runs. For a main thread that is stuck and does not release
it there is a second line, faulthandler's timer in C: it prints the stacks and leaves with code 1, late, because it
counts the time for which the whole job was suspended as well. Peers of such a rank see it stand still and act before.

A rank that is stopped (SIGSTOP, a swapped-out node) cannot watch itself: its peers leave, and srun --kill-on-bad-exit,
or the local controller, ends it. Time for which this process did not run is not held against it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from hrdc_hpc.config.schema import Guard
from hrdc_hpc.engine.deadline import StepTimes
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.health import NOWHERE, Home, note

if TYPE_CHECKING:
    from hrdc_hpc.engine.peers import Sign

log = logging.getLogger(__name__)

FAILED, HUNG = 1, 70
"""Exit codes, as cluster/exit_codes.py has them."""
_FAREWELL_S = 30.0
"""For all that is asked and written before a rank leaves: the disk may be what hangs."""
_STORE_S = 4.0
"""For an answer of the store, which lives in rank 0 and may be stopped with it."""
_SUSPENDED_S = 10.0
"""A gap between two looks that is no delay of a busy machine any more."""
_OWN_WORDS_S = 3.0
"""A rank whose peer failed may find out by itself meanwhile, and end in order."""

T = TypeVar("T")

SAVE, TRACE, GOING_BACK = SLOW = ("save", "trace", "going back")
"""What rank 0 may take long for while its peers go on, several steps where the device lags behind the host."""

OnLeave = Callable[[int, str], None]
"""Told exit code and why, before a rank leaves without unwinding."""


class Company(Protocol):
    """What the watchdog asks of peers.Peers."""

    def behind(self) -> dict[int, str] | None: ...
    def first(self) -> Sign | None: ...
    def speak_for_all(self) -> bool: ...
    def said(self) -> None: ...
    def wait_for_speaker(self, seconds: float) -> None: ...


class Watchdog:
    """Watches the main thread of one rank, for the length of a `with` block."""

    def __init__(self, guard: Guard, place: Place, folder: RunFolder, on_leave: OnLeave | None = None) -> None:
        """Watch nothing yet. `on_leave` is called last, before the process ends."""
        self.times = StepTimes()
        """Of the steps, without evaluations and saves."""
        self._guard = guard
        self._place = place
        self._folder = folder
        self._on_leave = on_leave
        self._farewells: list[Callable[[str], None]] = []
        self._company: Company | None = None
        self._homes: list[Home] = []
        self._now = (0, "starting", 0, guard.watchdog_start_s)
        self._idle_s = 0.0
        """For how long the main thread has been at the same thing, as the last look found."""
        self._seen = -1
        """The count of that thing."""
        self._begun: float | None = None
        self._first_s: float | None = None
        self._suspended_s = 0.0
        """For how long this process did not run since the main thread began something."""
        self._over = threading.Event()
        self._leaving = threading.Lock()

    def __enter__(self) -> Watchdog:
        if self._guard.watchdog:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._leaving.locked():  # this thread found out meanwhile: the other one has the last word
            threading.Event().wait(2 * _FAREWELL_S)
        self._over.set()

    # what the main thread says

    @property
    def beat_s(self) -> float:
        """Seconds between two signs of life, for peers to tell in time who is missing."""
        return min(5.0, max(0.2, self._guard.watchdog_min_s / 20))

    def where(self) -> tuple[int, str, int, float]:
        """How many things the main thread has begun, what it is at, steps done, and seconds it has been at that."""
        count, where, step, _ = self._now
        # what was begun since the last look has not lasted as long as what went before it
        return count, where, step, self._idle_s if count == self._seen else 0.0

    def at(self, where: str, step: int) -> None:
        """Something of the start begins, or a save: anything that may take long."""
        self._now = (self._now[0] + 1, where, step, self._guard.watchdog_start_s)

    def at_batch(self, step: int) -> None:
        """A batch of an evaluation begins."""
        self._now = (self._now[0] + 1, "evaluation", step, self.limit_s)

    def gathering(self, step: int) -> None:
        """Ranks tell rank 0 their part of the state; a peer that does not is missed as soon as in a step."""
        self._now = (self._now[0] + 1, "gathering for a save", step, self.limit_s)

    def step_begins(self, step: int) -> None:
        """The 0-based step begins: its data are waited for."""
        self._begun = time.monotonic()
        self._now = (self._now[0] + 1, "data", step, self.limit_s)

    def data_there(self, step: int) -> None:
        """Its batches are there."""
        self._now = (self._now[0] + 1, "step", step, self.limit_s)

    def step_ended(self, done: int, *, count: bool = True) -> None:
        """So many steps are done; `count` False: the last one was the first, which may take longer than others."""
        if self._begun is not None:
            seconds = time.monotonic() - self._begun
            if count:
                self.times.add(seconds)
            else:
                self._first_s = seconds
        self._begun = None
        self._now = (self._now[0] + 1, "between steps", done, self.limit_s)

    @property
    def limit_s(self) -> float:
        """How long a step may take, as far as is known."""
        longest_s = self.times.longest or self._first_s
        if longest_s is None:
            return self._guard.watchdog_start_s
        return max(self._guard.watchdog_min_s, self._guard.watchdog_factor * longest_s)

    # who is told, and who can be asked

    def before_leaving(self, farewell: Callable[[str], None]) -> None:
        """Have `farewell` called with the reason before the rank leaves."""
        self._farewells.append(farewell)

    def among(self, company: Company, homes: list[Home]) -> None:
        """Ask `company` who is missing; `homes` of all ranks, to name their nodes."""
        self._company, self._homes = company, homes

    # watching

    def _watch(self) -> None:
        tick_s = min(1.0, self._guard.watchdog_min_s / 10)
        before = time.monotonic()
        while not self._over.wait(tick_s):
            now = time.monotonic()
            gap_s, before = now - before, now
            # this process may have been suspended with all its peers: that time is nobody's fault
            self._idle_s += min(gap_s, 2 * tick_s)
            count, where, step, limit_s = self._now
            if count != self._seen:
                self._idle_s, self._suspended_s, self._seen = 0.0, 0.0, count
            self._suspended_s += gap_s if gap_s > _SUSPENDED_S else 0.0
            faulthandler.dump_traceback_later(self._guard.watchdog_start_s + 60, exit=True, file=2)
            if self._idle_s > limit_s:
                idle_s = self._idle_s
                if not self._bear_with_rank_0(idle_s, limit_s) and self._now[0] == count:
                    self.hung(
                        f"nothing was done for {idle_s:.0f} s (limit {limit_s:.0f} s) in '{where}' after {step} steps"
                    )
                # while it asked it was not suspended: it waited
                self._idle_s, before = idle_s + (time.monotonic() - now), time.monotonic()
        faulthandler.cancel_dump_traceback_later()  # here, or this thread might set it once more

    def _bear_with_rank_0(self, idle_s: float, limit_s: float) -> bool:
        """Whether this rank waits for rank 0, which lives and is at something that may take long, or just was.

        What it began less than the limit ago is its own watchdog's affair: it may come straight from a slow save.
        """
        if self._place.rank == 0 or self._company is None or idle_s > self._guard.watchdog_start_s:
            return False
        first = _answer(self._company.first, silent_s(self.beat_s) + 2 * _STORE_S)
        return first is not None and (first.where in SLOW or first.for_s < limit_s)

    @contextmanager
    def heeding_time_outs(self) -> Iterator[None]:
        """Leave as hung where a collective gave up: no other may be begun, and nothing unwound further up."""
        try:
            yield
        except RuntimeError as error:
            if self._guard.watchdog and timed_out(error):
                self.hung(f"gave up waiting for a peer: {error}")
            raise

    def hung(self, why: str) -> NoReturn:
        """Leave as hung: dump the stacks, say who did not arrive, end the process without unwinding."""
        self._leave(HUNG, f"rank {self._place.rank}: {why}", self._say_hung)

    def peer_failed(self, why: str) -> None:
        """Leave, for a peer has failed, unless the main thread finds out by itself."""
        if not self._over.wait(_OWN_WORDS_S):
            self._leave(FAILED, why, self._say)

    def _leave(self, code: int, why: str, say: Callable[[str], None]) -> NoReturn:
        with self._leaving:  # never given back: whoever comes second waits for the end

            def farewell() -> None:
                log.error("%s; leaving with code %d", why, code)  # the log may lie on the disk that hangs
                say(why)
                if self._on_leave:
                    self._on_leave(code, why)

            words = threading.Thread(target=farewell, name="farewell", daemon=True)
            words.start()
            words.join(_FAREWELL_S)
            os._exit(code)

    def _say(self, why: str) -> None:
        for farewell in self._farewells:
            farewell(why)

    def _say_hung(self, why: str) -> None:
        faulthandler.dump_traceback(file=2, all_threads=True)
        path = self.stacks
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(f"{why}\n")
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
            log.error("stacks of all threads are in %s", path)
        except OSError as error:
            log.error("could not write the stacks to %s: %s; they are above", path, error)
        self._say(why)
        if self._company is None:
            self._note(why, NOWHERE)
            return
        speaks = _answer(self._company.speak_for_all, _STORE_S)
        if speaks is False:
            self._company.wait_for_speaker(0.8 * _FAREWELL_S)
            return
        self._name_the_missing(self._company, why, store_answers=speaks is True)
        _answer(self._company.said, _STORE_S)
        sys.stderr.flush()
        if self._place.rank == 0:  # the store lives here, and peers may be asking it whether rank 0 is well
            time.sleep(3 * self.beat_s)

    def _name_the_missing(self, company: Company, why: str, *, store_answers: bool) -> None:
        if self._suspended_s:
            self._note(f"this job was suspended for {self._suspended_s:.0f} s, which no node is to blame for", NOWHERE)
            return
        late = _answer(company.behind, 2.5 * self.beat_s + 2 * _STORE_S) if store_answers else None
        if late is None:
            late = {0: "its store does not answer"}
        for rank, what in late.items():
            words = f"rank {rank} on {self._homes[rank]} did not arrive: {what}"
            log.error("%s", words)
            self._note(f"{words}; {why}", self._homes[rank])
        if not late:
            self._note(f"all ranks stand at the same place; {why}", NOWHERE)

    def _note(self, what: str, home: Home) -> None:
        note(self._folder, self._place.job, "hung", what, home)

    @property
    def stacks(self) -> Path:
        """Where the stacks are dumped."""
        job = self._place.job
        name = f"stacks-{job.get('job_id', 0)}-{job.get('restart_count', 0)}-r{self._place.rank}.txt"
        return self._folder.logs / name


def silent_s(every_s: float) -> float:
    """For how long a rank that beats every `every_s` seconds must be silent before it is taken for stopped.

    A machine with more work than cores may keep a thread waiting for a second.
    """
    return max(2.5 * every_s, 2.0)


def _answer(ask: Callable[[], T], seconds: float) -> T | None:
    """Ask something that may never answer: the store lives in rank 0, which may be stopped."""
    answers: list[T] = []
    asking = threading.Thread(target=lambda: answers.append(ask()), name="asking", daemon=True)
    asking.start()
    asking.join(seconds)
    return answers[0] if answers else None


def timed_out(error: BaseException) -> bool:
    """Whether a collective gave up waiting for a peer; no other may be begun after that."""
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("Timed out waiting", "timed out after")
    )
