"""The training loop: fetch, step, log, save, stop.

Where a run starts from, in this order:
1. the newest checkpoint in the run folder that is whole, if there is one; damaged ones are set aside with a message;
2. otherwise the initial weights, a function of the seed.
Nothing else is read: no pickle, no environment, nothing that a signal handler wrote.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.batch import Batch
from hrdc_hpc.data.index import name_some
from hrdc_hpc.data.plan import samples_digest
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.agreement import Agreement
from hrdc_hpc.engine.checkpoint import Best, Saved, Saver, better
from hrdc_hpc.engine.ema import ema_weight
from hrdc_hpc.engine.evaluation import Accuracy, Interrupted
from hrdc_hpc.engine.flops import flops_per_image, peak_flops
from hrdc_hpc.engine.journal import Journal, Meter, RunJournal, SilentJournal, closing, kept
from hrdc_hpc.engine.learning_rate import learning_rate
from hrdc_hpc.engine.parts import Images, Parts, build_parts, open_images, rehearse, step_draws
from hrdc_hpc.engine.place import Place, Stop
from hrdc_hpc.engine.processes import Processes, call_off, open_processes
from hrdc_hpc.engine.profile import Profiler
from hrdc_hpc.engine.state import about, capture, compare_execution, refuse_other_run, restore
from hrdc_hpc.engine.step import EMA_WEIGHT, LR
from hrdc_hpc.models.network import parameters
from hrdc_hpc.record.attempts import begin_attempt
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease
from hrdc_hpc.record.metrics import read_metrics

log = logging.getLogger(__name__)

_HOPELESS = 50
"""Steps skipped in a row; fp16 needs some to find its loss scale, at most about 20."""
_LEASE_WAIT_S = 90.0
"""Longer than a lease lives: a holder that died without a trace has lost it by then."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    finished: bool
    reason: str
    step: int


def train(run: Path, place: Place, stop: Stop) -> Outcome:
    """Train the run in folder `run` to its end, or until told to stop; called on every rank.

    Resumes from the folder's newest whole checkpoint. If the outcome is not finished, a checkpoint of the last step
    has been committed. Raises ValueError for a config or data set that cannot be trained (DataError: damaged files),
    RuntimeError for what the world did.
    """
    folder = RunFolder(run)
    config = loads(folder.config.read_text(), str(folder.config))
    with ExitStack() as stack:
        lease = attempt = None
        if place.rank == 0:  # before peers are met: a second launch is refused at once
            try:
                lease = stack.enter_context(kept(Lease.acquire(folder, place.job, wait_s=_LEASE_WAIT_S)))
                attempt = begin_attempt(folder, {**place.job, "world_size": place.world_size})
            except Exception as error:
                call_off(place, str(error))
                raise
        journal: Journal = SilentJournal()
        if attempt:
            journal = stack.enter_context(closing(RunJournal(folder, attempt.number, config.log.tensorboard)))
        journal.phase("startup", "begin", 0)
        gpus = config.cluster.gpus_per_node
        processes = stack.enter_context(open_processes(place, config.compute, gpus_per_node=gpus))
        images = open_images(config, processes, local_first=place.local_rank == 0)
        note_left_out(images, journal)
        parts = build_parts(config, images, processes)
        stack.callback(parts.close)
        window = config.log.profile_steps if attempt else None
        profiler = Profiler(window, folder.profile, attempt.number if attempt else 0, processes.device)
        stack.callback(profiler.close)
        run_ = Run(folder, config, parts, processes, journal, lease, stop, profiler)
        return run_.to_the_end()


def note_left_out(images: Images, journal: Journal) -> None:
    """Say which files are not used because they cannot be read (data.on_bad_image: skip)."""
    left_out = {index.split: [str(bad) for bad in index.skipped] for index in (images.train, images.evaluation)}
    for split, files in left_out.items():
        if files:
            log.warning("%d files of the %s split are left out: %s", len(files), split, name_some(files))
    if any(left_out.values()):
        numbers = {split: len(files) for split, files in left_out.items()}
        journal.write("left_out", 0, numbers=numbers, files={split: some[:100] for split, some in left_out.items()})


