"""Carries out a plan: waits for each fault's moment, strikes, brings the run back, notes what came of it. Torch-free.

Faults follow each other on one run until that is finished, then on a new one; a fault whose run was finished before it
could strike is for the next.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hrdc_hpc.cluster.ends import read_ends
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.history import history
from hrdc_hpc.cluster.signals import SAVE_FILE
from hrdc_hpc.drill.kinds import KINDS, Kind
from hrdc_hpc.drill.observe import Attempt, Trace, newest_step, repeated, set_aside
from hrdc_hpc.drill.plan import Fault
from hrdc_hpc.drill.sites import DrillError, Site, wait
from hrdc_hpc.engine.checkpoint_files import list_checkpoints
from hrdc_hpc.record.folder import RunFolder

_LATER_S = {"train": 0.1, "save": 0.03, "evaluate": 0.1}
"""A fault comes so much later than its moment, at most."""
_ENDED_S = 300.0
_NO_PROGRESS_S = 600.0
_SEEN_S = 60.0
_SAVED_AFTER = 25
"""Steps after which a save is there once the ranks have seen the file; they agree within 10."""
_FAULTS = "HRDC_FAULTS"
"""What engine/faults.py reads."""
_LOST_RUNS = 3
"""So many lost runs end the drill."""
_FAST_S, _SLOW_S = 0.004, 0.5
"""Between two looks at the metrics, and at the job."""


@dataclass
class Struck:
    """A fault that was made, and what came of it."""

    fault: Fault
    run: str
    time: float
    """Unix seconds."""
    attempt: int | None
    """Number of the attempt that was hit, or that had run last; None if none had begun."""
    step: int
    """Where the run stood."""
    phases: list[str]
    """Open phases, the innermost last."""
    hit: str = ""
    outcome: str = ""
    repeated: int = 0
    """Steps that had to be made once more."""
    wrong: str | None = None
    """What should not have been."""


@dataclass
class Drilled:
    """A run that was drilled."""

    run: Path
    attempts: int = 0
    steps: int = 0
    repeated: int = 0
    """By the metrics."""
    lost: str | None = None
    """Why it did not end, if so."""


class Drill:
    """A plan under way."""

    def __init__(
        self, site: Site, out: Path, *, startup_s: float, every_steps: int, world_size: int, say: Callable[[str], None]
    ) -> None:
        """`startup_s`: from a launch to the first step, as measured; `every_steps`: between two checkpoints."""
        self.site, self.out, self.say = site, out, say
        self.startup_s, self.every_steps, self.world_size = startup_s, every_steps, world_size
        self.struck: list[Struck] = []
        self.runs: list[Drilled] = []
        self.unasked: list[str] = []
        """Ends of attempts that no fault explains."""
        self._since = time.monotonic()

    def carry_out(self, plan: Iterable[Fault]) -> None:
        """Make every fault, each run to its end."""
        faults = list(plan)
        self._all = len(faults)
        left = deque(fault for fault in faults if not KINDS[fault.kind].opens)
        openings = deque(fault for fault in faults if KINDS[fault.kind].opens)
        while (left or openings) and sum(run.lost is not None for run in self.runs) < _LOST_RUNS:
            drilled = Drilled(self.out / f"drill-{len(self.runs) + 1}")
            self.runs.append(drilled)
            try:
                _OnRun(self, drilled.run, left).to_the_end(openings.popleft() if openings else None)
            except DrillError as error:
                drilled.lost = str(error)
                self.say(f"{drilled.run.name} is lost: {error}")
            finally:
                trace = Trace(drilled.run)
                trace.look()
                drilled.attempts, drilled.repeated = len(trace.attempts), repeated(trace.attempts)
                drilled.steps = trace.reached()
                if RunFolder(drilled.run).state() != "finished":
                    self.site.end(drilled.run)

    def note(self, struck: Struck) -> None:
        """Keep what a fault came to, and say it."""
        self.struck.append(struck)
        minutes, seconds = divmod(int(time.monotonic() - self._since), 60)
        where = f"{'+'.join(struck.phases) or 'between attempts'}, step {struck.step} of {struck.run}"
        self.say(
            f"[{len(self.struck)}/{self._all} {minutes}:{seconds:02}] {struck.fault.kind} ({struck.hit}; {where}):"
            f" {struck.wrong or struck.outcome}; {struck.repeated} steps repeated"
        )


class _OnRun:
    """The faults of one run."""

    def __init__(self, drill: Drill, run: Path, left: deque[Fault]) -> None:
        self.drill, self.site, self.run, self.left = drill, drill.site, run, left
        self.folder = RunFolder(run)
        self.trace = Trace(run)
        self.stands = 0
        """Step from which the run goes on, or went on the last time it was down."""
        self.over = -1
        """Number of the last attempt that is known to have ended."""
        self.seen: tuple[int, int, Counter[str]] = (-1, 0, Counter())
        """Attempt, steps and phases begun at the last fault: moments are counted from there."""
        self.heard: int | None = None
        """Step at which the file that asks for a save was seen to be gone."""
        self.unchecked: list[Callable[[Attempt | None], None]] = []
        """What is to be seen of faults once the next attempt is under way."""

    def to_the_end(self, opening: Fault | None) -> None:
        """Launch, with the fault of the first attempt; strike as long as there are faults; see it finished."""
        self._open(opening)
        self.began = time.monotonic()
        while self._alive():
            if not self.left:
                wait(lambda: not self._alive(), _NO_PROGRESS_S, f"{self.run}: its end", _SLOW_S)
            elif KINDS[self.left[0].kind].down:
                self._put_off()
            elif self._moment(self.left[0]):
                self._strike(self.left.popleft())
        self._check(self.trace.look())

    def _open(self, fault: Fault | None) -> None:
        if fault is None:
            self.site.begin(self.run)
            return
        struck = self._entry(fault)
        told = f"nan@{fault.steps}:rank={fault.rank(self.drill.world_size)}#once"
        with self.site.telling(_FAULTS, told):
            self.site.begin(self.run)
        struck.hit = told

        def replayed() -> bool:
            now = self.trace.look()
            return now is not None and "transient" in now.replayed

        wait(lambda: replayed() or self.folder.state() == "finished", _ENDED_S, f"{self.run}: the replay of {told}")
        struck.outcome = "done again, and finite"
        struck.wrong = None if replayed() else "it was not noticed"
        self.drill.note(struck)

    # waiting

    def _alive(self) -> bool:
        """Whether the run goes on; brings back one that ended without a fault, and writes that down."""
        if self.folder.state() == "finished":
            wait(lambda: self.site.ended(self.run), _ENDED_S, f"{self.run}: the end of its job")
            return False
        if not self.site.ended(self.run):
            return True
        if self.folder.state() == "finished":
            return False
        why = next((f"{story.cause}: {story.words}" for story in reversed(history(self.run))), "it never began")
        self.drill.unasked.append(f"{self.run.name}: {why}")
        if len(self.drill.unasked) >= _LOST_RUNS:
            raise DrillError(f"{self.run} ended again and again without a fault: {why}")
        self._account()
        self._back(again=True)
        return True

    def _moment(self, fault: Fault) -> bool:
        """Wait for a fault's moment; False if the attempt ended before it came."""
        if fault.phase == "startup":
            time.sleep(max(0.0, self.began + fault.share * self.drill.startup_s - time.monotonic()))
            return not self.site.ended(self.run)
        deadline, next_look = time.monotonic() + _NO_PROGRESS_S, 0.0
        while not self._come(fault):
            if time.monotonic() > next_look:
                if self.folder.state() == "finished" or self.site.ended(self.run):
                    return False
                next_look = time.monotonic() + _SLOW_S
            if time.monotonic() > deadline:
                raise DrillError(f"{self.run}: {fault.phase} did not come within {_NO_PROGRESS_S:.0f} s")
            time.sleep(_FAST_S)
        time.sleep(fault.share * _LATER_S[fault.phase])
        return True

    def _come(self, fault: Fault) -> bool:
        attempt = self.trace.look()
        if attempt is None or attempt.number <= self.over or attempt.first is None:
            return False
        if self.unchecked:
            self._check(attempt)
        steps, begun = self.seen[1:] if self.seen[0] == attempt.number else (0, Counter[str]())
        if fault.phase == "train":
            return attempt.steps - steps >= fault.steps
        return attempt.begun[fault.phase] - begun[fault.phase] > fault.steps

    # striking

    def _strike(self, fault: Fault) -> None:
        kind, struck = KINDS[fault.kind], self._entry(fault)
        try:
            self.heard = None
            struck.hit = self.site.strike(fault, self.run)
            late = not (self._wait_for_end(struck) if kind.ends else self._wait_for_effect(kind, struck))
        except DrillError as error:
            struck.wrong, late = str(error), False
        if late:  # it was finished all the same: one for the next run
            self.left.appendleft(fault)
            return
        attempt = self.trace.look()
        self.seen = (attempt.number, attempt.steps, attempt.begun.copy()) if attempt else self.seen
        if not kind.ends:
            self.drill.note(struck)
            return
        struck.repeated = self._account()
        struck.outcome = self._cause(struck)
        self._expect(kind, struck)
        self.drill.note(struck)
        while self.left and KINDS[self.left[0].kind].down and self._strike_down(self.left[0]):
            self.left.popleft()
        struck.wrong = self._back(again=kind.again) or struck.wrong

    def _entry(self, fault: Fault) -> Struck:
        attempt = self.trace.look()
        new = attempt is not None and attempt.number > self.over
        step = (
            max(attempt.first or 0, attempt.last or 0) if new and attempt and attempt.first is not None else self.stands
        )
        phases = attempt.phases if new and attempt else ["launch"]
        return Struck(fault, self.run.name, time.time(), attempt.number if attempt else None, step, phases)

    def _wait_for_end(self, struck: Struck) -> bool:
        """Wait until the attempt is over; False if the run was finished before it could be disturbed."""
        wait(lambda: self.site.ended(self.run), _ENDED_S, f"{self.run}: an end after {struck.fault.kind}")
        return self.folder.state() != "finished"

    def _wait_for_effect(self, kind: Kind, struck: Struck) -> bool:
        """See that a fault that ends nothing has its effect and the attempt goes on; False if the run was finished."""
        attempt, step = struck.attempt, struck.step

        def onward() -> bool:
            now = self.trace.look()
            return now is not None and now.number == attempt and (now.last or 0) > step

        def effect() -> bool:
            done = self._saved_on_demand(step) if kind.must == "save" else onward()
            return done or self.folder.state() == "finished"

        wait(effect, _SEEN_S, f"{self.run}: {struck.fault.kind} has no effect, or the attempt does not go on")
        struck.outcome = {"be refused": "refused; it went on", "save": "saved; it went on"}.get(kind.must, "it went on")
        if kind.must == "save" and not self._saved_on_demand(step):  # finished meanwhile
            (self.run / SAVE_FILE).unlink(missing_ok=True)
            return False
        return True

    def _saved_on_demand(self, step: int) -> bool:
        """Whether a checkpoint was committed that was not due; asks again where it fell on a step that was."""
        now = self.trace.look()
        if any(saved > step and saved % self.drill.every_steps for saved in (now.saved if now else ())):
            return True
        if now is None or (self.run / SAVE_FILE).exists():
            return False
        self.heard = (now.last or 0) if self.heard is None else self.heard
        if (now.last or 0) > self.heard + _SAVED_AFTER:
            (self.run / SAVE_FILE).touch()
            self.heard = None
        return False

    def _strike_down(self, fault: Fault) -> bool:
        """Make a fault while nothing runs; False if there is nothing to hit yet."""
        kind, aside = KINDS[fault.kind], set_aside(self.folder)
        # without a whole one beside it the run would rightly refuse to begin from nothing
        if kind.must == "set aside" and (self.unchecked or len(list_checkpoints(self.folder.checkpoints)) < 2):
            return False
        if not self.trace.attempts:
            return False
        struck = self._entry(fault)
        struck.phases = []
        struck.hit = self.site.strike(fault, self.run)
        struck.repeated = self._account()
        struck.outcome = "done"
        self.drill.note(struck)

        def check(attempt: Attempt | None) -> None:  # noqa: ARG001 - others look at it
            struck.outcome = (
                "set aside, the one before was taken" if kind.must == "set aside" else "the line was skipped"
            )
            if kind.must == "set aside" and set_aside(self.folder) <= aside:
                struck.wrong = "the damaged checkpoint was not set aside"

        self.unchecked.append(check)
        return True

    def _put_off(self) -> None:
        """Move a fault for a run that is down behind the next one that ends an attempt, if need be a new one."""
        fault = self.left.popleft()
        place = next((place for place, other in enumerate(self.left) if KINDS[other.kind].ends), None)
        if place is None:
            self.left.append(replace(fault, kind="kill-all", phase="train", steps=15))
            place = len(self.left) - 1
        self.left.insert(place + 1, fault)

    # what came of it

    def _account(self) -> int:
        """Steps that are to be made again, now that the run is down."""
        attempt, newest = self.trace.look(), newest_step(self.folder)
        if attempt is not None and attempt.number > self.over:
            self.over = attempt.number
            if attempt.first is not None:
                self.stands = max(attempt.first, attempt.last or 0)
        lost, self.stands = max(0, self.stands - newest), newest
        return lost

    def _cause(self, struck: Struck) -> str:
        """Why the attempt that was hit ended, by the run's own story."""
        stories = [story for story in history(self.run) if story.attempt == self.over]
        hit_before = "launch" in struck.phases and struck.attempt == self.over
        if not stories or (hit_before and struck.attempt is not None):
            return "ended before it began"
        return "killed" if stories[0].cause == "running" else stories[0].cause

    def _expect(self, kind: Kind, struck: Struck) -> None:
        if kind.must == "lose nothing" and struck.repeated:
            struck.wrong = f"{struck.repeated} steps were lost, though it was told to stop"
        if kind.must == "be hung":
            ends = read_ends(self.run, self.site.job(self.run))
            if not any(end["code"] == Exit.HUNG and end["time"] >= struck.time for end in ends):
                struck.wrong = f"no watchdog left: {struck.outcome}"

    def _back(self, *, again: bool) -> str | None:
        complaint = self.site.back(self.run, again)
        self.began = time.monotonic()
        return complaint

    def _check(self, attempt: Attempt | None) -> None:
        for check in self.unchecked:
            check(attempt)
        self.unchecked.clear()
