"""What the cluster allows of one user, as far as it says. Torch-free."""

from __future__ import annotations

import re

from hrdc_hpc.cluster import scheduler


def array_limit() -> int | None:
    """Return the most elements that an array may have; None where SLURM does not say."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", scheduler.call("scontrol", "show", "config"), re.MULTILINE)
    except scheduler.SchedulerError:
        return None
    return int(found[1]) if found else None  # indices go up to one less, from 0


def submit_limit() -> int | None:
    """Return how many jobs may be queued or running at once; None where SLURM does not say."""
    return None
