"""The training loop: fetch, step, look, log, evaluate, save, stop."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict

import torch

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.batch import Batch
from hrdc_hpc.data.plan import samples_digest
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.announce import say_what_runs, use_per_image_s
from hrdc_hpc.engine.around import Around, Outcome
from hrdc_hpc.engine.checkpoint import better
from hrdc_hpc.engine.evaluation import Accuracy, Interrupted
from hrdc_hpc.engine.journal import Meter
from hrdc_hpc.engine.nonfinite import NonFinite
from hrdc_hpc.engine.parts import Parts, rehearse, scalars_at, step_draws
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.resume import Beginning, go_back, resume
from hrdc_hpc.engine.saving import Saving
from hrdc_hpc.engine.state import state_bytes
from hrdc_hpc.engine.step import EMA_WEIGHT, LR, POISON
from hrdc_hpc.engine.watchdog import GOING_BACK, SAVE, TRACE
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.health import Home, note
from hrdc_hpc.record.metrics import read_metrics

log = logging.getLogger(__name__)

_DO_AGAIN = "do steps again"
"""Why the loop is left, beside the reasons to stop."""


class Run:
    """One attempt at a run, on one rank."""

    def __init__(
        self, folder: RunFolder, config: RunConfig, parts: Parts, processes: Processes, around: Around
    ) -> None:  # fmt: skip
        self.folder = folder
        self.config = config
        self.parts = parts
        self.processes = processes
        self.journal, self.lease = around.journal, around.lease
        self.agreement, self.watchdog, self.faults = around.agreement, around.watchdog, around.faults
        self.around = around
        self.per_epoch = parts.steps_per_epoch
        self.last_step = self.per_epoch * config.optim.epochs
        self.step = 0
        """Optimizer steps done."""
        self._slow_since: int | None = 0
        """Questions that ranks had asked each other when something began for which rank 0 may need long; None: over."""
        self._owes_save = False
        """Whether somebody asked for a checkpoint that is not handed to the saver yet."""
        self.evaluated: Accuracy | None = None
        self.best: checkpoint.Best | None = None
        """The best evaluation up to this step, the same on every rank; only with data.holdout."""
        self.nonfinite = NonFinite(
            parts.step, processes, self.journal, around.homes, self._suspect, limit=config.guard.nonfinite_windows
        )
        self.meter = Meter(
            config.optim.global_batch, self.last_step, parts.step.clock,
            use_per_image_s=use_per_image_s(config, parts, processes),
        )  # fmt: skip
        self.saving = Saving(folder, config, parts, processes, around.journal, around.deadline)
        self._round_began: float | None = None

    def to_the_end(self) -> Outcome:
        """Start up, train, evaluate, save; return how it ended."""
        self._start()
        self.around.deadline.begin(state_bytes(self.parts.step))
        self.journal.phase("startup", "end", self.step)
        try:
            reason = self._finish_evaluation() or self._steps()
            outcome = self._leave(reason)
        finally:
            self.saving.close()
        self.journal.ended(outcome.reason)
        self.agreement.close()
        self.processes.barrier()
        return outcome

    # starting, and going back

    def _start(self) -> None:
        """Rehearse, then resume from the newest whole checkpoint. Raises Stopped."""
        if self.processes.first and self.parts.step.compiled:
            log.info("compiling the step: about a minute on a GPU, several on two CPU cores")
        self._rehearsing()
        rehearse(self.config, self.parts, self.processes, self._rehearsing)
        say_what_runs(self.parts, self.processes, self.journal, self.per_epoch, self.last_step)
        if self.lease:
            checkpoint.sweep(self.folder.checkpoints)
            self.saving.open(self.faults.slowly(self.lease.check))
        self.watchdog.at("resuming", 0)
        beginning = resume(self.folder, self.config, self.parts, self.processes)
        self._begin(beginning or Beginning())
        self.nonfinite.windows = [list(window) for window in beginning.windows] if beginning else []

    def _rehearsing(self) -> None:
        self.watchdog.at("rehearsal, compiling", 0)
        self.agreement.together()

    def _begin(self, beginning: Beginning) -> None:
        self.step = self.saving.step = beginning.step
        self._slow_since = self.agreement.questions
        self.best, self.evaluated = beginning.best, beginning.evaluated
        self.nonfinite.restored()

    def _go_back(self) -> None:
        """Restore the newest checkpoint, or the initial weights, because steps since then are done again."""
        self._takes_long(GOING_BACK)
        self.saving.wait()
        self._begin(go_back(self.folder, self.config, self.parts, self.processes))
        self.processes.barrier()  # any rank may read the checkpoint slowly: its peers wait here, not in the next step

    def _suspect(self, what: str, home: Home) -> None:
        note(self.folder, self.around.place.job, "nonfinite", what, home)

    def _finish_evaluation(self) -> str | None:
        """Make up for an evaluation that the attempt before was told to leave; its checkpoint must name a new best."""
        if not self._evaluation_due(self.step):
            return None
        known = self.best
        if self.evaluated:
            self._note_best(self.evaluated)
        elif reason := self._evaluate():
            return reason
        if self.best != known:
            self._save()
        return None

    # the loop

    def _steps(self) -> str | None:
        """Train to the last step; return why it stopped before, if so."""
        self.journal.phase("train", "begin", self.step)
        while (reason := self._steps_from(self.step)) == _DO_AGAIN:
            self._go_back()
        self.journal.phase("train", "end", self.step)
        return reason

    def _steps_from(self, first: int) -> str | None:
        """Train until there is a reason to leave the loop."""
        with ExitStack() as stack:
            streams = [loader.batches(first, self.last_step) for loader in self.parts.loaders.values()]
            for stream in streams:
                stack.callback(getattr(stream, "close", lambda: None))  # its threads, if it is left early
            self.meter.restart()
            for step in range(first, self.last_step):
                self.around.profiler.before(step)
                self.watchdog.step_begins(step)
                with self.meter.waiting():
                    batches = dict(zip(self.parts.loaders, (next(stream) for stream in streams), strict=True))
                self.faults.before(step)
                self.watchdog.data_there(step)
                self._train_step(step, batches)
                if reason := self._after_step(step + 1, batches, counts=step > first):
                    return reason
        return None

    def _train_step(self, step: int, batches: dict[str, Batch]) -> None:
        draws = {
            name: step_draws(self.parts.method, self.config.seed, name, batch, self.processes.device)
            for name, batch in batches.items()
        }
        self.parts.step(batches, draws, self._scalars(step))
        self.step = step + 1
        self.meter.stepped()

    def _scalars(self, step: int) -> dict[str, float]:
        return scalars_at(step, self.config, self.parts, self.faults)

    def _after_step(self, done: int, batches: dict[str, Batch], *, counts: bool) -> str | None:
        """Look, log, evaluate, save, ask whether to stop.

        Evaluation comes before the save, so that a checkpoint implies its evaluation.
        """
        if self._look_due(done) and self.nonfinite.look(done):
            return _DO_AGAIN
        if self._log_due(done):
            self._log(done, next(iter(batches.values())))
        self.watchdog.step_ended(done, count=counts)
        self._trace(done)
        if self._evaluation_due(done) and (reason := self._evaluate()):
            return reason
        if self._save_due(done):
            if self.nonfinite.undecided:
                self._owes_save = True
            else:
                self._save()
        if done == self.last_step:  # what is trained to the end is not stopped any more
            return None
        reason = self.agreement.reason()
        if self._slow_since is not None and self.agreement.answers > self._slow_since:
            self._no_longer_slow()
        elif self._log_due(done) and self._slow_since is None:
            self._set_timeout(self.watchdog.limit_s)
        self._owes_save |= self.agreement.save_asked()
        return reason or (self._save_as_asked(done) if self._owes_save else None)

    def _save_as_asked(self, done: int) -> str | None:
        """Save, unless that was due anyway; later, if steps are to be done again first."""
        if self.nonfinite.unsettled() and self.nonfinite.look(done):
            return _DO_AGAIN
        if not self.nonfinite.unsettled():
            if self.saving.step != done:
                self._save()
            self._owes_save = False
        return None

    def _trace(self, done: int) -> None:
        """Write the trace if the last step of it is done, and nobody is in a hurry."""
        window = self.config.log.profile_steps
        if window is None:
            return
        if done == window[1]:
            self._takes_long(TRACE)
        if self.agreement.told():
            self.around.profiler.drop()
        self.around.profiler.after(done)

    def _takes_long(self, where: str) -> None:
        """Something begins that rank 0 may need long for, and for which its peers will wait in the next steps."""
        self._slow_since = self.agreement.questions
        self.watchdog.at(where, self.step)
        self._set_timeout(self.config.guard.watchdog_start_s)

    def _no_longer_slow(self) -> None:
        """Rank 0 answered a question that was asked since: from now on a peer that is missing is missed soon.

        Steps done say less: on a GPU the host is some steps ahead of the peers.
        """
        self._slow_since = None
        self.around.peers.stop_listening()
        self._set_timeout(self.watchdog.limit_s)

    def _set_timeout(self, limit_s: float) -> None:
        """Let collectives wait for twice what the watchdog allows: it has more to say, so it comes first."""
        if self.config.guard.watchdog:
            self.processes.set_timeout(2 * limit_s)

    def _log_due(self, done: int) -> bool:
        return done % self.config.log.every_steps == 0 or done == self.last_step

    def _evaluation_due(self, done: int) -> bool:
        if done == 0 or done % self.per_epoch:
            return False
        return done == self.last_step or (done // self.per_epoch) % self.config.eval.every_epochs == 0

    def _save_due(self, done: int) -> bool:
        new_best = self.config.checkpoint.keep_best and self.best is not None and self.best.step == done
        return done % self.config.checkpoint.every_steps == 0 or done == self.last_step or new_best

    def _look_due(self, done: int) -> bool:
        """Where the host waits for the device anyway; no checkpoint may hold a skipped step that nobody looked at."""
        return self.nonfinite.replaying or self._log_due(done) or self._evaluation_due(done) or self._save_due(done)

    def _log(self, done: int, batch: Batch) -> None:
        """Write a train record: the place in the loop where the host waits for the device."""
        step, epoch, scalars = self.parts.step, (done - 1) // self.per_epoch, self._scalars(done - 1)
        names = list(step.parts)
        unread = sum(sum(loader.skipped.values()) for loader in self.parts.loaders.values())
        shares = torch.stack([step.loss, *(step.parts[name] for name in names)]).double().cpu()
        unread, loss, *parts = self.processes.sum(torch.cat([shares.new_tensor([unread]), shares])).tolist()
        reading = self.meter.read(done)
        samples = self._samples(batch)
        if self.lease:
            self.lease.check()
        rate = scalars[LR]
        self.journal.write(
            "train", done, epoch=epoch, loss=loss, parts=dict(zip(names, parts, strict=True)),
            scalars={name: value for name, value in scalars.items() if name not in (LR, EMA_WEIGHT, POISON)}, lr=rate,
            grad_norm=float(step.grad_norm), nonfinite=int(step.nonfinite), unread=int(unread), samples=samples,
            **reading,
        )  # fmt: skip
        self.nonfinite.refuse_to_diverge(done, rate)
        self.meter.restart()

    def _samples(self, batch: Batch) -> str:
        """Hash of what the ranks were really given for this step, which must be what the order says."""
        digest = samples_digest(self.processes.concatenate(batch.samples_B6))
        wanted = next(iter(self.parts.loaders.values())).samples_hash(self.step - 1)
        assert digest == wanted, f"step {self.step}: the ranks were given other samples than the order says"
        return digest

    # evaluation and saving

    def _evaluate(self) -> str | None:
        """Evaluate live and averaged weights; return a reason to stop that came meanwhile."""
        step, parts = self.step, self.parts
        self.journal.phase("evaluate", "begin", step)
        try:
            live = self._evaluate_as("eval", parts.step.buffers.flat)
            if parts.step.ema:
                with parts.step.ema.in_network():
                    self._evaluate_as("eval_ema", parts.step.ema.flat)
            self._note_best(live)  # once nothing of the evaluation can be interrupted any more
        except Interrupted as told:
            return told.reason
        finally:
            self.journal.phase("evaluate", "end", step)
            self.meter.restart()
        return None

    def _evaluate_as(self, kind: str, flat: torch.Tensor) -> Accuracy:
        start = time.perf_counter()
        self._round_began = None
        mean = self.processes.mean(flat.cpu()).to(self.processes.device)
        with self.parts.step.buffers.holding(mean):
            accuracy = self.parts.evaluator.run(told_to_stop=self._told_in_evaluation)
        seconds = time.perf_counter() - start
        epoch = self.step // self.per_epoch
        primary = self.parts.method.primary
        self.journal.write(kind, self.step, epoch=epoch, primary=primary, accuracy=accuracy, seconds=seconds)
        return accuracy

    def _told_in_evaluation(self) -> str | None:
        """Once per round of batches."""
        now = time.monotonic()
        if self._round_began is not None:
            self.around.deadline.evaluated(now - self._round_began)
        self._round_began = now
        self.watchdog.at_batch(self.step)
        return self.agreement.reason_now()

    def _note_best(self, live: Accuracy) -> None:
        """Remember the best evaluation: mean class accuracy of the live weights' primary prediction, on the holdout.

        Overall accuracy there would favour frequent classes: the holdout is as long-tailed as the training images.
        """
        if self.config.data.holdout is not None:
            self.best = better(self.best, self.step, live[self.parts.method.primary]["balanced"])

    def _save(self) -> None:
        self.watchdog.gathering(self.step)
        self.saving.save(self.step, self.best, self.nonfinite.windows, lambda: self._takes_long(SAVE))
        self.meter.restart()

    def _leave(self, reason: str | None) -> Outcome:
        """Save what is not saved yet, wait for the disk, and say how it ended."""
        self.watchdog.at("leaving", self.step)
        self._set_timeout(self.config.guard.watchdog_start_s)
        if reason:
            self.around.profiler.drop()
            self._save_before_leaving()
        self.saving.wait()
        if self.lease and not reason:
            self._write_summary()
        return Outcome(reason is None, reason or "finished", self.step)

    def _save_before_leaving(self) -> None:
        """Save, unless nothing was done since the last save, or what was done has to be done again."""
        if self.step == self.saving.step:
            return
        if self.nonfinite.unsettled():
            log.warning(
                "steps since step %d were not finite and are done again when the run goes on: not saved",
                self.saving.step,
            )  # fmt: skip
            return
        self._save()

    def _write_summary(self) -> None:
        """Take the last evaluation from the metrics: an earlier attempt may have made it."""
        assert self.lease
        self.lease.check()
        last = {r["kind"]: r["accuracy"] for r in read_metrics(self.folder) if r["kind"].startswith("eval")}
        self.folder.write_summary(
            {
                "step": self.step,
                "epoch": self.config.optim.epochs,
                "primary": self.parts.method.primary,
                "accuracy": last["eval"],
                "accuracy_ema": last.get("eval_ema"),
                **({"best": asdict(self.best)} if self.best else {}),
            }
        )
