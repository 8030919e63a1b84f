"""Ranks with something wrong, as targets of `ranks.Ranks`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hrdc_hpc.engine.place import NeverStop, Place, Stop


def train_at_once(run: Path, place: Place, stop: Stop) -> None:
    """Train, but do not wait long for a lease that another holds."""
    from hrdc_hpc.engine import trainer

    trainer._LEASE_WAIT_S = 0.5
    trainer.train(run, place, stop)


def train_but_rank_1_fails(run: Path, place: Place, stop: Stop) -> None:
    """Train; the disk fails under rank 1 at its tenth step."""
    from hrdc_hpc.engine import trainer

    step = trainer.Run._train_step

    def fail(self: trainer.Run, number: int, batches: object) -> None:
        if place.rank == 1 and number == 10:
            raise OSError("the disk of rank 1 is gone")
        step(self, number, batches)  # type: ignore[arg-type]

    trainer.Run._train_step = fail  # type: ignore[method-assign]
    trainer.train(run, place, stop)


def train_and_wait_for_the_copies(run: Path, place: Place, stop: Stop) -> None:
    """Train; before the tenth step wait until every training image is read from this node."""
    from hrdc_hpc.engine import trainer

    step = trainer.Run._train_step

    def wait(self: trainer.Run, number: int, batches: object) -> None:
        files = self.parts.images.train.files  # type: ignore[union-attr]
        while number == 10 and any(files.path(n) == files.source(n) for n in range(len(files.shards))):
            time.sleep(0.01)
        step(self, number, batches)  # type: ignore[arg-type]

    trainer.Run._train_step = wait  # type: ignore[method-assign]
    trainer.train(run, place, stop)


def train_but_decoding_takes_long(run: Path, place: Place, stop: Stop) -> None:
    """Train; each batch of the decoded cache takes a second."""
    from hrdc_hpc.data import filling
    from hrdc_hpc.engine import trainer

    decoded = filling.Filler._decoded

    def slow(self: filling.Filler, numbers: Sequence[int]) -> list[bytes]:
        (run / "decodes").touch()
        time.sleep(1)
        return decoded(self, numbers)

    filling.Filler._decoded = slow  # type: ignore[method-assign]
    trainer.train(run, place, stop)


class StopAtEvaluation(NeverStop):
    """Told to stop once the run's trace shows that the evaluation after `step` has begun."""

    def __init__(self, run: Path, step: int) -> None:
        self.run = run
        self.step = step

    def reason(self) -> str | None:
        from hrdc_hpc.record.folder import RunFolder
        from hrdc_hpc.record.metrics import read_raw

        marks = (r for r in read_raw(RunFolder(self.run)) if r["kind"] == "phase" and r["event"] == "begin")
        return "SIGTERM" if any(r["name"] == "evaluate" and r["step"] >= self.step for r in marks) else None


