"""What ranks tell each other beside the collectives, through the store that they met by: signs of life, and failures.

A rank that waits in a collective cannot say why: it knows neither which of its peers is missing nor where that one
stands. So a thread of every rank writes down, every few seconds, that it lives and how far its main thread has come.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store  # torch.distributed does not export it by name to type checkers

from hrdc_hpc.engine.watchdog import silent_s

FAILURE = "failure"
"""Key under which the first rank that failed leaves word: '<rank> <why>'."""
_SPEAKER, _SAID = "hung/speaker", "hung/said"
_ANSWER_S = 3.0
"""A store that does not answer in this time is taken for gone, and so is rank 0, in which it lives."""


@dataclass(frozen=True)
class Sign:
    """A rank's sign of life."""

    beat: int
    """Grows as long as the process runs."""
    count: int
    """Grows with all that the main thread begins: ranks take the same way, so the lowest is the farthest behind."""
    where: str
    step: int
    for_s: float = 0.0
    """For how long the main thread has been at that."""

    def __str__(self) -> str:
        return f"in '{self.where}' after {self.step} steps"


def behind(before: Mapping[int, Sign], after: Mapping[int, Sign], world_size: int) -> dict[int, str]:
    """Name the ranks that the others wait for, with what is known of each; none if that cannot be told.

    `before` and `after` are two looks at everybody's signs of life, some beats apart. A rank without a new one is
    stopped or gone; if all live, it is those that have begun less than the others.
    """
    dead = {
        rank: f"no sign of life; last seen {after[rank]}" if rank in after else "no sign of life"
        for rank in range(world_size)
        if rank not in after or (rank in before and before[rank].beat == after[rank].beat)
    }
    if dead:
        return dead
    lowest = min(sign.count for sign in after.values())
    late = {rank: str(sign) for rank, sign in after.items() if sign.count == lowest}
    return late if len(late) < world_size else {}


class Peers:
    """This rank's ear and voice; safe beside a main thread that is stuck in the same store."""

    def __init__(self, store: Store, rank: int, world_size: int, every_s: float) -> None:
        """Use connections of its own to `store`. A sign of life every `every_s` seconds."""
        self._voice, self._ear = store.clone(), store.clone()
        for connection in (self._voice, self._ear):
            connection.set_timeout(timedelta(seconds=_ANSWER_S))
        self._rank = rank
        self._world_size = world_size
        self._every_s = every_s
        self._over = threading.Event()
        self._listening = True

    def begin(self, sign: Callable[[int], Sign], on_failure: Callable[[str], None]) -> None:
        """Give signs of life until `close`, and until `stop_listening` call `on_failure` if a peer says that it failed.

        `sign` is called with the number of the beat.
        """
        threading.Thread(target=self._live, args=(sign, on_failure), name="peers", daemon=True).start()

    def _live(self, sign: Callable[[int], Sign], on_failure: Callable[[str], None]) -> None:
        beat, next_beat = 0, 0.0
        with suppress(dist.DistError, RuntimeError):  # rank 0 is gone: the main thread finds out by itself
            while not self._over.is_set():
                if time.monotonic() >= next_beat:
                    beat += 1
                    self._voice.set(f"sign/{self._rank}", json.dumps(vars(sign(beat))))
                    next_beat = time.monotonic() + self._every_s
                if self._listening and self._voice.check([FAILURE]):
                    first, _, why = self._voice.get(FAILURE).decode().partition(" ")
                    if int(first) != self._rank:
                        on_failure(f"rank {first} failed: {why}")
                    self._listening = False
                self._over.wait(min(0.5, self._every_s) if self._listening else self._every_s)

    def stop_listening(self) -> None:
        """Heed failures no more: from the first step on a broken connection says it as soon."""
        self._listening = False

    def close(self) -> None:
        """Give no more signs of life."""
        self._over.set()

    def behind(self) -> dict[int, str] | None:
        """Ranks that the others wait for, see `behind`; None if the store does not answer. Takes some beats."""
        try:
            before = self._signs()
            time.sleep(2.5 * self._every_s)
            return behind(before, self._signs(), self._world_size)
        except (dist.DistError, RuntimeError):
            return None

    def first(self) -> Sign | None:
        """Rank 0's next sign of life; None if none comes in `silent_s(every_s)`."""
        end = time.monotonic() + silent_s(self._every_s)
        try:
            before = self._sign(0)
            while before and time.monotonic() < end:
                time.sleep(self._every_s / 2)
                after = self._sign(0)
                if after and after.beat > before.beat:
                    return after
        except (dist.DistError, RuntimeError):
            pass
        return None

    def _sign(self, rank: int) -> Sign | None:
        key = f"sign/{rank}"
        return Sign(**json.loads(self._ear.get(key))) if self._ear.check([key]) else None

    def _signs(self) -> dict[int, Sign]:
        found = {rank: self._sign(rank) for rank in range(self._world_size)}
        return {rank: sign for rank, sign in found.items() if sign}

    def speak_for_all(self) -> bool:
        """Whether this rank is the first that asks."""
        try:
            return int(self._ear.compare_set(_SPEAKER, "", str(self._rank))) == self._rank
        except (dist.DistError, RuntimeError):
            return True

    def said(self) -> None:
        """Let those that wait for the speaker go."""
        with suppress(dist.DistError, RuntimeError):
            self._ear.set(_SAID, "")

    def wait_for_speaker(self, seconds: float) -> None:
        """Return when the speaker is done, or after a while: the first rank that leaves takes the others with it."""
        deadline = time.monotonic() + seconds
        with suppress(dist.DistError, RuntimeError):
            while time.monotonic() < deadline and not self._ear.check([_SAID]):
                time.sleep(0.1)
