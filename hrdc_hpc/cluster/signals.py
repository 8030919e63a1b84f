"""Signals that ask a rank to stop: the handlers set a flag and return at once. Torch-free.

SLURM sends signals to every process of a step, so:
- processes forked from a rank (worker pools) ignore them: a hook that runs in the child after every fork sees to it.
  Such a child is ended by its queue or by kill(), not by terminate(), which sends SIGTERM;
- programs that a rank starts (scontrol, a compiler) would die of them, because exec resets handlers: start them inside
  `shielded()`, which blocks the signals in the child, and delays them, but does not lose them, in the rank.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)
"""Ctrl-C, and a terminal that is closed."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SignalStop:
    """The `Stop` of a rank: the first signal that came, and when. A second delivery changes nothing."""

    def __init__(self) -> None:
        self._received: dict[str, float] = {}

    def install(self) -> None:
        """Take over SIGTERM, SIGUSR1 and SIGUSR2 from whoever had them (submitit); main thread only.

        SIGCONT comes with each of them, and submitit logs from inside its handler: it gets back its default.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        _ignore_in_forked_children()

    def reason(self) -> str | None:
        """Name of the first signal received, e.g. 'SIGTERM', or None."""
        return next(iter(tuple(self._received)), None)

    def received(self) -> dict[str, float]:
        """Each signal that came, in order, with the time of its first delivery, seconds since the epoch."""
        return dict(self._received)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        self._received.setdefault(signal.Signals(number).name, time.time())


def stop_when_parent_dies(parent: int) -> None:
    """Have SIGTERM sent to this process when process `parent`, which started it, is gone; at once if it already is."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def shielded(numbers: Collection[signal.Signals] = STOP_SIGNALS) -> Iterator[None]:
    """Start programs inside: they do not get the signals `numbers`. Ours are delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def terminal_waits() -> Iterator[None]:
    """Have Ctrl-C and a closed terminal wait for the end of the block, also for programs that are started inside.

    To block the signals is not enough: libraries have threads, which would take them. Main thread only.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in TERMINAL_SIGNALS}
    try:
        with shielded(TERMINAL_SIGNALS):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in came:
        signal.raise_signal(late)


_hooked = False


def _ignore_in_forked_children() -> None:
    global _hooked
    if not _hooked:  # a hook cannot be taken back, so it is set once a process
        os.register_at_fork(after_in_child=_ignore)
        _hooked = True


def _ignore() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
