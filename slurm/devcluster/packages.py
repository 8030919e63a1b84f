"""Which programs a cluster needs, which packages of Debian and Ubuntu have them, and installing those."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from devcluster import accounting, network
from devcluster.commands import ClusterError, find

_ALWAYS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sinfo": "slurm-wlm"}
SERVICES = ("munge", "slurmctld", "slurmd", "slurmdbd", "mariadb")
"""What the packages enable; a cluster of ours needs none of them."""
SYSTEMD = Path("/run/systemd/system")
"""There where systemd runs this machine."""
POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian's invoke-rc.d asks this program before it starts a service; 101 says no."""


def missing(*, hosts: bool, accounting_too: bool) -> dict[str, str]:
    """Programs that this machine lacks, and the package of each."""
    needed = _ALWAYS | (network.PROGRAMS if hosts else {}) | (accounting.PROGRAMS if accounting_too else {})
    return {program: package for program, package in needed.items() if find(program) is None}


def install(lacking: dict[str, str]) -> list[str]:
    """Install the packages of these programs, and start none of their services; the packages.

    ValueError where this user or machine cannot, ClusterError where apt-get fails.
    """
    packages = sorted(set(lacking.values()))
    typed = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise ValueError(f"install: no apt-get on this machine; install what has {', '.join(lacking)} by its own means")
    if os.geteuid() != 0:
        raise ValueError(f"install: needs root; type: sudo sh -c '{typed}'")
    with _no_services():  # Debian starts what it installs
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            _apt(arguments)
    if still := [program for program in lacking if find(program) is None]:
        raise ClusterError(f"install: {', '.join(packages)} are installed, but {', '.join(still)} are still not found")
    return packages


def _apt(arguments: list[str]) -> None:
    done = subprocess.run(
        ["apt-get", "-qq", *arguments], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        raise ClusterError(
            f"install: apt-get {' '.join(arguments)} ended with {done.returncode}\n{done.stdout[-2000:]}"
        )


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Have the packages' scripts start nothing; an administrator's own rule stays as it is."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
