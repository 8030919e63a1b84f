"""Ranks with something wrong, as targets of `ranks.Ranks`."""

from __future__ import annotations

from pathlib import Path

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
