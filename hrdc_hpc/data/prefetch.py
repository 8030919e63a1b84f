"""Work done ahead in one background thread. Torch-free."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hrdc_hpc.config.schema import Loader

N = TypeVar("N")
T = TypeVar("T")


_IMAGES = 64
_IMAGES_PER_THREAD = 8
"""The fewest in a run of the decoder. Its threads wait for each other at the end of every operator of a run."""


@dataclass(frozen=True)
class Runs:
    """How batches are decoded ahead."""

    batches: int
    """Batches that are decoded together, in one run of the decoder."""
    depth: int
    """Runs under way."""

    @property
    def ahead(self) -> int:
        """The most batches that are decoded, or about to be, while one is trained on."""
        return self.batches * (self.depth + 1)


def runs_of(loader: Loader, batch: int, threads: int) -> Runs:
    """Return how batches of so many images are decoded by so many threads; loader.prefetch bounds it."""
    batches = -(-max(_IMAGES, _IMAGES_PER_THREAD * threads) // batch)
    if loader.prefetch is None:
        return Runs(batches, 2)
    batches = min(batches, max(1, loader.prefetch // 2))
    return Runs(batches, loader.prefetch // batches)


class Ahead(Generic[N, T]):
    """Calls `make` for every number (or whatever describes a result), in order, at most `depth` ahead of the consumer.

    An exception of `make` ends the sequence; `check` raises it. `close` ends the thread after the call of `make` that
    is under way.
    """

    def __init__(self, make: Callable[[N], T], numbers: Iterable[N], depth: int) -> None:
        """Start the thread."""
        self._make, self._numbers, self._depth = make, numbers, depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._finished = self._closed = False
        self._change = threading.Condition()
        # daemon: an iterator that nobody closed must not keep a dying process alive
        self._thread = threading.Thread(target=self._work, name="hrdc-feed", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            for number in self._numbers:
                if not self._wait_for_room():
                    break
                result = self._make(number)
                with self._change:
                    self._ready.append(result)
                    self._change.notify_all()
        except BaseException as caught:  # noqa: BLE001 - kept for the consumer, who raises it
            error = caught
        with self._change:
            self._error, self._finished = error, True
            self._change.notify_all()

    def _wait_for_room(self) -> bool:
        with self._change:
            self._change.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            return not self._closed

    def get(self, *, wait: bool) -> T | None:
        """Return the next result. None: the sequence has ended or, without `wait`, the next is not ready."""
        with self._change:
            if wait:
                self._change.wait_for(lambda: self._ready or self._finished)
            if not self._ready:
                return None
            self._change.notify_all()
            return self._ready.popleft()

    def check(self) -> None:
        """Raise what `make` raised, if it did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread; results that were not fetched are dropped."""
        with self._change:
            self._closed = True
            self._ready.clear()
            self._change.notify_all()
        self._thread.join()
