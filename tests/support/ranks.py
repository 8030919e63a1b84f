"""Real ranks for tests, as processes that can be killed.

Importing torch takes seconds, so a server process imports it once and every rank is forked from it. What runs in a rank
is the product's own `train`, unchanged.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hrdc_hpc.engine.place import NeverStop, Place, Stop

_contexts = multiprocessing.get_context("forkserver")
_contexts.set_forkserver_preload(
    # torch's optimizers import its compiler, which takes longer than a small run
    [
        "torch",
        "torch._dynamo",
        "torch._inductor",
        "torch.utils.tensorboard",
        "nvidia.dali.fn",
        "hrdc_hpc.engine.trainer",
    ]
)
_numbers = itertools.count()


class StopWhen(NeverStop):
    """Told to stop as soon as a file is there."""

    def __init__(self, file: Path, reason: str = "SIGUSR2") -> None:
        self.file = file
        self.why = reason

    def reason(self) -> str | None:
        return self.why if self.file.exists() else None


def _rank(target: Callable[..., Any], run: Path, place: Place, stop: Stop, environ: dict[str, str]) -> None:
    os.environ.update(environ)
    log = (run / "logs" / f"{place.rendezvous.stem}-{place.rank}.log").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    logging.basicConfig(level=logging.INFO, stream=log, force=True)
    target(run, place, stop)
    sys.stdout.flush()


def train(run: Path, place: Place, stop: Stop) -> None:
    """The product's own."""
    from hrdc_hpc.engine import trainer

    trainer.train(run, place, stop)


class Ranks:
    """One start of a job: `world_size` ranks on this machine."""

    def __init__(
        self, run: Path, world_size: int, *, stop: Stop | None = None, target: Callable[..., Any] = train,
        job: dict[str, str | int] | None = None, environ: dict[str, str] | None = None, missing: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Start them, all but the missing ones."""
        self.run = run
        self.name = f"start-{os.getpid()}-{next(_numbers)}"
        (run / "logs").mkdir(exist_ok=True)
        self.processes = []
        for rank in range(world_size):
            if rank in missing:
                continue
            place = Place(
                rank,
                world_size,
                rank,
                world_size,
                run / "rendezvous" / f"{self.name}.json",
                job or {"cpus_per_rank": 1},
            )
            process = _contexts.Process(target=_rank, args=(target, run, place, stop or NeverStop(), environ or {}))
            process.start()
            self.processes.append(process)

    def kill(self, ranks: Sequence[int] | None = None) -> None:
        """SIGKILL all ranks, or some."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            pid = self.processes[rank].pid
            assert pid is not None
            if self.processes[rank].is_alive():
                os.kill(pid, signal.SIGKILL)

    def alive(self) -> bool:
        """Whether any rank still runs."""
        return any(process.is_alive() for process in self.processes)

    def end(self, grace_s: float) -> None:
        """Kill what is left after a while, as srun --kill-on-bad-exit does."""
        deadline = time.monotonic() + grace_s
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.kill()
        self.wait()

    def wait(self, timeout_s: float = 120) -> list[int]:
        """Return the exit codes; kill and fail if it takes too long."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = self.alive()
        self.kill()
        for process in self.processes:
            process.join()
        assert not late, f"still running after {timeout_s} s:\n{self.logs()}"
        return [process.exitcode for process in self.processes if process.exitcode is not None]

    def finish(self, timeout_s: float = 120) -> None:
        """Wait for a success of all ranks."""
        codes = self.wait(timeout_s)
        assert codes == [0] * len(codes), f"exit codes {codes}:\n{self.logs()}"

    def logs(self) -> str:
        """What the ranks of this start wrote."""
        files = sorted((self.run / "logs").glob(f"{self.name}-*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files)
