"""How far the packer is, with rate and time to go: a bar on a terminal, plain lines elsewhere. Torch-free."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.follow import LINE_EVERY_S, duration

_REDRAW_S = 0.2


class Display(Protocol):
    """Shows progress."""

    def show(self, images: int, source_bytes: int) -> None:
        """Show how many images, and bytes of the source, are done since the start."""

    def close(self) -> None:
        """Leave the terminal as it was, with a last word."""


def text(images: int, total: int, source_bytes: int, seconds: float) -> str:
    """'1,200 of 5,000 images  812 images/s  92.1 MB/s read  0:00:04 to go'."""
    parts = [f"{images:,} of {total:,} images"]
    if images and seconds > 0:
        rate = images / seconds
        parts += [f"{rate:,.0f} images/s", f"{source_bytes / seconds / 1e6:,.1f} MB/s read"]
        if images < total:
            parts.append(f"{duration((total - images) / rate)} to go")
    return "  ".join(parts)


class Lines:
    """A line every ten seconds, and one at the end."""

    def __init__(self, total: int) -> None:
        """`total`: images of the source."""
        self._total, self._start = total, time.monotonic()
        self._next = self._start + LINE_EVERY_S
        self._done = (0, 0)

    def show(self, images: int, source_bytes: int) -> None:
        """Write a line if it is time."""
        self._done = (images, source_bytes)
        if time.monotonic() >= self._next:
            self._say()

    def close(self) -> None:
        """Write the last line."""
        self._say()

    def _say(self) -> None:
        images, source_bytes = self._done
        say(text(images, self._total, source_bytes, time.monotonic() - self._start))
        self._next = time.monotonic() + LINE_EVERY_S


class Bar:
    """A bar over the images."""

    def __init__(self, total: int) -> None:
        """`total`: images of the source."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._total, self._start, self._next = total, time.monotonic(), 0.0
        self._bar = Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=Console())
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def show(self, images: int, source_bytes: int) -> None:
        """Redraw."""
        now = time.monotonic()
        if now >= self._next or images == self._total:
            told = text(images, self._total, source_bytes, now - self._start)
            self._bar.update(self._task, completed=images, description=told)
            self._next = now + _REDRAW_S

    def close(self) -> None:
        """Stop redrawing."""
        self._bar.stop()


def display(total: int) -> Display:
    """Return what fits standard output."""
    return Bar(total) if sys.stdout.isatty() else Lines(total)
