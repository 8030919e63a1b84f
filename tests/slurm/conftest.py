"""One real SLURM for all tests of the session: the fixture `slurm`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_cluster import Slurm, clean_environment, dev_cluster

NODES, CPUS, GRACE_S = 4, 4, 20


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A cluster for the whole session; it ends with the session, also if that is killed."""
    folder = Path(tempfile.mkdtemp(prefix="hrdc-slurm-", dir="/tmp"))  # sockets need a short path
    size = [f"--nodes={NODES}", f"--cpus={CPUS}", f"--grace={GRACE_S}", f"--owner={os.getpid()}"]
    dev_cluster(["up", f"--dir={folder}", *size])
    try:
        yield Slurm(folder, clean_environment() | {"SLURM_CONF": f"{folder}/slurm.conf"})
    finally:
        dev_cluster(["down", f"--dir={folder}"])
