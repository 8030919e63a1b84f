"""What a run hands to the saver, and what is written down of it; called by all ranks, written by rank 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.checkpoint import Best, Saved, Saver
from hrdc_hpc.engine.deadline import Deadline
from hrdc_hpc.engine.journal import Journal
from hrdc_hpc.engine.parts import Parts
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.state import about, capture
from hrdc_hpc.record.folder import RunFolder


class Saving:
    """The checkpoints of one attempt."""

    def __init__(
        self, folder: RunFolder, config: RunConfig, parts: Parts, processes: Processes, journal: Journal,
        deadline: Deadline,
    ) -> None:  # fmt: skip
        """Write nothing yet. `deadline` is told how long a save takes."""
        self.step = 0
        """Steps that the newest checkpoint holds, also if it is still being written."""
        self._folder = folder
        self._config = config
        self._parts = parts
        self._processes = processes
        self._journal = journal
        self._deadline = deadline
        self._saver: Saver | None = None
        self._began: dict[int, float] = {}

    def open(self, lease_check: Callable[[], None]) -> None:
        """Write from now on; called on the rank with the lease, which is checked before every commit."""
        checkpoint.sweep(self._folder.checkpoints)
        told = self._config.checkpoint
        self._saver = Saver(
            self._folder.checkpoints,
            asynchronous=told.asynchronous,
            keep_last=told.keep_last,
            keep_best=told.keep_best,
            lease_check=lease_check,
            on_saved=self._saved,
        )

    def save(
        self, step: int, best: Best | None, windows: Sequence[Sequence[int]], gathered: Callable[[], None]
    ) -> None:  # fmt: skip
        """Hand the state to the saver; metrics up to here are on disk before the checkpoint is.

        `windows`: steps that stay skipped, see nonfinite.py. `gathered` is called when all ranks have told rank 0 what
        it has to know: from there on only the disk is waited for, and only by rank 0.
        """
        began, parts = time.monotonic(), self._parts
        self._journal.phase("save", "begin", step)
        state = capture(parts.step, step, self._processes, windows)
        gathered()
        if self._saver and state is not None:
            self._began[step] = began
            self._journal.sync()
            told = about(
                self._config, parts.images.fingerprint, parts.precision.name, self._processes.world_size,
                parts.images.classes, parts.step.execution,
            )  # fmt: skip
            self._journal.write("save", step, stall_s=self._saver.save(step, state, told, best=best))
        self.step = step

    def _saved(self, saved: Saved) -> None:
        self._deadline.saved(time.monotonic() - self._began.pop(saved.step))
        self._journal.write("checkpoint", saved.step, seconds=saved.seconds, bytes=saved.bytes)
        self._journal.phase("save", "end", saved.step)

    def wait(self) -> None:
        """Return once everything handed over is on disk; raises what the writer raised."""
        if self._saver:
            self._saver.wait()

    def close(self) -> None:
        """Wait as `wait`, and end the writer."""
        if self._saver:
            self._saver.close()
