"""Traces the operators and kernels of some steps of rank 0 into the run folder (log.profile_steps)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

log = logging.getLogger(__name__)

_ROWS = 40
"""Operators in the table, those that take longest."""


class Profiler:
    """Traces steps [a, b) of an attempt, or what it takes of them.

    Writes `attempt-<k>-steps-<a>-<b>.json` for chrome://tracing or Perfetto, and the longest operators as `.txt`.
    """

    def __init__(self, window: tuple[int, int] | None, folder: Path, attempt: int, device: torch.device) -> None:
        """Trace nothing yet; `window` None: never."""
        self._window = window or (0, 0)
        self._folder = folder
        self._attempt = attempt
        self._on_gpu = device.type == "cuda"
        self._trace: Any = None
        self._first = 0
        self._last = 0

    def before(self, step: int) -> None:
        """Begin, if the 0-based step is in the window."""
        first, end = self._window
        if self._trace is None and first <= step < end:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
            self._trace = torch.profiler.profile(activities=activities, record_shapes=True)
            self._trace.start()
            self._first = step

    def after(self, done: int) -> None:
        """End, if the last step of the window is done; waits for a GPU then."""
        self._last = done
        if self._trace is not None and done >= self._window[1]:
            self.close()

    def drop(self) -> None:
        """Write nothing of a trace under way: that may take longer than a job that is told to stop has."""
        trace, self._trace = self._trace, None
        if trace is not None:
            log.warning("the trace from step %d on is not written: the run is told to stop", self._first)
            trace.stop()

    def close(self) -> None:
        """End a trace under way and write what there is. Failing is told, and stops no training."""
        if self._trace is None:
            return
        try:
            self._finish()
        except (OSError, RuntimeError) as error:  # it may be called because something else went wrong
            log.warning("could not write the trace of steps %d to %d: %s", self._first, self._last, error)

    def _finish(self) -> None:
        trace, self._trace = self._trace, None
        if self._on_gpu:
            torch.cuda.synchronize()
        trace.stop()
        self._folder.mkdir(exist_ok=True)
        name = f"attempt-{self._attempt}-steps-{self._first}-{self._last}"
        file = self._folder / f"{name}.json"
        file.unlink(missing_ok=True)
        trace.export_chrome_trace(str(file))
        order = "self_cuda_time_total" if self._on_gpu else "self_cpu_time_total"
        table = trace.key_averages().table(sort_by=order, row_limit=_ROWS)
        (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")
        log.info("traced steps %d to %d: %s", self._first, self._last, file)
