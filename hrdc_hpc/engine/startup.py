"""What the start of a run takes on one rank, part by part. Torch-free."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_age_s() -> float:
    """Seconds since this process was started, before Python was there to look at a clock."""
    # proc(5): after the command's name, which may hold blanks, the start time is the 20th field, in ticks since boot
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Startup:
    """Stopwatch of the parts of a start, which follow each other without a gap."""

    def __init__(self) -> None:
        """Begin; what came before, from the process's start, is the part 'imports'."""
        self.parts = {"imports": process_age_s()}
        """Seconds by part."""
        self._since = time.monotonic()

    def done(self, part: str) -> None:
        """A part that follows the one before is done."""
        now = time.monotonic()
        self.parts[part] = now - self._since
        self._since = now

    def told(self) -> dict[str, float]:
        """Return the parts so far, and their 'total'."""
        return {**self.parts, "total": sum(self.parts.values())}
