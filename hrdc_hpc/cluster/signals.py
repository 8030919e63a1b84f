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
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)
"""Ctrl-C, and a terminal that is closed."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


STOP_FILE, SAVE_FILE = "stop", "save"
"""Switches in the run folder: `touch RUN/stop` saves and ends the run for good, `touch RUN/save` saves and goes on."""
STOPPED_BY_FILE = "stop file"
_LOOK_EVERY_S = 1.0
"""A look at a file is a question to the file server."""


class SignalStop:
    """The `Stop` of a rank: the first signal that came, and when. A second delivery changes nothing.

    Of the ranks only the first looks at the switch files, and knows when the job ends: it speaks for all.
    """

    def __init__(self) -> None:
        self._received: dict[str, float] = {}
        self._run: Path | None = None
        self._end_time: float | None = None
        self._next_look = 0.0
        self._save_asked = False

    def watch(self, run: Path, end_time: float | None) -> None:
        """Look at the switch files of a run from now on; `end_time`: when the scheduler ends the job, Unix seconds."""
        self._run, self._end_time = run, end_time

    def install(self) -> None:
        """Take over SIGTERM, SIGUSR1 and SIGUSR2 from whoever had them (submitit); main thread only.

        SIGCONT comes with each of them, and submitit logs from inside its handler: it gets back its default.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        _ignore_in_forked_children()

    def reason(self) -> str | None:
        """Name of the first signal received, e.g. 'SIGTERM', else 'stop file' if there is one, or None."""
        self._look()
        return next(iter(tuple(self._received)), None)

    def end_time(self) -> float | None:
        """When the scheduler kills the job, Unix seconds; None: never, or not known."""
        return self._end_time

    def save_asked(self) -> bool:
        """Whether the file `save` was there since the last call; it is removed."""
        self._look()
        asked, self._save_asked = self._save_asked, False
        return asked

    def received(self) -> dict[str, float]:
        """Each signal that came, in order, with the time of its first delivery, seconds since the epoch."""
        return dict(self._received)

    def _look(self) -> None:
        if self._run is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_EVERY_S
        with suppress(OSError):  # a file server that hangs must not end the run; the next look may do
            if (self._run / STOP_FILE).exists():
                self._received.setdefault(STOPPED_BY_FILE, time.time())
            if (self._run / SAVE_FILE).exists():
                (self._run / SAVE_FILE).unlink(missing_ok=True)
                self._save_asked = True

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
