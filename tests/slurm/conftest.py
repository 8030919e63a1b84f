"""Real SLURMs for all tests of the session, each made when a test first asks: the fixtures `slurm` and `hosts`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devcluster import network, packages

from slurm_cluster import GRACE_S, Slurm, cable, clean_environment, dev_cluster, interfaces, traces
from slurm_runs import Lab

NODES, CPUS, GPUS, NODE_TIMEOUT_S = 4, 4, 2, 10


@contextmanager
def cluster(*options: str) -> Iterator[Slurm]:
    """A cluster for the length of the block; it ends with this process too, also if that is killed; nothing stays."""
    folder = Path(tempfile.mkdtemp(prefix="hrdc-slurm-", dir="/tmp"))  # sockets need a short path
    size = [f"--nodes={NODES}", f"--cpus={CPUS}", f"--grace={GRACE_S}", f"--owner={os.getpid()}"]
    dev_cluster(["up", f"--dir={folder}", *size, *options])
    try:
        yield Slurm(folder, clean_environment() | {"SLURM_CONF": f"{folder}/slurm.conf"})
    finally:
        wire = cable(folder)
        dev_cluster(["down", f"--dir={folder}"])
        assert traces(folder) == []
        assert wire not in interfaces()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The simple form: 4 nodes that share this machine's name and address."""
    with cluster() as made:
        yield made


@pytest.fixture(scope="session")
def hosts() -> Iterator[Slurm]:
    """The hosts form: 4 nodes with a hostname, an address and a link each, 2 GPUs that are none, accounting if there.

    A test that pulls a link, slows one down or sets a limit takes it back before it ends.
    """
    if lacking := packages.missing(hosts=True, accounting_too=False):
        pytest.skip(f"{', '.join(lacking)} not found; slurm/dev-cluster install --hosts --accounting")
    try:
        network.refuse_where_impossible()
    except ValueError as error:
        pytest.skip(str(error))
    accounting = [] if packages.missing(hosts=False, accounting_too=True) else ["--accounting"]
    with cluster("--hosts", f"--gpus={GPUS}", f"--node-timeout={NODE_TIMEOUT_S}", *accounting) as made:
        yield made


@pytest.fixture(scope="session")
def lab(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Lab:
    """Runs of two nodes, one rank each, in the simple form."""
    return Lab(slurm, tmp_path_factory.mktemp("slurm"), digits)


@pytest.fixture(scope="session")
def straight(lab: Lab) -> Path:
    """One that nothing disturbed."""
    return lab.finished("straight")
