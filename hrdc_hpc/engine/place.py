"""Where a process stands among the processes of its job, and how it learns that it should stop. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Place:
    """One rank's place. Everything that a scheduler knows reaches the engine through this and `Stop`."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    rendezvous: Path
    """A file on the shared file system, unique to this start of this job, through which the ranks find rank 0."""
    job: dict[str, str | int] = field(default_factory=dict)
    """What the scheduler says of the job (job_id, restart_count, nodes ...), for the record."""


class Stopped(Exception):
    """All ranks leave before anything was restored or trained: there is nothing to save."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Stop(Protocol):
    """Whether the run should end early. Cheap to ask; never blocks."""

    def reason(self) -> str | None:
        """Why to stop ('SIGTERM', 'SIGUSR2', 'stop file' ...), or None."""
        ...

    def end_time(self) -> float | None:
        """When the scheduler kills the job, Unix seconds; None: never, or not known."""
        ...

    def save_asked(self) -> bool:
        """Whether somebody asked for a checkpoint since the last call."""
        ...


class NeverStop:
    """Runs to the end."""

    def reason(self) -> str | None:
        """Return None."""
        return None

    def end_time(self) -> float | None:
        """Return None."""
        return None

    def save_asked(self) -> bool:
        """Return False."""
        return False
