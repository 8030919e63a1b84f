"""What to do about steps that were skipped because their gradients were not finite: do them again, once.

A skipped step changes nothing, so a run could simply go on, but it would have learnt something else than the
undisturbed run, and would never know whether its data, its learning rate or a node was to blame. So:

1. where the host waits for the device anyway (log steps, evaluations, saves) it looks whether steps were skipped;
2. if so, all ranks go back to the newest checkpoint, or to the initial weights, and do the steps since then again,
   looking after each;
3. if none is skipped now, the fault has passed: what follows is what the undisturbed run does. The rank whose loss or
   gradient was not finite is named, and its node is suspect;
4. if it comes again, those steps stay skipped. That is recorded, and allowed `guard.nonfinite_windows` times.

No checkpoint is written between a skipped step and the verdict on it, so that the newest one always lies before it.
Verdicts are those of the rank that skipped most: a rank whose own arithmetic fails must not go another way than its
peers, who would wait for it in a collective.

A loss scaler (fp16) is looking for its scale by steps that overflow. While the scale can still be halved (it is at
least 1) and all losses are finite, it explains them, and nothing is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hrdc_hpc.engine.journal import Journal
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.step import TrainStep
from hrdc_hpc.record.health import Home

log = logging.getLogger(__name__)

_HOPELESS = 50
"""Steps skipped in a row; fp16 needs some to find its loss scale, at most about 20."""

_TRY = "lower optim.lr, lengthen optim.warmup_epochs, set optim.clip_norm, or set compute.precision to bf16 or fp32"


@dataclass
class _Replay:
    """Steps that are done again."""

    until: int
    suspects: list[int]
    """Ranks whose own loss or gradients were not finite."""
    skipped: list[int] = field(default_factory=list)


class NonFinite:
    """Looks at what was skipped, and decides; the same on all ranks."""

    def __init__(
        self, step: TrainStep, processes: Processes, journal: Journal, homes: list[Home],
        suspect: Callable[[str, Home], None], *, limit: int,
    ) -> None:  # fmt: skip
        """`suspect` is told, on rank 0, of a fault that passed and of the node that it was seen on."""
        self.windows: list[list[int]] = []
        """First and last step (counted from 1) of what stays skipped; part of the checkpoint."""
        self._step = step
        self._processes = processes
        self._journal = journal
        self._homes = homes
        self._suspect = suspect
        self._limit = limit
        self._seen = self._count = self._in_a_row = 0
        self._replay: _Replay | None = None

    @property
    def replaying(self) -> bool:
        """Whether steps are being done again: then the host looks after each."""
        return self._replay is not None

    @property
    def undecided(self) -> bool:
        """Whether a step that is being done again was skipped again, and there is no verdict yet."""
        return bool(self._replay and self._replay.skipped)

    def restored(self) -> None:
        """Take what the restored state has skipped as seen."""
        self._read()
        self._seen = self._count
        self._step.taint.zero_()

    def unsettled(self) -> bool:
        """Whether steps were skipped since the last look, or are being done again without a verdict yet.

        Asked by all ranks; waits for the device.
        """
        self._read()
        return self._count > self._seen or self.undecided

    def _read(self) -> None:
        """Take the largest counts of all ranks."""
        own = torch.stack([self._step.nonfinite, self._step.nonfinite_in_a_row]).cpu()
        self._count, self._in_a_row = map(int, self._processes.largest(own).tolist())

    def look(self, done: int) -> bool:
        """Whether to go back and do steps again; waits for the device. ValueError if that has come too often."""
        self._read()
        grown, self._seen = self._count - self._seen, self._count
        if self._replay:
            if grown:
                self._replay.skipped.append(done)
            if done >= self._replay.until:
                self._judge(self._replay, done)
                self._replay = None
            self._step.taint.zero_()
            return False
        if not grown:
            return False
        suspects = self._suspects()
        self._step.taint.zero_()
        if self._explained(suspects) or self._goes_on(done):
            return False
        if len(self.windows) >= self._limit:
            raise ValueError(
                f"step {done}: {grown} steps were skipped because their gradients were not finite, and that had come"
                f" {len(self.windows)} times before (steps {self._named()}), each time again when the steps were"
                f" repeated; guard.nonfinite_windows allows {self._limit}. It would come again: {_TRY}"
            )
        ranks = [rank for rank, _ in suspects]
        log.warning("step %d: %d steps were not finite%s; they are done again", done, grown, self._whom(ranks))
        self._write(done, "replaying", [], ranks)
        self._replay = _Replay(done, ranks)
        return True

    def refuse_to_diverge(self, done: int, rate: float) -> None:
        """Raise ValueError if too many steps in a row were skipped, by the last look; `rate`: for the message."""
        in_a_row = self._in_a_row
        if in_a_row == 0:
            return
        log.warning("step %d: gradients are not finite; the last %d steps were skipped", done, in_a_row)
        if in_a_row >= _HOPELESS:
            raise ValueError(
                f"step {done}: the last {in_a_row} steps were skipped because their gradients were not finite"
                f" (learning rate {rate:g}). The run has diverged and would do so again: {_TRY}"
            )

    def _suspects(self) -> list[tuple[int, bool]]:
        """Ranks whose own loss or gradients were not finite since the last look, and whether the loss was among it."""
        own = self._step.taint.cpu()
        told: list[tuple[bool, bool]] = self._processes.everybody((bool(own[0] != 0), bool(torch.isnan(own[1]))))
        return [(rank, loss) for rank, (loss, gradient) in enumerate(told) if loss or gradient]

    def _explained(self, suspects: list[tuple[int, bool]]) -> bool:
        """Whether the loss scaler is still looking for its scale."""
        scaler = self._step.scaler
        return scaler is not None and scaler.get_scale() >= 1 and not any(loss for _, loss in suspects)

    def _goes_on(self, done: int) -> bool:
        """Whether all steps since the last window were skipped as well: the same fault, which was tried again."""
        if not self.windows or self._in_a_row < done - self.windows[-1][1]:
            return False
        self._write(done, "skipped", list(range(self.windows[-1][1] + 1, done + 1)), [])
        self.windows[-1][1] = done
        return True

    def _judge(self, replay: _Replay, done: int) -> None:
        known = {step for first, last in self.windows for step in range(first, last + 1)}
        again = [step for step in replay.skipped if step not in known]
        if again:
            log.warning("steps %s were not finite again and stay skipped", ", ".join(map(str, again)))
            self.windows.append([again[0], again[-1]])
            self._write(done, "skipped", again, replay.suspects)
            return
        log.warning("step %d: done again, all steps were finite: the fault has passed%s", done,
                    self._whom(replay.suspects))  # fmt: skip
        self._write(done, "transient", [], replay.suspects)
        if self._processes.first:
            for home in sorted({self._homes[rank] for rank in replay.suspects}, key=str):
                self._suspect(f"a loss or gradient was not finite by step {done}, and was when done again", home)

    def _write(self, done: int, outcome: str, steps: list[int], ranks: list[int]) -> None:
        hosts = sorted({str(self._homes[rank]) for rank in ranks})
        self._journal.write("nonfinite", done, steps=steps, outcome=outcome, ranks=ranks, hosts=hosts)

    def _whom(self, ranks: list[int]) -> str:
        return f" (seen on {', '.join(f'rank {rank}, {self._homes[rank]}' for rank in ranks)})" if ranks else ""

    def _named(self) -> str:
        return ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in self.windows)
