"""The picklable task that every rank of a job runs, and the same without submitit (`main`). Torch-free until it trains.

What is pickled is this class with one string. A run resumes from disk alone, so the pickle of the first submission
serves every attempt, and whatever submitit would do with it at a signal is replaced by our own handlers.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from submitit.core.utils import DelayedSubmission

import hrdc_hpc
from hrdc_hpc.cluster import exit_codes, requeue
from hrdc_hpc.cluster.ends import note_rank_end
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.logs import START_LINE
from hrdc_hpc.cluster.places import forget_torch_variables, job_end_time, this_place
from hrdc_hpc.cluster.signals import SignalStop, stop_when_parent_dies
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record.folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainTask:
    """Trains the run in folder `run` (absolute path)."""

    run: str

    def __call__(self) -> dict[str, Any]:
        """Train as the rank that the environment says; the result that submitit stores. Any other end leaves here.

        submitit would turn each exception into exit code 1, and interpreter shutdown could wait for ever for a thread
        that is stuck in a collective: so an early end flushes and leaves with os._exit and its own code. There is no
        result file then, which is what tells submitit's Job that the run did not end well.
        """
        code, result = train_here(Path(self.run))
        if result is None:
            _leave(code)
        return result

    def checkpoint(self) -> DelayedSubmission:
        """Return the same task: it has no state."""
        return DelayedSubmission(self)


def train_here(run: Path) -> tuple[Exit, dict[str, Any] | None]:
    """Train as the rank that the environment says; exit code, and the result if the run is finished."""
    stop = SignalStop()
    stop.install()  # before torch is imported, which takes seconds
    faulthandler.enable()
    forget_torch_variables()
    place = this_place(run)
    if place.job["cluster"] == "local":
        stop_when_parent_dies(int(place.job["job_id"]))
    _log_to_stdout(place)
    place.job["started"] = f"{time.time():.3f}"  # importing torch takes seconds, which belong to this start
    log.info(START_LINE, place.job["job_id"], place.job["restart_count"])
    if place.rank == 0:
        stop.watch(run, job_end_time())
        log.info("code %s", hrdc_hpc.__file__)
    if RunFolder(run).state() == "finished":  # the next link of a chain, or a job that was requeued by hand
        log.info("the run is finished: nothing to do")
        return Exit.DONE, {"run": str(run)}
    try:
        from hrdc_hpc.engine.trainer import train

        if place.rank == 0:
            _refuse_endless_requeues(run, place)
        outcome = train(run, place, stop, partial(note_rank_end, run, place))
    except Exception as error:
        code = exit_codes.of_error(error)
        log.exception("rank %d leaves with code %d", place.rank, code)
        note_rank_end(run, place, code, f"{type(error).__name__}: {error}")
        return code, None
    if not outcome.finished:
        return _after_stop(run, place, (outcome.reason, *stop.received())), None
    return Exit.DONE, {"run": str(run), "step": outcome.step}


def main(arguments: list[str]) -> NoReturn:
    """Entry point without submitit: `srun python jobs/train.py RUN`, or the same as a single process."""
    if len(arguments) != 1 or not all(Path(arguments[0], part).exists() for part in ("config.yaml", "code/hrdc_hpc")):
        given = " ".join(arguments) or "nothing"
        sys.stderr.write(
            f"expected a run folder (config.yaml, code/), got {given};"
            " make one with: python -m hrdc_hpc.launch --cfg CONFIG --prepare\n"
        )
        sys.exit(Exit.DO_NOT_REQUEUE)
    code, result = train_here(Path(arguments[0]).absolute())
    if result is None:
        _leave(code)
    sys.exit(code)


def _after_stop(run: Path, place: Place, reasons: tuple[str, ...]) -> Exit:
    """Only rank 0 asks and answers for all: srun and the local controller kill the rest at the first bad exit code."""
    if place.rank != 0:
        return Exit.DONE
    end = requeue.after_stop(dict.fromkeys(reasons), run, place)
    note_rank_end(run, place, end.code, end.words, cause=end.cause)
    return end.code


def _refuse_endless_requeues(run: Path, place: Place) -> None:
    """Raise RequeuesUsedUp, on rank 0, if SLURM by itself has started this job as often as it may come back.

    Peers are told that rank 0 does not come.
    """
    if place.job.get("cluster") != "slurm":
        return
    judged = requeue.judge_start(run, str(place.job["job_id"]))
    if not judged.comes_back:
        from hrdc_hpc.engine.processes import call_off

        call_off(place, judged.why)
        raise requeue.RequeuesUsedUp(f"not started again: {judged.why}; the same launch command goes on")


def _leave(code: Exit) -> NoReturn:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _log_to_stdout(place: Place) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"%(asctime)s r{place.rank} %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("hrdc_hpc")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


if __name__ == "__main__":
    main(sys.argv[1:])
