"""The comparison with a real SLURM, whose limits are changed and put back."""

from __future__ import annotations

import getpass
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hrdc_hpc.cluster import limits

from launching import CONFIG
from slurm_cluster import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


@contextmanager
def changed(slurm: Slurm, what: str, back: str) -> Iterator[None]:
    slurm.run("scontrol", "update", *what.split())
    try:
        yield
    finally:
        slurm.run("scontrol", "update", *back.split())


def launch(slurm: Slurm, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "hrdc_hpc.launch", "--cfg", f"{folder}/small.yaml", "--out-dir", str(folder)]
    return subprocess.run([*command, *more], env=slurm.env, capture_output=True, text=True, check=False)


def test_a_job_that_could_never_start_is_not_submitted(slurm: Slurm, tmp_path: Path) -> None:
    before = slurm.run("squeue", "--noheader", "--states=all", "--format=%i")
    with changed(
        slurm, "PartitionName=gpu MaxTime=10 MaxNodes=2", "PartitionName=gpu MaxTime=UNLIMITED MaxNodes=UNLIMITED"
    ):
        refused = launch(slurm, tmp_path, "--partition", "gpu", "--nodes", "1-3", "--constraint", "a100")
        shown = launch(slurm, tmp_path, "--partition", "gpu", "--time", "11", "--dry-run")
    assert refused.returncode == 78
    assert refused.stderr.splitlines() == [
        "launch: SLURM could not start this job:",
        "  cluster.time_min: 60, but partition gpu allows 10 minutes; lower --time: the run stops, saves and comes back"
        " at the limit",
        "  cluster.nodes: 1-3, but partition gpu allows 2 for a job; lower --nodes",
        "  cluster.constraint: no node of partition gpu has the feature 'a100'; there is none",
    ]
    assert not (tmp_path / "small").exists()
    assert slurm.run("squeue", "--noheader", "--states=all", "--format=%i") == before
    assert shown.returncode == 0
    assert "would stop: SLURM could not start this job:\n  cluster.time_min: 11, but" in shown.stderr
    assert "#SBATCH --time=11" in shown.stdout


def test_a_partition_that_is_not_there(slurm: Slurm, tmp_path: Path) -> None:
    refused = launch(slurm, tmp_path, "--partition", "gup", "--nodes", "9")
    assert refused.returncode == 78
    assert "cluster.partition: there is no 'gup'; did you mean 'gpu'?" in refused.stderr


def test_limits_for_arrays(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    assert limits.array_limit() == 1001
    assert limits.submit_limit() is None  # no accounting


def test_limits_of_accounts(hosts: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", hosts.env["SLURM_CONF"])
    if not limits.ask(accounting=False).config.accounting:
        pytest.skip("slurmdbd or mariadbd not found; slurm/dev-cluster install --accounting")
    account = hosts.run("sacctmgr", "--noheader", "--parsable2", "show", "associations", "format=Account").split()[-1]
    hosts.run("sacctmgr", "--immediate", "add", "qos", "brief", "set", "MaxWall=02:00:00", "MaxSubmitJobsPerUser=7")
    of_us = ["where", f"account={account}", f"user={getpass.getuser()}"]
    hosts.run("sacctmgr", "--immediate", "modify", "user", *of_us, "set", "qos+=brief")
    try:
        assert limits.submit_limit() == 7
        wrong = launch(hosts, tmp_path, "--partition", "gpu", "--account", "x", "--qos", "breif")
        long = launch(
            hosts, tmp_path, "--partition", "gpu", "--account", account, "--qos", "brief", "--time", "3:00:00"
        )
    finally:
        hosts.run("sacctmgr", "--immediate", "modify", "user", *of_us, "set", "qos-=brief")
        hosts.run("sacctmgr", "--immediate", "delete", "qos", "brief")
    assert wrong.returncode == long.returncode == 78
    assert "cluster.account: 'x' is not one of yours; there is" in wrong.stderr
    assert "cluster.qos: you may not use 'breif'; did you mean 'brief'?" in wrong.stderr
    assert "cluster.time_min: 180, but qos brief allows 120 minutes; lower --time" in long.stderr
