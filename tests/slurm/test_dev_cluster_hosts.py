"""The hosts form of slurm/dev-cluster: nodes with names, addresses and links, and what can be done to them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from devcluster import cli
from devcluster.record import read_record
from devcluster.settings import Folder

from slurm_cluster import Slurm, cable, clean_environment, dev_cluster, interfaces, new_folder, traces

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

TESTS = Path(__file__).resolve().parents[1]
GHOST = "while true; do date +%s >> beats-$SLURMD_NODENAME; sleep 0.2; done"


def transfer(hosts: Slurm, folder: Path, size: int) -> dict[str, Any]:
    """Send bytes from n1 to n2; what the sender says of it."""
    folder.mkdir()
    program = [sys.executable, TESTS / "support" / "wire.py", folder, str(size)]
    path = f"--export=ALL,PYTHONPATH={TESTS.parent}"
    said: dict[str, Any] = json.loads(
        hosts.run("srun", "--quiet", "--nodelist=n[1-2]", "--ntasks-per-node=1", path, *program)
    )
    return said


def test_nodes_have_names_and_addresses_of_their_own_and_reach_each_other(hosts: Slurm, tmp_path: Path) -> None:
    said = transfer(hosts, tmp_path / "wire", 1000)
    assert said["host"] == "n1"
    assert said["name"] == "n2"
    assert said["got"] == 1000
    shown = hosts.run("scontrol", "--oneliner", "show", "node", "n1")
    assert f"NodeAddr={said['seen_as']} NodeHostName=n1" in shown
    controller, _ = read_record(Folder(hosts.folder))["slurmctld"]
    assert f"{said['seen_as']} n1" in Path(f"/proc/{controller}/root/etc/hosts").read_text().splitlines()
    assert said["seen_as"] not in Path("/etc/hosts").read_text()


def test_a_slow_network_and_an_ordinary_one(hosts: Slurm, tmp_path: Path) -> None:
    """2.5 MB are 20 Mbit: a second at 20 Mbit/s; what the limit lets through at once is a twentieth of it."""
    hosts.rate("all", "20mbit")
    try:
        slow = transfer(hosts, tmp_path / "slow", 2_500_000)["seconds"]
    finally:
        hosts.rate("all", "none")
    assert 0.8 < slow < 3
    assert transfer(hosts, tmp_path / "fast", 2_500_000)["seconds"] < 0.5


def test_a_lost_nodes_job_goes_on_elsewhere_and_its_ghost_writes_until_the_link_is_back(
    hosts: Slurm, tmp_path: Path
) -> None:
    job = hosts.submit(f"srun bash -c '{GHOST}'", tmp_path, "--nodes=2", "--exclude=n[3-4]")
    while not (tmp_path / "beats-n2").exists():
        time.sleep(0.1)
    try:
        hosts.link("n2", "down")
        began = time.monotonic()
        hosts.wait_node("n2", {"down*"}, 45)
        assert time.monotonic() - began < 40
        seen = (tmp_path / "beats-n2").stat().st_size
        hosts.run("scontrol", "update", f"JobId={job}", "ExcNodeList=")
        hosts.wait_running(job, 30, restarts=1)
        assert "n2" not in hosts.expand(hosts.show(job)["NodeList"])
        assert (tmp_path / "beats-n2").stat().st_size > seen
    finally:
        hosts.reconnect("n2")
    ends = time.monotonic() + 20
    while time.time() - (tmp_path / "beats-n2").stat().st_mtime < 2:
        assert time.monotonic() < ends, "the ghost lives on, though SLURM reaches its node"
        time.sleep(0.2)
    hosts.run("scancel", job)


@pytest.mark.parametrize("form", ["slurm", "hosts"])
def test_jobs_stay_when_daemons_are_restarted(form: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cluster: Slurm = request.getfixturevalue(form)
    script = "srun bash -c 'touch ready; while [ ! -e go ]; do sleep 0.1; done'"
    job = cluster.submit(script, tmp_path, "--nodelist=n3")
    while not (tmp_path / "ready").exists():
        time.sleep(0.1)
    before = read_record(Folder(cluster.folder))
    cluster.restart("slurmctld")
    cluster.restart("n3")
    after = read_record(Folder(cluster.folder))
    assert {name for name in before if before[name] != after[name]} == {"slurmctld", "slurmd-n3"}
    (tmp_path / "go").touch()
    assert cluster.wait_job(job, 60) == "COMPLETED"
    assert cluster.show(job)["Restarts"] == "0"


def test_gpus_are_handed_out(hosts: Slurm) -> None:
    seen = "echo $SLURMD_NODENAME ${CUDA_VISIBLE_DEVICES-none}"
    both = hosts.run("srun", "--quiet", "--nodelist=n[1-2]", "--gpus-per-node=2", "bash", "-c", seen).splitlines()
    assert sorted(both) == ["n1 0,1", "n2 0,1"]
    each = hosts.run(
        "srun", "--quiet", "--nodelist=n1", "--ntasks=2", "--gpus-per-task=1", "bash", "-c", seen
    ).splitlines()
    assert sorted(each) == ["n1 0", "n1 1"]
    assert hosts.run("srun", "--quiet", "--nodelist=n1", "bash", "-c", seen).split() == ["n1", "none"]
    said = hosts.run("sbatch", "--gpus-per-node=3", "--wrap=true", check=False)
    assert "Requested node configuration is not available" in said


@pytest.fixture
def accounting(hosts: Slurm) -> Slurm:
    if "slurmdbd" not in read_record(Folder(hosts.folder)):
        pytest.skip("slurmdbd or mariadb-server not found; slurm/dev-cluster install --accounting")
    return hosts


def test_ended_jobs_are_accounted(accounting: Slurm, tmp_path: Path) -> None:
    job = accounting.submit("exit 3", tmp_path, "--gpus-per-node=1")
    assert accounting.wait_job(job, 30) == "FAILED"
    question = ("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}")
    deadline = time.monotonic() + 15
    while not (said := accounting.run(*question, "--format=State,ExitCode,Account,AllocTRES")).startswith("FAILED"):
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
    assert "|3:0|hrdc|" in said
    assert "gres/gpu=1" in said


def test_slurmdbd_answers_once_it_was_restarted(accounting: Slurm) -> None:
    accounting.restart("slurmdbd")
    assert "devcluster" in accounting.run("sacctmgr", "--noheader", "show", "cluster")


def test_limits_of_an_association_and_a_qos_act(accounting: Slurm, tmp_path: Path) -> None:
    user = ["user", "where", "account=hrdc", "set"]
    accounting.run("sacctmgr", "--immediate", "modify", *user, "MaxSubmitJobs=1")
    accounting.run("sacctmgr", "--immediate", "modify", "qos", "normal", "set", "MaxWall=10", "Flags=DenyOnLimit")
    try:
        too_long = accounting.run("sbatch", "--time=11", "--wrap=true", check=False)
        first = accounting.submit("sleep 100", tmp_path, "--time=5")
        second = accounting.run("sbatch", "--time=5", "--wrap=true", check=False)
    finally:
        accounting.run("sacctmgr", "--immediate", "modify", *user, "MaxSubmitJobs=-1")
        accounting.run("sacctmgr", "--immediate", "modify", "qos", "normal", "set", "MaxWall=-1", "Flags=-1")
    accounting.run("scancel", first)
    assert "violates accounting/QOS policy" in too_long
    assert "violates accounting/QOS policy" in second


def test_a_killed_supervisor_takes_the_network_along(hosts: Slurm, tmp_path: Path) -> None:
    """Beside another cluster of the same kind, whose network is another one."""
    with new_folder() as folder:
        dev_cluster(["up", f"--dir={folder}", "--nodes=2", "--hosts"])
        slurm = Slurm(folder, clean_environment() | {"SLURM_CONF": f"{folder}/slurm.conf"})
        wire = cable(folder)
        assert wire in interfaces()
        assert cable(hosts.folder) in interfaces() - {wire}
        job = slurm.submit("setsid env --ignore-environment sleep 1000 & touch ready; wait", tmp_path)
        while not (tmp_path / "ready").exists():
            time.sleep(0.1)
        assert slurm.show(job)["JobState"] == "RUNNING"
        assert hosts.run("srun", "--quiet", "--nodelist=n2", "hostname").split() == ["n2"]
        os.kill(read_record(Folder(folder))["supervisor"][0], signal.SIGKILL)
        dev_cluster(["down", f"--dir={folder}"])
        assert traces(folder) == []
        assert wire not in interfaces()


def test_a_failed_up_takes_the_network_along(hosts: Slurm, tmp_path: Path) -> None:
    """A slurmd that ends at once, after the network was laid."""
    broken = tmp_path / "slurmd"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with new_folder() as folder:
        said = dev_cluster(
            ["up", f"--dir={folder}", "--hosts"], code=cli.FAILED, PATH=f"{tmp_path}:{os.environ['PATH']}"
        )
        assert "slurmd-n1" in said
        assert traces(folder) == []
        assert cable(folder) not in interfaces()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["link", "n9", "down"], "link: got n9, allowed are n1, n2, n3, n4"),
        (["rate", "n1", "fast"], 'illegal value for "rate": "fast"'),
        (["restart", "switch"], "restart: got switch, allowed are n1, n2, n3, n4, slurmctld"),
    ],
)
def test_what_cannot_be_done_is_said(hosts: Slurm, arguments: list[str], message: str) -> None:
    code = cli.FAILED if arguments[0] == "rate" else cli.CANNOT
    assert message in dev_cluster([*arguments, f"--dir={hosts.folder}"], code=code)
