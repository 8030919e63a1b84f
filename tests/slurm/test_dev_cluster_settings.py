"""What slurm/dev-cluster refuses, and the slurm.conf that it writes; needs no SLURM."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from devcluster import cli, network, packages, settings
from devcluster.conf import Place, gres_conf, slurm_conf
from devcluster.settings import Folder, Settings, free_ports


def conf(**chosen: Any) -> str:
    made = Settings(**chosen)
    place = Place(
        host="login", user="ada", memory_mb=2_000, address="10.0.0.254", port=20_000, accounting_port=19_999,
        node_addresses=[f"10.0.0.{number}" for number in range(1, made.nodes + 1)],
        node_ports=range(20_001, 20_001 + made.nodes),
    )  # fmt: skip
    return slurm_conf(made, Folder(Path("/run/c")), place)


def test_every_node_has_its_port_and_what_was_asked_for() -> None:
    nodes = re.findall(r"NodeName=(\w+) .* Port=(\d+) CPUs=(\d+) .* RealMemory=(\d+)", conf(nodes=3, cpus=16))
    assert nodes == [("n1", "20001", "16", "2000"), ("n2", "20002", "16", "2000"), ("n3", "20003", "16", "2000")]


def test_all_that_a_cluster_writes_lies_in_its_folder() -> None:
    paths = [
        line.split("=", 1)[1] for line in conf().splitlines() if re.match(r"(AuthInfo|\w+(Location|Dir|File))=", line)
    ]
    assert len(paths) == 5
    assert [path for path in paths if not path.removeprefix("socket=").startswith("/run/c/")] == []


def test_nodes_of_the_hosts_form_have_names_and_addresses() -> None:
    nodes = re.findall(r"NodeName=(\w+) NodeHostname=(\w+) NodeAddr=(\S+)", conf(nodes=2, hosts=True))
    assert nodes == [("n1", "n1", "10.0.0.1"), ("n2", "n2", "10.0.0.2")]
    assert "SlurmctldHost=login(10.0.0.254)" in conf(hosts=True)


def test_a_nodes_silence_is_noticed_after_what_was_asked_for() -> None:
    """A message's own time-out is part of the wait, and no shorter than a busy machine needs."""
    for asked, message in ((120, 10), (10, 5), (5, 3)):
        assert f"\nSlurmdTimeout={asked}\n" in conf(node_timeout_s=asked)
        assert f"\nMessageTimeout={message}\n" in conf(node_timeout_s=asked)


@pytest.mark.parametrize(("gpus", "files"), [(1, "nvidia0"), (3, "nvidia[0-2]")])
def test_every_node_has_its_gpus(gpus: int, files: str) -> None:
    text = gres_conf(Settings(nodes=2, gpus=gpus), Folder(Path("/run/c")))
    assert text == f"AutoDetect=off\nNodeName=n1,n2 Name=gpu File=/run/c/gpus/{files}\n"
    assert len(re.findall(rf"^NodeName=.* Gres=gpu:{gpus} ", conf(gpus=gpus), re.MULTILINE)) == 2
    assert "Gres" not in conf()


def test_the_machines_own_line_about_its_name_does_not_reach_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's /etc/hosts gives the machine's name a loopback address, at which no node reaches it."""
    own = tmp_path / "hosts"
    own.write_text("127.0.0.1 localhost\n127.0.1.1 login.example.org login\n")
    monkeypatch.setattr(network, "MACHINES_HOSTS", own)
    text = network.hosts_file(network.Subnet("198.18.7"), ["n1", "n2"], "login")
    assert text == "198.18.7.254 login\n198.18.7.1 n1\n198.18.7.2 n2\n127.0.0.1 localhost\n"


def test_urgent_preempts_gpu_with_grace() -> None:
    gpu, urgent = (line for line in conf(grace_s=7).splitlines() if line.startswith("PartitionName="))
    assert "PartitionName=gpu " in gpu
    assert " Default=YES " in gpu
    assert " PreemptMode=REQUEUE GraceTime=7 " in gpu
    tiers = [int(re.search(r"PriorityTier=(\d+)", line)[1]) for line in (gpu, urgent)]  # type: ignore[index]  # always there
    assert tiers[0] < tiers[1]


def test_ports_are_distinct_and_outside_the_range_that_the_kernel_picks_from() -> None:
    ports = free_ports(50)
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 50
    assert max(ports) < low


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "--nodes=0"], "nodes: got 0, allowed are 1 to 64"),
        (["up", "--cpus=0"], "cpus: got 0, allowed are 1 to 1024"),
        (["up", "--grace=-1"], "grace_s: got -1, allowed are 0 to 3600"),
        (["up", "--node-timeout=1"], "node_timeout_s: got 1, allowed are 5 to 3600"),
        (["up", "--gpus=-1"], "gpus: got -1, allowed are 0 to 64"),
        (["up", "--dir=/tmp/a b"], "holds a space"),
        (["up", f"--dir=/tmp/{'x' * 100}"], "characters too long for a socket"),
        (["run"], "write it behind --"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == cli.CANNOT
    assert message in capsys.readouterr().err


def test_a_folder_with_something_in_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "find", lambda program: program)
    monkeypatch.setattr(settings.Folder, "check", lambda _: None)  # pytest's folders may be too long
    (tmp_path / "thesis.tex").touch()
    assert cli.main(["up", f"--dir={tmp_path}"]) == cli.CANNOT
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(packages, "find", lambda program: None if program == "munged" else program)
    assert cli.main(["up"]) == cli.CANNOT
    assert (
        "munged not found; on Debian and Ubuntu: dev-cluster install, which does"
        " apt-get update && apt-get install -y munge\n" in capsys.readouterr().err
    )


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with Debian's apt-get, and without iproute2 until that was called; the folder has what it did."""
    (tmp_path / "apt-get").write_text(
        f"#!/bin/sh\ncd {tmp_path}\n[ -x policy-rc.d ] && echo $* >> quiet\n"
        "case $* in *iproute2*) for name in ip tc; do cp /bin/true $name; done;; esac\n"
    )
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(packages, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(packages, "find", lambda name: str(tmp_path) if name not in ("ip", "tc") else which(name))

    def which(name: str) -> str | None:
        return shutil.which(name, path=str(tmp_path))

    return tmp_path


def test_install_asks_for_what_lacks_and_lets_no_service_start(
    lacking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert cli.main(["install", "--hosts"]) == 0
    assert (lacking / "quiet").read_text() == "-qq update\n-qq install -y --no-install-recommends iproute2\n"
    assert not (lacking / "policy-rc.d").exists()
    assert "missing: ip, tc" in (said := capsys.readouterr().out)
    assert "installed iproute2; started none of their services" in said
    assert cli.main(["install", "--hosts"]) == 0
    assert capsys.readouterr().out == "nothing is missing\n"


def test_install_without_root_or_apt_says_what_to_do(
    lacking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main(["install", "--hosts"]) == cli.CANNOT
    typed = "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends iproute2'"
    assert typed in capsys.readouterr().err
    (lacking / "apt-get").unlink()
    monkeypatch.setenv("PATH", str(lacking))
    assert cli.main(["install", "--hosts"]) == cli.CANNOT
    assert "no apt-get on this machine; install what has ip, tc" in capsys.readouterr().err


def test_hosts_without_root_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(packages, "find", lambda program: program)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main(["up", "--hosts", "--dir=/tmp/hrdc-never-made"]) == cli.CANNOT
    assert "--hosts: needs root" in capsys.readouterr().err
    assert not Path("/tmp/hrdc-never-made").exists()
