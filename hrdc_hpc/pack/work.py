"""Shards written by several processes, until all are there or somebody asks to stop. Torch-free."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hrdc_hpc.cluster.signals import STOP_SIGNALS, TERMINAL_SIGNALS, shielded, stop_when_parent_dies
from hrdc_hpc.pack.plan import Options, Plan, Task
from hrdc_hpc.pack.shard import Stopped, pack_shard

if TYPE_CHECKING:
    from hrdc_hpc.pack.progress import Display

_LOOK_EVERY_S = 0.2
SIGNALS = (*STOP_SIGNALS, *TERMINAL_SIGNALS)
"""Those that ask to stop."""


class StopFlag:
    """The first signal that asked to stop; the handlers do nothing but set it."""

    def __init__(self) -> None:
        """Start without one."""
        self.signal: signal.Signals | None = None

    def note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        """Take a signal."""
        self.signal = self.signal or signal.Signals(number)

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Have signals set a flag inside the block; main thread only."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.note) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Shared:
    """What a process that packs has from the one that started it."""

    counts: Any
    """Images and bytes done by all of them, in memory that they share."""
    stop: Any
    """An event."""


_shared = _Shared()


def _begin(parent: int, counts: Any, stop: Any) -> None:
    _shared.counts, _shared.stop = counts, stop
    leave_signals_to(parent)


def leave_signals_to(parent: int) -> None:
    """Heed none of SIGNALS in a process that was started inside `shielded(SIGNALS)`; end when its parent has died."""

    # the terminal and SLURM send signals to every process: what the parent makes of them decides, and its death
    def ignore(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        if os.getppid() != parent:
            os._exit(1)

    for number in SIGNALS:
        signal.signal(number, ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    stop_when_parent_dies(parent)


def _tell(images: int, source_bytes: int) -> None:
    with _shared.counts.get_lock():
        _shared.counts[0] += images
        _shared.counts[1] += source_bytes


def _pack(out: Path, task: Task, options: Options, on_bad: str) -> bool:
    return pack_shard(out, task, options, on_bad=on_bad, tell=_tell, stop=_shared.stop.is_set)


def pack_shards(
    out: Path, plan: Plan, tasks: Iterator[Task], *, workers: int, on_bad: str, shown: Display, stop: StopFlag
) -> int:
    """Have the shards of `tasks` on disk; returns how many were whole already.

    Raises Stopped, and what pack_shard raises: the first trouble ends the others after the image they are at.
    """
    if workers == 1:
        done = [0, 0]

        def tell(images: int, source_bytes: int) -> None:
            done[0] += images
            done[1] += source_bytes
            shown.show(*done)

        return sum(pack_shard(out, task, plan.options, on_bad=on_bad, tell=tell, stop=stop) for task in tasks)
    return _in_processes(out, plan.options, tasks, workers, on_bad, shown, stop)


def _in_processes(
    out: Path, options: Options, tasks: Iterator[Task], workers: int, on_bad: str, shown: Display, stop: StopFlag
) -> int:
    context = multiprocessing.get_context("spawn")
    with shielded(SIGNALS):  # the first of these starts a process that looks after them, and knows no such signals
        counts, event = context.Array("q", 2), context.Event()
    running: set[Future[bool]] = set()
    whole = 0
    pool = ProcessPoolExecutor(workers, context, _begin, (os.getpid(), counts, event))

    def submit(task: Task) -> Future[bool]:
        with shielded(SIGNALS):  # it may start a process, which must not die of one before it has its handlers
            return pool.submit(_pack, out, task, options, on_bad)

    try:
        while _top_up(running, tasks, 2 * workers, submit):
            ended, running = wait(running, _LOOK_EVERY_S, FIRST_COMPLETED)
            shown.show(*counts[:])
            whole += sum(future.result() for future in ended)
            if stop():
                raise Stopped
    except BrokenProcessPool as error:
        if stop():
            raise Stopped from error
        raise RuntimeError("a process that packed has died (killed, or out of memory?)") from error
    finally:
        event.set()
        pool.shutdown(cancel_futures=True)
    return whole


def _top_up(
    running: set[Future[bool]], tasks: Iterator[Task], limit: int, submit: Callable[[Task], Future[bool]]
) -> bool:
    """Hand over tasks until `limit` wait or run; whether any does. What waits takes memory, so it is not all."""
    while len(running) < limit and (task := next(tasks, None)) is not None:
        running.add(submit(task))
    return bool(running)
