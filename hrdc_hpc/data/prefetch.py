"""Work done ahead in one background thread. Torch-free."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from hrdc_hpc.config.schema import Loader

N = TypeVar("N")
T = TypeVar("T")


def depth_of(loader: Loader, batch: int) -> int:
    """Batches that are decoded ahead; unset, more where they are small: one slow image or read delays few others."""
    return loader.prefetch or min(max(2, -(-64 // batch)), 8)


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
