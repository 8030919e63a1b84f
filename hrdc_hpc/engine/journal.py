"""What rank 0 writes down: metrics, phases, TensorBoard. Other ranks hold a journal that writes nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from hrdc_hpc.engine.clock import IDLE, StepClock
from hrdc_hpc.engine.place import Stopped
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease, LeaseLost
from hrdc_hpc.record.metrics import MetricsWriter

log = logging.getLogger(__name__)

_RENEW_S = 5.0


class Journal(Protocol):
    """Where a rank writes; only rank 0's goes to disk."""

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Append one record."""
        ...

    def phase(self, name: str, event: str, step: int) -> None:
        """Mark where a phase (startup, train, evaluate, save) begins or ends."""
        ...

    def sync(self) -> None:
        """Return once everything written is on disk."""
        ...

    def ended(self, reason: str) -> None:
        """Say how the attempt ends, if nothing goes wrong from here on."""
        ...


class SilentJournal:
    """Of the ranks other than 0."""

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Write nothing."""

    def phase(self, name: str, event: str, step: int) -> None:
        """Write nothing."""

    def sync(self) -> None:
        """Wait for nothing."""

    def ended(self, reason: str) -> None:
        """Write nothing."""


class RunJournal:
    """Metrics file of this attempt, with scalars copied to TensorBoard."""

    def __init__(self, folder: RunFolder, attempt: int, tensorboard: bool) -> None:
        self._metrics = MetricsWriter(folder, attempt)
        self._folder = folder
        self._attempt = attempt
        self._tensorboard = tensorboard
        self._board: Any = None
        self._step = 0
        self._reason = "left without a word"
        self._closed, self._closing = False, threading.Lock()

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Append one record to the attempt's metrics file, and its scalars to TensorBoard."""
        self._metrics.write(kind, step, **fields)
        self._step = max(self._step, step)
        if self._tensorboard and kind in ("train", "eval", "eval_ema"):
            self._copy(kind, step, fields)

    def _copy(self, kind: str, step: int, fields: Mapping[str, Any]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            # what an earlier attempt wrote beyond this step was rolled back: TensorBoard is told to drop it
            place = self._folder.tensorboard / f"attempt-{self._attempt}"
            self._board = SummaryWriter(str(place), purge_step=step)
        for name, value in _scalars(fields):
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if kind != "train":
            self._board.flush()

    def phase(self, name: str, event: str, step: int) -> None:
        """Append a phase mark."""
        self._metrics.write("phase", step, name=name, event=event)

    def sync(self) -> None:
        """Return once everything written is on disk."""
        self._metrics.sync()

    def ended(self, reason: str) -> None:
        """Say how the attempt ends, if nothing goes wrong from here on."""
        self._reason = reason

    def close(self) -> None:
        """Append why the attempt ends; nothing is written afterwards. A second call does nothing."""
        with self._closing:
            closed, self._closed = self._closed, True
        if closed:
            return
        self._metrics.write("end", self._step, reason=self._reason)
        self._metrics.sync()
        self._metrics.close()
        if self._board is not None:
            self._board.close()

    def left(self, reason: str) -> None:
        """Say why the process ends without unwinding, and close."""
        self.ended(reason)
        self.close()


@contextmanager
def closing(journal: RunJournal) -> Iterator[RunJournal]:
    """Write down why the attempt ends, whatever ends it."""
    try:
        yield journal
    except BaseException as error:
        journal.ended(error.reason if isinstance(error, Stopped) else f"{type(error).__name__}: {error}")
        try:
            journal.close()
        except OSError as trouble:  # a full disk, say: the error under way says more
            log.warning("could not write down why the attempt ends: %s", trouble)
        raise
    journal.close()


def _scalars(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


@contextmanager
def kept(lease: Lease) -> Iterator[Lease]:
    """Renew a lease in the background for the length of the block, and release it afterwards.

    A lost lease is not an error of the background thread: it is found by the check before the next commit.
    """
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_RENEW_S):
            try:
                lease.renew()
            except LeaseLost:
                return
            except OSError as error:  # a file system that hangs for a moment; the next turn may do
                log.warning("could not renew the lease: %s", error)

    keeper = threading.Thread(target=renew, name="lease", daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        over.set()
        keeper.join()
        lease.release()


class Meter:
    """Rate, shares of time and time to finish, between two log steps."""

    def __init__(
        self, images_per_step: int, total_steps: int, clock: StepClock, *, use_per_image_s: float | None = None
    ) -> None:
        """`use_per_image_s` is the time that all devices together take for an image at their peak, if it is known."""
        self._use_per_image_s = use_per_image_s
        self._images = images_per_step
        self._total = total_steps
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Leave out what came before (an evaluation, say)."""
        self._since = time.perf_counter()
        self._steps = 0
        self._waited = 0.0
        self._clock.restart()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def read(self, steps_done: int) -> dict[str, float]:
        """Readings since the last restart or read; waits for a GPU.

        images_per_s; eta_s; data_wait, compute (forward and backward), communication (what does not overlap with
        compute) and optimizer as shares of the time, of this rank. What they leave over is the host's other work. Data
        wait counts where the device is idle meanwhile: a host that is ahead of its GPU may wait for free. And mfu, the
        model FLOPs utilisation, where the peak of the devices is known.
        """
        busy = self._clock.read()
        waited = min(self._waited, busy.pop(IDLE))
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        per_step = elapsed / max(1, self._steps)
        reading = {
            "images_per_s": self._images / per_step,
            "data_wait": min(1.0, waited / elapsed),
            **{name: min(1.0, seconds / elapsed) for name, seconds in busy.items()},
            "eta_s": (self._total - steps_done) * per_step,
        }
        if self._use_per_image_s is not None:
            reading["mfu"] = reading["images_per_s"] * self._use_per_image_s
        self.restart()
        return reading

    def stepped(self) -> None:
        """Count one step."""
        self._steps += 1