class Run:
    """One attempt at a run, on one rank."""

    def __init__(
        self, folder: RunFolder, config: RunConfig, parts: Parts, processes: Processes, journal: Journal,
        lease: Lease | None, stop: Stop, profiler: Profiler,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.config = config
        self.parts = parts
        self.processes = processes
        self.journal = journal
        self.lease = lease
        self.profiler = profiler
        self.per_epoch = parts.steps_per_epoch
        self.last_step = self.per_epoch * config.optim.epochs
        self.step = 0
        """Optimizer steps done."""
        self.evaluated: Accuracy | None = None
        """Of the live weights, where the run starts from, if the metrics hold the evaluation of that step."""
        self.best: Best | None = None
        """The best evaluation up to this step, the same on every rank; only with data.holdout."""
        self.agreement = Agreement(processes, stop)
        self.meter = Meter(
            config.optim.global_batch, self.last_step, parts.step.clock, use_per_image_s=self._use_per_image_s()
        )
        self.saver: Saver | None = None

    def to_the_end(self) -> Outcome:
        """Start up, train, evaluate, save; return how it ended."""
        self._start()
        self.journal.phase("startup", "end", self.step)
        try:
            reason = self._finish_evaluation() or self._steps()
            outcome = self._leave(reason)
        finally:
            if self.saver:
                self.saver.close()
        self.journal.ended(outcome.reason)
        self.agreement.close()
        self.processes.barrier()
        return outcome

    # starting

    def _start(self) -> None:
        """Rehearse, then resume from the newest whole checkpoint."""
        if self.processes.first and self.parts.step.compiled:
            log.info("compiling the step: about a minute on a GPU, several on two CPU cores")
        rehearse(self.config, self.parts, self.processes)
        self._say_what_runs()
        if self.lease:
            checkpoint.sweep(self.folder.checkpoints)
            self.saver = Saver(
                self.folder.checkpoints,
                asynchronous=self.config.checkpoint.asynchronous,
                keep_last=self.config.checkpoint.keep_last,
                keep_best=self.config.checkpoint.keep_best,
                lease_check=self.lease.check,
                on_saved=self._saved,
            )
        found = self.processes.from_first(self._newest() if self.processes.first else None)
        if found is None:
            return
        path, told = found
        refuse_other_run(told, self.config, self.parts.images.fingerprint, self.parts.precision.name)
        compare_execution(told, self.config, self.parts.step.execution)
        self.step = restore(checkpoint.load(path), self.parts.step, self.processes)
        self.best = Best.of(told) if told["fingerprint"] == self.parts.images.fingerprint else None
        self.evaluated = self.processes.from_first(self._evaluation_there() if self.processes.first else None)
        if self.processes.first:
            log.info("resumed from %s (step %d of %d)", path, self.step, self.last_step)

    def _use_per_image_s(self) -> float | None:
        """Seconds that all devices together take for an image at their peak; None where the peak is not known."""
        compute, device = self.config.compute, self.processes.device
        peak = peak_flops(device, self.parts.precision.name, compute.peak_tflops)
        if peak is None:
            return None
        try:
            flops = flops_per_image(self.parts.step.network, self.config.data.image_size)
        except RuntimeError as error:  # an operator that torch cannot trace without memory
            log.warning("the model FLOPs utilisation is not known: the network cannot be traced: %s", error)
            return None
        return flops / (peak * self.processes.world_size)

    def _say_what_runs(self) -> None:
        """Write down what 'auto' and unset settings came to, and how large the network is."""
        step, processes = self.parts.step, self.processes
        number = parameters(step.network)
        settings = {
            "parameters": number, "device": str(processes.device), "precision": self.parts.precision.name,
            **step.execution, "world_size": processes.world_size,
            "steps_per_epoch": self.per_epoch, "steps": self.last_step,
        }  # fmt: skip
        self.journal.write("start", self.step, **settings)
        if processes.first:
            log.info(
                "%d parameters, %s, %s%s%s", number, settings["device"], settings["precision"],
                ", compiled" if step.compiled else "", ", one CUDA graph a step" if step.captured else "",
            )  # fmt: skip

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        def damaged(path: Path, why: str) -> None:
            log.warning("%s is damaged and was set aside: %s", path, why)

        found = checkpoint.latest(self.folder.checkpoints, on_damaged=damaged)
        return (found.path, found.about) if found else None

    def _evaluation_there(self) -> Accuracy | None:
        wanted = {"eval", "eval_ema"} if self.parts.step.ema else {"eval"}
        there = {r["kind"]: r for r in read_metrics(self.folder) if r["step"] == self.step}
        return there["eval"]["accuracy"] if wanted <= there.keys() else None

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
        first = self.step
        streams = [loader.batches(first, self.last_step) for loader in self.parts.loaders.values()]
        self.meter.restart()
        reason = None
        for step in range(first, self.last_step):
            self.profiler.before(step)
            with self.meter.waiting():
                batches = dict(zip(self.parts.loaders, (next(stream) for stream in streams), strict=True))
            self._train_step(step, batches)
            self.profiler.after(step + 1)
            reason = self._after_step(step + 1)
            if step + 1 < self.last_step:  # what is trained to the end is not stopped any more
                reason = reason or self.agreement.reason()
            if reason:
                break
        self.journal.phase("train", "end", self.step)
        return reason

    def _train_step(self, step: int, batches: dict[str, Batch]) -> None:
        config, method = self.config, self.parts.method
        epoch = step // self.per_epoch
        scalars = {
            LR: learning_rate(step, steps_per_epoch=self.per_epoch, optim=config.optim),
            EMA_WEIGHT: ema_weight(step, config.optim.ema_decay) if config.optim.ema_decay is not None else 0.0,
            **method.scalars(epoch, config.optim.epochs),
        }
        draws = {
            name: step_draws(method, config.seed, name, batch, self.processes.device) for name, batch in batches.items()
        }
        self.parts.step(batches, draws, scalars)
        self.step = step + 1
        self.meter.stepped()
        if self._log_due(step + 1):
            self._log(epoch, scalars, next(iter(batches.values())))

    def _after_step(self, done: int) -> str | None:
        """Evaluate and save where due: in this order, so that a checkpoint implies its evaluation."""
        if self._evaluation_due(done) and (reason := self._evaluate()):
            return reason
        new_best = self.config.checkpoint.keep_best and self.best is not None and self.best.step == done
        if done % self.config.checkpoint.every_steps == 0 or done == self.last_step or new_best:
            self._save()
        return None

    def _log_due(self, done: int) -> bool:
        return done % self.config.log.every_steps == 0 or done == self.last_step

    def _evaluation_due(self, done: int) -> bool:
        if done == 0 or done % self.per_epoch:
            return False
        return done == self.last_step or (done // self.per_epoch) % self.config.eval.every_epochs == 0

    def _log(self, epoch: int, scalars: dict[str, float], batch: Batch) -> None:
        """Write a train record: the only place in the loop where the host waits for the device."""
        step = self.parts.step
        names = list(step.parts)
        unread = sum(sum(loader.skipped.values()) for loader in self.parts.loaders.values())
        shares = torch.stack([step.loss, *(step.parts[name] for name in names)]).double().cpu()
        unread, loss, *parts = self.processes.sum(torch.cat([shares.new_tensor([unread]), shares])).tolist()
        reading = self.meter.read(self.step)
        samples = self._samples(batch)
        if self.lease:
            self.lease.check()
        rate = scalars[LR]
        self.journal.write(
            "train", self.step, epoch=epoch, loss=loss, parts=dict(zip(names, parts, strict=True)),
            scalars={name: value for name, value in scalars.items() if name not in (LR, EMA_WEIGHT)}, lr=rate,
            grad_norm=float(step.grad_norm), nonfinite=int(step.nonfinite), unread=int(unread), samples=samples,
            **reading,
        )  # fmt: skip
        self._refuse_to_diverge(int(step.nonfinite_in_a_row), rate)
        self.meter.restart()

    def _samples(self, batch: Batch) -> str:
        """Hash of what the ranks were really given for this step, which must be what the order says."""
        digest = samples_digest(self.processes.concatenate(batch.samples_B6))
        wanted = next(iter(self.parts.loaders.values())).samples_hash(self.step - 1)
        assert digest == wanted, f"step {self.step}: the ranks were given other samples than the order says"
        return digest

    def _refuse_to_diverge(self, in_a_row: int, rate: float) -> None:
        if in_a_row == 0:
            return
        log.warning("step %d: gradients are not finite; the last %d steps were skipped", self.step, in_a_row)
        if in_a_row >= _HOPELESS:
            raise ValueError(
                f"step {self.step}: the last {in_a_row} steps were skipped because their gradients were not finite"
                f" (learning rate {rate:g}). The run has diverged and would do so again: lower optim.lr, lengthen"
                " optim.warmup_epochs, or set compute.precision to bf16 or fp32"
            )

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
        mean = self.processes.mean(flat.cpu()).to(self.processes.device)
        with self.parts.step.buffers.holding(mean):
            accuracy = self.parts.evaluator.run(told_to_stop=self.agreement.reason_now)
        seconds = time.perf_counter() - start
        epoch = self.step // self.per_epoch
        primary = self.parts.method.primary
        self.journal.write(kind, self.step, epoch=epoch, primary=primary, accuracy=accuracy, seconds=seconds)
        return accuracy

    def _note_best(self, live: Accuracy) -> None:
        """Remember the best evaluation: mean class accuracy of the live weights' primary prediction, on the holdout.

        Overall accuracy there would favour frequent classes: the holdout is as long-tailed as the training images.
        """
        if self.config.data.holdout is not None:
            self.best = better(self.best, self.step, live[self.parts.method.primary]["balanced"])

    def _save(self) -> None:
        """Hand the state to the saver; metrics up to here are on disk before the checkpoint is."""
        step = self.step
        self.journal.phase("save", "begin", step)
        state = capture(self.parts.step, step, self.processes)
        if self.saver and state is not None:
            self.journal.sync()
            fingerprint, precision = self.parts.images.fingerprint, self.parts.precision.name
            classes, execution = self.parts.images.classes, self.parts.step.execution
            told = about(self.config, fingerprint, precision, self.processes.world_size, classes, execution)
            self.journal.write("save", step, stall_s=self.saver.save(step, state, told, best=self.best))
        self.meter.restart()

    def _saved(self, saved: Saved) -> None:
        self.journal.write("checkpoint", saved.step, seconds=saved.seconds, bytes=saved.bytes)
        self.journal.phase("save", "end", saved.step)

    def _leave(self, reason: str | None) -> Outcome:
        """Save what is not saved yet, wait for the disk, and say how it ended."""
        step = self.step
        if reason:
            self._save()
        if self.saver:
            self.saver.wait()
            if not reason:
                self._write_summary()
        return Outcome(reason is None, reason or "finished", step)

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