class StopInReplay(NeverStop):
    """Told to stop once the run's trace shows that steps are done again."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def reason(self) -> str | None:
        from hrdc_hpc.record.folder import RunFolder
        from hrdc_hpc.record.metrics import read_raw

        return "SIGTERM" if any(r.get("outcome") == "replaying" for r in read_raw(RunFolder(self.run))) else None


def train_on_nodes(run: Path, place: Place, stop: Stop) -> None:
    """Train; every rank has a node of its own, n0, n1 ..., as far as the record goes."""
    from hrdc_hpc.engine import trainer

    trainer.train(run, replace(place, job={**place.job, "job_id": "7", "node": f"n{place.rank}"}), stop)


def train_but_evaluation_is_slow(run: Path, place: Place, stop: Stop) -> None:
    """Train; each batch of an evaluation takes rank 1 a second longer."""
    from hrdc_hpc.engine import trainer
    from hrdc_hpc.engine.evaluation import Evaluator

    outputs = Evaluator.outputs

    def slow(self: Evaluator, batch: object) -> object:
        if place.rank == 1:
            time.sleep(1)
        return outputs(self, batch)  # type: ignore[arg-type]

    Evaluator.outputs = slow  # type: ignore[method-assign, assignment]
    trainer.train(run, place, stop)


def train_but_rank_1_fails_at_start(run: Path, place: Place, stop: Stop) -> None:
    """Train; rank 1 fails while rank 0 is busy with something long, as a compiler is."""
    from hrdc_hpc.engine import trainer

    build = trainer.build_parts

    def fail(*arguments: Any, **more: Any) -> Any:
        if place.rank == 1:
            raise OSError("rank 1 has no compiler")
        time.sleep(60)
        return build(*arguments, **more)

    trainer.build_parts = fail
    trainer.train(run, place, stop)


def train_told_on_rank_1(run: Path, place: Place, stop: Stop) -> None:
    """Train; only rank 1 can hear of a stop."""
    from hrdc_hpc.engine import trainer

    trainer.train(run, place, stop if place.rank == 1 else NeverStop())


class EndsAt(NeverStop):
    """A job that the scheduler ends at the time in a file, once the file is there."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def end_time(self) -> float | None:
        return float(self.file.read_text()) if self.file.exists() else None


class SaveFile(NeverStop):
    """Told to save, once, when a file is there."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def save_asked(self) -> bool:
        asked = self.file.exists()
        self.file.unlink(missing_ok=True)
        return asked


def train_but_opening_takes_long(run: Path, place: Place, stop: Stop) -> None:
    """Train; to look through the data set takes the node's first rank a minute."""
    from hrdc_hpc.engine import parts, trainer

    open_split = parts.open_split

    def slow(*arguments: Any, **more: Any) -> Any:
        if place.local_rank == 0:
            time.sleep(60)
        return open_split(*arguments, **more)

    parts.open_split = slow
    trainer.train(run, place, stop)


def train_but_rank_1_cannot_count(run: Path, place: Place, stop: Stop) -> None:
    """Train; the device of rank 1 finds gradients not finite that are, once, at its eighth step."""
    from hrdc_hpc.engine import trainer

    step, over = trainer.Run._train_step, place.rank != 1

    def wrong(self: trainer.Run, number: int, batches: object) -> None:
        nonlocal over
        step(self, number, batches)  # type: ignore[arg-type]
        if number == 7 and not over:
            over = True
            self.parts.step.nonfinite += 1
            next(iter(self.parts.step.network.parameters())).data.mul_(2)

    trainer.Run._train_step = wrong  # type: ignore[method-assign]
    trainer.train(run, place, stop)


def train_with_little_patience_to_meet(run: Path, place: Place, stop: Stop) -> None:
    """Train; the groups' own patience is 2 s, and rank 1 needs 4 s for the data set."""
    from hrdc_hpc.engine import parts, processes, trainer

    meet, open_split = processes._group, parts.open_split

    def impatient(*arguments: Any) -> Any:
        processes.START_TIMEOUT_S = 2
        return meet(*arguments)

    def slow(*arguments: Any, **more: Any) -> Any:
        if place.rank == 1:
            time.sleep(2)  # for each split
        return open_split(*arguments, **more)

    processes._group, parts.open_split = impatient, slow
    trainer.train(run, place, stop)


def wait_in_vain(run: Path, place: Place, stop: Stop) -> None:
    """Rank 0 meets rank 1, then waits for it in a collective, with little patience; rank 1 does something else."""
    from hrdc_hpc.config.schema import Compute
    from hrdc_hpc.engine.processes import open_processes
    from hrdc_hpc.engine.watchdog import timed_out

    with open_processes(place, Compute(device="cpu", threads=1)) as processes:
        processes.barrier()
        processes.set_timeout(1)
        if place.rank == 1:
            time.sleep(3)
            os._exit(0)
        began = time.monotonic()
        try:
            processes.barrier()
        except RuntimeError as error:
            print(f"gave up after {time.monotonic() - began:.0f} s: {timed_out(error)} ({error})", flush=True)
            os._exit(0)
