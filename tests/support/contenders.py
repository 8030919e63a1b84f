"""Processes that contend for a lease."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease, LeaseHeld


def contend(run: Path, barrier: Barrier, won: Path, rounds: int) -> None:
    """In each round: start with the others, try once, and write down a success. The winner keeps the lease."""
    for number in range(rounds):
        barrier.wait()
        try:
            lease = Lease.acquire(RunFolder(run))
        except LeaseHeld:
            pass
        else:
            with won.open("a") as file:
                file.write(f"{number} {lease.holder.token}\n")
        barrier.wait()
